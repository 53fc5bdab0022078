"""Picture files: images and labels read, label PNGs and overlays written."""

import errno

import numpy as np
import pytest
import torch
from PIL import Image

from diga_hpc.datasets.label_spaces import SPACES
from diga_hpc.datasets.label_tables import identity_table
from diga_hpc.errors import MachineError, UserError
from diga_hpc.loading import pictures
from helpers.image_files import write_ids, write_image

SPACE = SPACES["streets"]
TABLE = identity_table(SPACE.num_classes)


def read(path):
    return pictures.read_label(path, TABLE) if "label" in path.name else pictures.read_image(path)


def message(path) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path.parent}/")


@pytest.fixture
def image(tmp_path):
    write_image(tmp_path / "image.png", size=(60, 90))
    return tmp_path / "image.png"


@pytest.fixture
def label(tmp_path):
    ids = np.random.default_rng(0).integers(0, SPACE.num_classes, (60, 90))
    write_ids(tmp_path / "label.png", ids)
    return tmp_path / "label.png"


@pytest.fixture(params=["image", "label"])
def either(request):
    return request.getfixturevalue(request.param)


class TestUnreadable:
    def test_missing(self, either):
        either.unlink()
        assert message(either).startswith(f"{either.name}: not a readable {either.stem}")

    def test_truncated(self, either):
        either.write_bytes(either.read_bytes()[: either.stat().st_size // 2])
        assert message(either).startswith(f"{either.name}: not a readable {either.stem}")

    def test_no_picture(self, either):
        either.write_text("hello")
        assert message(either).startswith(f"{either.name}: not a readable {either.stem}")
        assert message(either).endswith("; replace the file")

    def test_a_disk_that_fails_is_no_broken_file(self, image, monkeypatch):
        def fail(*_):
            raise OSError(errno.EIO, "Input/output error", str(image))

        monkeypatch.setattr(pictures.Image, "open", fail)
        with pytest.raises(MachineError, match="have the disk or file server checked"):
            pictures.read_image(image)


class TestImages:
    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
    def test_all_modes_become_rgb(self, tmp_path, mode):
        path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
        Image.new("RGB", (5, 4), (204, 204, 204)).convert(mode).save(path)
        got = pictures.read_image(path)
        assert got.shape == (3, 4, 5) and got.dtype == torch.uint8
        assert (got.float() - 204).abs().max() <= 3


class TestLabels:
    def test_a_palette_gives_its_indices(self, tmp_path):
        ids = write_ids(tmp_path / "label.png", np.eye(4, 5), "P")
        assert Image.open(tmp_path / "label.png").mode == "P"
        assert pictures.read_label(tmp_path / "label.png", TABLE).tolist() == ids.tolist()

    def test_unknown_ids(self, label):
        write_ids(label, np.array([[0, 100], [77, 255]]))
        assert message(label) == (
            "label.png: unknown label id 77, 100; known are 0..8, 255; replace the file"
        )

    def test_many_unknown_ids_are_not_all_listed(self, label):
        write_ids(label, np.arange(100, 120)[None])
        assert "unknown label id 100, 101, 102, 103, 104; known" in message(label)

    def test_three_channels(self, label):
        write_image(label, size=(60, 90))
        assert "labels must be an 8-bit PNG of one channel, found RGB (60, 90, 3)" in message(label)


class TestWriting:
    def test_labels_read_back_equal_and_show_the_classes(self, tmp_path):
        labels = torch.arange(SPACE.num_classes, dtype=torch.uint8)[None]
        pictures.write_labels(tmp_path / "label.png", labels, SPACE)
        assert pictures.read_label(tmp_path / "label.png", TABLE).tolist() == labels.tolist()
        shown = pictures.read_image(tmp_path / "label.png")[:, 0]
        assert shown.T.tolist() == [list(color) for color in SPACE.palette]

    def test_an_error_leaves_no_file(self, tmp_path, monkeypatch):
        def fail(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", fail)
        with pytest.raises(OSError, match="No space left"):
            pictures.write_picture(tmp_path / "picture.png", Image.new("RGB", (2, 2)))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("name", "kind"), [("p.png", "PNG"), ("p.jpg", "JPEG")])
    def test_the_suffix_says_the_format(self, tmp_path, name, kind):
        image = torch.zeros(3, 4, 5, dtype=torch.uint8)
        pictures.write_picture(tmp_path / name, pictures.to_picture(image))
        with Image.open(tmp_path / name) as picture:
            assert picture.format == kind and picture.size == (5, 4)

    def test_an_overlay_blends_the_class_colours(self):
        image = torch.full((3, 1, 2), 100, dtype=torch.uint8)
        labels = torch.tensor([[0, 255]], dtype=torch.uint8)
        mixed = np.asarray(pictures.overlay(image, labels, SPACE))[0]
        share = pictures.OVERLAY_OPACITY
        expected = [round(100 + share * (c - 100)) for c in SPACE.palette[0]]
        # Pixels without a label are darkened: their colour is black.
        assert mixed.tolist() == [expected, [round(100 - share * 100)] * 3]
