"""Configuration files: load, override, save and compare.

Precedence: defaults of the schema < YAML file < `key=value` overrides. The resolved configuration
is written into the run directory, which refuses any other one.

    load(path, overrides) -> Config        read, override, import extensions, validate
    save(config, path)                     the resolved configuration as YAML
    differences(old, new) -> list[str]     keys that would make a resumed run another experiment
"""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diga_hpc.config.schema import Config
from diga_hpc.config.validation import explain, shown
from diga_hpc.config.yaml_text import YamlProblem, decode, dump, parse
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

    Raises UserError naming the file, the key, the value and what was expected.
    """
    path = Path(path)
    try:
        values = parse(decode(path.read_bytes()))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a YAML file"
        ) from error
    except YamlProblem as problem:
        raise UserError(f"{path}: {problem}") from problem
    return from_values(values, overrides, path)


def from_values(values: Any, overrides: Sequence[str], path: Path) -> Config:
    """Apply overrides to the values of the file `path`, import its extensions and validate.

    Raises UserError as `load`.
    """
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected sections such as `data:` and `warm_up:`, found "
            f"{'an empty file' if values is None else shown(values)[:40]}; configs/ has examples"
        )
    for override in overrides:
        _apply(values, override)
    # Before validation: what they register is accepted from here on.
    _import_extensions(path, values.get("extensions") or ())
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(Config, error)}") from error


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


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one key of the values of a file in place; the sections above it are made if missing."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"{override!r}: an override is written key=value, for example seed=1")
    *parents, last = key.split(".")
    node = values
    for depth, parent in enumerate(parents, start=1):
        parent = _key_of(node, parent)
        child = node.get(parent)
        # Missing, or written as an empty section (`source_only:`).
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise UserError(
                f"{override!r}: `{'.'.join(parents[:depth])}` is a value, not a section, so "
                "nothing below it can be set"
            )
        node = child
    try:
        node[_key_of(node, last)] = parse(text)
    except YamlProblem as problem:
        raise UserError(f"{override!r}: {problem}") from problem


def _key_of(node: dict[Any, Any], text: str) -> Any:
    """The key that a part of an override means: 0 of an id map, for `data.source.id_map.0=1`."""
    return next((key for key in node if str(key) == text), text)


# --------------------------------------------------------------------------------------- extensions


def _import_extensions(path: Path, modules: Any) -> None:
    """Import the modules that `extensions` of the file `path` names, in their order."""
    if not isinstance(modules, list | tuple) or not all(isinstance(m, str) for m in modules):
        raise UserError(
            f"{path}: `extensions` = {shown(modules)}: expected a list of Python modules, for "
            "example extensions=[my_data]"
        )
    if modules and os.getcwd() not in sys.path:
        # Last, so that no file of the directory hides a module of the environment.
        sys.path.append(os.getcwd())
    for module in modules:
        _import_extension(path, module)


def _import_extension(path: Path, module: str) -> None:
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(
            f"{path}: `extensions`: {module!r} is not the name of a Python module; write "
            "my_data for my_data.py, folder.my_data for folder/my_data.py"
        )
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Another name: the module is there, but imports one that is not.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _failed(path, module, error) from error
        raise UserError(
            f"{path}: `extensions`: {module!r} cannot be imported ({error}); expected a module in "
            f"the current directory ({os.getcwd()}) or on PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed(path, module, error) from error


def _failed(path: Path, module: str, error: BaseException) -> UserError:
    """The error for an extension that raises while it is imported, with the last line that ran."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    # The traceback of a syntax error ends in the importer; the error itself knows the place.
    if isinstance(error, SyntaxError):
        where.filename, where.lineno = error.filename or where.filename, error.lineno
    return UserError(
        f"{path}: `extensions`: importing {module!r} raised {type(error).__name__}: "
        f"{' '.join(str(error).split())} ({where.filename}, line {where.lineno}); correct it, or "
        "leave the extension out"
    )
