"""Stops: a signal on one rank stops all at the same place, and the work done is kept."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from diga_hpc import config as configuration
from diga_hpc.distributed import signals
from diga_hpc.distributed.stop import StopFlag
from diga_hpc.distributed.world import World
from diga_hpc.errors import STOP_SIGNALS, Stopped
from diga_hpc.stages.pipeline import Pipeline
from helpers.commands import diga
from helpers.configurations import write_tiny_yaml
from helpers.runs import final_files, load

ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_seen_at_the_next_step_boundary(number):
    stop = StopFlag(ALONE)
    stop.listen()
    assert not stop.at_step_boundary()
    os.kill(os.getpid(), number)
    assert stop.at_step_boundary() and not stop.counted_down
    # Ctrl-C in a shell of the job is told apart from Slurm's signals.
    assert stop.interrupted == (number == signal.SIGINT)


def test_a_second_ctrl_c_interrupts_at_once():
    stop = StopFlag(ALONE)
    stop.listen()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_before_the_stop_flag_is_not_lost():
    signals.listen()
    os.kill(os.getpid(), signal.SIGUSR2)
    first, second = StopFlag(ALONE), StopFlag(ALONE)
    first.listen()
    second.listen()
    # It was one signal.
    assert first.requested and not second.requested


def test_stop_after_a_number_of_steps():
    stop = StopFlag(ALONE, stop_after=3)
    assert [stop.at_step_boundary() for _ in range(3)] == [False, False, True]
    assert stop.counted_down and not stop.requested


def test_watched_items_end_with_stopped_after_a_signal():
    stop, seen = StopFlag(ALONE), []
    stop.listen()
    items = stop.watch(iter("abcd"), "labelling", 4, stage="evaluation", done=lambda: len(seen))
    with pytest.raises(Stopped, match="labelling stopped before all images") as stopped:
        for item in items:
            seen.append(item)
            if item == "b":
                os.kill(os.getpid(), signal.SIGTERM)
    assert seen == ["a", "b"]
    assert (stopped.value.stage, stopped.value.done) == ("evaluation", 2)
    assert stopped.value.remedy == "run the same command again to resume"
    rest = StopFlag(ALONE).watch(iter("cd"), "", 2, stage="", done=lambda: 0)
    assert list(rest) == ["c", "d"]


# ------------------------------------------------------------------- stages, stopped and resumed

FEW = [
    "source_only=null",
    "warm_up.start=model",
    "evaluation.teacher=false",
    "self_training.steps=1",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The run directory of FEW."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = diga("pipeline", write_tiny_yaml(folder), *FEW)
    assert done.returncode == 0, done.stderr
    return folder / "run"


# Six images to adapt to, six to label, six for centroids, three for the consensus, then evaluation.
@pytest.mark.slow
@pytest.mark.parametrize("image", [4, 9, 14, 20, 23])
def test_other_stages_stop_at_an_image_and_resume(
    tiny_yaml, tmp_path, monkeypatch, image, uninterrupted
):
    """After a signal while the nth image is loaded, the results are the same."""
    parts = Pipeline(load(tiny_yaml, tmp_path / "parts", *FEW))
    parts.run("warm-up")
    signal_at_image(monkeypatch, image)
    stops = []
    for step in (
        lambda job: job.run("pseudo-labels", 1),
        lambda job: job.run("self-train", 1),
        lambda job: job.run("evaluate"),
    ):
        try:
            step(parts)
        except Stopped as stopped:
            stops.append(stopped)
            parts = Pipeline(parts.config)
            step(parts)
    assert len(stops) == 1
    assert final_files(tmp_path / "parts") == final_files(uninterrupted)
    assert (tmp_path / "parts/results.json").read_text() == (
        uninterrupted / "results.json"
    ).read_text()
    assert not list((tmp_path / "parts/partial").glob("*"))


def signal_at_image(monkeypatch, number: int) -> None:
    """SIGUSR2 to this process while the image of that number (from 1) is loaded, once."""
    from diga_hpc.loading.loader import InferenceImages

    original, count = InferenceImages.__getitem__, [0]

    def get(self, i):
        count[0] += 1
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGUSR2)
        return original(self, i)

    monkeypatch.setattr(InferenceImages, "__getitem__", get)


TWO_RANKS_ONE_SIGNAL = """
import json, os, signal, sys
from diga_hpc import config as configuration
from diga_hpc.distributed import world as distributed
from diga_hpc.loading.loader import InferenceImages
from diga_hpc.errors import Stopped
from diga_hpc.stages.pipeline import Pipeline

job = Pipeline(configuration.load(sys.argv[1], sys.argv[2:]))
job.run("warm-up")
original = InferenceImages.__getitem__
def get(self, i):
    if job.context.world.rank == 1:
        os.kill(os.getpid(), signal.SIGUSR2)
    return original(self, i)
InferenceImages.__getitem__ = get
try:
    job.run("evaluate")
except Stopped as stopped:
    print("stopped", job.context.world.rank, stopped.stage, stopped.done)
InferenceImages.__getitem__ = original
job.context.stop.requested = False
job.context.stop._pending = None
job.run("evaluate")
distributed.finish()
"""


@pytest.mark.slow
def test_a_signal_on_one_rank_stops_all_and_what_they_counted_is_kept(tmp_path):
    yaml = write_tiny_yaml(tmp_path)
    script = tmp_path / "job.py"
    script.write_text(TWO_RANKS_ONE_SIGNAL)
    options = [
        "source_only=null",
        "warm_up.start=model",
        "self_training=null",
        "evaluation.teacher=false",
        "evaluation.adapt_normalization=false",
        "data.validation.images=9",
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, script, yaml, *options], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    stopped = sorted(
        line.split() for line in done.stdout.splitlines() if line.startswith("stopped")
    )
    # Two images on each rank: the agreement lags by one.
    assert [s[1:] for s in stopped] == [["0", "evaluation", "4"], ["1", "evaluation", "4"]]
    two = json.loads((tmp_path / "run/results.json").read_text())
    (tmp_path / "run/results.json").unlink()
    Pipeline(configuration.load(yaml, options)).run("evaluate")
    assert json.loads((tmp_path / "run/results.json").read_text()) == two
