"""Scores against cityscapesScripts, torchmetrics and the formula of mmsegmentation."""

import math
import types

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as cityscapes
from cityscapesscripts.helpers.labels import name2label
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from diga_hpc.datasets.label_spaces import CITYSCAPES_CLASSES, IGNORE, SPACES, LabelSpace
from diga_hpc.errors import UserError
from diga_hpc.method.scores import ConfusionMatrix, scores

VOID = 3  # a Cityscapes id that is ignored
THIRTEEN = tuple(name for name in CITYSCAPES_CLASSES if name not in ("wall", "fence", "pole"))[:13]
LABEL_SPACES = {
    19: SPACES["cityscapes"],
    16: SPACES["synthia"],
    13: LabelSpace("thirteen", THIRTEEN, ((0, 0, 0),) * 13, {"miou_5": (0, 2, 3, 7, 12)}),
}
ABSENT = 4  # the class that some cases leave out


def noise(rng, classes):
    """Random truth and prediction uint8 [2,7,11]; every class but few pixels."""
    return rng.integers(0, classes, (2, 2, 7, 11)).astype(np.uint8)


def replaced(labels, old, new):
    return np.where(labels == old, np.uint8(new), labels)


def constructed(kind, classes):
    """Truth and prediction of a case."""
    rng = np.random.default_rng(classes)
    truth, predicted = noise(rng, classes)
    if kind == "absent":
        return replaced(truth, ABSENT, 0), replaced(predicted, ABSENT, 1)
    if kind == "only predicted":
        return replaced(truth, ABSENT, 0), predicted
    if kind == "only in the truth":
        return truth, replaced(predicted, ABSENT, 1)
    if kind == "ignored parts":
        return np.where(rng.random(truth.shape) < 0.4, np.uint8(IGNORE), truth), predicted
    if kind == "predicted on ignored pixels only":
        truth = replaced(truth, ABSENT, 0)
        return np.where(predicted == ABSENT, np.uint8(IGNORE), truth), predicted
    if kind.startswith("one pixel"):
        alone = np.full_like(truth, IGNORE)
        alone[1, 3, 5] = predicted[1, 3, 5] if kind.endswith("right") else predicted[1, 3, 5] ^ 1
        return alone, predicted
    if kind == "all right":
        return truth, truth
    if kind == "all wrong":
        return truth, ((truth + 1) % classes).astype(np.uint8)
    return truth, predicted


KINDS = (
    "noise",
    "absent",
    "only predicted",
    "only in the truth",
    "ignored parts",
    "predicted on ignored pixels only",
    "one pixel right",
    "one pixel wrong",
    "all right",
    "all wrong",
)


def product(truth, predicted, space):
    matrix = ConfusionMatrix(space.num_classes, torch.device("cpu"))
    for t, p in zip(truth, predicted, strict=True):
        matrix.add(torch.from_numpy(t), torch.from_numpy(p))
    return scores(matrix.counts, space)


def of_cityscapes(truth, predicted, space, folder):
    """IoU of each class in percent, NaN for none, by the published script from PNG files."""
    ids = np.full(256, VOID, np.uint8)
    ids[: space.num_classes] = [name2label[name].id for name in space.classes]
    options = types.SimpleNamespace(evalInstLevelScore=False, evalPixelAccuracy=False)
    matrix = cityscapes.generateMatrix(options)
    for i, pair in enumerate(zip(predicted, truth, strict=True)):
        files = [str(folder / f"{name}_{i}.png") for name in ("predicted", "truth")]
        for file, labels in zip(files, pair, strict=True):
            Image.fromarray(ids[labels]).save(file)
        cityscapes.evaluatePair(*files, matrix, {}, {}, options)
    return {
        name: 100 * cityscapes.getIouScoreForLabel(name2label[name].id, matrix, options)
        for name in space.classes
    }


def of_mmsegmentation(truth, predicted, classes):
    """IoU of each class in percent: areas over the pixels that are not ignored."""
    kept = truth != IGNORE

    def areas(labels):
        return np.bincount(labels, minlength=classes)[:classes]

    truth, predicted = truth[kept], predicted[kept]
    intersect = areas(truth[truth == predicted])
    with np.errstate(invalid="ignore"):
        return 100 * intersect / (areas(truth) + areas(predicted) - intersect)


