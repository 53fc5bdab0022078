"""Metrics: means over steps and micro batches, and lines that are written once."""

import json

import pytest
import torch

from diga_hpc.config import LoggingSection
from diga_hpc.distributed.world import World
from diga_hpc.training.metrics import Journal, Meter, keep_before, peak_memory_gib

CPU = torch.device("cpu")
ALONE = World(0, 1, 0, CPU)


def test_means_since_the_last_flush():
    meter = Meter(ALONE)
    for value in (1.0, 2.0, 6.0):
        meter.add({"loss/total": torch.tensor(value)})
    assert meter.flush() == {"loss/total": 3.0}
    assert meter.flush() == {}
    meter.add({"loss/total": torch.tensor(5.0)})
    assert meter.flush() == {"loss/total": 5.0}


def test_micro_batches_are_weighted_by_their_share_of_a_step():
    meter = Meter(ALONE)
    for value, weight in ((1.0, 0.75), (5.0, 0.25), (4.0, 1.0)):
        meter.add({"a": torch.tensor(value)}, weight)
    # Steps of mean 2 and 4.
    assert meter.flush() == {"a": 3.0}


def test_a_gradient_is_not_kept():
    meter = Meter(ALONE)
    meter.add({"a": torch.tensor(1.0, requires_grad=True) * 2})
    assert not meter._sums["a"].requires_grad


def journal(path, world=ALONE, *, first_step=0, tensorboard=False) -> Journal:
    section = LoggingSection(tensorboard=tensorboard)
    return Journal(path, section, world, "warm_up", first_step, 9)


def test_a_line_is_readable_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = journal(path)
    log.write(3, {"loss/total": 1.23456789})
    log.sync()
    (entry,) = map(json.loads, path.read_text().splitlines())
    assert entry.pop("time") > 0
    assert entry == {"stage": "warm_up", "step": 3, "loss/total": 1.23457}
    log.close()


def test_tensorboard_is_optional(tmp_path):
    log = journal(tmp_path / "metrics.jsonl", tensorboard=True)
    log.write(1, {"loss/total": 1.0})
    log.close()
    assert list((tmp_path / "tensorboard/warm_up").iterdir())


def test_other_ranks_write_nothing(tmp_path):
    log = journal(tmp_path / "metrics.jsonl", World(1, 2, 1, CPU))
    log.write(1, {"loss/total": 1.0})
    log.sync()
    log.close()
    assert list(tmp_path.iterdir()) == []


def line(stage: str, step: int) -> str:
    return json.dumps({"stage": stage, "step": step, "time": 1.5, "loss/total": 1e-07}) + "\n"


def test_resuming_drops_the_lines_of_steps_that_are_repeated(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = line("source_only", 9) + line("warm_up", 1) + line("warm_up", 2)
    path.write_text(kept + line("warm_up", 3))
    journal(path, first_step=2).close()
    assert path.read_text() == kept


@pytest.mark.parametrize("damage", ['{"stage": "warm_up", "st', "\x00\x00", "{}", '{"stage": 1}'])
def test_corrupt_and_foreign_lines_are_dropped(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line("warm_up", 1) + damage + "\n" + line("warm_up", 2).rstrip("\n"))
    if damage == '{"stage": 1}':
        # A line of another stage is not judged.
        damage_kept = damage + "\n"
    else:
        damage_kept = ""
    keep_before(path, "warm_up", 5)
    assert path.read_text() == line("warm_up", 1) + damage_kept + line("warm_up", 2)


def test_a_file_with_nothing_to_drop_is_not_rewritten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    keep_before(path, "warm_up", 5)
    assert not path.exists()
    path.write_text(line("warm_up", 1))
    before = path.stat().st_ino
    keep_before(path, "warm_up", 5)
    assert path.stat().st_ino == before


def test_peak_memory_of_a_process():
    assert 0.01 < peak_memory_gib(CPU) < 1000
