"""Files that are complete or absent, and readers that survive what a crash leaves."""

import json
import os
from pathlib import Path

import pytest

from diga_hpc.errors import UserError
from diga_hpc.run.files import atomic_write, read_json, read_jsonl, write_json


def test_content_is_on_disk_before_its_name(tmp_path, monkeypatch):
    """After a power failure a file is complete or absent: sync it, rename it, sync the folder."""
    happened = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        happened.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def watched_replace(source, to, **options):
        happened.append(f"replace {Path(to).name}")
        replace(source, to, **options)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    with atomic_write(tmp_path / "new/results.json") as temporary:
        temporary.write_text("{}")
    expected = [
        f"fsync {tmp_path.name}",
        "fsync .results.json.writing",
        "replace results.json",
        "fsync new",
    ]
    assert happened == expected


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_json(tmp_path):
    path = tmp_path / "folder/x.json"
    assert read_json(path, default=[]) == []
    write_json(path, {"a": [1, 2]})
    assert read_json(path, default=None) == {"a": [1, 2]}
    path.write_text('{"a": ')
    with pytest.raises(UserError, match=r"x.json: not readable as JSON .*; remove it"):
        read_json(path, default=None)


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\x00\n", b'{"step": 2, "loss', b"\n", b"[1]\n", b"3\n", b"[" * 200_000]
)
def test_corrupt_lines_are_skipped(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n{"step": 4}')
    assert list(read_jsonl(path)) == [{"step": 1}, {"step": 3}, {"step": 4}]


def test_a_missing_file_has_no_lines(tmp_path):
    assert list(read_jsonl(tmp_path / "metrics.jsonl")) == []


def test_lines_are_read_as_they_were_written(tmp_path):
    """Separators that str.splitlines knows are part of a line."""
    entry = {"text": "a\u2028b\x85c", "value": 1e-7}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(entry, ensure_ascii=False) + "\n")
    assert list(read_jsonl(path)) == [entry]
