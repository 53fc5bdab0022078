"""Cityscapes: its folders by split and city, subsets by an index file."""

from diga_hpc.datasets.cityscapes import Cityscapes
from diga_hpc.loading import dataset as datasets
from helpers.image_files import ALL_IDS, config_with, write_ids, write_image


def write(root, split="train"):
    for city in ("bochum", "aachen"):
        write_image(root / f"leftImg8bit/{split}/{city}/{city}_000_leftImg8bit.png")
        write_ids(root / f"gtFine/{split}/{city}/{city}_000_gtFine_labelIds.png", ALL_IDS)


def test_images_of_all_cities_with_their_labels(tiny_yaml, tmp_path):
    write(tmp_path)
    config = config_with(tiny_yaml, "{kind: cityscapes}", "cityscapes", tmp_path)
    dataset = datasets.open_source(config)
    assert [dataset.name(i) for i in range(len(dataset))] == ["aachen_000", "bochum_000"]
    assert dataset.load(1).label is not None


def test_an_index_chooses_a_subset(tiny_yaml, tmp_path):
    write(tmp_path)
    (tmp_path / "subset.txt").write_text("bochum/bochum_000_leftImg8bit.png\n")
    section = "{kind: cityscapes, index: subset.txt}"
    dataset = datasets.open_source(config_with(tiny_yaml, section, "cityscapes", tmp_path))
    assert [dataset.name(i) for i in range(len(dataset))] == ["bochum_000"]


def test_the_split_chooses_the_folders(tmp_path):
    write(tmp_path, "val")
    files = Cityscapes(kind="cityscapes", split="val").files(tmp_path)
    assert [entry.name for entry in files] == ["aachen_000", "bochum_000"]
    assert all(entry.label.is_file() for entry in files)
    assert Cityscapes(kind="cityscapes").files(tmp_path) == []
