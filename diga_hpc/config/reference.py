"""Reference of the configuration as Markdown, generated from the docstrings of the keys.

python -m diga_hpc.config.reference > docs/configuration.md
"""

import math
import textwrap
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from diga_hpc.config.choices import SAMPLERS, TRANSLATORS
from diga_hpc.config.file import EXECUTION_KEYS
from diga_hpc.config.schema import Config
from diga_hpc.config.stages import TrainingSection
from diga_hpc.config.validation import sections_in
from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.base import DatasetSection
from diga_hpc.datasets.label_spaces import SPACES
from diga_hpc.models import MODELS
from diga_hpc.section import KeyOf, Section

INTRODUCTION = """\
# Configuration

<!-- Made by `python -m diga_hpc.config.reference > docs/configuration.md`; do not edit. -->

One YAML file describes one experiment. `configs/` holds examples; `diga-hpc show FILE` prints a
file with all of its defaults.

**Precedence.** Defaults < file < command line. Any key can be overridden after the file as
`key=value`, with dots between section and key; the value is YAML:

```bash
diga-hpc pipeline configs/demo.yaml seed=1 warm_up.batch.full=8 'evaluation.scales=[1.0, 0.5]'
```

**Base.** `base: FILE` takes the values of another file, named relative to this one, and sets those
of this file on top, key by key; a section of another `kind` replaces that of the base.

**Variants.** `variants: {{name: [key=value, ...]}}` in a file names lists of overrides;
`variant=name` applies one after the file and before the command line. See
[sweeps](cluster.md#sweeps).

**Empty values.** `empty` is YAML's `null`: `self_training=null` removes a section.

**One run, one configuration.** The resolved configuration is saved in the run directory, which
refuses any other one. On resume, only keys that say where and how a run is executed may change, not
those that decide what it computes. These may change:
{execution} and the `root` of any data set.

**Texts and numbers.** Only `true` and `false` are truth values, so that a class may be named `on`;
`1:30`, `010` and `2024-01-01` are texts. A key given twice is an error that names its lines.

**Checks.** Unknown keys, values of a wrong type or out of bounds, and unknown names are errors that
name the key. `diga-hpc check FILE` also looks at the data.

**Extensions.** `extensions: [my_parts]` imports the Python module `my_parts` (from the current
directory or `PYTHONPATH`) before the file is validated. What it registers can then be chosen:

{extensions}
The section of a stage is a subclass of `diga_hpc.config.TrainingSection`, so that it has at least
the keys {training}.
"""
EXTENSIONS = (
    ("data set", '`DATASETS["kind"] = Section`', "`diga_hpc.datasets`", "`data.source.kind`"),
    (
        "label space",
        '`SPACES["name"] = LabelSpace(...)`',
        "`diga_hpc.datasets.label_spaces`",
        "`label_space`",
    ),
    ("network", '`MODELS["name"] = "module:Class"`', "`diga_hpc.models`", "`model.name`"),
    (
        "translator",
        '`TRANSLATORS["name"] = "module:Class"`',
        "`diga_hpc.config.choices`",
        "`translator.kind`",
    ),
    (
        "sampler",
        '`SAMPLERS["name"] = "module:Class"`',
        "`diga_hpc.config.choices`",
        "`data.sampler`",
    ),
    (
        "stage",
        '`register("name", "module:Class", Section, ...)`',
        "`diga_hpc.stages.plan`",
        "a section `name:`",
    ),
)
KEYS = ("key", "value", "default", "meaning")
TYPES = {int: "integer", float: "number", str: "text", Path: "path", bool: "`true`, `false`"}


def render() -> str:
    """The reference: an introduction, a table per section, data sets by kind, tables of choices."""
    parts = [_introduction(), f"## Top level\n\n{_table(KEYS, _rows(Config, ''))}"]
    for name, field in Config.model_fields.items():
        parts += [_section(name, field, section) for section in sections_in(field.annotation)]
        if name == "data":
            parts += _data_sets()
    return "\n".join([*parts, *_choices()])


def _introduction() -> str:
    header = ("to add", "write in the module", "imported from", "chosen with")
    return INTRODUCTION.format(
        execution=textwrap.fill(", ".join(f"`{key}`" for key in EXECUTION_KEYS), width=90),
        extensions=_table(header, EXTENSIONS),
        training=", ".join(f"`{key}`" for key in TrainingSection.model_fields),
    )


def _section(name: str, field: FieldInfo, section: type[Section]) -> str:
    """Heading, text and table of the section class at the key `name` of a configuration."""
    if get_origin(field.annotation) is tuple:
        text = f"{field.description} A list; N is a position in it, counted from 0."
        prefix = f"{name}.N."
    else:
        needed = "Required." if field.is_required() else field.description
        text, prefix = f"{section.__doc__} {needed or ''}", f"{name}."
    return f"## {name}\n\n{_one_line(text)}\n\n{_table(KEYS, _rows(section, prefix))}"


