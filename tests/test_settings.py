"""The four settings end to end: the recipes as they are, on miniatures of their data sets.

Overrides make them small: a small network, two steps, crops that fit the miniatures.
"""

import json
import shutil
import sys

import pytest

from diga_hpc import config as configuration
from diga_hpc import job
from diga_hpc.errors import UserError
from diga_hpc.results import check
from diga_hpc.results.report import print_results
from diga_hpc.stages.pipeline import Pipeline
from helpers import miniatures
from helpers.paths import ROOT
from helpers.runs import final_files

SETS = ("gta5", "synthia", "cityscapes", "bdd100k", "mapillary")
SMALL = (
    "model.name=lite",
    "model.weights=random",
    "engine={device: cpu}",
    "data.workers=0",
    "evaluation.panels=1",
    "logging={every: 1, tensorboard: false}",
)
# Two frames of the split, as one of the published lists writes them.
LABELLED = "".join(
    f"leftImg8bit/train/{name[:6]}/{name}_leftImg8bit.png "
    f"gtFine/train/{name[:6]}/{name}_gtFine_labelTrainIds.png\n"
    for name in ("bochum_000001_000019", "aachen_000000_000019")
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a miniature of each data set."""
    folder = tmp_path_factory.mktemp("settings")
    for name in SETS:
        miniatures.write(name, folder / name)
    lists = folder / "1_16"
    lists.mkdir()
    (lists / "labeled.txt").write_text(LABELLED)
    return folder


def load(data, recipe: str, run_dir, *overrides: str):
    """The configuration of a recipe with the sizes of the miniatures."""
    file = ROOT / f"configs/{recipe}.yaml"
    sets = configuration.load(file, overrides).data.sets
    small = [f"run_dir={run_dir}", *SMALL]
    for name, section in sets.items():
        small += [f"data.{name}.root={data / section.kind}", f"data.{name}.size=null"]
        small += [f"data.{name}.half_size=null"]
    stages = configuration.flat(configuration.load(file, overrides))
    for stage in ("source_only", "warm_up", "self_training"):
        if f"{stage}.steps" in stages:
            small += [f"{stage}.steps=2", f"{stage}.crop=[20, 28]"]
    if "translation.steps" in stages:
        # Its discriminators need larger images than the miniatures are.
        small += ["translation=null", "translator.kind=color"]
    return configuration.load(file, [*overrides, *small])


def run(config) -> list[dict]:
    """Run the pipeline of a configuration, with its report; returns the rows of results.json."""
    pipeline = Pipeline(config)
    try:
        pipeline.run()
        job._report(config.run_dir)
    finally:
        pipeline.context.run.close()
    return json.loads((config.run_dir / "results.json").read_text())


def stages_of(rows) -> list[str]:
    return list(dict.fromkeys(row["stage"] for row in rows))


def test_gta5_to_cityscapes(data, tmp_path):
    rows = run(load(data, "gta5_to_cityscapes", tmp_path / "run"))
    assert stages_of(rows) == ["warm_up", "self_training"]
    assert {row["normalization"] for row in rows} == {"running", "adapted"}
    assert all(row["images"] == 2 and len(row["iou"]) == 19 for row in rows)


def test_synthia_to_cityscapes_is_measured_on_16_and_13_classes(data, tmp_path, capsys):
    synthia = ("label_space=synthia", "data.source={kind: synthia}")
    config = load(data, "gta5_to_cityscapes", tmp_path / "run", *synthia)
    assert check.look(config).as_json()["means"] == {"miou": 16, "miou_13": 13}
    rows = run(config)
    assert stages_of(rows) == ["warm_up", "self_training"]
    few = set(config.space.classes) - {"wall", "fence", "pole"}
    for row in rows:
        for key, names in (("miou", set(row["iou"])), ("miou_13", few)):
            known = [row["iou"][name] for name in names if row["iou"][name] is not None]
            assert row[key] == pytest.approx(sum(known) / len(known), abs=2e-3)
        assert len(row["iou"]) == 16 and len(few) == 13
    capsys.readouterr()
    print_results(config.run_dir)
    heads = capsys.readouterr().out.splitlines()[1:3]
    assert "mIoU" in heads[0] and "13" in heads[1].split()
    html = (config.run_dir / "report.html").read_text()
    last = next(r for r in reversed(rows) if (r["network"], r["normalization"]) == RESULT)
    assert f"<b>{last['miou']:.2f} %</b> mIoU, {last['miou_13']:.2f} % mIoU 13 after" in html


RESULT = ("student", "running")
forbidden: list[str] = []


def _refuse(event: str, arguments: tuple) -> None:
    if forbidden and event in ("open", "os.listdir", "os.scandir"):
        path = str(arguments[0])
        if any(path.startswith(folder) for folder in forbidden):
            raise AssertionError(f"{event} of {path}")


@pytest.fixture(scope="module")
def hook():
    # Cannot be removed; it does nothing while no folder is forbidden.
    sys.addaudithook(_refuse)


@pytest.fixture
def exploding(data, hook, tmp_path):
    """The data with target images and labels that nobody can open, in folders that nobody lists."""
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    for folder in ("leftImg8bit/train", "gtFine/train"):
        for path in list((copy / "cityscapes" / folder).rglob("*.*")):
            path.unlink()
            # Opened by any library, it is an endless loop of links.
            path.symlink_to(path)
        forbidden.append(str(copy / "cityscapes" / folder))
    yield copy
    forbidden.clear()


@pytest.mark.parametrize("source", ["gta5", "synthia"])
def test_generalisation_never_touches_a_target(data, exploding, source, tmp_path):
    """Beside its own `val`, Cityscapes' `train` explodes on access; the run passes."""
    recipe = f"{source}_generalization"
    rows = run(load(exploding, recipe, tmp_path / "run"))
    assert stages_of(rows) == ["warm_up"]
    assert [row["validation"] for row in rows if row["network"] == "student"] == [
        "cityscapes",
        "bdd100k",
        "mapillary",
    ]
    # AdaBN would need a target.
    assert {row["normalization"] for row in rows} == {"running"}
    assert all("target" not in row["inputs"] for row in rows)
    assert all(("miou_13" in row) == (source == "synthia") for row in rows)
    target = "data.target={kind: cityscapes, split: train}"
    with pytest.raises((UserError, AssertionError), match="leftImg8bit/train"):
        Pipeline(load(exploding, recipe, tmp_path / "other", target))


def test_validation_images_do_not_reach_the_network(data, tmp_path):
    """The network of a generalisation run is bit-identical whatever it is measured on."""
    measured = load(data, "gta5_generalization", tmp_path / "measured")
    run(measured)
    alone = load(data, "gta5_generalization", tmp_path / "alone", "data.validation=null")
    assert run(alone) == []
    files = [final_files(each.run_dir) for each in (measured, alone)]
    networks = ("warm_up/student.safetensors", "warm_up/teacher.safetensors")
    for name in networks:
        assert files[0][name] == files[1][name]


def semi(data, run_dir, *overrides):
    labelled = data / "1_16/labeled.txt"
    lists = (f"data.source.index={labelled}", f"data.target.not_in={labelled}")
    return load(data, "semi_cityscapes", run_dir, *lists, *overrides)


def test_semi_supervised_cityscapes(data, tmp_path):
    config = semi(data, tmp_path / "run")
    checked = check.look(config)
    assert checked.at("error") == [] and not any("share" in w for w in checked.at("warning"))
    rows = run(config)
    # The supervised baseline is in the same table.
    assert stages_of(rows) == ["source_only", "warm_up", "self_training"]
    assert {row["normalization"] for row in rows} == {"running"}
    name = str(data / "1_16/labeled.txt")
    for row in rows:
        source, target = row["inputs"]["source"], row["inputs"]["target"]
        assert (source["images"], target["images"], row["images"]) == (2, 2, 2)
        found = source["lists"]["index"]
        assert (found["file"], found["lines"], len(found["digest"])) == (name, 2, 16)
        assert target["lists"] == {"not_in": found}
    html = (config.run_dir / "report.html").read_text()
    assert f"index {name} (2 lines, {found['digest']})" in html
    assert f"not in {name} (2 lines" in html and "vs source" in html


@pytest.mark.parametrize(
    ("overrides", "places"),
    [
        (["data.target.not_in=null"], "`data.source` and `data.target`"),
        (["data.validation.split=train"], "`data.source` and `data.validation`"),
    ],
)
def test_lists_that_overlap_are_refused(data, tmp_path, overrides, places):
    """Labelled, unlabelled and validation images of one split."""
    with pytest.raises(UserError, match=f"{places} share 2 images.*must not overlap") as error:
        Pipeline(semi(data, tmp_path / "run", *overrides))
    assert "labeled.txt" in str(error.value)


def test_a_list_of_another_split_leaves_nothing_out_and_is_refused(data, tmp_path):
    """All images would be the unlabelled ones without a word."""
    other = tmp_path / "val.txt"
    other.write_text("lindau_000000_000019\naachen_000000_000019\n")
    config = semi(data, tmp_path / "run", f"data.target.not_in={other}")
    with pytest.raises(UserError, match=r"val\.txt, line 1: no such image below .*`not_in`"):
        Pipeline(config)
