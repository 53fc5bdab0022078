"""Start of a run: inspect the data, say what is odd, refuse what would make a number wrong.

inspect(config, entries, world)    every label, every image's header; findings; fingerprints
Binding                            a run directory goes on with the data that it was begun with
"""

import functools
import logging
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from diga_hpc.config import Config
from diga_hpc.errors import UserError, first_of
from diga_hpc.inspection.entries import Entries
from diga_hpc.inspection.facts import file_digest, text_digest
from diga_hpc.inspection.findings import findings
from diga_hpc.inspection.identity import DataIdentity, difference, differing, identify
from diga_hpc.inspection.opening import SOURCE, TARGET
from diga_hpc.inspection.scan import Scan, scanning
from diga_hpc.run.directory import Run
from diga_hpc.run.files import read_json, write_json

if TYPE_CHECKING:
    from diga_hpc.distributed.world import World

log = logging.getLogger(__name__)

# Images that every rank reads, spread over a data set: hosts may have copies of their own.
COMPARED = 16
# Keys in RUN_DIR/data.json beside those of the data sets: digests of the files of weights.
WEIGHTS, TRANSLATOR, VGG19 = "weights", "translator", "vgg19"
WEIGHT_KEYS = {
    WEIGHTS: "model.weights",
    TRANSLATOR: "translator.weights",
    VGG19: "translation.vgg19",
}


@dataclass(frozen=True)
class Inspected:
    """What a run knows about its data; the same on all ranks."""

    summaries: dict[str, dict[str, Any]]
    """Name of the data set -> kind, root, number of images, fingerprint."""
    source_counts: np.ndarray
    """Pixels of each class in the source, int64 [K+1]; the last counts those without a label."""

    def fingerprint(self, name: str) -> str | None:
        """Of a data set; None where the configuration has none."""
        return self.summaries[name]["fingerprint"] if name in self.summaries else None


def inspect(
    config: Config, entries: Mapping[str, Entries], world: "World", *, again: bool = False
) -> tuple[Inspected, dict[str, DataIdentity]]:
    """Look at all data sets; all ranks call it, and rank 0 reads.

    entries: by name. again: later in a run, where warnings are not repeated. Returns what was
    found, and on rank 0 the identities (elsewhere none). Logs warnings. Raises UserError for what
    would make a result wrong or meaningless, and for ranks whose files differ.
    """
    identities: dict[str, DataIdentity] = {}

    def look() -> Generator[None, None, Inspected]:
        scans = {}
        for name, each in entries.items():
            scans[name] = yield from scanning(each)
        _report(config, scans, quiet=again)
        classes = config.space.classes
        identities.update({name: identify(each, classes) for name, each in scans.items()})
        counts = scans[SOURCE].class_counts(config.space.num_classes)
        return Inspected({name: each.summary() for name, each in identities.items()}, counts)

    parts = look()

    def next_part() -> Inspected | None:
        try:
            next(parts)
        except StopIteration as done:
            return cast(Inspected, done.value)
        return None

    # In parts: the other ranks do not wait for minutes in one collective, which has a timeout.
    while (inspected := world.on_rank0(next_part)) is None:
        pass
    if not again:
        _require_same_files(entries, world)
    return inspected, identities


def _report(config: Config, scans: Mapping[str, Scan], *, quiet: bool) -> None:
    """Log warnings; raise for the first error."""
    found = findings(config, scans)
    errors = [finding.text for finding in found if finding.level == "error"]
    for finding in found:
        if finding.level == "warning" and not quiet:
            log.warning("%s", finding.text)
    if errors:
        raise UserError(first_of(errors, ": `diga-hpc check` lists all"))


def _require_same_files(entries: Mapping[str, Entries], world: "World") -> None:
    """Raise UserError where ranks have other files: hosts may have copies of their own.

    All names are compared, and COMPARED images of each data set.
    """
    if world.size == 1:
        return
    for name, each in entries.items():
        differ = len(world.union({_sample_digest(each)})) > 1
        world.on_rank0(functools.partial(_refuse_others, each, name, differ))


