"""Results and pseudo labels are tied to what they were made from: networks and images."""

import json
import shutil

import pytest

from diga_hpc.errors import UserError
from diga_hpc.run.files import read_json, write_json
from diga_hpc.stages.inputs import describe, same
from diga_hpc.stages.pipeline import Pipeline
from helpers.own_data import OwnData

SOURCE = "{kind: folder, images: src/images, labels: src/labels}"


def test_inputs_are_compared_by_content():
    old = {"weights": "ab", "target": {"fingerprint": "1", "root": "/a", "kind": "x", "images": 3}}
    assert same(old, old | {"target": {"fingerprint": "1", "root": "/b"}})
    assert not same(old, old | {"weights": "cd"})
    assert not same(old, old | {"target": {"fingerprint": "2", "root": "/a"}})
    assert not same(old, {"weights": "ab"}) and not same({"weights": "ab"}, old)
    for broken in (None, [], "x", {}):
        assert not same(broken, old)
    assert describe(old) == "weights ab, target /a (3 images, fingerprint 1)"
    assert describe(None) == "inputs that were not recorded"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished run of warm-up, one round and evaluation, and two validation sets."""
    own = OwnData(tmp_path_factory.mktemp("inputs"))
    own.pairs(4, (0, 1, 2), below="src/")
    own.pairs(3, (2, 1, 0), below="v1/", seed=30)
    own.pairs(3, (2, 2, 1), below="v2/", seed=40)
    for i in range(3):
        own.image(f"t/images/{i}.jpg", seed=20 + i)
    run(own, "pipeline")
    return own


@pytest.fixture
def own(base, tmp_path):
    """A copy of it, at another place."""
    shutil.copytree(base.folder, tmp_path / "own", copy_function=shutil.copyfile)
    copy = OwnData(tmp_path / "own")
    for path in (copy.folder / "run").glob("**/.lock"):
        path.unlink()
    return copy


def config(own: OwnData, validation: str = "v1", *overrides: str):
    return own.config(
        *overrides,
        source=SOURCE,
        validation=f"{{kind: folder, labels: labels, root: {own.folder}/{validation}}}",
        target=f"{{kind: folder, root: {own.folder}/t}}",
    )


def run(own: OwnData, command: str, validation: str = "v1", round_number: int = 1):
    pipeline = Pipeline(config(own, validation))
    try:
        pipeline.run(command, round_number)
    finally:
        pipeline.context.run.close()
    return numbers(own)


def numbers(own: OwnData) -> dict[str, tuple]:
    """Stage -> what was measured, and of which images."""
    rows = json.loads((own.folder / "run/results.json").read_text())
    return {
        row["stage"]: (row["miou"], row["iou"], row["inputs"]["validation"]["fingerprint"])
        for row in rows
    }


def test_rows_say_which_data_they_are_of(own):
    (row, _) = json.loads((own.folder / "run/results.json").read_text())
    assert row["inputs"]["validation"]["images"] == 3
    assert row["inputs"]["validation"]["root"].endswith("/v1")
    assert len(row["inputs"]["weights"]) == 16


def test_nothing_is_measured_again_for_the_same_data(own, monkeypatch):
    """They lie at another place, and their times are others."""
    monkeypatch.setattr("diga_hpc.stages.evaluation.measure", None)
    before = numbers(own)
    assert run(own, "evaluate") == before


def test_another_validation_set_is_measured_anew(own, base, tmp_path, caplog):
    before = numbers(own)
    other = run(own, "evaluate", "v2")
    assert "2 results of weights" in caplog.text and "/v2 (3 images" in caplog.text
    assert other.keys() == before.keys()
    assert all(other[stage][2] != before[stage][2] for stage in before)
    # As a run that never saw the first one.
    fresh = OwnData(tmp_path / "fresh")
    shutil.copytree(base.folder, fresh.folder, copy_function=shutil.copyfile)
    for name in ("results.json", "consensus.json", "panels"):
        path = fresh.folder / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run(fresh, "evaluate", "v2") == other
    # And back again.
    assert run(own, "evaluate") == before
    panels = {path.name for path in (own.folder / "run/panels").iterdir()}
    assert panels == {"0"}


def test_labels_that_were_mended_are_measured_anew(own):
    before = numbers(own)
    for i in range(3):
        own.label(f"v1/labels/{i}.png", (0, 1, 2))
    after = run(own, "evaluate")
    assert all(after[stage][:2] != before[stage][:2] for stage in before)


def test_a_network_that_was_trained_again_is_measured_anew(own, monkeypatch):
    results = own.folder / "run/results.json"
    rows = json.loads(results.read_text())
    rows[0]["inputs"]["weights"] = "0" * 16
    rows[0]["miou"] = 99.0
    write_json(results, rows)
    assert run(own, "evaluate")["warm_up"][0] < 90


def test_results_of_a_version_that_recorded_nothing_are_measured_anew(own):
    before = numbers(own)
    results = own.folder / "run/results.json"
    rows = [{k: v for k, v in row.items() if k != "inputs"} for row in read_json(results, [])]
    write_json(results, [row | {"miou": 99.0} for row in rows])
    assert run(own, "evaluate") == before


def test_pseudo_labels_of_other_weights_are_refused(own):
    record = own.folder / "run/pseudo_labels/round_1.json"
    made_from = read_json(record, {})
    write_json(record, made_from | {"weights": "0" * 16})
    shutil.rmtree(own.folder / "run/checkpoints/self_training_1")
    for command in ("self-train", "pseudo-labels"):
        with pytest.raises(UserError) as error:
            run(own, command)
        text = str(error.value)
        assert "made from weights 0000000000000000, target" in text
        assert f"this run now has weights {made_from['weights']}" in text
        assert "remove the folder and" in text


def test_pseudo_labels_of_other_images_are_refused(own):
    """Even if the record of the run's data was removed."""
    own.image("t/images/1.jpg", seed=77)
    (own.folder / "run/data.json").unlink()
    shutil.rmtree(own.folder / "run/checkpoints/self_training_1")
    with pytest.raises(UserError, match=r"round_1: made from weights .*, but this run now has"):
        run(own, "self-train")


