"""Index files: encodings, separators, quotes, and what is refused with its line."""

import os
import random

import pytest

from diga_hpc.datasets.index_files import read_index
from diga_hpc.errors import UserError


def columns(root, text, encoding="utf-8"):
    data = text if isinstance(text, bytes) else text.encode(encoding)
    (root / "list.txt").write_bytes(data)
    return [line.columns for line in read_index(root / "list.txt", root)]


def test_an_index_is_found_as_given_and_below_the_root(tmp_path):
    (tmp_path / "list.txt").write_text("a.png b.png\n\n  c.png\n")
    for index in (tmp_path / "list.txt", tmp_path.joinpath("list.txt").relative_to(tmp_path)):
        lines = read_index(index, tmp_path)
        assert [line.columns for line in lines] == [["a.png", "b.png"], ["c.png"]]
        assert lines[1].origin == f"{tmp_path}/list.txt, line 3"
    with pytest.raises(UserError, match="no.txt: no such index file, neither as given nor below"):
        read_index(tmp_path / "no.txt", tmp_path)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le-bom", "utf-16-be-bom"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    text = end.join(["ä/1.png ä/2.png", "", "ü.jpg"])
    if encoding.endswith("-bom"):
        text, encoding = "\ufeff" + text, encoding.removesuffix("-bom")
    assert columns(tmp_path, text, encoding) == [["ä/1.png", "ä/2.png"], ["ü.jpg"]]


def test_names_that_are_not_utf8_are_the_bytes_on_disk(tmp_path):
    name = b"stra\xdfe.png"
    (tmp_path / os.fsdecode(name)).touch()
    ((found,),) = columns(tmp_path, name + b"\n")
    assert (tmp_path / found).is_file() and os.fsencode(found) == name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("my images/my image.png", ["my images/my image.png"]),
        ("my images/a b.JPG my labels/a b.png", ["my images/a b.JPG", "my labels/a b.png"]),
        ("a b\tc d", ["a b", "c d"]),
        ("a.png\t\tb.png\t", ["a.png", "b.png"]),
        ('"my images/a" b', ["my images/a", "b"]),
        ("'my a.png' \"my b.png\"", ["my a.png", "my b.png"]),
        ('"a b.png"\t"c d.png"', ["a b.png", "c d.png"]),
        ('"a, b.png","c.png"', ["a, b.png", "c.png"]),
        ("bob's.png labels/bob's.png", ["bob's.png", "labels/bob's.png"]),
        ("a.png,b.png", ["a.png", "b.png"]),
        ("a.png; b.png", ["a.png", "b.png"]),
        ("a,b.png", ["a,b.png"]),
        ("00001 00002", ["00001", "00002"]),
        ("a.ppm b.pgm", ["a.ppm", "b.pgm"]),
        ("#1.png", ["#1.png"]),
        ("images\\a\\1.png labels\\a\\1.png", ["images/a/1.png", "labels/a/1.png"]),
        ("a.b.png x.png.png", ["a.b.png", "x.png.png"]),
        ("a\u3000b.png", ["a\u3000b.png"]),
        ("  a.png  b.png  ", ["a.png", "b.png"]),
    ],
)
def test_columns(tmp_path, line, expected):
    assert columns(tmp_path, f"# a comment\n#\n{line}\n") == [expected]


def test_a_backslash_that_is_part_of_a_name(tmp_path):
    (tmp_path / "a\\b.png").touch()
    assert columns(tmp_path, "a\\b.png\n") == [["a\\b.png"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png b.png\na.png b.png 1\n", r"list.txt, line 2: 3 columns, expected .* TAB"),
        ("a\tb\tc", r"list.txt, line 1: 3 columns"),
        ("\n# nothing\n", r"list.txt: the index names no image"),
        (b"a\0.\0p\0", r"list.txt: not a text file \(it contains zero bytes\); save it as UTF-8"),
        (b"\xff\xfea\0b", r"list.txt: damaged utf-16 text"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        columns(tmp_path, text)


def test_a_name_with_an_extension_inside_is_one_path(tmp_path):
    (tmp_path / "a.jpg copy.jpg").touch()
    text = "a.jpg copy.jpg\na.jpg b.png\n"
    assert columns(tmp_path, text) == [["a.jpg copy.jpg"], ["a.jpg", "b.png"]]


@pytest.mark.parametrize(
    "blank", ["", " ", "\u00a0", "\u3000", "\f", "\v", "\u2028", "\u3000\t\u3000", '" "', "\x85 \t"]
)
def test_blank_lines_of_any_white_space(tmp_path, blank):
    assert columns(tmp_path, f"a.png\n{blank}\nb.png\t{blank}\n") == [["a.png"], ["b.png"]]
    with pytest.raises(UserError, match="the index names no image"):
        columns(tmp_path, f"{blank}\n")


@pytest.mark.parametrize("label", ["b.jpg", "b.JPEG", "x/b.webp", "b.jp2"])
def test_a_label_of_a_lossy_format_is_refused(tmp_path, label):
    with pytest.raises(UserError, match=rf"line 2: '{label}' is of a lossy format, .* swapped\?"):
        columns(tmp_path, f"1.png\na.png {label}\n")


PARTS = [
    "a",
    "my image",
    "ä",
    "b.c",
    "x,y",
    "d;e",
    "'",
    'say "hi"',
    "#1",
    "(2)",
    "%",
    os.fsdecode(b"\xe4"),
]


@pytest.mark.parametrize("seed", range(40))
def test_any_name_is_read_as_it_was_written(tmp_path, seed):
    """Separated by TABs, in quotes, and bare where names have no quotes."""
    rng = random.Random(seed)

    def path(suffixes):
        parts = ["".join(rng.choices(PARTS, k=rng.randint(1, 2))) for _ in range(rng.randint(1, 3))]
        return "/".join(parts) + rng.choice(suffixes)

    suffixes = [".png", ".JPG", ".tif", ".png.webp"], [".png", ".BMP", ".jpg.tif"]
    lines = [[path(each) for each in suffixes[: rng.randint(1, 2)]] for _ in range(5)]
    mark, end = rng.choice([b"", b"\xef\xbb\xbf"]), rng.choice(["\n", "\r\n"])

    def read(write):
        return columns(tmp_path, mark + os.fsencode(end.join(map(write, lines)) + end))

    assert read(lambda line: "\t".join(line) + "\t") == lines
    if not any('"' in name for line in lines for name in line):
        assert read(lambda line: " ".join(f'"{name}"' for name in line)) == lines
    bare = [line for line in lines if not any(q in name for name in line for q in "'\"")]
    lines = bare or [["a"]]
    assert read(" ".join) == lines
