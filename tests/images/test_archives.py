"""Archives: files in zip archives are read as though they were unpacked, or refused in one line."""

import io
import multiprocessing
import os
import random
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from diga_hpc.errors import UserError
from diga_hpc.images import archives, members
from diga_hpc.images.opening import read_header
from diga_hpc.images.pixels import read_pixels
from helpers import zips
from helpers.archive_readers import read_all

RANDOM = random.Random(0)


def write(archive, content, method=zips.DEFLATED, root=None):
    """Write member names and their bytes to an archive, which lies in a data set's `root`."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", method) as opened:
        for name, data in content.items():
            opened.writestr(name, data)
    archives.mount(root or archive.parent)


def names(folder):
    return sorted(
        (entry.name, entry.is_dir(), entry.is_file()) for entry in archives.entries(folder)
    )


def test_entries_of_a_folder_on_disk_and_in_archives(tmp_path):
    (tmp_path / "a/d").mkdir(parents=True)
    (tmp_path / "a/1").write_bytes(b"disk")
    write(tmp_path / "x.zip", {"a/1": b"x", "a/2": b"x", "a/b/c/3": b"x", "e/": b""})
    write(tmp_path / "y.zip", {"a/4": b"y"})
    write(tmp_path / "a/z.ZIP", {"5": b"z"}, root=tmp_path)
    write(tmp_path / ".hidden.zip", {"6": b""})
    files = [(name, False, True) for name in "1245"]
    assert names(tmp_path / "a") == sorted([*files, ("b", True, False), ("d", True, False)])
    assert names(tmp_path / "a/b") == [("c", True, False)] and names(tmp_path / "e") == []
    assert names(tmp_path) == [(".hidden.zip", False, True), ("a", True, False), ("e", True, False)]
    for folder in ("a", "a/b", "a/b/c", "a/d", "e", "."):
        assert archives.is_dir(tmp_path / folder) and not archives.is_file(tmp_path / folder)
    for file in ("a/1", "a/2", "a/b/c/3", "a/b/../4", "a/5"):
        assert archives.is_file(tmp_path / file) and not archives.is_dir(tmp_path / file)
    for missing in ("b", "a/3", "x", "a/b/c/3/4", "6"):
        assert not archives.is_file(tmp_path / missing) and not archives.is_dir(tmp_path / missing)
        with pytest.raises(FileNotFoundError):
            archives.open_binary(tmp_path / missing)
        with pytest.raises(FileNotFoundError):
            archives.entries(tmp_path / missing)
    read = [archives.read_bytes(tmp_path / f"a/{name}") for name in "1245"]
    assert read == [b"disk", b"x", b"y", b"z"]
    assert archives.archive_of(tmp_path / "a/2") == tmp_path / "x.zip"
    assert archives.archive_of(tmp_path / "a/1") is None


def test_archives_above_the_mounted_folder_are_not_read(tmp_path):
    write(tmp_path / "sub/x.zip", {"a": b"x"})
    write(tmp_path / "home.zip", {"sub/b": b"x"})
    archives._mounts.discard(str(tmp_path))
    assert archives.is_file(tmp_path / "sub/a") and not archives.is_file(tmp_path / "sub/b")


def test_a_folder_that_is_in_an_archive_alone_can_be_mounted(tmp_path):
    write(tmp_path / "x.zip", {"set/images/1": b"x"})
    archives._mounts.discard(str(tmp_path))
    archives.mount(tmp_path / "set/images")
    assert archives.read_bytes(tmp_path / "set/images/1") == b"x"


def test_a_dead_link_is_not_replaced_by_a_member(tmp_path):
    write(tmp_path / "x.zip", {"1": b"x"})
    (tmp_path / "1").symlink_to("gone")
    assert not archives.is_file(tmp_path / "1")
    with pytest.raises(FileNotFoundError):
        archives.open_binary(tmp_path / "1")


def test_names_as_they_would_be_unpacked(tmp_path):
    write(tmp_path / "x.zip", {"a\\1": b"x", "ü/2": b"x"})
    assert archives.is_file(tmp_path / "a/1") and archives.is_file(tmp_path / "ü/2")
    # Of archivers that name the folder that was packed.
    write(tmp_path / "z.zip", {"./": b"", "./a/": b"", "./a/3": b"x", "a//4": b"x", "e./5": b"x"})
    assert [name for name, *_ in names(tmp_path / "a")] == ["1", "3", "4"]
    assert [name for name, *_ in names(tmp_path)] == ["a", "e.", "ü"]
    # A name of Latin-1, written on Unix without the flag of UTF-8.
    info = zipfile.ZipInfo("b__")
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as opened:
        opened.writestr(info, b"y")
    raw = (tmp_path / "y.zip").read_bytes().replace(b"b__", b"b\xfc_")
    (tmp_path / "y.zip").write_bytes(raw)
    archives.mount(tmp_path)
    assert archives.read_bytes(tmp_path / os.fsdecode(b"b\xfc_")) == b"y"


@pytest.mark.parametrize("method", [zips.DEFLATED, zips.STORED])
@pytest.mark.parametrize("part", [7, 1 << 20])
def test_any_reads_and_seeks_give_the_bytes_of_the_file(tmp_path, method, part, monkeypatch):
    monkeypatch.setattr(members, "PART", part)
    content = RANDOM.randbytes(1000) + bytes(300) + RANDOM.randbytes(77)
    write(tmp_path / "x.zip", {"0": RANDOM.randbytes(9), "1": content, "2": b""}, method)
    (tmp_path / "truth").write_bytes(content)
    with archives.open_binary(tmp_path / "1") as found, (tmp_path / "truth").open("rb") as truth:
        for _ in range(200):
            place, whence = RANDOM.randrange(-300, 1500), RANDOM.choice([0, 1, 2])
            if whence == 0 or truth.tell() + place >= 0:
                place = max(place, 0) if whence == 0 else max(place, -len(content) // 3)
                if whence != 1 or truth.tell() + place >= 0:
                    assert found.seek(place, whence) == truth.seek(place, whence)
            size = RANDOM.choice([-1, 0, 1, 40, 5000])
            assert found.read(size) == truth.read(size) and found.tell() == truth.tell()
        buffer = bytearray(50)
        assert found.seek(20) and found.readinto(buffer) == 50 and buffer == content[20:70]
    assert archives.read_bytes(tmp_path / "2") == b""


class Pipe(io.BytesIO):
    """A stream that cannot be rewound: sizes come after a member, not before it."""

    def seekable(self):
        return False

    def tell(self):
        raise OSError

    def seek(self, *_):
        raise OSError


def test_archives_of_other_makers(tmp_path):
    """Zip64, written to a pipe, and behind a program that unpacks it."""
    content = RANDOM.randbytes(400) + bytes(500)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zips.DEFLATED) as opened:
        for name in ("0", "1"):
            with opened.open(name, "w", force_zip64=True) as stream:
                stream.write(content)
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zips.DEFLATED) as opened:
        for name in ("2", "3"):
            opened.writestr(name, content)
    (tmp_path / "b.zip").write_bytes(pipe.getvalue())
    write(tmp_path / "c.zip", {"4": content})
    (tmp_path / "c.zip").write_bytes(b"#!/bin/sh" * 9 + (tmp_path / "c.zip").read_bytes())
    archives.mount(tmp_path)
    assert {archives.read_bytes(tmp_path / name) for name in "01234"} == {content}


def test_a_header_is_read_without_inflating_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "PART", 4096)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.jpg", quality=95)
    zips.pack(tmp_path, tmp_path / "in/x.zip", lambda name: name == "1.jpg")
    archives.mount(tmp_path / "in")
    path = tmp_path / "in/1.jpg"
    assert read_header(path)[:2] == (200, 300)
    assert len(members._recent.content.inflated) < (tmp_path / "1.jpg").stat().st_size / 4
    assert np.array_equal(read_pixels(path), read_pixels(tmp_path / "1.jpg"))


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("png", {}),
        ("jpg", {}),
        ("webp", {}),
        ("bmp", {}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_and_headers_of_all_formats(tmp_path, suffix, options, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 13, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    if suffix != "bmp":
        options = options | {"exif": exif}
    Image.fromarray(pixels).convert(mode).save(tmp_path / f"1.{suffix}", **options)
    zips.pack(tmp_path, tmp_path / "in/x.zip", lambda name: name.startswith("1."))
    archives.mount(tmp_path / "in")
    path, truth = tmp_path / f"in/1.{suffix}", tmp_path / f"1.{suffix}"
    assert read_header(path) == read_header(truth)
    for upright in (False, True):
        assert np.array_equal(
            read_pixels(path, upright=upright), read_pixels(truth, upright=upright)
        )


# ------------------------------------------------------------------------------------------ refused


def refusal(path, how=archives.read_bytes):
    with pytest.raises(UserError) as error:
        how(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text


@pytest.mark.parametrize("method", [zips.DEFLATED, zips.STORED])
def test_a_damaged_member_names_file_and_archive(tmp_path, method):
    archive = tmp_path / "x.zip"
    write(archive, {"1": RANDOM.randbytes(500), "2": b"fine"}, method)
    zips.flip_bit(archive, "1")
    archives.mount(tmp_path)
    for _ in range(2):
        assert f"damaged in the archive {archive} (" in refusal(tmp_path / "1")
    assert archives.read_bytes(tmp_path / "2") == b"fine"


@pytest.mark.parametrize("suffix", ["jpg", "bmp", "png"])
def test_a_damaged_image_is_refused_even_where_its_decoder_would_not_notice(tmp_path, suffix):
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / f"1.{suffix}")
    archive = zips.pack(
        tmp_path, tmp_path / "in/x.zip", lambda name: name.startswith("1."), zips.STORED
    )
    zips.flip_bit(archive, f"1.{suffix}")
    archives.mount(archive.parent)
    assert "damaged in the archive" in refusal(tmp_path / f"in/1.{suffix}", read_pixels)


def test_a_truncated_archive_is_refused(tmp_path):
    archive = tmp_path / "x.zip"
    write(archive, {"1": RANDOM.randbytes(500)})
    archive.write_bytes(archive.read_bytes()[:-60])
    archives.mount(tmp_path)
    with pytest.raises(UserError, match=r"x.zip: not a readable zip archive \(.*\); download it"):
        archives.is_file(tmp_path / "1")


@pytest.mark.parametrize("name", ["/etc/1", "a/../../1", "..\\1"])
def test_members_that_lie_elsewhere_are_refused(tmp_path, name):
    write(tmp_path / "x.zip", {"1": b"x", name: b"x"})
    with pytest.raises(UserError, match=r"x.zip: .*the member .* would be unpacked elsewhere"):
        archives.entries(tmp_path)


def test_a_dead_link_to_an_archive_is_refused(tmp_path):
    """As git-annex leaves it: a part of the data set would be missing without a word."""
    write(tmp_path / "x.zip", {"images/1": b"x"})
    (tmp_path / "y.zip").symlink_to("gone.zip")
    archives.mount(tmp_path)
    text = refusal(tmp_path / "y.zip", lambda _: archives.entries(tmp_path / "images"))
    assert "a link to a file that does not exist" in text


def test_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("folder")
    link.external_attr = 0o120777 << 16
    write(tmp_path / "x.zip", {"1": b"x", link: b"/elsewhere"})
    with pytest.raises(UserError, match=r"x.zip: the member 'folder' is a link; unpack"):
        archives.is_dir(tmp_path / "folder")


def test_encrypted_and_otherwise_compressed_members_are_refused(tmp_path):
    write(tmp_path / "x.zip", {"1": b"x" * 99}, zipfile.ZIP_BZIP2)
    assert "compressed by method 12; expected deflate in the archive" in refusal(tmp_path / "1")
    # The flag of encryption in the table.
    write(tmp_path / "y.zip", {"2": b"y"})
    content = bytearray((tmp_path / "y.zip").read_bytes())
    place = content.index(b"PK\1\2") + 8
    struct.pack_into("<H", content, place, 1)
    (tmp_path / "y.zip").write_bytes(content)
    archives.mount(tmp_path)
    assert "encrypted in the archive" in refusal(tmp_path / "2")


def test_one_path_in_two_archives(tmp_path):
    (tmp_path / "a").mkdir()
    write(tmp_path / "x.zip", {"a/1": b"same", "a/2": b"x", "a/3": b"x"})
    write(tmp_path / "y.zip", {"a/1": b"same", "a/2": b"y"})
    write(tmp_path / "a/z.zip", {"3": b"z"}, root=tmp_path)
    assert archives.read_bytes(tmp_path / "a/1") == b"same"
    text = refusal(tmp_path / "a/2")
    assert f"{tmp_path}/x.zip and {tmp_path}/y.zip hold it with different content" in text
    assert "hold it with different content" in refusal(tmp_path / "a/3")
    # Unpacked, it does not matter.
    (tmp_path / "a/2").write_bytes(b"mine")
    assert archives.read_bytes(tmp_path / "a/2") == b"mine"
    # One of them is taken away while a process runs.
    (tmp_path / "a/2").unlink()
    (tmp_path / "y.zip").unlink()
    assert archives.read_bytes(tmp_path / "a/2") == b"x"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_path_twice_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        for content in (b"one", b"two"):
            opened.writestr("1", content)
            opened.writestr("2", b"same")
    archives.mount(tmp_path)
    assert archives.read_bytes(tmp_path / "2") == b"same"
    assert f"{tmp_path}/x.zip holds it twice, with different content" in refusal(tmp_path / "1")


# --------------------------------------------------------------------------- changes, processes


@pytest.mark.parametrize("in_place", [False, True])
def test_a_replaced_archive_is_read_anew(tmp_path, in_place):
    archive, other = tmp_path / "x.zip", tmp_path / "new"
    write(archive, {"1": b"old", "2": b"old"})
    old = archives.stamp(tmp_path / "1")
    assert archives.read_bytes(tmp_path / "1") == b"old"
    write(other, {"0": b"", "1": b"newer"})
    if in_place:
        archive.write_bytes(other.read_bytes())
    else:
        other.replace(archive)
    assert archives.stamp(tmp_path / "1") != old
    assert archives.read_bytes(tmp_path / "1") == b"newer"
    assert not archives.is_file(tmp_path / "2")
    archive.unlink()
    for how in (archives.stamp, archives.read_bytes):
        with pytest.raises(FileNotFoundError):
            how(tmp_path / "1")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_at_the_same_time(tmp_path, method):
    content = {f"a/{i}": RANDOM.randbytes(3000) for i in range(60)}
    write(tmp_path / "x.zip", content)
    assert archives.read_bytes(tmp_path / "a/0") == content["a/0"]
    context = multiprocessing.get_context(method)
    results = context.Queue()
    running = [context.Process(target=read_all, args=(tmp_path, k, results)) for k in (0, 31)]
    for process in running:
        process.start()
    for _ in range(120):
        number, data = results.get(timeout=60)
        assert data == content[f"a/{number}"]
    for process in running:
        process.join()


def test_threads_read_at_the_same_time(tmp_path):
    content = {f"a/{i}": RANDOM.randbytes(3000) for i in range(60)}
    write(tmp_path / "x.zip", content)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda name: archives.read_bytes(tmp_path / name), [*content] * 5))
    assert read == [*content.values()] * 5


def test_nothing_is_written_beside_an_archive(tmp_path):
    write(tmp_path / "x.zip", {"a/1": b"x"})
    before = sorted(tmp_path.rglob("*")), (tmp_path / "x.zip").stat().st_mtime_ns
    archives.read_bytes(tmp_path / "a/1")
    assert before == (sorted(tmp_path.rglob("*")), (tmp_path / "x.zip").stat().st_mtime_ns)
