"""Reading of configuration files, each on top of the one that its key `base` names.

    base: gta5_to_cityscapes.yaml     # beside this file
    data:
      target: {kind: bdd100k, split: train, size: [720, 1280]}

Sections are merged key by key; a section with another `kind` than the base's replaces it, since the
keys of one kind mean nothing to another. So does every value that is no section, lists too.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diga_hpc.config.validation import shown
from diga_hpc.config.yaml_text import YamlProblem, decode, parse
from diga_hpc.errors import UserError

BASE = "base"
KIND = "kind"


def read(path: Path, above: tuple[Path, ...] = ()) -> Any:
    """The values of a YAML file on top of those of its `base`, without that key.

    above: the files that name this one, as real paths. Raises UserError for a file that cannot be
    read or is no YAML, and for files that are each other's base.
    """
    values = _parsed(path)
    if not isinstance(values, dict) or BASE not in values:
        return values
    values = dict(values)
    named = values.pop(BASE)
    if not isinstance(named, str) or not named:
        raise UserError(
            f"{path}: `{BASE}` = {shown(named)}: expected the path of a configuration file, "
            "relative to this one"
        )
    base, above = path.parent / os.path.expanduser(named), (*above, path.resolve())
    if not base.is_file():
        raise UserError(f"{path}: `{BASE}` = {named!r}: there is no file {base}; correct the path")
    if base.resolve() in above:
        raise UserError(f"{path}: `{BASE}` = {named!r}: the file is its own base; remove the key")
    values_of_base = read(base, above)
    if not isinstance(values_of_base, dict):
        raise UserError(f"{base}: expected sections, as the `{BASE}` of {path}")
    return merged(values_of_base, values)


def merged(base: Mapping[Any, Any], values: Mapping[Any, Any]) -> dict[Any, Any]:
    """`values` on top of `base`; neither is changed."""
    result = dict(base)
    for key, value in values.items():
        old = base.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _replaces(value, old):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _replaces(new: Mapping[Any, Any], old: Mapping[Any, Any]) -> bool:
    """Whether a section is of another kind: also several data sets by name in place of one."""
    if KIND in old and KIND not in new:
        return bool(new) and all(isinstance(v, Mapping) and KIND in v for v in new.values())
    return new.get(KIND, old.get(KIND)) != old.get(KIND)


def _parsed(path: Path) -> Any:
    try:
        return parse(decode(path.read_bytes()))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a YAML file"
        ) from error
    except YamlProblem as problem:
        raise UserError(f"{path}: {problem}") from problem
