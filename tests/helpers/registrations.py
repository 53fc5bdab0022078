"""Extension modules in tests: the tables they add to are put back, the modules forgotten."""

import contextlib
import sys
from collections.abc import Iterator

from diga_hpc.config import choices, schema
from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.label_spaces import SPACES
from diga_hpc.models import MODELS
from diga_hpc.stages import plan

TABLES = (
    DATASETS,
    SPACES,
    MODELS,
    choices.SAMPLERS,
    choices.TRANSLATORS,
    schema.STAGE_SECTIONS,
    plan.STAGES,
)


@contextlib.contextmanager
def registrations_undone(prefix: str) -> Iterator[None]:
    """Within, extensions may be imported; afterwards, tables and the search path are as before.

    prefix: of the names of modules that are imported anew the next time.
    """
    before = [dict(table) for table in TABLES]
    modules, path = set(sys.modules), list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for table, entries in zip(TABLES, before, strict=True):
            table.clear()
            table.update(entries)
        for name in set(sys.modules) - modules:
            if name.startswith(prefix):
                del sys.modules[name]
