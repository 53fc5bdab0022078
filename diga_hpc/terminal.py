"""Terminal: log messages on standard error, by rank."""

import logging
import sys

from diga_hpc.distributed import ranks
from diga_hpc.distributed.ranks import Ranks
from diga_hpc.errors import UserError


def log_to_terminal() -> None:
    """Log the package's messages at level INFO on rank 0, and warnings on every rank."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr
    )
    if find_ranks().rank == 0:
        logging.getLogger("diga_hpc").setLevel(logging.INFO)


def find_ranks() -> Ranks:
    """Rank of this process; rank 0 of 1 where the variables make no sense."""
    # Joining the ranks reports it: here it would hide what the command has to say.
    try:
        return ranks.find()
    except UserError:
        return Ranks()
