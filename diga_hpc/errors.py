"""The two ways in which a command ends early for a reason that the user can act on."""

# The exit codes of the command line; a failure that is ours ends with Python's own 1 and a traceback.
EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal after a checkpoint; the same command goes on


class UserError(ValueError):
    """Something the user can mend: the message names the file or key, the value, what was expected and the remedy.

    The command line prints it as one line and exits with code 2.
    """


class Stopped(Exception):
    """A stage stopped at a step boundary because it was asked to; its state is on disk."""