def _refuse_others(entries: Entries, name: str, differ: bool) -> None:
    if differ:
        place = entries.root or f"kind {entries.section.kind}"
        raise UserError(
            f"`data.{name}`: the files of {place} are not the same on all hosts; copy them anew, "
            "or name a folder that all hosts share"
        )


def _sample_digest(entries: Entries) -> str:
    """Digest of all names, and of the content of some images and labels."""
    count = len(entries)
    compared = np.linspace(0, count - 1, min(COMPARED, count)).astype(int).tolist()
    names = [entries.name(index) for index in range(count)]
    contents = [entries.identity(i, entries.facts(i, decode=False)) for i in compared]
    return text_digest([names, contents, entries.meaning()])


class Binding:
    """Ties a run directory to the data and the starting weights that it was begun with.

    Rank 0 has it. `check` comes before anything is written to the directory, `record` after.
    """

    def __init__(
        self, run: Run, identities: Mapping[str, DataIdentity], entries: Mapping[str, Entries]
    ):
        self.run, self.entries = run, entries
        self.data = {name: each for name, each in identities.items() if name in (SOURCE, TARGET)}
        self.weights = {
            name: file_digest(path) if path.is_file() else None
            for name, path in weight_files(run.config).items()
        }

    def check(self) -> None:
        """Raise UserError where source, target or the file of starting weights differ from those
        of the networks and labels in the directory.

        Corrupt files that were skipped (RUN_DIR/skipped_data.json) may have been repaired.
        """
        run, recorded = self.run, read_json(self.run.data, {})
        if not run.has_products:
            return
        if not recorded:
            log.warning(
                "%s: missing, so it is not checked that the run goes on with the data that it was "
                "begun with",
                run.data,
            )
            return
        for name in recorded.keys() & self.data.keys():
            try:
                old = DataIdentity.from_json(recorded[name])
            except (KeyError, TypeError) as error:
                raise UserError(
                    f"{run.data}: corrupt ({name!r} has no {error}); remove it to go on without "
                    "this check"
                ) from error
            self._require_same(name, old)
        for name, path in weight_files(run.config).items():
            # Once training has begun, the file may be gone.
            before = recorded.get(name)
            now = self.weights[name] = self.weights[name] or before
            if before and now != before:
                what = "starting weights" if name == WEIGHTS else f"weights of its {name}"
                raise UserError(
                    f"{run.path}: begun with other {what}: {path} had the digest {before}, now "
                    f"{now}; put the file back or choose another run_dir; if the change is meant, "
                    f"remove {run.data}"
                )

    def record(self) -> None:
        """Write RUN_DIR/data.json."""
        data = {name: each.as_json() for name, each in self.data.items()}
        write_json(self.run.data, data | {WEIGHTS: None} | self.weights)

    def _require_same(self, name: str, old: DataIdentity) -> None:
        new = self.data[name]
        differ = differing(old, new)
        skipped = self._skipped(name) if differ else set()
        what = difference(old, new, [each for each in differ if each not in skipped])
        if what:
            raise UserError(
                f"{self.run.path}: begun with the `{new.key}` of {old.describe()}, which is now "
                f"{new.describe()}; {what}. Set {new.key}.root back or choose another run_dir; if "
                f"the change is meant, remove {self.run.data}"
            )

    def _skipped(self, name: str) -> set[str]:
        """Names of the images of a data set of which a file was skipped as corrupt."""
        problems = read_json(self.run.skipped_data, [])
        entries = self.entries[name]
        return {
            entries.name(index)
            for index in range(len(entries) if problems else 0)
            for path in entries.paths(index)
            if any(problem.startswith(f"{path}: ") for problem in problems)
        }


def weight_files(config: Config) -> dict[str, Path]:
    """Files of weights that a configuration names, by their key in RUN_DIR/data.json."""
    named = {
        WEIGHTS: None if config.model.weights in ("imagenet", "random") else config.model.weights,
        TRANSLATOR: config.translator.weights,
        VGG19: config.translation and config.translation.vgg19,
    }
    return {name: Path(path).expanduser() for name, path in named.items() if path}
