"""SYNTHIA: its folders, and the list of files that are kept."""

from diga_hpc.datasets.files import LeftOut
from diga_hpc.datasets.synthetic.synthia import Synthia
from helpers.image_files import left_out_of


def test_images_and_labels(tmp_path):
    for name in ("RGB/0000000.png", "RGB/0000001.jpg", "RGB/.0000001.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    labels = tmp_path / "GT/LABELS"
    files = Synthia(kind="synthia").files(tmp_path, LeftOut())
    assert [(f.image.name, f.label) for f in files] == [
        ("0000000.png", labels / "0000000.png"),
        ("0000001.jpg", labels / "0000001.png"),
    ]
    (tmp_path / "kept.txt").write_text("RGB/0000001.png GT/LABELS/0000001.png\n")
    section = Synthia(kind="synthia", index="kept.txt")
    assert [f.name for f in section.files(tmp_path, LeftOut())] == ["0000001"]
    assert left_out_of(section, tmp_path) == {
        "hidden files and folders": 1,
        "images that kept.txt does not name": 1,
    }
