"""Check of configuration and data before training: every file, the labels, what would run.

Loads no torch, unless the memory of a configuration has not been estimated before.
"""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from diga_hpc import config as configuration
from diga_hpc import models
from diga_hpc.config import Config
from diga_hpc.datasets.base import FileDataset
from diga_hpc.errors import UserError, first_of
from diga_hpc.inspection import cache
from diga_hpc.inspection.entries import Entries, FileEntries
from diga_hpc.inspection.findings import Finding, findings
from diga_hpc.inspection.opening import SOURCE, TARGET, open_entries
from diga_hpc.inspection.scan import Scan, scan
from diga_hpc.inspection.start import WEIGHT_KEYS, weight_files
from diga_hpc.models import MODELS
from diga_hpc.stages.plan import trained

# Problems that are printed; the others are counted.
SHOWN = 20


@dataclass(frozen=True)
class CheckedSet:
    """A data set as it was found."""

    name: str
    images: int
    read: int
    sizes: str
    classes: dict[str, int] = field(default_factory=dict)
    """Class, or "(ignored)" -> pixels; empty where labels are not used."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Files that are not read, by reason."""

    @property
    def present(self) -> int:
        """Classes with at least one pixel."""
        return sum(count > 0 for count in list(self.classes.values())[:-1])


@dataclass(frozen=True)
class Checked:
    """Everything that a check found."""

    sets: list[CheckedSet]
    findings: list[Finding]
    means: dict[str, int] = field(default_factory=dict)
    """Mean of a result -> classes that it is over: `miou`, and synthia's `miou_13`."""

    def at(self, level: str) -> list[str]:
        """Texts of the findings of a level."""
        return [finding.text for finding in self.findings if finding.level == level]

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "sets": [asdict(checked) for checked in self.sets],
            "means": self.means,
            "errors": self.at("error"),
            "warnings": self.at("warning"),
            "notes": self.at("note"),
        }


def check(config: Config, *, limit: int | None = None, as_json: bool = False) -> None:
    """Read every image and label on all cores, then print what was found and what would run.

    limit: read at most so many images of each data set. as_json: print one JSON object. Raises
    UserError with a summary if anything was found that a run would refuse.
    """
    checked = look(config, limit)
    if as_json:
        print(json.dumps(checked.as_json(), indent=1))
    else:
        _print(config, checked)
    errors = checked.at("error")
    if errors:
        problems = f"{len(errors)} problem{'s' if len(errors) > 1 else ''}"
        raise UserError(f"{problems}: {first_of(errors)}")


def look(config: Config, limit: int | None = None) -> Checked:
    """Look at all data sets, with a progress bar on the terminal, and for the files of weights."""
    opened: dict[str, Entries] = {}
    problems: list[Finding] = []
    for name in config.data.sets:
        unusable: list[str] = []
        try:
            entries = open_entries(config, name, unusable)
            if entries is not None and len(entries):
                opened[name] = entries
        except UserError as error:
            unusable.append(str(error))
        problems += [Finding("error", f"data.{name}", text) for text in unusable]
    for name, path in weight_files(config).items():
        if not path.is_file():
            text = f"`{WEIGHT_KEYS[name]}`: there is no file {path}; give the path of one"
            problems.append(Finding("error", WEIGHT_KEYS[name], text))
    scans = {}
    with _progress() as progress:
        for name, entries in opened.items():
            count = len(entries) if limit is None else min(limit, len(entries))
            task = progress.add_task(name, total=count)
            scans[name] = scan(
                entries,
                decode=True,
                limit=limit,
                progress=lambda done, task=task: progress.advance(task, done),  # type: ignore[misc]
            )
    sets = [_checked_set(config, name, each) for name, each in scans.items()]
    protocols = {key: len(members) for key, members in config.space.protocols.items()}
    means = {"miou": config.space.num_classes} | protocols
    return Checked(sets, problems + findings(config, scans, complete=limit is None), means)


def _progress() -> Progress:
    text = TextColumn("checking {task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _checked_set(config: Config, name: str, scan: Scan) -> CheckedSet:
    entries = scan.entries
    classes: dict[str, int] = {}
    if name != TARGET:
        counts = scan.class_counts(config.space.num_classes)
        classes = dict(zip([*config.space.classes, "(ignored)"], counts.tolist(), strict=True))
    left_out: dict[str, int] = {}
    if isinstance(entries, FileEntries) and isinstance(entries.section, FileDataset):
        left_out = dict(entries.listing.left_out)
    return CheckedSet(name, len(entries), len(scan.facts), _sizes(scan), classes, left_out)


def _sizes(scan: Scan) -> str:
    """Sizes of the images, as text: height x width."""
    sizes = Counter((f.image.height, f.image.width) for f in scan.facts if f.image.height)
    if not sizes:
        return "unknown"
    shown = [f"{height}x{width}" for height, width in sorted(sizes)]
    return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]} ({len(shown)} sizes)"


