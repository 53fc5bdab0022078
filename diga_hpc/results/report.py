"""What a run found, for people: RUN_DIR/report.html, a file that needs no other, and a table in the terminal.

    write_report(run_dir) -> Path      results, per-class IoU, curves, pictures; for light and dark screens
    print_results(run_dir)             the results table on standard output

A colour stands for a stage everywhere on the page. What a run does not have leaves its section out.
"""

import base64
import io
import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.errors import UserError
from diga_hpc.results.report_page import PAGE, STYLE
from diga_hpc.run.files import atomic_write, read_json

PANEL_WIDTH = 480  # pixels
PANEL_BUDGET = 4_000_000  # characters of embedded pictures; further images stay in RUN_DIR/panels
CURVE_POINTS = 250  # a stage; longer logs are averaged
CHART_WIDTH, CHART_HEIGHT, CHART_LEFT, CHART_BOTTOM = 360, 170, 50, 20  # SVG units
# Keys of metrics.jsonl that become curves, in this order; TensorBoard has the others.
CURVES = (
    "loss/total", "loss/", "lr/", "throughput/images_per_s", "consensus/kept", "guard/gradient_norm", "guard/teacher_distance",
)  # fmt: skip
# Counts in metrics.jsonl whose sum over a run is a fact about it.
ALARMS = {
    "guard/exploding_steps": "steps with an exploding gradient",
    "guard/teacher_diverged": "log points with a diverged teacher",
    "guard/consensus_degenerate": "log points where the consensus kept nothing or everything",
}
RESULT = ("student", "running")
NETWORKS = (RESULT, ("student", "adapted"), ("teacher", "running"), ("teacher", "adapted"))

Lines = dict[str, list[tuple[float, float]]]  # stage -> (step, value)


