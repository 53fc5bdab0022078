"""Report of a run: RUN_DIR/report.html, a self-contained page, and a table in the terminal.

write_report(run_dir) -> Path      results, per-class IoU, curves, pictures; light and dark screens
print_results(run_dir)             the table of results on standard output

A stage has the same colour everywhere on the page. A section without data is left out.
"""

import re
from pathlib import Path
from typing import Any

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.config.data import validation_name
from diga_hpc.errors import UserError
from diga_hpc.inspection.identity import describe_list
from diga_hpc.results import curves, panels, report_page
from diga_hpc.results.stage_order import StageOrder, title
from diga_hpc.results.tables import Results, read_rows, terminal_table
from diga_hpc.run.directory import RunPaths
from diga_hpc.run.files import atomic_write, read_json
from diga_hpc.run.result_rows import SET
from diga_hpc.stages.plan import stage_name, trained


def write_report(run_dir: Path) -> Path:
    """Write RUN_DIR/report.html atomically, and return its path.

    Raises UserError where config.yaml is missing or invalid, results.json or consensus.json is
    corrupt, or the report cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    # StrictUndefined: a misspelled variable of the template raises, it would be empty otherwise.
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(report_page.PAGE)
    page = template.render(_content(run_dir))
    path = RunPaths(run_dir).report
    try:
        with atomic_write(path) as temporary:
            # Names of files need not be UTF-8.
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        problem = f"report cannot be written ({error.strerror})"
        raise UserError(f"{path}: {problem}; free space, or make its folder writable") from error
    return path


def _content(run_dir: Path) -> dict[str, Any]:
    """Return the variables of the template."""
    paths = RunPaths(run_dir)
    config = configuration.load(paths.config_file)
    environment = _read_text(paths.env)
    rows, metrics = read_rows(run_dir), curves.read_metrics(paths.metrics)
    # Stages that only the files know are shown too: an extension may no longer register its stage.
    order = StageOrder(config, [*map(stage_name, rows), *metrics.stages])
    offsets = curves.stage_offsets(metrics.curves, order)
    facts = run_facts(config, environment) | _lists(paths, rows) | _problems(paths, metrics)
    space = config.space
    return {
        "style": report_page.STYLE,
        "name": run_dir.resolve().name,
        "last_stage": order.planned[-1],
        "results": Results(rows, order),
        "not_measured": _not_measured(config),
        "facts": {name: text for name, text in facts.items() if text},
        "palette": dict(zip(space.classes, space.palette, strict=True)),
        "charts": [curves.draw_chart(key, metrics.curves[key], offsets) for key in metrics.curves],
        "consensus": read_consensus(paths.consensus),
        "selection": _selection(config),
        "panels": panels.read_panels(paths.panels, order),
        "translated": panels.read_panels(paths.translator_panels, order),
        "files": {
            "Resolved configuration": _read_text(paths.config_file),
            "Environment": environment,
        },
        "width": curves.CHART_WIDTH,
        "height": curves.CHART_HEIGHT,
        "left": curves.CHART_LEFT,
        "offsets": offsets,
        "color": order.color,
        "title": title,
    }


def _selection(config: Config) -> str:
    """Title of the table of pseudo labels that are trained on."""
    section = config.self_training
    if section is None or section.selection == "consensus":
        return "Consensus of the pseudo labels"
    if section.selection == "confidence":
        return f"Pseudo labels of a probability of at least {section.confidence_threshold:g}"
    return "Pseudo labels, none dropped"


def print_results(run_dir: Path) -> None:
    """Print one line a stage: mIoU of each network, pixel accuracy, gain over source only, in %.

    Raises UserError where config.yaml is missing or invalid, or results.json is corrupt.
    """
    from rich.console import Console

    # Read first: a run that has no results yet need not have a configuration either.
    rows = read_rows(run_dir)
    file = RunPaths(run_dir).config_file
    if not rows:
        print(f"{run_dir}: {_not_measured(configuration.load(file) if file.is_file() else None)}")
        return
    config = configuration.load(file)
    results = Results(rows, StageOrder(config, map(stage_name, rows)))
    # Names of stages and protocols are no markup.
    Console(markup=False, emoji=False).print(terminal_table(results))


def _not_measured(config: Config | None) -> str:
    """Return why a run has no results."""
    if config is not None and config.data.validation is None:
        return "not measured: `data.validation` is not set"
    return "no network has been evaluated yet"


def run_facts(config: Config, environment: str) -> dict[str, str]:
    """Return what was run, in a few words each; a fact that is not known is empty.

    environment: the content of RUN_DIR/env.txt.
    """
    data = [section.kind for section in (config.data.source, config.data.target) if section]
    versions = re.findall(r"^(?:diga_hpc|python|torch) .+$", environment, re.MULTILINE)
    devices = re.findall(r"^cuda .*device (.+)$", environment, re.MULTILINE)
    return {
        "Classes": f"{config.space.num_classes} ({config.label_space})",
        "Data": " → ".join(data),
        "Validation": ", ".join(filter(None, map(validation_name, config.data.validation_sets))),
        "Network": f"{config.model.name}, starting weights {config.model.weights}",
        "Steps": ", ".join(_steps(config)),
        "Seed": str(config.seed),
        "Versions": ", ".join(versions),
        "GPU": ", ".join(devices),
    }


def _steps(config: Config) -> list[str]:
    """Return the steps of each kind of stage: `self-training 90 in each of 2 rounds`."""
    stages = trained(config)
    texts = []
    # Rounds of one kind share a section, hence their number of steps.
    for kind in dict.fromkeys(stage.kind for stage in stages):
        alike = [stage for stage in stages if stage.kind == kind]
        rounds = f" in each of {len(alike)} rounds" if len(alike) > 1 else ""
        if section := alike[0].training:
            texts.append(f"{title(kind)} {section.steps}{rounds}")
    return texts


def _lists(paths: RunPaths, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return the lists that say which images of a data set were used, such as the labelled ones."""
    found: dict[str, str] = {}
    for sets in (read_json(paths.data, {}), *(row.get("inputs", {}) for row in rows)):
        try:
            for name, summary in sets.items():
                # Beside the data sets stand digests of weights.
                lists = summary.get("lists", {}) if isinstance(summary, dict) else {}
                text = ", ".join(describe_list(*each) for each in lists.items())
                found |= {f"List of {name}": text} if text else {}
        except (AttributeError, KeyError, TypeError):
            # Edited by hand: for whoever resumes the run to say.
            continue
    return found


def read_consensus(path: Path) -> list[dict[str, Any]]:
    """Read consensus.json: round, validation, images; kept, accuracy, accuracy_offline as shares.

    Raises UserError where it is corrupt.
    """
    shares = ("kept", "accuracy", "accuracy_offline")
    rows = read_json(path, [])
    try:
        return [
            {"round": int(row["round"]), SET: row.get(SET), "images": int(row.get("images", 0))}
            | {key: None if row.get(key) is None else float(row[key]) for key in shares}
            for row in rows
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: a row has no number at {error}; remove the file, which is for diagnosis only"
        ) from error


def _problems(paths: RunPaths, metrics: curves.Metrics) -> dict[str, str]:
    """Return what went wrong in a run without ending it."""
    alarms = list(metrics.alarms)
    if corrupt := read_json(paths.skipped_data, []):
        alarms.append(f"{len(corrupt)} corrupt files skipped (skipped_data.json)")
    count = metrics.skipped_steps
    return {
        "Guard rails": ", ".join(alarms),
        "Skipped steps": f"{count}: loss or gradient was not finite" if count else "",
    }


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