# ------------------------------------------------------------------------------------------- tables


def _print(config: Config, checked: Checked) -> None:
    # Names are printed as they are: `[/x]` is no markup, `:car:` no picture.
    console = Console(markup=False, emoji=False)
    table = Table("data set", "images", "read", "size", "classes present")
    table.title = f"label space {config.space.name}"
    for each in checked.sets:
        present = f"{each.present} of {config.space.num_classes}"
        table.add_row(
            each.name,
            str(each.images),
            str(each.read),
            each.sizes,
            present if each.classes else "(labels not used)",
        )
    console.print(table)
    console.print(_frequency_table(checked))
    if any(each.name == SOURCE for each in checked.sets):
        console.print(_stage_table(config, checked))
    for each in checked.sets:
        for reason, count in each.left_out.items():
            console.print(f"`data.{each.name}`: left out: {count} {reason}", highlight=False)
    for level, label in (("note", "note"), ("warning", "warning"), ("error", "ERROR")):
        texts = checked.at(level)
        for text in texts[:SHOWN]:
            console.print(f"{label}: {text}", highlight=False, soft_wrap=True)
        if len(texts) > SHOWN:
            console.print(f"{label}: and {len(texts) - SHOWN} more")
    if not checked.at("error"):
        warnings = len(checked.at("warning"))
        console.print("no problems found" + (f"; {warnings} warnings" if warnings else ""))


def _frequency_table(checked: Checked) -> Table:
    """Tabulate the share of each class in the labelled data sets."""
    labelled = [each for each in checked.sets if each.classes]
    table = Table("class", *(f"{each.name}, % of pixels" for each in labelled))
    if labelled:
        for name in labelled[0].classes:
            shares = (
                100 * each.classes[name] / max(sum(each.classes.values()), 1) for each in labelled
            )
            table.add_row(name, *(f"{share:.2f}" for share in shares))
    return table


def _stage_table(config: Config, checked: Checked) -> Table:
    """Tabulate the stages that train: steps, batch, crop, and an estimate of the memory."""
    needs = _estimates(config)
    source = next(each.images for each in checked.sets if each.name == SOURCE)
    table = Table(
        "stage",
        "steps",
        "images a step",
        "crop",
        "passes over the source",
        "memory of one rank, estimated",
        title=f"{config.model.name}: {needs['parameters']:,} parameters",
    )
    stages = trained(config)
    for kind in dict.fromkeys(stage.kind for stage in stages):
        alike = [stage for stage in stages if stage.kind == kind]
        section = alike[0].training
        assert section is not None
        rounds = f" x {len(alike)}" if alike[0].round else ""
        table.add_row(
            kind,
            f"{section.steps}{rounds}",
            str(section.batch.total),
            f"{section.crop[0]}x{section.crop[1]}",
            f"{section.steps * section.batch.total / source:.1f}",
            f"{needs[kind] / 2**30:.1f} GiB",
        )
    return table


def _estimates(config: Config) -> dict[str, int]:
    """stages.memory.estimates; kept in the cache, since building a network takes seconds."""
    key = _estimates_key(config)
    kept = cache.load(key) if key else None
    expected = {"parameters", *(stage.kind for stage in trained(config))}
    if isinstance(kept, dict) and kept.keys() == expected:
        return kept
    from diga_hpc.stages.memory import estimates

    needs = estimates(config)
    if key:
        cache.store(key, needs)
    return needs


def _estimates_key(config: Config) -> str | None:
    """Digest of what the estimates depend on; None for a network or a stage of an extension."""
    if config.extensions or not MODELS[config.model.name].startswith("diga_hpc."):
        return None
    digest = hashlib.sha256(metadata.version("torch").encode())
    code = Path(models.__file__).parent, Path(__file__).parents[1] / "stages"
    for path in sorted(path for folder in code for path in folder.rglob("*.py")):
        digest.update(path.read_bytes())
    identity = configuration.identity(config) | {"micro_batch": config.engine.micro_batch}
    identity["precision"] = config.engine.precision
    digest.update(json.dumps(identity, sort_keys=True).encode())
    return digest.hexdigest()
