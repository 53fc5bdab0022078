"""logs.py: the ranks that failed, from the logs of submitit's jobs and of the scripts in slurm/."""

from diga_hpc.launch.logs import RankLogs
from helpers.launches import ERROR, SCRIPT_LOG, write_rank_logs


def test_of_a_script_the_first_rank_that_failed_in_its_last_start(tmp_path):
    (tmp_path / "warmup-11.log").write_text(SCRIPT_LOG)
    (failed,) = RankLogs.of_script(tmp_path / "warmup-11.log").failed_ranks(lines=1)
    assert str(failed) == "rank 1 on node2: Exited with exit code 2"
    assert failed.lines == ["diga-hpc: rank 1: error: /data/7.png: not a readable image"]
    assert failed.log == tmp_path / "warmup-11.log"


def test_a_rank_that_failed_and_its_consequence_in_the_order_of_failure(run_dir):
    killed = "srun: error: node2: task 1: Killed\nsrun: Terminating\n"
    exited = "srun: error: node1: task 0: Exited with exit code 1\n"
    write_rank_logs(
        run_dir,
        killed + ERROR + "RuntimeError: [gloo] closed by peer\n" + exited,
        "step 7\rstep 8 [bold]\n",
    )
    first, second = RankLogs.of_submitit(run_dir / "logs", "12").failed_ranks(lines=3)
    assert str(first) == "rank 1 on node2: Killed" and first.lines[-1] == "step 8 [bold]"
    assert str(second) == "rank 0 on node1: Exited with exit code 1"


def test_ranks_that_srun_ended_after_the_first_failure_are_not_named(run_dir):
    text = "srun: error: node2: tasks 1,3: Killed\nsrun: error: node1: tasks 0,2: Terminated\n"
    write_rank_logs(run_dir, text, "", "", "")
    failed = RankLogs.of_submitit(run_dir / "logs", "12").failed_ranks(lines=1)
    assert [rank.rank for rank in failed] == [1, 3]


def test_ranks_that_only_follow_rank_0_are_not_named(run_dir):
    follower = "diga_hpc.errors.ReportedByRank0: rank 0 reports the cause\n"
    write_rank_logs(run_dir, ERROR + "UserError: no port\n", ERROR + follower)
    logs = RankLogs.of_submitit(run_dir / "logs", "12")
    assert logs.raised == [0] and [rank.rank for rank in logs.failed_ranks(1)] == [0]


def test_an_array_element_is_not_a_rank_of_another_job(run_dir):
    write_rank_logs(run_dir, "one\n", job="12_0")
    assert RankLogs.of_submitit(run_dir / "logs", "12").ranks == {}
    assert RankLogs.of_submitit(run_dir / "logs", "12_0").ranks.keys() == {0}


def test_only_the_end_of_a_long_log_is_read(run_dir):
    write_rank_logs(run_dir, ERROR + "x" * 300_000)
    assert RankLogs.of_submitit(run_dir / "logs", "12").raised == []
