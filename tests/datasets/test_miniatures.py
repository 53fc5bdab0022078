"""Every data set in miniature: what is read equals the truth; what lies beside it is not read."""

import numpy as np
import pytest

from diga_hpc.errors import UserError
from helpers.miniature_parts import mapped
from helpers.miniatures import MINIATURES, listed, write


@pytest.mark.parametrize("name", MINIATURES)
def test_labels_equal_the_truth(name, tmp_path):
    truth = write(name, tmp_path)
    miniature, read = MINIATURES[name], {}
    for text in miniature.labelled.values():
        listing = listed(text, tmp_path, miniature.space)
        for files in listing.files:
            assert files.name not in read
            read[files.name] = listing.read_label(files.label)
    expected = in_space(truth, miniature.space)
    assert sorted(read) == sorted(expected)
    for image, label in expected.items():
        np.testing.assert_array_equal(read[image], label, err_msg=f"{name}: {image}")


def in_space(truth, space):
    """Truth in the classes of a label space: SYNTHIA's lacks three of Cityscapes."""
    if space != "synthia":
        return truth
    kept = [i for i in range(19) if i not in (9, 14, 16)]
    return {n: mapped(label, {c: i for i, c in enumerate(kept)}) for n, label in truth.items()}


UNLABELLED = [(name, split) for name, m in MINIATURES.items() for split in m.unlabelled]


@pytest.mark.parametrize(("name", "split"), UNLABELLED)
def test_splits_without_labels_are_targets_only(name, split, tmp_path):
    truth = write(name, tmp_path)
    text, space = MINIATURES[name].unlabelled[split], MINIATURES[name].space
    files = listed(text, tmp_path, space, labels=False).files
    assert files and not {f.name for f in files} & set(truth)
    if name != "cityscapes":  # whose test labels are dummies
        with pytest.raises(UserError, match="has no label"):
            listed(text, tmp_path, space)
