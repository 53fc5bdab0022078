"""The check before training: every stage of the plan, every file, crops, memory estimates."""

import numpy as np
import pytest
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.results.check import check, look
from helpers.configurations import write_tiny_yaml
from helpers.finished_run import TOY, registered_stage

FOLDERS = """
run_dir: unused
label_space: camvid
data:
  root: {root}
  source: {{kind: folder, images: images, labels: labels}}
  target: {{kind: folder, images: images, labels: labels}}
  validation: {{kind: folder, images: images, labels: labels}}
model: {{weights: random}}
warm_up: {{steps: 2, crop: [32, 48], batch: {{full: 2}}}}
"""


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def files_yaml(tmp_path):
    """Three images of 48x64 with labels of four classes, which stand for all three data sets."""
    generator = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for number in range(3):
        image = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"images/{number}.png")
        label = generator.integers(0, 4, (48, 64), dtype=np.uint8)
        Image.fromarray(label).save(tmp_path / f"labels/{number}.png")
    path = tmp_path / "files.yaml"
    path.write_text(FOLDERS.format(root=tmp_path))
    return path


def stage_rows(text: str) -> dict[str, list[str]]:
    """Cells of the table of stages, by kind."""
    table = text[text.index("parameters") :]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows if row}


def test_every_stage_of_the_plan_is_listed(tiny_yaml, capsys):
    check(configuration.load(tiny_yaml, ["self_training.rounds=2"]))
    text = capsys.readouterr().out
    rows = stage_rows(text)
    assert list(rows) == ["source_only", "warm_up", "self_training"]
    assert rows["source_only"][:4] == ["3", "4", "32x48", "1.0"]
    assert rows["self_training"][0] == "4 x 2" and "no problems found" in text


def test_a_registered_stage_is_one_of_them(tmp_path, capsys):
    with registered_stage(after="warm_up", views=4):
        path = write_tiny_yaml(tmp_path)
        with path.open("a") as stream:
            stream.write("polish: {steps: 5, crop: [40, 64], batch: {full: 2}}\n")
        check(configuration.load(path))
        rows = stage_rows(capsys.readouterr().out)
        assert list(rows) == ["source_only", "warm_up", TOY, "self_training"]
        assert rows[TOY][:3] == ["5", "2", "40x64"]
        config = configuration.load(path, ["polish.crop=[64,64]"])
        with pytest.raises(UserError, match=r"`polish.crop` \[64, 64\] is larger"):
            check(config)


def test_files_are_counted_and_measured(files_yaml, capsys):
    check(configuration.load(files_yaml))
    text = capsys.readouterr().out
    assert "48x64" in text and "4 of 11" in text and "(labels not used)" in text


def test_names_are_printed_as_they_are(files_yaml, tmp_path, capsys):
    """Not as markup or emoji of rich."""
    for name in ("a.[red]", "b.[bold]"):
        (tmp_path / "images" / name).touch()
    (tmp_path / "images/2.png").rename(tmp_path / "images/[bold]:car:.png")
    (tmp_path / "labels/2.png").rename(tmp_path / "labels/[bold]:car:.png")
    (tmp_path / "images/[bold]:car:.png").write_bytes(b"no picture")
    names = ["[/x]", "[red]", ":car:", "d"]
    classes = ", ".join(f"{{name: '{n}', color: [{i}, 9, 9]}}" for i, n in enumerate(names))
    config = configuration.load(files_yaml, ["label_space=custom", f"classes=[{classes}]"])
    with pytest.raises(UserError, match="not a readable image"):
        check(config)
    text = capsys.readouterr().out
    for shown in (*(f"│ {name} " for name in names), "(.[bold], .[red])", "/[bold]:car:.png: not"):
        assert shown in text


def test_a_limit_reads_fewer_images(files_yaml, tmp_path):
    Image.fromarray(np.full((48, 64), 40, np.uint8)).save(tmp_path / "labels/1.png")
    config = configuration.load(files_yaml)
    with pytest.raises(UserError, match=r"labels/1.png: unknown label id 40"):
        check(config)
    check(config, limit=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["warm_up.crop=[64,64]"], "the full-size image [48, 64] of `data.source`: lower it"),
        (["warm_up.batch={full: 1, half: 1}"], "the half-size image [24, 32] of `data.source`"),
        # Its aspect ratio is kept.
        (["data.target.size=[24,64]"], "the full-size image [34, 45] of `data.target`"),
    ],
)
def test_crops_larger_than_the_images(files_yaml, overrides, message):
    errors = look(configuration.load(files_yaml, overrides)).at("error")
    assert any(message in text for text in errors), errors


def test_half_size_images_matter_only_where_they_are_used(files_yaml):
    config = configuration.load(files_yaml, ["warm_up.batch={full: 2, half: 0}"])
    assert not look(config).at("error")


def test_every_file_that_a_list_misses_is_named(files_yaml, tmp_path):
    (tmp_path / "labels/0.png").unlink()
    (tmp_path / "labels/2.png").unlink()
    (tmp_path / "images/9.png").symlink_to("gone.png")
    errors = look(configuration.load(files_yaml)).at("error")
    for name in ("images/0.png: has no label", "images/2.png: has no label", "link to gone.png"):
        assert any(name in text for text in errors)
    # Image 1 was read all the same.
    assert [each.images for each in look(configuration.load(files_yaml)).sets] == [1, 3, 1]
    (tmp_path / "labels/1.png").unlink()
    assert [each.name for each in look(configuration.load(files_yaml)).sets] == ["target"]


def test_files_of_weights_that_are_not_there(tiny_yaml, capsys):
    keys = ["model.weights=a.pth", "translator.kind=learned", "translator.weights=b.safetensors"]
    with pytest.raises(UserError, match=r"2 problems: `model.weights`: there is no file a.pth"):
        check(configuration.load(tiny_yaml, keys))
    assert "ERROR: `translator.weights`: there is no file b.safetensors" in capsys.readouterr().out