def write_report(run_dir: Path) -> Path:
    """Write RUN_DIR/report.html, whole or not at all, and return its path.

    Raises UserError where config.yaml is missing or not valid, results.json or consensus.json is broken, or
    the report cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    config = configuration.load(run_dir / "config.yaml")
    space, environment = config.space, _read_text(run_dir / "env.txt")
    curves, skipped_steps = read_metrics(run_dir / "metrics.jsonl")
    alarms = [*read_alarms(run_dir / "metrics.jsonl"), *_broken_files(run_dir)]
    offsets = stage_offsets(curves)
    html = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = html.from_string(PAGE).render(
        style=STYLE,
        name=run_dir.resolve().name,
        last_stage=f"self_training_{config.self_training.rounds}"
        if config.self_training
        else "warm_up",
        results=Results.read(run_dir),
        facts=run_facts(config, environment, skipped_steps, alarms),
        palette=dict(zip(space.classes, space.palette, strict=True)),
        charts=[draw_chart(key, lines, offsets) for key, lines in curves.items()],
        consensus=read_json(run_dir / "consensus.json", []),
        panels=read_panels(run_dir / "panels"),
        files={
            "Resolved configuration": _read_text(run_dir / "config.yaml"),
            "Environment": environment,
        },
        width=CHART_WIDTH,
        height=CHART_HEIGHT,
        left=CHART_LEFT,
        offsets=offsets,
        color=lambda stage: (
            f"s{position(stage) % 6}"
        ),  # of six in the style sheet; a fifth round begins anew
        title=title,
    )
    path = run_dir / "report.html"
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        problem = f"report cannot be written ({error.strerror})"
        raise UserError(f"{path}: {problem}; free space, or make its folder writable") from error
    return path


def print_results(run_dir: Path) -> None:
    """Print one line a stage: mIoU of each network, pixel accuracy, difference to source only, in percent.

    Raises UserError where results.json is broken.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    results = Results.read(run_dir)
    if not results.stages:
        print(f"{run_dir}: no network has been evaluated yet")
        return
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption="mIoU in %; the result is the student with running statistics",
    )
    for i, head in enumerate(results.heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    for stage, texts in results.lines.items():
        table.add_row(title(stage), *texts)
    Console().print(table)


def position(stage: str) -> int:
    """0 for source_only, 1 for warm_up, 1 + N for self_training_N: the order of the stages and their colours.

    Raises ValueError for another name.
    """
    found = re.fullmatch(r"self_training_(\d+)", stage)
    return 1 + int(found[1]) if found else ("source_only", "warm_up").index(stage)


def title(name: str) -> str:
    """A stage, or a column of the pictures, as people read it: warm-up, self-training 1, kept labels 1."""
    name = re.sub(r"^consensus_", "kept labels ", name)
    return (
        name.replace("self_training", "self-training")
        .replace("warm_up", "warm-up")
        .replace("_", " ")
    )


def run_facts(
    config: Config, environment: str, skipped_steps: int, alarms: list[str]
) -> dict[str, str]:
    """What was run, in a few words each."""
    sections = {name: getattr(config, name) for name in ("source_only", "warm_up", "self_training")}
    steps = [f"{title(name)} {section.steps}" for name, section in sections.items() if section]
    if config.self_training and config.self_training.rounds > 1:
        steps[-1] += f" in each of {config.self_training.rounds} rounds"
    facts = {
        "Classes": f"{config.space.num_classes} ({config.label_space})",
        "Data": " → ".join(
            section.kind for section in (config.data.source, config.data.target) if section
        ),
        "Network": f"{config.model.name}, starting weights {config.model.weights}",
        "Steps": ", ".join(steps),
        "Seed": str(config.seed),
        "Versions": ", ".join(
            re.findall(r"^(?:diga_hpc|python|torch) .+$", environment, re.MULTILINE)
        ),
        "GPU": ", ".join(re.findall(r"^cuda .*device (.+)$", environment, re.MULTILINE)),
        "Guard rails": ", ".join(alarms),
        "Skipped steps": f"{skipped_steps}: loss or gradient was not finite"
        if skipped_steps
        else "",
    }
    return {name: text for name, text in facts.items() if text}


# ----------------------------------------------------------------------------------------------- results


class Results:
    """The rows of results.json as one table of percentages.

    stages: in their order. heads: of all columns, the stage's first. lines: stage -> texts of the others.
    marked: the head of the column that is the result. last: the last stage that has a result, or None.
    """

    marked = "student\nrunning"

    def __init__(self, rows: list[dict[str, Any]]):
        named = [f"{row['stage']}_{row['round']}" if row["round"] else row["stage"] for row in rows]
        self._rows = {
            (n, r["network"], r["normalization"]): r for n, r in zip(named, rows, strict=True)
        }
        self.stages = sorted(set(named), key=position)
        columns = {head: texts for head, texts in self._columns().items() if set(texts) - {"–"}}
        self.heads = ["stage", *columns]
        self.lines = {
            stage: [texts[i] for texts in columns.values()] for i, stage in enumerate(self.stages)
        }
        self.last = next(
            (stage for stage in reversed(self.stages) if self.get(stage) is not None), None
        )

    @classmethod
    def read(cls, run_dir: Path) -> "Results":
        """The results of a run so far, none without results.json. Raises UserError for a broken one."""
        return cls(read_json(run_dir / "results.json", []))

    def get(self, stage: str, key: str = "miou", network: tuple[str, str] = RESULT) -> Any:
        """A value of a row, or None where the row or the value is missing."""
        return self._rows.get((stage, *network), {}).get(key)

    def gain(self, stage: str) -> float | None:
        """mIoU above the source-only network's, both of the student with running statistics."""
        value, baseline = self.get(stage), self.get("source_only")
        if stage == "source_only" or value is None or baseline is None:
            return None
        return round(value, 2) - round(
            baseline, 2
        )  # what a reader gets who subtracts the numbers shown

    def _columns(self) -> dict[str, list[str]]:
        """Head -> text of each stage."""
        values = {
            "\n".join(net): [self.get(s, "miou", net) for s in self.stages] for net in NETWORKS
        }
        for key in sorted(
            {key for row in self._rows.values() for key in row if key.startswith("miou_")}
        ):
            values[f"mIoU\n{key.removeprefix('miou_')}"] = [self.get(s, key) for s in self.stages]
        values["pixel\nacc."] = [self.get(s, "pixel_accuracy") for s in self.stages]
        columns = {
            head: ["–" if v is None else f"{v:.2f}" for v in vs] for head, vs in values.items()
        }
        gains = [self.gain(s) for s in self.stages]
        return columns | {
            "vs source\nonly": ["–" if gain is None else f"{gain:+.2f}" for gain in gains]
        }


# ------------------------------------------------------------------------------------------------ curves


def read_metrics(path: Path) -> tuple[dict[str, Lines], int]:
    """Curves of metrics.jsonl by key, and how many steps the run skipped; broken lines are passed over."""
    curves: dict[str, Lines] = defaultdict(lambda: defaultdict(list))
    skipped: dict[str, int] = {}
    for line in _read_text(path).splitlines():
        try:
            entry = json.loads(line)
            stage, step = entry["stage"], int(entry["step"])
            position(stage)
            skipped[stage] = int(entry.get("guard/skipped_steps", 0))
        except (ValueError, KeyError, TypeError):
            continue  # cut short when a process was killed
        for key, value in entry.items():
            if key.startswith(CURVES) and isinstance(value, int | float) and math.isfinite(value):
                curves[key][stage].append((step, value))
    places = {
        key: next(i for i, prefix in enumerate(CURVES) if key.startswith(prefix)) for key in curves
    }
    ordered = sorted(curves, key=lambda key: (places[key], key))
    return {key: curves[key] for key in ordered}, sum(skipped.values())


def read_alarms(path: Path) -> list[str]:
    """How often the guard rails of training gave an alarm, in words; empty if they never did."""
    counts = dict.fromkeys(ALARMS, 0)
    for line in _read_text(path).splitlines():
        try:
            entry = json.loads(line)
            for key in counts:
                counts[key] += int(entry.get(key, 0))
        except (ValueError, TypeError, AttributeError):
            continue  # cut short when a process was killed
    return [f"{count} {ALARMS[key]}" for key, count in counts.items() if count]


def _broken_files(run_dir: Path) -> list[str]:
    broken = read_json(run_dir / "skipped_data.json", [])
    return [f"{len(broken)} broken files passed over (skipped_data.json)"] if broken else []


def stage_offsets(curves: dict[str, Lines]) -> dict[str, float]:
    """stage -> where its step 0 is drawn: the stages lie one behind the other."""
    lengths: dict[str, float] = {}
    for lines in curves.values():
        for stage, points in lines.items():
            lengths[stage] = max(lengths.get(stage, 0), max(step for step, _ in points))
    stages = sorted(lengths, key=position)
    return {stage: sum(lengths[before] for before in stages[:i]) for i, stage in enumerate(stages)}


def draw_chart(key: str, lines: Lines, offsets: dict[str, float]) -> dict[str, Any]:
    """One key through all stages, from zero, in SVG units.

    x, y: ticks as (place, text). lines: stage -> (points of a polyline, text of the last value).
    """
    stages = sorted(lines, key=position)
    moved = {
        stage: [(offsets[stage] + x, y) for x, y in _thin(sorted(lines[stage]))] for stage in stages
    }
    xs, ys = zip(*(point for points in moved.values() for point in points), strict=True)
    x_ticks, y_ticks = _ticks(0, max(xs)), _ticks(min(0, *ys), max(0, *ys))
    x_scale = (CHART_WIDTH - CHART_LEFT - 14) / max(*xs, 1)
    y_scale = (CHART_HEIGHT - CHART_BOTTOM - 8) / (max(y_ticks[-1], *ys) - y_ticks[0])

    def place(x: float, y: float) -> tuple[float, float]:
        down = (y - y_ticks[0]) * y_scale
        return round(CHART_LEFT + x * x_scale, 1), round(CHART_HEIGHT - CHART_BOTTOM - down, 1)

    return {
        "key": key,
        "x": [(place(x, 0)[0], f"{x:.6g}") for x in x_ticks],
        "y": [(place(0, y)[1], f"{y:.6g}") for y in y_ticks],
        "lines": {
            stage: (
                " ".join("{},{}".format(*place(x, y)) for x, y in points),
                f"{lines[stage][-1][1]:.3g}",
            )
            for stage, points in moved.items()
        },
    }


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of consecutive points, so that at most CURVE_POINTS are left."""
    size = -(-len(points) // CURVE_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return (
        means if len(means) > 1 else means * 2
    )  # a line of one point is not drawn, of two equal ones is a dot


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from at or below `low` to about `high`."""
    rough = (high - low or 1.0) / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first = math.floor(low / step)
    return [i * step for i in range(first, max(math.floor(high / step + 1e-9), first + 1) + 1)]


# ---------------------------------------------------------------------------------------------- pictures


def read_panels(folder: Path) -> dict[str, Any]:
    """The pictures of RUN_DIR/panels made small, image after image until PANEL_BUDGET is used up.

    images: name -> kind -> data URI. kinds: the columns. left_out: how many images found no room.
    """
    images: dict[str, dict[str, str]] = {}
    used, found = 0, sorted(path for path in folder.glob("*") if path.is_dir())
    for path in found:
        files = {file.stem: file for file in path.iterdir() if file.suffix in (".png", ".jpg")}
        uris = {kind: _data_uri(file) for kind, file in files.items() if _column(kind) is not None}
        used += sum(len(uri) for uri in uris.values())
        if used > PANEL_BUDGET:
            break
        images[path.name] = uris
    kinds = sorted({kind for uris in images.values() for kind in uris}, key=_column)
    return {"images": images, "kinds": kinds, "left_out": len(found) - len(images)}


def _column(kind: str) -> float | None:
    """Order of the columns: image, truth, the stages; the labels kept for a round stand before that round."""
    if kind in ("image", "truth"):
        return -2 if kind == "image" else -1
    try:
        return position(kind.replace("consensus_", "self_training_")) - 0.5 * kind.startswith(
            "consensus_"
        )
    except ValueError:
        return None


def _data_uri(path: Path) -> str:
    """The picture at most PANEL_WIDTH wide; empty where the file is broken."""
    stream = io.BytesIO()
    kind, options = (
        ("jpeg", {"quality": 80}) if path.suffix == ".jpg" else ("png", {"optimize": True})
    )
    try:
        with Image.open(path) as picture:
            height = max(1, round(picture.height * PANEL_WIDTH / picture.width))
            if picture.width > PANEL_WIDTH:
                # Of a palette picture Pillow takes the nearest pixel all the same: class indices stay.
                picture = picture.resize((PANEL_WIDTH, height), Image.Resampling.LANCZOS)
            picture.save(stream, kind, **options)
    except (OSError, SyntaxError, ValueError):
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


# ------------------------------------------------------------------------------------------------- files


def _read_text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
