"""Overrides `key=value`, and variants: named lists of them in a configuration file.

    variants:
      fourier: [translator.kind=fourier, translator.window=0.02]
      no_target: [data.target=null, self_training=null, warm_up.second_view=color]

`variant=fourier` on the command line (or `variant: fourier` in the file) applies the list after
the file and before the other overrides. The resolved configuration has neither of both keys: a run
is what its variant sets, whatever the other variants of the file become.

    apply(values, override)                        set one key
    take_variants(values) -> chosen, variants      and remove both keys
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from diga_hpc.config.validation import shown
from diga_hpc.config.yaml_text import YamlProblem, parse
from diga_hpc.errors import UserError
from diga_hpc.section import nearest

VARIANT, VARIANTS = "variant", "variants"
ALL = "all"  # in a sweep: every variant of the file


def apply(values: dict[str, Any], override: str) -> None:
    """Set one key of the values of a file; the sections above it are made if missing.

    The mapping `values` is changed, those within it are replaced by copies: an anchor of YAML
    (`batch: *b`) makes one mapping the value of several keys, of which one alone is meant.
    Raises UserError for another form than `key=value`, and below a key that is no section.
    """
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
            child = {}
        if not isinstance(child, dict):
            raise UserError(
                f"{override!r}: `{'.'.join(parents[:depth])}` is a value, not a section, so "
                "nothing below it can be set"
            )
        node[parent] = dict(child)
        node = node[parent]
    try:
        node[_key_of(node, last)] = parse(text)
    except YamlProblem as problem:
        raise UserError(f"{override!r}: {problem}") from problem


def _key_of(node: dict[Any, Any], text: str) -> Any:
    """The key that a part of an override means: 0 of an id map, for `data.source.id_map.0=1`."""
    return next((key for key in node if str(key) == text), text)


# ----------------------------------------------------------------------------------------- variants


def is_about_variants(override: str) -> bool:
    """Whether an override chooses or changes a variant, and so has to be applied first."""
    return override.partition("=")[0].split(".")[0] in (VARIANT, VARIANTS)


def take_variants(values: dict[str, Any]) -> tuple[Sequence[str], dict[str, list[str]]]:
    """Remove `variant` and `variants` from the values of a file.

    Returns the overrides of the chosen variant (none without one), and all variants by name.
    Raises UserError for an unknown name, and for a section of another form.
    """
    chosen, found = values.pop(VARIANT, None), values.pop(VARIANTS, None)
    variants = {} if found is None else _checked(found)
    if chosen is None:
        return (), variants
    name = str(chosen)
    if name == ALL:
        raise UserError(
            f"`{VARIANT}` = {ALL!r}: a run has one variant; `diga-hpc launch --sweep "
            f"{VARIANT}={ALL}` makes a run of each"
        )
    if name not in variants:
        near = nearest(name, variants)
        hint = f"did you mean {near!r}? " if near else ""
        known = f"known: {', '.join(variants)}" if variants else "the file has no `variants`"
        raise UserError(f"`{VARIANT}` = {shown(chosen)}: unknown variant; {hint}{known}")
    return variants[name], variants


def _checked(section: Any) -> dict[str, list[str]]:
    if not isinstance(section, Mapping):
        raise UserError(
            f"`{VARIANTS}` = {shown(section)}: expected names with lists of overrides, for example "
            "{half: [warm_up.steps=100]}"
        )
    for name, overrides in section.items():
        # A name becomes part of the name of a folder, and is chosen by a text of YAML: `null` would
        # choose none, and 010 may be another one.
        text = str(name)
        if not re.fullmatch(r"[\w+-]+", text) or text == ALL or str(parse(text)) != text:
            raise UserError(
                f"`{VARIANTS}`: {name!r} is no name for a variant: expected letters, digits, "
                f"`_`, `-` and `+`, and neither {ALL!r} nor a word of YAML such as null"
            )
        if not isinstance(overrides, list) or not all(isinstance(o, str) for o in overrides):
            raise UserError(
                f"`{VARIANTS}.{name}` = {shown(overrides)}: expected a list of texts key=value, "
                "each in quotes where it has a comma or a blank"
            )
    return {str(name): overrides for name, overrides in section.items()}
