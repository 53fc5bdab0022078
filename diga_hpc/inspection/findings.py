"""Findings: what the facts of the data sets mean for a run.

An error would make a number wrong or meaningless: a start is refused. A warning is repeated at
every start. docs/checks.md lists them.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from diga_hpc.config import Config, TrainingSection
from diga_hpc.datasets.base import DatasetSection, FileDataset
from diga_hpc.datasets.files import paired_suffix
from diga_hpc.errors import listed
from diga_hpc.images.archives import archive_of
from diga_hpc.images.sizes import half_working_size, working_size
from diga_hpc.inspection.identity import lists_of
from diga_hpc.inspection.opening import SOURCE, TARGET, is_validation
from diga_hpc.inspection.scan import Scan

# Share of pixels without a label above which it is said.
MUCH_IGNORED = 0.5
Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Finding:
    """One line about a data set."""

    level: Level
    key: str
    """Its section: `data.source`."""
    text: str


def findings(config: Config, scans: Mapping[str, Scan], *, complete: bool = True) -> list[Finding]:
    """Everything worth saying about the data sets, errors first.

    scans: by name, as SOURCE. complete: whether all images were looked at; else nothing that
    others could disprove is an error.
    """
    found: list[Finding] = []
    for name, scan in scans.items():
        # The source and the target may have some corrupt files; evaluation skips none.
        allowed = 0 if is_validation(name) else config.data.skip_errors
        found += _files(scan, allowed)
        if name != TARGET:
            of_labels = itertools.chain(_labels(config, name, scan), _shared_labels(scan))
            found += of_labels if complete else map(_as_warning, of_labels)
        if not is_validation(name):
            found += _crops(config, scan)
        if name == TARGET:
            found += _labels_among_images(scan)
    found += _repeated(scans)
    # A file that two data sets share is named once.
    unique: dict[tuple[Level, str], Finding] = {}
    for finding in found:
        unique.setdefault((finding.level, finding.text), finding)
    return sorted(unique.values(), key=lambda finding: LEVELS.index(finding.level))


def _files(scan: Scan, allowed: int) -> Iterator[Finding]:
    key, problems = scan.entries.key, scan.problems
    level: Level = "error" if len(problems) > allowed else "warning"
    if level == "error" and allowed:
        problems[0] += (
            f"; {len(problems)} files of `{key}` are corrupt and data.skip_errors is {allowed}: "
            "repair them, or raise data.skip_errors"
        )
    for problem in problems:
        yield Finding(level, key, problem)
    yield from _turned(scan)
    yield from _archived(scan)


def _archived(scan: Scan) -> Iterator[Finding]:
    """Files that are read from archives, and folders of which only a part is unpacked."""
    key, entries = scan.entries.key, scan.entries
    paths = [path for index in range(len(scan.facts)) for path in entries.paths(index)]
    archives = {path: archive_of(path) for path in paths}
    counts = Counter(str(archive) for archive in archives.values() if archive)
    if not counts:
        return
    read = ", ".join(f"{count} from {archive}" for archive, count in counts.items())
    yield Finding("note", key, f"`{key}`: images and labels read from archives: {read}")
    archived = Counter(path.parent for path, archive in archives.items() if archive)
    unpacked = Counter(path.parent for path, archive in archives.items() if not archive)
    for folder in archived.keys() & unpacked.keys():
        yield Finding(
            "warning",
            key,
            f"{folder}: {unpacked[folder]} files are unpacked, and {archived[folder]} are read "
            "from an archive; if these were removed on purpose, move the archive to another folder",
        )


def _turned(scan: Scan) -> Iterator[Finding]:
    """Images with an EXIF orientation: sizes tell on which pixels labels were drawn, or do not."""
    key, section = scan.entries.key, scan.entries.section
    turned = [facts for facts in scan.facts if facts.image.orientation != 1]
    if not turned:
        return
    upright = getattr(section, "exif_orientation", True)
    text = (
        f"`{key}`: {len(turned)} images carry an EXIF orientation, which "
        f"{'is applied to them' if upright else 'is not applied'}; labels are never turned"
    )
    # Turned by 90 degrees, a label of the other size would be an error.
    unproven = [
        facts
        for facts in turned
        if facts.label and (facts.image.orientation < 5 or facts.image.height == facts.image.width)
    ]
    if not unproven or "exif_orientation" in section.model_fields_set:
        yield Finding("note", key, text)
        return
    drawn = "as viewers show it" if upright else "as it is stored"
    yield Finding(
        "warning",
        key,
        f"{text}. The size of {len(unproven)} labels does not show whether they were drawn on the "
        f"image {drawn}; write `exif_orientation: {str(upright).lower()}` if they were, else "
        f"`exif_orientation: {str(not upright).lower()}`",
    )


def _as_warning(finding: Finding) -> Finding:
    return replace(finding, level="warning") if finding.level == "error" else finding


def _labels(config: Config, name: str, scan: Scan) -> Iterator[Finding]:
    """What the labels of a data set hold, against the classes of the label space."""
    key, space, section = scan.entries.key, config.space, scan.entries.section
    counts = scan.class_counts(space.num_classes)
    labelled, total = int(counts[:-1].sum()), int(counts.sum())
    if not any(facts.label and not facts.label.problem for facts in scan.facts):
        return
    if isinstance(section, FileDataset):
        suspicion = section.suspicion(scan.id_counts(), space, scan.id_sets())
        if suspicion:
            yield Finding("error", key, f"`{key}`: {suspicion}")
            return
        unused = section.unused_classes(space)
        if unused:
            yield Finding(
                "note",
                key,
                f"`{key}`: ignored, since label space {space.name} has no such class: "
                f"{', '.join(unused)}",
            )
        renamed = section.renamed(space)
        if renamed:
            pairs = ", ".join(f"{theirs} as `{ours}`" for theirs, ours in renamed.items())
            yield Finding("note", key, f"`{key}`: read by another name: {pairs}")
    if not labelled:
        yield Finding(
            "error",
            key,
            f"`{key}`: no labelled pixel in {len(scan.facts)} images, so there is nothing to "
            f"{'learn from' if name == SOURCE else 'measure on'}; check the labels and "
            "`label_space`",
        )
        return
    present = counts[:-1] > 0
    absent = [c for c, is_present in zip(space.classes, present, strict=True) if not is_present]
    if name == SOURCE and present.sum() < 2:
        (only,) = np.flatnonzero(present)
        yield Finding(
            "error",
            key,
            f"`{key}`: {space.classes[only]!r} is the only class with labelled pixels, so no other "
            f"can be learnt ({listed(absent)} have none); check the labels and `label_space`",
        )
    elif absent:
        consequence = (
            "cannot be learnt" if name == SOURCE else "is measured only where it is predicted"
        )
        yield Finding(
            "warning",
            key,
            f"`{key}`: no labelled pixel of {', '.join(absent)}: a class without any {consequence}",
        )
    if total and counts[-1] > MUCH_IGNORED * total:
        share = 100 * counts[-1] / total
        yield Finding("warning", key, f"`{key}`: {share:.0f} % of the pixels have no label")


def _labels_among_images(scan: Scan) -> Iterator[Finding]:
    """Label files beside the images of a target, which would be trained on as photographs."""
    entries = scan.entries
    names = [entries.name(index) for index in range(len(scan.facts))]
    alike = [n for n, f in zip(names, scan.facts, strict=True) if f.image.channels == 1]
    suffix = paired_suffix(names)
    if alike and len(alike) < len(names):
        yield Finding(
            "warning",
            entries.key,
            f"`{entries.key}`: {len(alike)} of {len(names)} images have one channel, as label "
            f"files have ({listed(alike)}); if they are labels, they are trained on as "
            "photographs: name the folder of the photographs alone, or set `label_suffix`",
        )
    elif suffix:
        yield Finding(
            "warning",
            entries.key,
            f"`{entries.key}`: most images come in pairs, NAME and NAME{suffix}; if the second are "
            f"labels, set `label_suffix: {suffix}`, or they are trained on as photographs",
        )


def _crops(config: Config, scan: Scan) -> Iterator[Finding]:
    """Crops that are larger than the images that they are cut from."""
    key, section = scan.entries.key, scan.entries.section
    # Of a reader, sizes are known when its images have been decoded.
    seen = {(f.image.height, f.image.width) for f in scan.facts if f.image.height}
    # Without a header, photos are taken to have the aspect ratio of `size`.
    seen = seen or ({section.size} if section.size else set())
    sizes = sorted({working_size(section.size, size) for size in seen})
    halves = sorted({half_working_size(section.size, section.half_size, size) for size in seen})
    for kind, training in config:
        if not isinstance(training, TrainingSection):
            continue
        crop, batch = training.crop, training.batch
        for version, used, found in (("full", batch.full, sizes), ("half", batch.half, halves)):
            small = [size for size in found if size[0] < crop[0] or size[1] < crop[1]]
            if not used or not small:
                continue
            text = (
                f"`{kind}.crop` {list(crop)} is larger than the {version}-size image "
                f"{list(small[0])} of `{key}`"
            )
            if len(small) == len(found):
                yield Finding("error", key, f"{text}: lower it, or set {key}.size")
            else:
                yield Finding("warning", key, f"{text}: smaller images are enlarged to fit")


def _shared_labels(scan: Scan) -> Iterator[Finding]:
    """Labels that several images share, as the versions of a foggy image may."""
    paths = [scan.entries.paths(index)[1:] for index in range(len(scan.facts))]
    counts = Counter(path for label in paths for path in label)
    shared = [str(path) for path, count in counts.items() if count > 1]
    if shared:
        yield Finding(
            "warning",
            scan.entries.key,
            f"`{scan.entries.key}`: labels of several images: {listed(shared)}",
        )


def _repeated(scans: Mapping[str, Scan]) -> Iterator[Finding]:
    """Images that occur twice: within a data set, or in two of them."""
    seen: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, scan in scans.items():
        for index, facts in enumerate(scan.facts):
            if facts.image.digest:
                seen[facts.image.digest][name].append(scan.entries.name(index))
    twice: dict[str, list[str]] = defaultdict(list)
    shared: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for by_set in seen.values():
        for name, names in by_set.items():
            if len(names) > 1:
                twice[name].append(" = ".join(names[:2]))
        if len(by_set) > 1:
            shared[tuple(by_set)].append(next(iter(by_set.values()))[0])
    for name, pairs in twice.items():
        yield Finding(
            "warning", f"data.{name}", f"`data.{name}`: images with the same bytes: {listed(pairs)}"
        )
    for places, names in shared.items():
        where = " and ".join(f"`data.{place}`" for place in places)
        level, danger = _overlap([scans[place].entries.section for place in places], places)
        yield Finding(
            level,
            f"data.{places[-1]}",
            f"{where} share {len(names)} images (same bytes): {listed(names)}{danger}",
        )


def _overlap(sections: list[DatasetSection], places: tuple[str, ...]) -> tuple[Level, str]:
    """How bad it is that data sets share images, and what to do."""
    trained_on = [place for place in places if not is_validation(place)]
    lists = [str(path) for section in sections for path in lists_of(section).values()]
    # Lists of a split, as the labelled and the unlabelled images of semi-supervised training:
    # whoever writes one means the sets to be disjoint.
    if lists and trained_on:
        return "error", (
            f"; the lists of a split must not overlap ({listed(lists)}): correct them, or leave "
            "the images of the other list out with `not_in`, which kind cityscapes has"
        )
    if trained_on and len(trained_on) < len(places):
        return "warning", "; results on images that were trained on say little"
    return "warning", ""