def test_pseudo_labels_without_a_record(own, caplog):
    (own.folder / "run/pseudo_labels/round_1.json").unlink()
    run(own, "pseudo-labels")
    assert "not recorded what these labels were made from" in caplog.text
    # Of an unfinished pass, the labels that are there could be of anything.
    (own.folder / "run/centroids/round_1.safetensors").unlink()
    with pytest.raises(UserError, match="made from inputs that were not recorded, but this run"):
        run(own, "pseudo-labels")
    shutil.rmtree(own.folder / "run/pseudo_labels/round_1")
    run(own, "pseudo-labels")


def test_another_precision_is_measured_anew(own):
    before = numbers(own)
    pipeline = Pipeline(config(own, "v1", "engine.precision=bf16"))
    pipeline.run("evaluate")
    pipeline.context.run.close()
    rows = json.loads((own.folder / "run/results.json").read_text())
    assert [row["inputs"]["precision"] for row in rows] == ["bf16", "bf16"]
    assert run(own, "evaluate") == before


def test_data_that_change_while_a_run_goes_on(own):
    """Between the start and the pass that writes down what it used."""
    pipeline = Pipeline(config(own))
    own.image("t/images/1.jpg", seed=77)
    with pytest.raises(UserError, match="`data.target` was changed while the run went on"):
        pipeline.run("evaluate")
    pipeline.context.run.close()


def test_results_of_networks_that_are_gone_are_removed(own, caplog):
    """One table must not mix two trainings."""
    shutil.rmtree(own.folder / "run/checkpoints/self_training_1")
    before = numbers(own)
    after = run(own, "evaluate")
    assert after == {"warm_up": before["warm_up"]}
    assert "results of networks that are gone are removed: self_training_1" in caplog.text
    panels = {path.name for path in (own.folder / "run/panels/0").iterdir()}
    assert "warm_up.png" in panels and "self_training_1.png" not in panels


def test_panels_of_images_that_are_not_shown_any_more_are_removed(own):
    stale = own.folder / "run/panels/7"
    shutil.copytree(own.folder / "run/panels/0", stale)
    run(own, "evaluate")
    assert not stale.exists()


@pytest.mark.parametrize("change", ["swap", "edit", "remove"])
@pytest.mark.parametrize("command", ["self-train", "pseudo-labels"])
def test_label_files_that_were_changed_are_refused(own, change, command):
    shutil.rmtree(own.folder / "run/checkpoints/self_training_1")
    one, two = (own.folder / f"run/pseudo_labels/round_1/{i}.png" for i in (0, 1))
    if change == "swap":
        content = one.read_bytes(), two.read_bytes()
        two.write_bytes(content[0])
        one.write_bytes(content[1])
    elif change == "edit":
        own.label("run/pseudo_labels/round_1/0.png", (0, 1, 2, 0))
    else:
        one.unlink()
    with pytest.raises(UserError, match=r"round_1: \d labels are missing or were changed .*: 0"):
        run(own, command)


def test_centroids_of_other_inputs_without_labels_are_refused(own):
    shutil.rmtree(own.folder / "run/pseudo_labels/round_1")
    own.image("t/images/1.jpg", seed=77)
    (own.folder / "run/data.json").unlink()
    with pytest.raises(UserError, match=r"round_1: made from weights .*, but this run now has"):
        run(own, "pseudo-labels")


@pytest.mark.parametrize("text", ["null", "[1]", "{}", "7"])
def test_results_of_another_form(own, text):
    (own.folder / "run/results.json").write_text(text)
    with pytest.raises(UserError, match=r"results.json: not readable as JSON .*; remove it"):
        run(own, "evaluate")
