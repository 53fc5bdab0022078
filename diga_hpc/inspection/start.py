"""Start of a run: inspect the data, say what is odd, refuse what would make a number wrong.

inspect(config, entries, world)    every label, every image's header; findings; fingerprints
bind(run, inspected)               a run directory goes on with the data that it was begun with
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diga_hpc.config import Config
from diga_hpc.errors import UserError
from diga_hpc.inspection.entries import Entries
from diga_hpc.inspection.facts import array_digest, file_digest
from diga_hpc.inspection.findings import findings
from diga_hpc.inspection.identity import DataIdentity, differing, identify, listed
from diga_hpc.inspection.opening import SOURCE, TARGET
from diga_hpc.inspection.scan import scan
from diga_hpc.run.directory import Run
from diga_hpc.run.files import read_json, write_json

if TYPE_CHECKING:
    from diga_hpc.distributed.world import World

log = logging.getLogger(__name__)

# Images that every rank reads, spread over a data set: hosts may have copies of their own.
COMPARED = 16
WEIGHTS = "weights"  # key in RUN_DIR/data.json beside those of the data sets


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
    config: Config, entries: Mapping[str, Entries], world: "World"
) -> tuple[Inspected, dict[str, DataIdentity]]:
    """Look at all data sets; all ranks call it, and rank 0 reads.

    entries: by name. Returns what was found, and on rank 0 the identities (elsewhere none). Logs
    warnings. Raises UserError for what would make a result wrong or meaningless, and for ranks
    whose files differ.
    """
    identities: dict[str, DataIdentity] = {}

    def look() -> Inspected:
        scans = {name: scan(each) for name, each in entries.items()}
        _report(config, scans)
        identities.update({name: identify(each) for name, each in scans.items()})
        counts = scans[SOURCE].class_counts(config.space.num_classes)
        return Inspected({name: each.summary() for name, each in identities.items()}, counts)

    inspected = world.on_rank0(look)
    _require_same_files(entries, world)
    return inspected, identities


def _report(config: Config, scans: Mapping[str, Any]) -> None:
    """Log warnings; raise for the first error."""
    found = findings(config, scans)
    errors = [finding.text for finding in found if finding.level == "error"]
    for finding in found:
        if finding.level == "warning":
            log.warning("%s", finding.text)
    if errors:
        more = len(errors) - 1
        others = f" (and {more} more: `diga-hpc check` lists all)" if more else ""
        raise UserError(f"{errors[0]}{others}")


def _require_same_files(entries: Mapping[str, Entries], world: "World") -> None:
    """Raise UserError where ranks have other files: hosts may have copies of their own."""
    if world.size == 1:
        return
    seen = {name: _sample_digest(each) for name, each in entries.items()}
    for name, digest in seen.items():
        if len(world.union({digest})) > 1:
            raise UserError(
                f"`data.{name}`: the files of {entries[name].root} are not the same on all hosts; "
                "copy them anew, or name a folder that all hosts share"
            )


def _sample_digest(entries: Entries) -> str:
    """Digest of all names, and of the content of some images and labels."""
    count = len(entries)
    texts = [entries.name(index) for index in range(count)]
    for index in sorted(set(np.linspace(0, count - 1, min(COMPARED, count)).astype(int).tolist())):
        facts = entries.facts(index, decode=False)
        texts += [facts.image.digest, facts.label.digest if facts.label else ""]
    return array_digest(np.frombuffer("\n".join(texts).encode(errors="surrogateescape"), np.uint8))


def bind(run: Run, identities: Mapping[str, DataIdentity]) -> None:
    """Record what a run is trained with, or refuse other data and weights; rank 0 calls it.

    Corrupt files that were skipped (RUN_DIR/skipped_data.json) may have been repaired. Raises
    UserError where source, target or the file of starting weights differ from those of the networks
    and labels in the directory.
    """
    trained_on = {name: each for name, each in identities.items() if name in (SOURCE, TARGET)}
    weights = _weights(run.config)
    recorded = read_json(run.data, None)
    if recorded is not None and run.has_products:
        old = {
            name: DataIdentity.from_json(values)
            for name, values in recorded.items()
            if name in trained_on
        }
        skipped = "\n".join(read_json(run.skipped_data, []))
        for name in old:
            _require_same(run, old[name], trained_on[name], skipped)
        # Once training has begun, the file may be gone.
        before = recorded.get(WEIGHTS)
        weights = weights or before
        if before and weights != before:
            raise UserError(
                f"{run.path}: begun with other starting weights: {run.config.model.weights} had "
                f"the digest {before}, now {weights}; put the file back or choose "
                f"another run_dir; if the change is meant, remove {run.data}"
            )
    elif run.has_products:
        log.warning(
            "%s: begun by a version that did not record its data, so it is not checked that they "
            "are the same now",
            run.path,
        )
    data = {name: each.as_json() for name, each in trained_on.items()}
    write_json(run.data, data | {WEIGHTS: weights})


def _weights(config: Config) -> str | None:
    """Digest of the file of starting weights; None without a file."""
    if config.model.weights in ("imagenet", "random"):
        return None
    path = Path(config.model.weights).expanduser()
    return file_digest(path) if path.is_file() else None


def _require_same(run: Run, old: DataIdentity, new: DataIdentity, skipped: str) -> None:
    # A file's name, with its suffix, follows a slash in the list of those that were skipped.
    differ = [name for name in differing(old, new) if f"/{name}." not in skipped]
    if differ:
        raise UserError(
            f"{run.path}: begun with the `{new.key}` of {old.describe()}, which is now "
            f"{new.describe()}; {len(differ)} images differ: {listed(differ)}. Set {new.key}.root "
            f"back or choose another run_dir; if the change is meant, remove {run.data}"
        )
