"""Files that a run passes over because they cannot be read: at most data.skip_errors of them.

RUN_DIR/skipped_data.json lists what was wrong with each, of all ranks and starts.
"""

import logging
from collections.abc import Iterable, Iterator

from diga_hpc.config import Config
from diga_hpc.data.datasets import AnyDataset, Sample
from diga_hpc.data.loader import inference_images
from diga_hpc.distributed import World
from diga_hpc.errors import UserError
from diga_hpc.run import Run, read_json, write_json

log = logging.getLogger(__name__)


class BrokenFiles:
    """What this rank found, and what is known of the others. All ranks make it, and call `write`, together."""

    def __init__(self, config: Config, run: Run, world: World):
        self.limit = config.data.skip_errors
        self.workers = config.data.workers
        self.path = run.skipped_data
        self.world = world
        self.known = set(world.from_main(read_json(self.path, []) if world.is_main else None))
        self.mine = set(self.known)

    def add(self, problems: Iterable[str]) -> None:
        """What was wrong with files. Raises UserError as soon as this rank alone knows of too many."""
        self.mine.update(problems)
        self._check(self.mine)

    def images(self, dataset: AnyDataset, indices: list[int]) -> Iterator[Sample | None]:
        """Images for inference, one item an index; None for one that is passed over."""
        pin_memory, may_break = self.world.device.type == "cuda", self.limit > 0
        for item in inference_images(
            dataset, indices, self.workers, pin_memory=pin_memory, may_break=may_break
        ):
            if isinstance(item, str):
                self.add([item])
                item = None
            yield item

    def write(self) -> None:
        """Bring the ranks together, if any file may be passed over, and list them."""
        if not self.limit:
            return
        found = self.world.union(self.mine)
        if found == self.known:
            return
        if self.world.is_main:
            log.warning("broken files passed over so far: %d, listed in %s", len(found), self.path)
            write_json(self.path, sorted(found))
        self._check(found)
        self.known, self.mine = found, set(found)

    def _check(self, found: set[str]) -> None:
        if len(found) > self.limit:
            raise UserError(
                f"{min(found - self.known or found)}; with it {len(found)} files are broken and data.skip_errors is "
                f"{self.limit}: mend them, or raise data.skip_errors"
            )
