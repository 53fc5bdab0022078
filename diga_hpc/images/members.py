"""Members of zip archives as files: inflated as far as they are read, checked at their end.

    Member          where it lies in its archive
    MemberFile      reads it; seekable, read-only

Archives are read by position (os.pread): threads and forked processes may share an open file.
"""

import io
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from diga_hpc.errors import UserError

STORED, DEFLATED = 0, 8
ENCRYPTED = 0x1
SIGNATURE = b"PK\3\4"
# Of the header before a member: signature, other fields, lengths of its name and extra field.
HEADER = struct.Struct("<4s22xHH")
# Compressed bytes that are read at a time.
PART = 256 << 10


class Archive(NamedTuple):
    """An archive that is open for reading."""

    path: str
    file: BinaryIO | io.FileIO
    stamp: list[int]
    """Size, times and inode when it was opened."""

    def is_current(self) -> bool:
        """Whether its path still leads to it, unchanged."""
        try:
            return file_stamp(os.stat(self.path)) == self.stamp
        except OSError:
            return False


def file_stamp(status: os.stat_result) -> list[int]:
    """Numbers that change with a file."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class Member(NamedTuple):
    """A file in an archive."""

    archive: Archive
    offset: int
    packed: int
    """Bytes in the archive."""
    size: int
    crc: int
    method: int
    flags: int

    def why_not(self) -> str | None:
        """Why it cannot be read; None if it can."""
        if self.flags & ENCRYPTED:
            return "encrypted"
        if self.method not in (STORED, DEFLATED):
            return f"compressed by method {self.method}; expected deflate"
        return None


class _Content:
    """Bytes of a member, inflated up to where they were asked for."""

    def __init__(self, path: Path, member: Member):
        self.path, self.member = path, member
        self.inflated = bytearray()
        self.inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        # Of the bytes from the start on that were read so far.
        self.checked, self.crc = 0, 0
        header = self._pread(member.offset, HEADER.size)
        if len(header) < HEADER.size or not header.startswith(SIGNATURE):
            raise self.damaged("no member where the table has it")
        _, name, extra = HEADER.unpack(header)
        self.start = member.offset + HEADER.size + name + extra
        self.taken = 0

    def damaged(self, reason: str) -> UserError:
        _recent.content = None
        return UserError(
            f"{self.path}: damaged in the archive {self.member.archive.path} ({reason}); download "
            "the archive again"
        )

    def _pread(self, place: int, count: int) -> bytes:
        parts = []
        while count > 0 and (
            part := os.pread(self.member.archive.file.fileno(), min(count, 1 << 30), place)
        ):
            parts.append(part)
            place, count = place + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read(self, start: int, end: int) -> bytes:
        """Bytes from `start` to `end`, at most its size. Raises UserError if it is damaged."""
        if self.member.method == STORED:
            if self.member.packed != self.member.size:
                raise self.damaged("two sizes of a stored member")
            part = self._pread(self.start + start, end - start)
            if len(part) < end - start:
                raise self.damaged("truncated")
            if start <= self.checked < end:
                self._check(part[self.checked - start :])
            return part
        while len(self.inflated) < end:
            self._inflate()
        return bytes(memoryview(self.inflated)[start:end])

    def _inflate(self) -> None:
        count = min(PART, self.member.packed - self.taken)
        packed = self._pread(self.start + self.taken, count)
        self.taken += len(packed)
        try:
            part = self.inflater.decompress(packed)
        except zlib.error as error:
            raise self.damaged(str(error)) from error
        self.inflated += part
        if len(packed) < count or not packed or len(self.inflated) > self.member.size:
            raise self.damaged("truncated" if len(packed) < max(count, 1) else "too long")
        self._check(part)

    def _check(self, part: bytes) -> None:
        """Add bytes to the checksum, and compare it at the end."""
        self.crc = zlib.crc32(part, self.crc)
        self.checked += len(part)
        if self.checked == self.member.size and self.crc != self.member.crc:
            raise self.damaged("wrong checksum")


class _Recent(threading.local):
    """The member that a thread has inflated last: its header, digest and pixels are read in turn,
    through a file each."""

    content: _Content | None = None


_recent = _Recent()


class MemberFile(io.RawIOBase):
    """A member of an archive, open for reading.

    path: of the file that it would be, for errors. Raises UserError for a member that is encrypted
    or compressed by another method than deflate. Reading raises it for a damaged one: once all
    bytes up to the end have been read in their order, or all at once, the checksum was compared.
    """

    def __init__(self, path: Path, member: Member):
        super().__init__()
        why_not = member.why_not()
        if why_not:
            raise UserError(f"{path}: {why_not} in the archive {member.archive.path}; unpack it")
        content = _recent.content
        if content is None or content.member is not member:
            content = _recent.content = _Content(path, member)
        self.content, self.place = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.content.member.size}
        self.place = max(base[whence] + offset, 0)
        return self.place

    def read(self, size: int | None = -1) -> bytes:
        length = self.content.member.size
        end = length if size is None or size < 0 else min(self.place + size, length)
        if end <= self.place:
            return b""
        part = self.content.read(self.place, end)
        self.place = end
        return part

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        part = self.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)
