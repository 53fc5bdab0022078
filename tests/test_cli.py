"""The command line: help, bad input as one line and exit code 2, nothing left incomplete."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diga_hpc import cli
from diga_hpc.errors import UserError
from helpers.commands import diga

COMMANDS = [
    "warm-up",
    "pseudo-labels",
    "self-train",
    "evaluate",
    "predict",
    "pipeline",
    "demo",
    "check",
    "show",
    "report",
    "figure",
    "inspect",
    "export",
    "launch",
    "status",
]


def test_help_names_every_command():
    text = CliRunner().invoke(cli.app, ["--help"]).output
    assert all(re.search(rf"^  {command} ", text, re.M) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command):
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0 and len(result.output.splitlines()) > 8


def test_usage_error_is_exit_code_2():
    assert CliRunner().invoke(cli.app, ["pipeline"]).exit_code == 2


@pytest.fixture
def camvid(tmp_path):
    """A data set of four frames in CamVid's layout."""
    root = tmp_path / "camvid"
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for number in range(2):
            picture = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / split / f"{number}.png")
            Image.fromarray(generator.integers(0, 12, (48, 64), dtype=np.uint8)).save(
                root / f"{split}annot/{number}.png"
            )
    return root


@pytest.fixture
def camvid_yaml(tmp_path, camvid):
    path = tmp_path / "camvid.yaml"
    path.write_text(f"""
run_dir: {tmp_path / "run"}
label_space: camvid
data:
  root: {camvid}
  source: {{kind: camvid}}
  target: {{kind: camvid, splits: [test]}}
  validation: {{kind: camvid, splits: [test]}}
  workers: 0
model: {{name: lite, weights: random}}
warm_up: {{steps: 2, crop: [32, 48], batch: {{full: 2}}}}
self_training: {{steps: 2, crop: [32, 48], batch: {{full: 2}}}}
""")
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def unknown_id(path):
    Image.fromarray(np.full((48, 64), 40, np.uint8)).save(path)


def other_size(path):
    Image.fromarray(np.zeros((48, 60), np.uint8)).save(path)


