"""Label files that are easily mistaken for others: each is refused, with the remedy."""

import numpy as np
import pytest
from PIL import Image

from diga_hpc.errors import UserError
from helpers.miniature_parts import blocks, colored, grey, indexed
from helpers.miniatures import MINIATURES, listed, write

# Of each kind a miniature whose labels are single files that can be replaced.
LABELLED = [name for name in MINIATURES if name not in ("camvid_colors", "wilddash")]
# Read from a first channel, or by colour.
CHANNELS = ("synthia", "urbansyn", "camvid")


def first(name, root, text=None):
    """The listing of the first labelled split, and the label file of its first image."""
    write(name, root)
    miniature = MINIATURES[name]
    listing = listed(text or next(iter(miniature.labelled.values())), root, miniature.space)
    return listing, listing.files[0].label


@pytest.mark.parametrize("name", [n for n in LABELLED if n not in CHANNELS])
def test_colours_in_place_of_ids(name, tmp_path):
    listing, path = first(name, tmp_path)
    colored(path, np.asarray(Image.open(path)) % 19)
    with pytest.raises(UserError, match="(?s)channel"):
        listing.read_label(path)


@pytest.mark.parametrize("name", LABELLED)
def test_truncated_labels(name, tmp_path):
    listing, path = first(name, tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=path.name):
        listing.read_label(path)


@pytest.mark.parametrize("name", ["cityscapes", "acdc", "foggy_cityscapes", "synscapes", "gta5"])
def test_train_ids_under_a_map_of_ids(name, tmp_path):
    listing, path = first(name, tmp_path)
    ids = blocks((45, 67), [*range(19), 255], 0)
    grey(path, ids)
    with pytest.raises(UserError, match="look like train ids; set `label_ids: train_ids`"):
        listing.read_label(path)


@pytest.mark.parametrize("name", ["cityscapes_train_ids", "acdc_flat"])
def test_cityscapes_ids_as_train_ids(name, tmp_path):
    listing, path = first(name, tmp_path)
    grey(path, blocks((45, 67), range(34), 0))
    with pytest.raises(UserError, match="look like Cityscapes ids: set `label_ids: cityscapes`"):
        listing.read_label(path)


@pytest.mark.parametrize("name", [n for n in LABELLED if n != "camvid"])
def test_palettes_that_were_numbered_anew(name, tmp_path):
    """An image editor keeps the colours, and numbers those of a picture in another order."""
    listing, path = first(name, tmp_path)
    space, table = listing.space, listing.table
    classes = [i for i in listing.section.table(space) if i < space.num_classes]
    ids = [int(np.flatnonzero(table == c)[0]) for c in sorted({*classes})][:6]
    colors = dict(zip(reversed(ids), space.palette, strict=False))
    indexed(path, blocks((45, 67), ids, 0), colors)
    with pytest.raises(UserError, match="numbered anew, as image editors do"):
        listing.read_label(path)


@pytest.mark.parametrize("name", LABELLED)
def test_ids_that_the_data_set_does_not_define(name, tmp_path):
    listing, path = first(name, tmp_path)
    grey(path, np.full((45, 67), 251))
    with pytest.raises(UserError, match="unknown label id 251; known are 0") as error:
        listing.read_label(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cityscapes", "cityscapes_train_ids", "foggy_cityscapes"])
def test_labels_without_the_hood_of_the_car(name, tmp_path):
    listing, _ = first(name, tmp_path)
    counts = np.zeros(256, np.int64)
    classes = list(listing.section.class_ids())
    counts[classes] = 9
    text = listing.section.suspicion(counts, listing.space)
    assert "every frame shows the hood of the car" in text
    counts[1 if "train_ids" not in name else 255] = 1
    assert listing.section.suspicion(counts, listing.space) is None
