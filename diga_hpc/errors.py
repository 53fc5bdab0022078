"""The ways in which a command ends early for a reason that the user can act on."""

# The exit codes of the command line; a failure that is ours ends with Python's own 1 and a traceback.
EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal after a checkpoint; the same command goes on


class UserError(ValueError):
    """Something the user can mend: the message names the file or key, the value, what was expected and the remedy.

    The command line prints it as one line and exits with code 2.
    """


class MachineError(UserError):
    """A file could not be read for a reason that lies outside it: another one in its place would be no remedy."""


class ReportedByRank0(UserError):
    """What stops this rank is told by rank 0, so that a job of many ranks says it once."""

    def __init__(self):
        super().__init__("rank 0 says why")


class Stopped(Exception):
    """A stage stopped where all ranks agreed because it was asked to; its state is on disk.

    stage: its name in logs and checkpoints. done: how much of it is finished, in units of its own that only grow.
    """

    def __init__(self, message: str, *, stage: str, done: int):
        super().__init__(message)
        self.stage = stage
        self.done = done
        self.remedy = "start the same command again to go on"


class JobFailed(Exception):
    """A submitted job failed on the cluster: the message names rank, node and log. Exit code 1."""