def _data_sets() -> list[str]:
    """Keys of every data set, then those of each kind."""
    text = (
        "Keys of `data.source`, `data.target` and `data.validation`, for example "
        "`data.source.root`; of several validation sets, `data.validation.NAME.root`. `kind` "
        "decides which of the tables below applies."
    )
    kind_row = (
        "`kind`",
        ", ".join(f"`{kind}`" for kind in DATASETS),
        "required",
        _one_line(DatasetSection.model_fields["kind"].description),
    )
    rows = [kind_row, *_rows(DatasetSection, "", without=["kind"])]
    parts = [f"## Data sets\n\n{text}\n\n{_table(KEYS, rows)}"]
    for kind, section in DATASETS.items():
        own = _table(KEYS, _rows(section, "", without=DatasetSection.model_fields))
        parts.append(f"### `kind: {kind}`\n\n{_one_line(section.__doc__)}\n\n{own}")
    return parts


def _choices() -> list[str]:
    """Label spaces with their classes, and the tables of implementations."""
    spaces = [
        (
            f"`{name}`",
            str(space.num_classes),
            ", ".join(space.classes),
            ", ".join(f"`{p}` ({len(classes)} classes)" for p, classes in space.protocols.items()),
        )
        for name, space in SPACES.items()
    ]
    header = ("name", "number", "classes, in the order of their index", "further means")
    parts = [f"## Label spaces\n\nChoices of `label_space`.\n\n{_table(header, spaces)}"]
    for title, key, table in (
        ("Networks", "model.name", MODELS),
        ("Translators", "translator.kind", TRANSLATORS),
        ("Samplers", "data.sampler", SAMPLERS),
    ):
        rows = [(f"`{name}`", f"`{target}`") for name, target in table.items()]
        listing = _table(("name", "implementation"), rows)
        parts.append(f"## {title}\n\nChoices of `{key}`.\n\n{listing}")
    return parts


# ---------------------------------------------------------------------------------- rows of a table

Row = tuple[str, ...]


def _table(header: Row, rows: Iterable[Row]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    # A bar in a text would end the cell.
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _rows(section: type[Section], prefix: str, without: Iterable[str] = ()) -> Iterator[Row]:
    """Rows of the keys of a section; a section within it contributes its own keys."""
    for name, field in section.model_fields.items():
        # A data set is one key: its own keys depend on its kind.
        nested = [s for s in sections_in(field.annotation) if not issubclass(s, DatasetSection)]
        # Every section of a configuration has a heading of its own.
        if name in without or (section is Config and nested):
            continue
        if nested:
            yield from _rows(nested[0], f"{prefix}{name}.")
        else:
            values = _values(field.annotation, field.metadata)
            yield f"`{prefix}{name}`", values, _default(field), _one_line(field.description)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "empty"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    # YAML ends a document of one scalar with dots.
    text = yaml.safe_dump(value, default_flow_style=True).replace("\n...", "").strip()
    return f"`{text}`"


def _values(annotation: Any, metadata: list[Any]) -> str:
    """Accepted values in words: type, bounds, choices."""
    for validator in metadata:
        if isinstance(validator, AfterValidator) and isinstance(validator.func, KeyOf):
            return ", ".join(f"`{name}`" for name in validator.func.names)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        # Bounds stand there alone, or in a Field(...).
        bounds = [m for part in args[1:] for m in getattr(part, "metadata", [part])]
        return _values(args[0], bounds)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in args)
    if origin in (Union, types.UnionType):
        some = " or ".join(_values(arg, metadata) for arg in args if arg is not type(None))
        return f"{some}, or empty" if type(None) in args else some
    if origin is tuple and args[-1] is Ellipsis:
        filled = any(isinstance(bound, MinLen) and bound.min_length for bound in metadata)
        return f"{'list, not empty,' if filled else 'list'} of: {_values(args[0], [])}"
    if origin is tuple:
        return f"[{', '.join(_values(arg, []) for arg in args)}]"
    if origin is dict:
        value = _values(args[1], [])
        value = f"({value})" if ", or" in value else value
        return f"mapping of {_values(args[0], [])} to {value}"
    if issubclass(annotation, DatasetSection):
        return "data set"
    return f"{TYPES[annotation]} {_range(metadata)}".strip()


def _range(metadata: list[Any]) -> str:
    match metadata:
        case [Ge(), Le()]:
            return f"{_number(metadata[0].ge)} to {_number(metadata[1].le)}"
    return " and ".join(_bounds(metadata))


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for bound in metadata:
        match bound:
            case Ge():
                yield f">= {_number(bound.ge)}"
            case Gt():
                yield f"> {_number(bound.gt)}"
            case Le():
                yield f"<= {_number(bound.le)}"
            case Lt():
                yield f"< {_number(bound.lt)}"


def _number(value: Any) -> str:
    """A bound; long ones as powers."""
    for base, least in ((2, 31), (10, 6)):
        for less in (0, 1):
            power = round(math.log(value + less, base)) if value + less > 0 else 0
            if power >= least and value + less == base**power:
                return f"{base}^{power}{' - 1' if less else ''}"
    return f"{value:g}"


if __name__ == "__main__":
    print(render(), end="")
