"""Terminal: log messages on standard error, by rank; errors of commands in one line."""

import codecs
import io
import logging
import sys
import traceback
from collections.abc import Callable

from diga_hpc.distributed import failures, processes, ranks
from diga_hpc.distributed.ranks import Ranks
from diga_hpc.errors import (
    EXIT_FAILED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    JobFailed,
    ReportedByRank0,
    Stopped,
    UserError,
    one_line,
)

ANY_TEXT = "diga_hpc.any_text"  # name of an error handler of codecs


def log_to_terminal() -> None:
    """Log the package's messages at level INFO on rank 0, and warnings on every rank."""
    accept_any_text()
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr
    )
    if find_ranks().rank == 0:
        logging.getLogger("diga_hpc").setLevel(logging.INFO)


def accept_any_text() -> None:
    """Let standard output take any text: a file name that is not UTF-8, an umlaut under LC_ALL=C.

    Characters that its encoding lacks are escaped, as on standard error. Where it is not UTF-8,
    names that Python could not decode are written byte by byte, as scripts need them.
    """
    codecs.register_error(ANY_TEXT, _encode)
    # Not where a test or a notebook has replaced it.
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="backslashreplace" if is_utf8 else ANY_TEXT)


def _encode(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handler of codecs: encode what an encoding lacks."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


def find_ranks() -> Ranks:
    """Rank of this process; rank 0 of 1 where the variables make no sense."""
    # Joining the ranks reports it: here it would hide what the command has to say.
    try:
        return ranks.find()
    except UserError:
        return Ranks()


def run(command: Callable[[], object]) -> None:
    """Run a command: a user error is one line and exit code 2, a requested stop exit code 75.

    Among several ranks the last line says rank, host and cause.
    """
    accept_any_text()
    me = find_ranks()
    where = f"rank {me.rank} on {processes.host()}: " if me.size > 1 else ""

    def end(code: int) -> None:
        # Among several ranks, libraries may wait for ranks that are gone: nothing is waited for.
        if me.size > 1:
            failures.leave(code)
        sys.exit(code)

    try:
        command()
    except ReportedByRank0:
        sys.exit(EXIT_USER_ERROR)
    except UserError as error:
        print(f"diga-hpc: {where}error: {one_line(error)}", file=sys.stderr)
        end(EXIT_USER_ERROR)
    except JobFailed as failed:
        print(f"diga-hpc: {failed}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except Stopped as stopped:
        # All ranks have agreed on it.
        if not me.rank:
            print(f"diga-hpc: {stopped}; {stopped.remedy}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except Exception as error:
        if me.size == 1:
            raise
        traceback.print_exc()
        print(f"diga-hpc: {where}failed: {one_line(error)}", file=sys.stderr)
        end(EXIT_FAILED)