BAD = {
    "missing root": (["data.root=/nowhere"], None, None, "/nowhere: no such folder"),
    "no label": ([], lambda p: p.unlink(), "trainannot/0.png", "train/0.png: has no label"),
    "truncated label": (
        [],
        truncate,
        "trainannot/1.png",
        "trainannot/1.png: not a readable label file",
    ),
    "truncated image": ([], truncate, "train/0.png", "train/0.png: not a readable image"),
    "label of another size": (
        [],
        other_size,
        "trainannot/1.png",
        "trainannot/1.png: label is 48x60",
    ),
    "unknown id": ([], unknown_id, "trainannot/0.png", "trainannot/0.png: unknown label id 40"),
    "empty split": (
        [],
        lambda p: [f.unlink() for f in p.iterdir()],
        "test",
        "camvid/test: holds no images; leave 'test' out of `splits`",
    ),
    "large crop": (
        ["warm_up.crop=[64,64]"],
        None,
        None,
        "`warm_up.crop` [64, 64] is larger than the full-size image [48, 64]",
    ),
    "unknown key": (
        ["warm_up.stepz=3"],
        None,
        None,
        "unknown key `warm_up.stepz`: did you mean `steps`?",
    ),
    "wrong type": (["warm_up.steps=[1]"], None, None, "`warm_up.steps` = [1]"),
    "unwritable": (
        ["run_dir=/proc/self/run"],
        None,
        None,
        "/proc/self/run: run directory cannot be written",
    ),
    "no such weights": (["model.weights=/nowhere.pth"], None, None, "/nowhere.pth"),
    "batch and ranks": (
        ["engine.device=cuda"],
        None,
        None,
        "`engine.device` = 'cuda', but torch finds no GPU",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_the_place(
    camvid_yaml, camvid, tmp_path, case, capsys, monkeypatch
):
    overrides, damage, file, expected = BAD[case]
    if damage:
        damage(camvid / file)
    monkeypatch.setattr("sys.argv", ["diga-hpc", "pipeline", str(camvid_yaml), *overrides])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    errors = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("diga-hpc: error: ")
    ]
    assert exit_.value.code == 2 and len(errors) == 1 and expected in errors[0]
    if not (tmp_path / "run").exists():
        return
    # An error found only while training leaves the run directory, with nothing incomplete in it.
    left = [path.name for path in (tmp_path / "run").rglob("*")]
    assert not [name for name in left if "writing" in name or name.startswith("step_")]


def test_check_finds_errors_that_training_would_meet_later(camvid_yaml, camvid):
    run = CliRunner().invoke
    text = run(cli.app, ["check", str(camvid_yaml)]).output
    assert "no problems found" in text and "48x64" in text and "warm_up" in text
    unknown_id(camvid / "trainannot/1.png")
    error = run(cli.app, ["check", str(camvid_yaml)]).exception
    assert isinstance(error, UserError) and "trainannot/1.png: unknown label id 40" in str(error)
    # Reads 20 images of each data set: all four of these.
    assert run(cli.app, ["check", str(camvid_yaml), "--quick"]).exception is not None


@pytest.mark.slow
def test_run_directory_of_another_configuration_is_refused(tiny_yaml):
    first = diga("warm-up", tiny_yaml, "--stop-after", "1")
    assert first.returncode == 75
    other = diga("warm-up", tiny_yaml, "warm_up.steps=9")
    assert (
        other.returncode == 2
        and "belongs to another configuration (warm_up.steps: 4 there, 9 now)" in other.stderr
    )
    assert sum(line.startswith("diga-hpc:") for line in other.stderr.splitlines()) == 1
    assert "Traceback" not in other.stderr


def test_foreign_folder_is_refused(tiny_yaml, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("precious")
    monkeypatch.setattr("sys.argv", ["diga-hpc", "warm-up", str(tiny_yaml)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "not empty and not a run directory" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_folder_that_holds_only_logs_is_a_new_run_directory(tiny_yaml, tmp_path):
    """Jobs of Slurm write their logs there before the run begins."""
    from diga_hpc import config as configuration
    from diga_hpc.distributed.world import start
    from diga_hpc.run.directory import Run

    (tmp_path / "run/logs").mkdir(parents=True)
    config = configuration.load(tiny_yaml)
    Run(config).open(start(config))
    assert configuration.load(tmp_path / "run/config.yaml") == config


def test_show_prints_what_a_run_would_use(tiny_yaml, tmp_path):
    """The file, the overrides and the defaults, as a configuration again; or one value."""
    from diga_hpc import config as configuration

    run = CliRunner().invoke
    (tmp_path / "shown.yaml").write_text(run(cli.app, ["show", str(tiny_yaml), "seed=7"]).output)
    assert configuration.load(tmp_path / "shown.yaml") == configuration.load(tiny_yaml, ["seed=7"])
    one = run(cli.app, ["show", str(tiny_yaml), "warm_up.steps=9", "--key", "warm_up.steps"])
    assert one.output == "9\n"
    unknown = run(cli.app, ["show", str(tiny_yaml), "--key", "warm_up.stepz"])
    assert isinstance(unknown.exception, UserError) and "did you mean `warm_up.steps`" in str(
        unknown.exception
    )


@pytest.mark.slow
def test_pipeline_on_two_ranks_writes_the_results_of_one(tiny_yaml, tmp_path):
    """The pipeline under torchrun; without batch statistics both give the same numbers."""
    import json

    options = ["model.batch_norm=frozen", "model.dropout=0", "evaluation.adapt_normalization=false"]
    done = diga("pipeline", tiny_yaml, f"run_dir={tmp_path / 'two'}", *options, ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "report:" in done.stdout and (tmp_path / "two/report.html").is_file()
    diga("pipeline", tiny_yaml, f"run_dir={tmp_path / 'one'}", *options)
    one, two = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")
    )
    # Source-only training has no teacher.
    networks = [(row["stage"], row["network"]) for row in two]
    both = [(stage, n) for stage in ("warm_up", "self_training") for n in ("student", "teacher")]
    assert networks == [("source_only", "student"), *both]
    assert [row["images"] for row in two] == [3] * 5
    for a, b in zip(one, two, strict=True):
        assert a["stage"] == b["stage"] and a["network"] == b["network"]
        assert abs(a["miou"] - b["miou"]) < 0.5
    shutil.rmtree(tmp_path / "two/panels")
    again = diga("report", tmp_path / "two")
    assert again.returncode == 0
