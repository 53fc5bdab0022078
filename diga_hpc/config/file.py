"""Configuration files: load, override, save and compare.

Precedence: defaults of the schema < YAML file (on top of its `base`, see reading.py) < the chosen
variant < `key=value` overrides. The resolved configuration is written into the run directory, which
refuses any other one.

    load(path, overrides) -> Config        read, override, import extensions, validate
    variants(path) -> names                of the variants in a file, see overrides.py
    save(config, path)                     the resolved configuration as YAML
    differences(old, new) -> list[str]     keys that would make a resumed run another experiment
"""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diga_hpc.config.overrides import VARIANTS, apply, is_about_variants, take_variants
from diga_hpc.config.reading import read
from diga_hpc.config.schema import Config
from diga_hpc.config.validation import explain, shown
from diga_hpc.config.yaml_text import dump
from diga_hpc.datasets import DATASETS
from diga_hpc.errors import UserError

# Keys and sections that say where and how a run is executed, not what it computes: they may change
# on resume. So may those of `is_data_root`.
EXECUTION_KEYS = (
    "run_dir",
    "extensions",
    "data.workers",
    "data.skip_errors",
    "engine",
    "guards",
    "logging",
    "evaluation.panels",
)
DATA_ROOT = re.compile(r"data\.((source|target|validation(\.(?P<name>[^.]+))?)\.)?root")


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides, import its extensions and validate.

    `variant=NAME` applies a variant of the file before the other overrides. All variants are
    validated with the file, each alone. Raises UserError naming the file, the key, the value and
    what was expected.
    """
    path = Path(path)
    return from_values(read(path), overrides, path)


def from_values(values: Any, overrides: Sequence[str], path: Path) -> Config:
    """The configuration of the values of the file `path` and overrides; raises as `load`."""
    values, variant, others = _with_variants(values, overrides, path)
    given = [override for override in overrides if not is_about_variants(override)]
    config = _validated(values, (*variant, *given), str(path))
    # A slip in a variant is found now, not when a sweep has come to it.
    for name, texts in others.items():
        try:
            _validated(values, texts, f"{path}: variant {name!r}")
        except UserError:
            # The command line may have what the file lacks, as run_dir.
            _validated(values, (*given, *texts), f"{path}: variant {name!r}")
    return config


def variants(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> list[str]:
    """Names of the variants of a configuration file. Raises UserError if it has none."""
    path = Path(path)
    _, _, found = _with_variants(read(path), overrides, path)
    if not found:
        raise UserError(f"{path}: has no section `{VARIANTS}`, whose names could be swept")
    return list(found)


def _with_variants(
    values: Any, overrides: Sequence[str], path: Path
) -> tuple[dict[str, Any], Sequence[str], dict[str, list[str]]]:
    """Values without variants; overrides of the chosen variant; all variants by name."""
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected sections such as `data:` and `warm_up:`, found "
            f"{'an empty file' if values is None else shown(values)[:40]}; configs/ has examples"
        )
    values = dict(values)
    for override in filter(is_about_variants, overrides):
        apply(values, override)
    try:
        return values, *take_variants(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _validated(values: dict[str, Any], overrides: Iterable[str], place: str) -> Config:
    """The configuration of values, which are not changed, and overrides. place: for errors."""
    values = dict(values)
    for override in overrides:
        apply(values, override)
    # Before validation: what they register is accepted from here on.
    _import_extensions(place, values.get("extensions") or ())
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{place}: {explain(Config, error)}") from error


def save(config: Config, path: Path) -> None:
    """Write the resolved configuration; `load` reads it back equal."""
    path.write_text(as_yaml(config), encoding="ascii")


def as_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return dump(config.model_dump(mode="json"))


def differences(old: Config, new: Config) -> list[str]:
    """Lines `key: old value there, new value now` for the keys that change what is computed.

    Validation sets may be added, by name or to a run that had none: nothing was measured on them.
    """
    was, now = old.data.validation, new.data.validation
    if isinstance(was, dict) and isinstance(now, dict):
        was = {name: was.get(name, section) for name, section in now.items()} | was
    data = old.data.model_copy(update={"validation": now if was is None else was})
    old = old.model_copy(update={"data": data})
    before, after = flat(old), flat(new)
    return [
        f"{key}: {before.get(key)!r} there, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _is_execution_key(key)
    ]


def flat(config: Config) -> dict[str, Any]:
    """Every key in dotted notation, for example `warm_up.batch.full`, with its value as in JSON."""
    return _flatten(config.model_dump(mode="json"))


def identity(config: Config) -> dict[str, Any]:
    """The keys of `flat` that decide what is computed, without those of execution."""
    return {key: value for key, value in flat(config).items() if not _is_execution_key(key)}


def is_data_root(key: str) -> bool:
    """Whether a key of `flat` is the folder of a data set, not a class named `root`, say."""
    found = DATA_ROOT.fullmatch(key)
    # A mapping of a data set, as `color_map`, may have a class of this name.
    keys = {name for section in DATASETS.values() for name in section.known_keys()}
    return found is not None and found["name"] not in keys


def _is_execution_key(key: str) -> bool:
    return is_data_root(key) or any(key == k or key.startswith(k + ".") for k in EXECUTION_KEYS)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + str(key)] = value
    return flat


# --------------------------------------------------------------------------------------- extensions


def _import_extensions(place: str, modules: Any) -> None:
    """Import the modules that `extensions` names, in their order."""
    if not isinstance(modules, list | tuple) or not all(isinstance(m, str) for m in modules):
        raise UserError(
            f"{place}: `extensions` = {shown(modules)}: expected a list of Python modules, for "
            "example extensions=[my_data]"
        )
    if modules and os.getcwd() not in sys.path:
        # Last, so that no file of the directory hides a module of the environment.
        sys.path.append(os.getcwd())
    for module in modules:
        _import_extension(place, module)


def _import_extension(place: str, module: str) -> None:
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(
            f"{place}: `extensions`: {module!r} is not the name of a Python module; write "
            "my_data for my_data.py, folder.my_data for folder/my_data.py"
        )
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Another name: the module is there, but imports one that is not.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _failed(place, module, error) from error
        raise UserError(
            f"{place}: `extensions`: {module!r} cannot be imported ({error}); expected a module in "
            f"the current directory ({os.getcwd()}) or on PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed(place, module, error) from error


def _failed(place: str, module: str, error: BaseException) -> UserError:
    """The error for an extension that raises while it is imported, with the last line that ran."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    # The traceback of a syntax error ends in the importer; the error itself knows the place.
    if isinstance(error, SyntaxError):
        where.filename, where.lineno = error.filename or where.filename, error.lineno
    return UserError(
        f"{place}: `extensions`: importing {module!r} raised {type(error).__name__}: "
        f"{' '.join(str(error).split())} ({where.filename}, line {where.lineno}); correct it, or "
        "leave the extension out"
    )