@pytest.mark.parametrize("classes", LABEL_SPACES)
@pytest.mark.parametrize("kind", KINDS)
def test_iou_and_its_means_are_those_of_the_field(kind, classes, tmp_path):
    space = LABEL_SPACES[classes]
    truth, predicted = constructed(kind, classes)
    row = product(truth, predicted, space)
    found = [math.nan if iou is None else iou for iou in row["iou"].values()]
    # cityscapesScripts
    per_class = of_cityscapes(truth, predicted, space, tmp_path)
    assert found == pytest.approx(list(per_class.values()), abs=1e-3, nan_ok=True)
    assert row["miou"] == pytest.approx(cityscapes.getScoreAverage(per_class, None), abs=1e-3)
    for protocol, members in space.protocols.items():
        chosen = {name: per_class[name] for name in (space.classes[i] for i in members)}
        mean = cityscapes.getScoreAverage(chosen, None)
        assert row[protocol] == (None if math.isnan(mean) else pytest.approx(mean, abs=1e-3))
    # mmsegmentation
    iou = of_mmsegmentation(truth, predicted, classes)
    assert found == pytest.approx(iou.tolist(), abs=1e-3, nan_ok=True)
    assert row["miou"] == pytest.approx(np.nanmean(iou), abs=1e-3)
    # torchmetrics
    labels = torch.from_numpy(predicted), torch.from_numpy(truth).long()
    mean = MulticlassJaccardIndex(classes, ignore_index=IGNORE)(*labels)
    assert row["miou"] == pytest.approx(100 * float(mean), abs=1e-3)
    each = MulticlassJaccardIndex(classes, average="none", ignore_index=IGNORE)(*labels)
    # It gives 0 for a class in neither truth nor prediction, and leaves it out of the mean.
    assert np.nan_to_num(found) == pytest.approx(100 * each.numpy(), abs=1e-3)


def test_a_class_that_is_only_predicted_counts_with_zero():
    """44.444, 100 and 0 percent: the example of the definition."""
    truth = np.zeros((1, 10, 10), np.uint8)
    truth[0, 9] = 1
    predicted = np.zeros_like(truth)
    predicted[0, :5], predicted[0, 9] = 2, 1
    row = product(truth, predicted, LabelSpace("x", ("a", "b", "c"), ((0, 0, 0),) * 3))
    assert row["iou"] == {"a": 44.444, "b": 100.0, "c": 0.0}
    assert row["miou"] == 48.148 and row["miou_present"] == 72.222
    assert row["pixel_accuracy"] == 50.0


def test_nothing_labelled_is_null_and_not_zero():
    space = SPACES["synthia"]
    row = product(*np.full((2, 1, 3, 5), IGNORE, np.uint8) * [[[[1]]], [[[0]]]], space)
    assert [row[key] for key in ("miou", "miou_present", "miou_13", "pixel_accuracy")] == [None] * 4
    assert set(row["iou"].values()) == {None}


def test_a_protocol_without_any_of_its_classes_is_null():
    row = product(
        *np.ones((2, 1, 3, 5), np.uint8),
        LabelSpace("x", ("a", "b"), ((0, 0, 0),) * 2, {"miou_1": (0,)}),
    )
    assert row["miou"] == 100.0 and row["miou_1"] is None


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(UserError, match="the classes 0 and 1 are both named 'a'"):
        LabelSpace("x", ("a", "a", "b"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))


def test_large_images_are_counted_in_parts(monkeypatch):
    """As at once: of images whose size is no multiple of a part."""
    rng = torch.Generator().manual_seed(0)
    truth, guess = (torch.randint(0, 4, (23, 31), generator=rng, dtype=torch.uint8) for _ in "ab")
    truth[truth == 3] = 255
    counts = []
    for part in (1, 7, 10**6):
        monkeypatch.setattr("diga_hpc.method.scores.PART", part)
        matrix = ConfusionMatrix(3, torch.device("cpu"))
        matrix.add(truth, guess.clamp(max=2))
        counts.append(matrix.counts.tolist())
    assert counts[0] == counts[1] == counts[2]
    assert sum(map(sum, counts[0])) == int((truth != 255).sum())
