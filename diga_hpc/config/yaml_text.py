"""YAML as people mean it: numbers, booleans and keys that no reader takes for something else.

    decode(content) -> text        UTF-8, or UTF-16 with its mark
    parse(text) -> values          raises YamlProblem with the line
    dump(values) -> text           `parse` reads it back equal

PyYAML follows YAML 1.1, where `on` is true, `1:30` is 90, `010` is 8 and `2024-01-01` is a date; of
a key given twice it takes the last. Here these are texts, as in YAML 1.2, and a key given twice is
refused.
"""

import codecs
import re
from typing import Any

import yaml

BOOL, INT, FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float"))
MERGE = "tag:yaml.org,2002:merge"
# First characters -> regular expression of the plain scalars of a tag.
SCALARS = {
    BOOL: (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    # Longer ones are texts: Python cannot print integers of thousands of digits.
    INT: (r"[-+]?(?:0|[1-9][0-9_]{0,99}|0x[0-9a-fA-F_]{1,64}|0b[01_]{1,64})", "-+0123456789"),
    FLOAT: (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
# Tags of YAML 1.1 that are left out; dates, and `=` for a default value, are texts.
REPLACED = {*SCALARS, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}


class YamlProblem(Exception):
    """Text that is no YAML, or not unambiguous: the message says what and in which line."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of SCALARS that refuses a key given twice."""

    # File names that are not UTF-8 hold lone surrogates, which PyYAML refuses.
    NON_PRINTABLE = re.compile(  # type: ignore[misc]  # Final in the stubs
        "[^\x09\x0a\x0d\x20-\x7e\x85\xa0-\ud7ff\udc80-\udcff\ue000-\ufffd\U00010000-\U0010ffff]"
    )
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in patterns if tag not in REPLACED]
        for first, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        # Here, and not when the mapping is constructed: then `<<` has been replaced by the keys
        # that it stands for, which a mapping may override.
        lines: dict[str, int] = {}
        for key, _ in node.value:
            # Keys that are lists or mappings are left to PyYAML, which refuses them.
            if not isinstance(key, yaml.ScalarNode):
                continue
            value = "<<" if key.tag == MERGE else _same_key(self.construct_object(key))
            line = key.start_mark.line + 1
            if value in lines:
                first = lines[value]
                where = f"in line {line}" if line == first else f"in lines {first} and {line}"
                raise YamlProblem(f"the key `{key.value}` is given twice, {where}; keep one")
            lines[value] = line
        return node


for _tag, (_pattern, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})$"), list(_first))


def _same_key(key: Any) -> str:
    """A text that is equal for keys which become one: 1, "1", 1.0 and 0x1."""
    if isinstance(key, bool) or key is None:
        return str(key).lower()
    try:
        return str(int(key) if int(key) == float(key) else key)
    except (ValueError, OverflowError, TypeError):
        return str(key)


def decode(content: bytes) -> str:
    """Text of a file. Raises YamlProblem where it is neither UTF-8 nor UTF-16 with its mark."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlProblem(
            f"not a text file in UTF-8 (byte 0x{content[error.start]:02x} in line {line}); "
            "expected YAML in UTF-8: save it so, for example with `iconv -f latin1 -t utf-8`"
        ) from error


def parse(text: str) -> Any:
    """Values of a YAML text. Raises YamlProblem naming the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise YamlProblem(f"not valid YAML: {where}{problem}") from error
    except yaml.YAMLError as error:
        raise YamlProblem(f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise YamlProblem("not valid YAML: nested too deeply") from error
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        # A tag that does not fit: `!!bool maybe`.
        raise YamlProblem(f"not valid YAML: {type(error).__name__}: {error}") from error


def dump(values: Any) -> str:
    """YAML of values as they are read back, in ASCII."""
    return yaml.safe_dump(values, sort_keys=False)
