"""Opened data sets: what can be trained on, and errors that name the folder or file at fault."""

import numpy as np
import pytest
import torch
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.base import FileDataset, Files, ReaderDataset
from diga_hpc.datasets.label_tables import identity_table
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from diga_hpc.loading.dataset import Dataset, Sample, WithoutLabels, WithPseudoLabels
from helpers.image_files import config_with, write_ids, write_image
from helpers.png import RGB, write_png

GTA5 = "{kind: gta5}"


class TestFolders:
    def test_a_root_that_is_not_there(self, tiny_yaml, tmp_path):
        missing = config_with(tiny_yaml, GTA5, "cityscapes", tmp_path / "absent")
        with pytest.raises(
            UserError, match=r"absent: no such folder \(`data.source.root` or `data"
        ):
            datasets.open_source(missing)

    def test_no_root(self, tiny_yaml):
        config = config_with(tiny_yaml, GTA5, "cityscapes", "")
        with pytest.raises(
            UserError, match=r"`data.validation.root` and `data.root` are empty: name"
        ):
            datasets.open_validation(config)

    def test_a_folder_of_the_data_set_that_is_not_there(self, tiny_yaml, tmp_path):
        config = config_with(tiny_yaml, GTA5, "cityscapes", tmp_path)
        with pytest.raises(UserError, match="images: no such folder"):
            datasets.open_source(config)
        (tmp_path / "images").mkdir()
        with pytest.raises(UserError, match="no images found for `data.source`"):
            datasets.open_source(config)

    def test_two_images_of_one_name(self, tiny_yaml, tmp_path):
        write_image(tmp_path / "images/a/b.png")
        write_image(tmp_path / "images/a_b.png")
        config = config_with(tiny_yaml, GTA5, "cityscapes", tmp_path, "data.target={kind: folder}")
        with pytest.raises(
            UserError, match="two images of `data.target` have the name 'a_b'; rename"
        ):
            datasets.open_target(config)


