"""Configuration files: read, override, validate, save, compare.

Precedence: defaults in schema.py < the YAML file < `key=value` on the command line. The resolved configuration is
written into the run directory, which refuses any other one.

    load(path, overrides) -> Config        read, override, validate
    save(config, path)                     the resolved file
    differences(old, new) -> list[str]     keys that would make a resumed run another experiment
"""

import difflib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from diga_hpc.config.schema import NESTED, STAGE_SECTIONS, UNKNOWN_KEY, Config
from diga_hpc.errors import UserError
from diga_hpc.section import Section

# Keys that say how and where a run is executed, not what it computes: they may change when it goes on.
_EXECUTION_KEYS = (
    "run_dir", "extensions", "data.workers", "data.skip_errors", "engine", "guards", "logging", "evaluation.panels",
)  # fmt: skip


def load(path: str | os.PathLike, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides and validate.

    Raises UserError naming the file, the key, the value and what was expected.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a YAML file"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected sections such as `data:` and `warm_up:`, found {type(values).__name__}"
        )
    for override in overrides:
        _apply(values, override)
    _import_extensions(path, values.get("extensions") or ())
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from error


def _import_extensions(path: Path, modules: Any) -> None:
    """Import the modules that `extensions` names, from the Python path or the current directory."""
    if not isinstance(modules, list | tuple) or not all(isinstance(m, str) for m in modules):
        raise UserError(f"{path}: `extensions` = {modules!r}: expected a list of Python modules")
    for module in modules:
        if os.getcwd() not in sys.path:
            # Last, so that no file of the directory hides a module of the environment.
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"{path}: `extensions`: {module!r} cannot be imported ({error}); expected a module on "
                "the Python path or in the current directory"
            ) from error


def save(config: Config, path: Path) -> None:
    """Write the resolved configuration; `load` reads it back equal."""
    path.write_text(as_yaml(config))


def as_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def differences(old: Config, new: Config) -> list[str]:
    """Lines `key: old value there, new value now` for the keys that change what is computed."""
    before, after = flat(old), flat(new)
    return [
        f"{key}: {before.get(key)!r} there, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _is_execution_key(key)
    ]


def flat(config: Config) -> dict[str, Any]:
    """Every key with dots between its parts, and its value as JSON has it."""
    return _flatten(config.model_dump(mode="json"))


def identity(config: Config) -> dict[str, Any]:
    """The flat keys that decide what is computed, and nothing of where and how."""
    return {key: value for key, value in flat(config).items() if not _is_execution_key(key)}


def _is_execution_key(key: str) -> bool:
    return key.endswith(".root") or any(
        key == k or key.startswith(k + ".") for k in _EXECUTION_KEYS
    )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + str(key)] = value
    return flat


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"{override!r}: an override is written key=value, for example seed=1")
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise UserError(
                f"{override!r}: `{parent}` is a value, not a section, so nothing below it can be set"
            )
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{override!r}: the value is not valid YAML") from error


def _explain(error: ValidationError) -> str:
    """The first problem as one line."""
    return _explain_problem(Config, (), error.errors()[0])


def _explain_problem(section: type[Section], prefix: tuple[str, ...], problem: Any) -> str:
    """A problem of pydantic in the section class `section`, which stands at `prefix`."""
    below = tuple(str(part) for part in problem["loc"])
    if problem["type"] == NESTED:
        nested = problem["ctx"]
        return _explain_problem(nested["section"], prefix + below, nested["problems"][0])
    if problem["type"] == UNKNOWN_KEY:
        below = (problem["ctx"]["key"],)
    key = ".".join(prefix + below)
    if problem["type"] in ("extra_forbidden", UNKNOWN_KEY):
        known = _known_keys(section, below[:-1])
        near = difflib.get_close_matches(below[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known))}"
        return f"unknown key `{key}`: {hint}"
    if problem["type"] == "missing":
        return f"`{key}` is missing; it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and isinstance(problem["input"], dict | BaseModel):
        return f"`{key}`: {message}" if key else message
    return f"`{key}` = {problem['input']!r}: {message}"


def _known_keys(section: Any, parents: tuple[str, ...]) -> list[str]:
    """Keys of the section that `parents` lead to."""
    for parent in parents:
        annotation = section.model_fields[parent].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    extra = STAGE_SECTIONS if section is Config else {}
    return [*section.model_fields, *extra]
