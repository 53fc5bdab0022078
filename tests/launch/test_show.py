"""show.py: what `diga-hpc status` prints for a run and for a sweep."""

import json
import time

from typer.testing import CliRunner

from diga_hpc import cli
from helpers.launches import SCRIPT_LOG, add_job, write_rank_logs, write_sweep


def shown(directory, *options):
    arguments = ["status", str(directory), *options]
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.exception
    return result.output


def line_with(word, text):
    return next(line for line in text.splitlines() if word in line)


def test_a_job_has_its_state_its_reason_and_its_ranks(run_dir, slurm):
    add_job(run_dir, "13_0", ranks=32)
    (slurm / "squeue.txt").write_text("13_0|PENDING|Dependency||0:00\n")
    line = line_with("13_0", shown(run_dir))
    assert "PENDING (Dependency)" in line and " 32 " in line and "2 h ago" in line


def test_a_stage_has_its_progress_loss_and_speed(run_dir):
    metrics = {
        "stage": "warm_up",
        "step": 3,
        "time": time.time() - 180,
        "loss/total": 1.2345678,
        "throughput/images_per_s": 7.5,
    }
    (run_dir / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    line = line_with("warm_up", shown(run_dir))
    assert line.split() == ["warm_up", "3/4", "steps", "1.235", "7.5", "3", "min", "ago"]


def test_requeues_are_counted(run_dir):
    requeue = {"job": "12", "time": "2026-01-02T03:04:05", "by": "slurm"}
    (run_dir / "requeues.json").write_text(json.dumps([requeue]))
    assert "requeued 1 times, last job 12 at 2026-01-02T03:04:05\n" in shown(run_dir)
    own = requeue | {"by": "job", "stage": "warm_up", "done": 3}
    (run_dir / "requeues.json").write_text(json.dumps([requeue, own]))
    expected = "requeued 2 times, last job 12 at 2026-01-02T03:04:05, warm_up at 3\n"
    assert expected in shown(run_dir)


def test_ranks_that_failed_come_with_the_end_of_their_logs(run_dir, slurm):
    (slurm / "squeue.txt").write_text("12|FAILED|NonZeroExitCode|node[1-2]|0:10\n")
    add_job(run_dir, "12")
    exits = "srun: error: node2: task 1: Killed\nsrun: error: node1: task 0: Exited with code 1\n"
    write_rank_logs(run_dir, exits, "step 7\rstep 8 [bold]\n")
    text = shown(run_dir)
    # Not taken for markup of rich.
    assert "step 8 [bold]" in text
    order = ["rank 1 on node2: Killed, end of ", "step 8", "rank 0 on node1: Exited with code 1"]
    assert [text.index(words) for words in order] == sorted(map(text.index, order))
    assert "step 7" not in shown(run_dir, "--lines=1")


def test_a_job_that_succeeded_after_a_failed_start_has_no_failed_ranks(run_dir):
    last_start = SCRIPT_LOG.splitlines()[2]
    end = f"{last_start}\n2026-01-02T05:00:00 job 11: warm-up is done\n"
    (run_dir / "logs/warmup-11.log").write_text(SCRIPT_LOG + end)
    assert "node2" not in shown(run_dir)


def test_names_are_printed_as_they_are(run_dir, slurm):
    """Not as markup or emoji of rich."""
    odd = run_dir.rename(run_dir.with_name("[red]:car:"))
    (slurm / "squeue.txt").write_text("12|FAILED|[/x]|node[1-2]|0:10\n")
    add_job(odd, "12")
    write_rank_logs(odd, "srun: error: node2: task 1: Killed\n", "step 8 [/bold] :car:\n")
    metrics = {"stage": "[/x]", "step": 3, "time": time.time()}
    (odd / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    text = shown(odd)
    for words in ("FAILED ([/x])", "node[1-2]", "/[red]:car:/", "step 8 [/bold] :car:"):
        assert words in text


def test_a_sweep_has_a_line_per_run_with_its_students(tmp_path, tiny_yaml):
    write_sweep(tmp_path, tiny_yaml)
    line = line_with("seed=0 ", shown(tmp_path))
    assert line.split() == ["seed=0", "done", "0.00", "1.00", "10.00", "11.00", "20.00", "21.00"]
