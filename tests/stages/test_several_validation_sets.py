"""Several validation sets in one run: each is measured alone, and all are in one table."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc import job
from diga_hpc.errors import Stopped, UserError
from diga_hpc.launch.progress import progress
from diga_hpc.results import check
from diga_hpc.results.figure import figure
from diga_hpc.results.predict import predict
from diga_hpc.results.report import print_results, write_report
from diga_hpc.run.directory import RunPaths
from diga_hpc.run.files import read_json, write_json
from diga_hpc.stages.pipeline import Pipeline
from helpers.configurations import write_tiny_yaml

# The same names in two sets, and images of two sizes.
SETS = {
    "dusk": "{kind: streets, style: target, images: 3, first: 200, scene_size: [48, 96]}",
    "day": "{kind: streets, style: source, images: 2, first: 200, scene_size: [57, 81]}",
}
LATER = "{kind: streets, style: source, images: 2, first: 300, scene_size: [48, 96]}"
STAGES = ("source_only", "warm_up", "self_training_1")


def several(**sets: str) -> str:
    return f"data.validation={{{', '.join(f'{name}: {each}' for name, each in sets.items())}}}"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_tiny_yaml(tmp_path_factory.mktemp("several"))


def load(file, run_dir, sets=SETS):
    return configuration.load(file, [f"run_dir={run_dir}", "evaluation.panels=3", several(**sets)])


def run(config, command="pipeline"):
    pipeline = Pipeline(config)
    try:
        pipeline.run(command)
    finally:
        pipeline.context.run.close()
    return json.loads((config.run_dir / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(file):
    """The run directory of a pipeline that was run to its end."""
    config = load(file, file.parent / "run")
    run(config)
    job._report(config.run_dir)
    return config.run_dir


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/.lock").unlink(missing_ok=True)
    return tmp_path / "run"


def place(row):
    return row["stage"], row["round"], row["network"], row["normalization"], row["validation"]


def iou_of_pictures(run_dir, of: str, stage: str) -> dict[str, float | None]:
    """IoU of each class from the label pictures of all images of a set."""
    space = configuration.load(run_dir / "config.yaml").space
    both, either = np.zeros(space.num_classes), np.zeros(space.num_classes)
    for folder in (run_dir / "panels" / of).iterdir():
        truth, predicted = (
            np.asarray(Image.open(folder / f"{kind}.png")) for kind in ("truth", stage)
        )
        for k in range(space.num_classes):
            mine, known = (predicted == k) & (truth != 255), truth == k
            both[k] += (mine & known).sum()
            either[k] += (mine | known).sum()
    return {
        name: round(100 * b / e, 3) if e else None
        for name, b, e in zip(space.classes, both, either, strict=True)
    }


@pytest.mark.parametrize("of", SETS)
@pytest.mark.parametrize("stage", STAGES)
def test_each_set_is_measured_on_its_own_images(finished, of, stage):
    rows = read_json(finished / "results.json", [])
    kind, number = stage.removesuffix("_1"), int(stage.endswith("_1"))
    (row,) = [row for row in rows if place(row) == (kind, number, "student", "running", of)]
    expected = iou_of_pictures(finished, of, stage)
    assert row["iou"] == pytest.approx(expected, abs=1e-3)
    known = [value for value in expected.values() if value is not None]
    assert row["miou"] == pytest.approx(sum(known) / len(known), abs=2e-3)
    assert row["images"] == {"dusk": 3, "day": 2}[of]
    assert row["inputs"][f"validation.{of}"]["images"] == row["images"]
    assert row["inputs"]["source"]["images"] == 12


def test_rows_for_every_network_normalisation_and_set(finished):
    rows = read_json(finished / "results.json", [])
    # Source only has no teacher.
    assert len({place(row) for row in rows}) == len(rows) == (2 + 4 + 4) * 2
    consensus = read_json(finished / "consensus.json", [])
    assert [(row["round"], row["validation"], row["images"]) for row in consensus] == [
        (1, "dusk", 3),
        (1, "day", 2),
    ]
    config = configuration.load(finished / "config.yaml")
    (evaluation,) = [p for p in progress(RunPaths(finished), config) if p.stage == "evaluation"]
    assert evaluation.finished and evaluation.total == 20


def test_nothing_is_measured_twice_and_one_set_is_measured_again(copied, file, monkeypatch):
    before = read_json(copied / "results.json", [])
    with monkeypatch.context() as nothing:
        nothing.setattr("diga_hpc.stages.evaluation.measure", None)
        assert run(load(file, copied), "evaluate") == before
    # As if the set had been another one when these rows were written.
    rows = json.loads(json.dumps(before))
    for row in rows:
        if row["validation"] == "day":
            row["inputs"]["validation.day"]["fingerprint"] = "0"
            row["miou"] = 99.0
    write_json(copied / "results.json", rows)
    after = run(load(file, copied), "evaluate")
    assert sorted(after, key=place) == sorted(before, key=place)
    # Pictures of the consensus are made with the pseudo labels.
    kept = {path.name for path in next((copied / "panels/dusk").iterdir()).iterdir()}
    assert "consensus_1.png" in kept and "warm_up.png" in kept
    assert len(list((copied / "panels/day").glob("*/warm_up.png"))) == 2


def test_a_set_may_be_added_later(copied, file):
    before = read_json(copied / "results.json", [])
    after = run(load(file, copied, SETS | {"later": LATER}), "evaluate")
    assert after[: len(before)] == before and len(after) == len(before) * 3 // 2
    with pytest.raises(UserError, match="belongs to another configuration .*validation.later"):
        run(load(file, copied), "evaluate")


def test_one_table_of_all_sets_and_their_mean(finished, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_results(finished)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    rows = {place(row): row["miou"] for row in read_json(finished / "results.json", [])}
    start = next(i for i, line in enumerate(lines) if line.split() == ["warm-up"])
    shown = [line.split() for line in lines[start + 1 : start + 4]]
    key = ("warm_up", 0, "student", "running")
    both = [rows[*key, of] for of in SETS]
    assert shown[0][:2] == ["dusk", f"{both[0]:.2f}"]
    assert shown[1][:2] == ["day", f"{both[1]:.2f}"]
    assert shown[2][:2] == ["mean", f"{sum(both) / 2:.2f}"]
    html = write_report(finished).read_text()
    assert f"<b>{sum(rows['self_training', 1, *key[2:], of] for of in SETS) / 2:.2f} %</b>" in html
    for text in ("IoU of each class on dusk", "IoU of each class on day", "5 validation images"):
        assert text in html
    assert html.count("<img ") == 5 * 6


def test_figure_predict_and_check(finished, tmp_path, capsys):
    figure(finished, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").is_file()
    picture = next((finished / "panels/day").glob("*/image.jpg"))
    assert predict(finished, picture, tmp_path / "out", "student") == 1
    config = configuration.load(finished / "config.yaml")
    check.check(config, as_json=True)
    found = json.loads(capsys.readouterr().out)
    names = [each["name"] for each in found["sets"]]
    assert names == ["source", "target", "validation.dusk", "validation.day"]


def test_statistics_of_the_networks_are_as_before_their_evaluation(copied, file, monkeypatch):
    """Bit-identical: nothing of one validation set reaches the results on the next one."""
    from diga_hpc.stages import evaluation

    (copied / "results.json").unlink()
    seen = []
    original = evaluation.measure

    def watched(context, model, *arguments):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        result = original(context, model, *arguments)
        after = model.state_dict()
        seen.append(all(before[name].equal(after[name]) for name in before) and len(before))
        return result

    monkeypatch.setattr(evaluation, "measure", watched)
    run(load(file, copied), "evaluate")
    assert len(seen) == 20 and all(seen)


@pytest.mark.parametrize("images", [2, 4])
def test_a_stopped_evaluation_goes_on_with_the_set_that_it_was_stopped_in(
    copied, file, images, monkeypatch
):
    """Stopped in the first set, or in the second, which has images of the same names."""
    from diga_hpc.method.scores import ConfusionMatrix

    before = read_json(copied / "results.json", [])
    (copied / "results.json").unlink()
    pipeline = Pipeline(load(file, copied))
    counted, add = [], ConfusionMatrix.add

    def stop_after(matrix, truth, predicted):
        counted.append(truth.shape)
        pipeline.context.stop.requested = len(counted) == images
        add(matrix, truth, predicted)

    monkeypatch.setattr(ConfusionMatrix, "add", stop_after)
    with pytest.raises(Stopped) as stopped:
        pipeline.run("evaluate")
    pipeline.context.run.close()
    assert stopped.value.done == images
    (partial,) = (copied / "partial").iterdir()
    assert partial.stem == f"source_only_student_running_{'dusk' if images < 3 else 'day'}"
    images = -1
    assert run(load(file, copied), "evaluate") == before
    # Each image of each row once.
    assert len(counted) == 10 * (3 + 2) and not list((copied / "partial").iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"round": None}, r"row 1: `round` is missing or no number"),
        ({"miou": "high"}, r"row 1: `miou` is no percentage"),
        ({"miou_13": float("nan")}, r"row 1: `miou_13` is no percentage"),
        ({"iou": {"road": 101.0}}, r"row 1: `iou.road` is no percentage"),
        ({"validation": "../.."}, r"row 1: `validation` is no name"),
        ({"inputs": []}, r"row 1: `inputs` is no mapping"),
        ({"images": "3"}, r"row 1: `images` is no number"),
    ],
)
def test_rows_that_are_none_are_refused_in_one_line(finished, tmp_path, damage, message):
    rows = read_json(finished / "results.json", [])
    shutil.copy(finished / "config.yaml", tmp_path)
    (tmp_path / "results.json").write_text(json.dumps([rows[0] | damage, *rows[1:]]))
    for reader in (write_report, print_results):
        with pytest.raises(UserError, match=rf"results\.json: {message}.*remove the file"):
            reader(tmp_path)


def test_rows_that_lack_what_is_measured_are_shown_without_it(finished, tmp_path):
    """Of another version, or of a network that measured nothing."""
    rows = read_json(finished / "results.json", [])
    shutil.copy(finished / "config.yaml", tmp_path)
    keys = ("stage", "round", "network", "normalization")
    bare = [{key: row[key] for key in keys} for row in rows[:1]]
    (tmp_path / "results.json").write_text(json.dumps([*bare, *rows[1:]]))
    assert "Results</h2>" in write_report(tmp_path).read_text()
    (tmp_path / "consensus.json").write_text('[{"round": 1}, {"round": 2, "kept": 0.5}]')
    write_report(tmp_path)
    (tmp_path / "consensus.json").write_text('[{"kept": 0.5}]')
    with pytest.raises(UserError, match=r"consensus\.json: .*remove the file"):
        write_report(tmp_path)
