"""slurm.py: the states of jobs according to squeue and sacct."""

from diga_hpc.launch import slurm as module
from diga_hpc.launch.slurm import JobState

SQUEUE = """\
12|RUNNING|None|node[1-2]|1:02:03
13_1|PENDING|Resources||0:00
"""
SACCT = """\
13_0|CANCELLED by 1000|None|node3|00:01:00
13_[2-4,7%2]|PENDING|Priority|None assigned|00:00:00
"""


def test_sacct_is_asked_for_the_jobs_that_squeue_has_forgotten(slurm):
    (slurm / "squeue.txt").write_text(SQUEUE)
    (slurm / "sacct.txt").write_text(SACCT)
    found = module.states(["12", "13_0", "13_1", "13_3", "13_7", "99"])
    assert found == {
        "12": JobState("12", "RUNNING", "", "node[1-2]", "1:02:03"),
        "13_0": JobState("13_0", "CANCELLED", "", "node3", "00:01:00"),
        "13_1": JobState("13_1", "PENDING", "Resources", "", "0:00"),
        "13_3": JobState("13_3", "PENDING", "Priority", "", "00:00:00"),
        "13_7": JobState("13_7", "PENDING", "Priority", "", "00:00:00"),
    }
    first, second = (slurm / "asked").read_text().splitlines()
    assert first.endswith("--jobs 12,13,99") and second.endswith("--jobs 13,99")


def test_sacct_is_not_asked_for_jobs_that_squeue_knows(slurm):
    (slurm / "squeue.txt").write_text(SQUEUE)
    assert module.states(["12"]).keys() == {"12"}
    assert len((slurm / "asked").read_text().splitlines()) == 1


def test_without_slurm_or_its_answer_no_job_is_known(slurm, monkeypatch):
    assert module.states(["12"]) == {}  # both commands fail
    monkeypatch.setenv("PATH", "/nowhere")
    assert module.states(["12"]) == {}
    assert module.states([]) == {}


def test_a_job_has_ended_or_failed_by_its_state():
    states = {name: JobState("1", name) for name in ("PENDING", "COMPLETED", "NODE_FAIL")}
    assert [name for name, state in states.items() if state.ended] == ["COMPLETED", "NODE_FAIL"]
    assert [name for name, state in states.items() if state.failed] == ["NODE_FAIL"]
    assert str(JobState("1", "PENDING", "Priority")) == "PENDING (Priority)"
