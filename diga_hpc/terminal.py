"""To be described."""

import logging
import sys

from diga_hpc.distributed import ranks
from diga_hpc.errors import (
    UserError,
)


def log_to_terminal() -> None:
    """Our own messages at level INFO from rank 0 and warnings from everywhere, on standard error."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr
    )
    if _ranks().rank == 0:
        logging.getLogger("diga_hpc").setLevel(logging.INFO)


def _ranks() -> ranks.Ranks:
    try:
        return ranks.find()
    except UserError:  # said by whoever starts the ranks
        return ranks.Ranks()
