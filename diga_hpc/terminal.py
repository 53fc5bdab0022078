"""Terminal: log messages on standard error, by rank; names that the terminal cannot show."""

import codecs
import io
import logging
import sys

from diga_hpc.distributed import ranks
from diga_hpc.distributed.ranks import Ranks
from diga_hpc.errors import UserError

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

    Such a name is written byte by byte, as scripts need it; other characters that the encoding
    lacks are escaped. Standard error escapes all of them, as Python has it.
    """
    codecs.register_error(ANY_TEXT, _encode)
    # Not where a test or a notebook has replaced it.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ANY_TEXT)


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
