"""Corrupt data files that a run skips: at most data.skip_errors of them.

RUN_DIR/skipped_data.json lists what was wrong with each, from all ranks and starts. A repaired file
counts until its entry is removed there.
"""

import logging
import re
from collections.abc import Iterable, Iterator

from diga_hpc.config import Config
from diga_hpc.distributed.world import World
from diga_hpc.errors import UserError
from diga_hpc.loading.dataset import Dataset, Sample
from diga_hpc.loading.loader import inference_images
from diga_hpc.run.directory import Run
from diga_hpc.run.files import read_json, write_json

log = logging.getLogger(__name__)


class BrokenFiles:
    """Corrupt files found by this rank, and those known from other ranks and earlier starts.

    All ranks create it, and call `write`, together.
    """

    def __init__(self, config: Config, run: Run, world: World):
        self.limit = config.data.skip_errors
        self.workers = config.data.workers
        self.path = run.skipped_data
        self.world = world
        # Read once: on a network file system ranks may see different states.
        self.known = _by_file(world.on_rank0(lambda: read_json(self.path, [])))
        self.mine = dict(self.known)

    def add(self, problems: Iterable[str]) -> None:
        """Add what was wrong with files. Raises UserError if this rank alone knows of too many."""
        self.mine = _by_file(problems) | self.mine
        self._check(self.mine)

    def images(self, dataset: Dataset, indices: list[int]) -> Iterator[Sample | None]:
        """Yield images for inference, one item per index; None for a corrupt file."""
        pin_memory, may_break = self.world.pin_memory, self.limit > 0
        for item in inference_images(
            dataset, indices, self.workers, pin_memory=pin_memory, may_break=may_break
        ):
            if isinstance(item, str):
                self.add([item])
                yield None
            else:
                yield item

    def write(self) -> None:
        """Merge the lists of all ranks, write skipped_data.json. Raises UserError if too long."""
        # No collective where nothing may be skipped.
        if not self.limit:
            return
        found = _by_file(self.world.union(set(self.mine.values()))) | self.known
        if found == self.known:
            return
        if self.world.is_main:
            log.warning("corrupt files skipped so far: %d, listed in %s", len(found), self.path)
            write_json(self.path, sorted(found.values()))
        self._check(found)
        self.known, self.mine = found, dict(found)

    def _check(self, found: dict[str, str]) -> None:
        if len(found) > self.limit:
            # After data.skip_errors was lowered, all of them are old.
            new = found.keys() - self.known.keys() or found.keys()
            raise UserError(
                f"{found[min(new)]}; with it {len(found)} files are corrupt and data.skip_errors "
                f"is {self.limit}: repair them and remove their entries from {self.path} (or the "
                "whole file), or raise data.skip_errors"
            )


def _by_file(problems: Iterable[str]) -> dict[str, str]:
    """File name -> description. One per file: two reads of it may fail in different ways."""
    return {_file(text): text for text in sorted(problems, reverse=True)}


def _file(problem: str) -> str:
    """The file's path, with which a description begins. Names of folders may contain colons."""
    found = re.match(r".*?\.\w+(?=: )", problem)
    return found[0] if found else problem