class TestLabels:
    @pytest.fixture
    def config(self, tiny_yaml, tmp_path):
        write_image(tmp_path / "images/1.png", size=(60, 90))
        write_ids(tmp_path / "labels/1.png", np.full((60, 90), 7))
        target = "data.target={kind: gta5}"
        return config_with(tiny_yaml, GTA5, "cityscapes", tmp_path, target)

    def test_a_label_of_another_size(self, config, tmp_path):
        write_ids(tmp_path / "labels/1.png", np.full((60, 80), 7))
        with pytest.raises(UserError, match="label is 60x80, but its image 1.png is 60x90"):
            datasets.open_source(config).load(0)

    @pytest.mark.parametrize("upright", [True, False])
    def test_an_orientation_that_swaps_the_sides(self, tiny_yaml, tmp_path, upright):
        """Labels drawn on the other rule have the swapped size: the error names the key."""
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir()
        Image.fromarray(pixels).save(tmp_path / "images/1.png", exif=exif)
        section = f"{{kind: gta5, exif_orientation: {str(upright).lower()}}}"
        config = config_with(tiny_yaml, section, "cityscapes", tmp_path)
        fitting, other = ((9, 6), (6, 9)) if upright else ((6, 9), (9, 6))
        write_ids(tmp_path / "labels/1.png", np.full(other, 7))
        expected = r"\(the EXIF orientation 6 was applied to the image" if upright else "was not ap"
        with pytest.raises(UserError, match=expected) as error:
            datasets.open_source(config).load(0)
        assert f"set `exif_orientation: {str(not upright).lower()}`" in str(error.value)
        write_ids(tmp_path / "labels/1.png", np.full(fitting, 7))
        shown = np.rot90(pixels, -1) if upright else pixels
        image = datasets.open_source(config).load(0).image
        assert np.array_equal(image.permute(1, 2, 0).numpy(), shown)

    def test_labels_drawn_on_an_image_upside_down(self, tiny_yaml, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 3
        ids = np.arange(54, dtype=np.uint8).reshape(6, 9) % 19
        (tmp_path / "images").mkdir()
        stored = np.repeat(ids[::-1, ::-1, None], 3, 2)
        Image.fromarray(stored).save(tmp_path / "images/1.png", exif=exif)
        write_ids(tmp_path / "labels/1.png", ids)
        section = "{kind: folder, labels: labels}"
        sample = datasets.open_source(config_with(tiny_yaml, section, "cityscapes", tmp_path)).load(
            0
        )
        assert torch.equal(sample.image[0], sample.label)

    def test_bits_of_a_camera(self, tiny_yaml, tmp_path):
        values = np.random.default_rng(0).integers(0, 1 << 12, (6, 9, 3))
        write_png(tmp_path / "images/1.png", values, 16, RGB)
        write_ids(tmp_path / "labels/1.png", np.full((6, 9), 7))
        section = "{kind: gta5, image_bits: 12}"
        config = config_with(tiny_yaml, section, "cityscapes", tmp_path)
        image = datasets.open_source(config).load(0).image
        assert np.array_equal(image.permute(1, 2, 0).numpy(), values >> 4)

    def test_an_error_of_the_table_names_the_section(self, tiny_yaml, tmp_path):
        write_image(tmp_path / "images/1.png")
        write_ids(tmp_path / "labels/1.png", np.full((6, 9), 7))
        config = config_with(tiny_yaml, GTA5, "camvid", tmp_path)
        with pytest.raises(UserError, match=r"^`data.validation`: `label_space` is 'camvid', but"):
            datasets.open_validation(config)

    def test_a_target_needs_no_classes_of_the_label_space(self, tiny_yaml, tmp_path):
        """Its labels are never read, so names that it does not know are no error."""
        write_image(tmp_path / "images/1.png")
        write_ids(tmp_path / "labels/1.png", np.zeros((6, 9)))
        config = config_with(
            tiny_yaml,
            "{kind: folder, labels: labels}",
            "camvid",
            tmp_path,
            "data.target={kind: gta5}",
        )
        assert len(datasets.open_target(config)) == 1

    def test_labels_alone(self, config):
        assert datasets.open_source(config).label(0).unique().tolist() == [0]

    def test_those_of_the_target_are_never_read(self, config, tmp_path):
        (tmp_path / "labels/1.png").write_text("not even a picture")
        target = datasets.open_target(config)
        assert target.load(0).label is None and target.label(0) is None
        assert target.load(0).image.shape == (3, 60, 90)

    def test_pseudo_labels_are_class_indices_at_a_size_of_their_own(self, config, tmp_path):
        write_ids(tmp_path / "pseudo/1.png", np.full((30, 45), 18))
        labelled = WithPseudoLabels(datasets.open_target(config), tmp_path / "pseudo", 19)
        assert labelled.load(0).label.shape == (30, 45)
        assert labelled.label(0).unique().tolist() == [18]

    def test_no_target(self, config, tiny_yaml, tmp_path):
        without = config_with(tiny_yaml, GTA5, "cityscapes", tmp_path)
        assert datasets.open_target(without) is None


class TestSizes:
    @pytest.mark.parametrize(
        ("keys", "full", "half"),
        [
            ("", (60, 91), (30, 45)),
            ("size: [40, 61]", (40, 61), (20, 30)),
            ("size: [40, 60], half_size: [20, 31]", (40, 60), (20, 31)),
            # 60x91 is not 4:5, nor 1:2, nor upright: it keeps its aspect ratio, at the same area.
            ("size: [40, 50]", (36, 55), (18, 27)),
            ("half_size: [10, 20]", (60, 91), (11, 17)),
            ("size: [50, 40]", (36, 55), (18, 27)),
        ],
    )
    def test_full_and_half_size(self, tiny_yaml, tmp_path, keys, full, half):
        write_image(tmp_path / "images/1.png", size=(60, 91))
        write_ids(tmp_path / "labels/1.png", np.full((60, 91), 7))
        section = f"{{kind: gta5, {keys}}}"
        dataset = datasets.open_source(config_with(tiny_yaml, section, "cityscapes", tmp_path))
        image = dataset.load(0).image
        assert image.shape == (3, 60, 91)
        assert datasets.full_size(dataset, image) == full
        assert datasets.half_size(dataset, image) == half


class TestGenerated:
    def test_scenes_depend_on_the_seed_alone(self, tiny_yaml):
        config = configuration.load(tiny_yaml)
        first, again = (datasets.open_source(config).load(2) for _ in range(2))
        assert torch.equal(first.image, again.image) and torch.equal(first.label, again.label)
        other = datasets.open_source(configuration.load(tiny_yaml, ["seed=1"])).load(2)
        assert not torch.equal(first.image, other.image)

    def test_another_label_space(self, tiny_yaml):
        config = configuration.load(tiny_yaml, ["label_space=camvid"])
        with pytest.raises(
            UserError, match=r"`data.source.kind` = 'streets' needs `label_space: st"
        ):
            datasets.open_source(config)


# -------------------------------------------------------------- classes from outside of the package


class Rows:
    """Images made of their index; it has the methods of `Dataset` and no base class."""

    size = None
    half_size = (4, 4)

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"row_{index}"

    def load(self, index: int) -> Sample:
        image = torch.full((3, 8, 8), index, dtype=torch.uint8)
        return Sample(image, self.label(index), self.name(index))

    def label(self, index: int) -> torch.Tensor:
        return torch.full((8, 8), index % 2, dtype=torch.uint8)


class Table(ReaderDataset):
    """Its section; `open` gives the reader."""

    count: int = 3

    def open(self, root, space, seed) -> Dataset:
        if space.num_classes < 2:
            raise UserError("never so here")
        return Rows(self.count)


class Numbers(FileDataset):
    """Labels in a format of their own: text files of numbers."""

    def files(self, root, left_out):
        return [Files("one", root / "one.png", root / "one.txt")]

    def table(self, space):
        return identity_table(space.num_classes)

    def decode(self, path):
        return np.loadtxt(path, dtype=np.uint8)


class TestFromOutside:
    def test_a_reader_of_its_own(self, tiny_yaml, monkeypatch):
        monkeypatch.setitem(DATASETS, "table", Table)
        config = configuration.load(
            tiny_yaml, ["data.source={kind: table, count: 5}", "data.target={kind: table}"]
        )
        source, target = datasets.open_source(config), datasets.open_target(config)
        assert isinstance(source, Rows) and len(source) == 5 and len(target) == 3
        sample = source.load(1)
        assert (sample.name, sample.label.unique().tolist()) == ("row_1", [1])
        # What the package does with a data set needs its methods only.
        assert datasets.full_size(source, sample.image) == (8, 8)
        assert datasets.half_size(source, sample.image) == (4, 4)
        assert isinstance(target, WithoutLabels) and target.load(1).label is None
        assert target.half_size == (4, 4)

    def test_a_label_format_of_its_own(self, tiny_yaml, tmp_path, monkeypatch):
        monkeypatch.setitem(DATASETS, "numbers", Numbers)
        write_image(tmp_path / "one.png", size=(2, 3))
        (tmp_path / "one.txt").write_text("0 1 2\n3 4 5\n")
        config = config_with(tiny_yaml, "{kind: numbers}", "streets", tmp_path)
        dataset = datasets.open_source(config)
        assert dataset.load(0).label.tolist() == [[0, 1, 2], [3, 4, 5]]
        (tmp_path / "one.txt").write_text("0 1 2\n3 4 77\n")
        with pytest.raises(UserError, match=r"one.txt: unknown label id 77; known are 0..8, 255"):
            dataset.label(0)
