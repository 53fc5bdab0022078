"""Checksums of PNG files: decoders skip them, so a damaged file would give other pixels."""

import struct
import zlib
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def damage(path: Path) -> str | None:
    """What is wrong with a PNG, or None: the length and the checksum (CRC-32) of every chunk.

    What follows the last chunk is ignored, as viewers do. Raises OSError if it cannot be read.
    """
    content = memoryview(path.read_bytes())
    place, end = len(SIGNATURE), len(content)
    while place < end:
        header = content[place : place + 8]
        if len(header) < 8:
            return "truncated"
        length, kind = struct.unpack(">I4s", header)
        after = place + 12 + length
        if after > end:
            return "truncated"
        (expected,) = struct.unpack(">I", content[after - 4 : after])
        if zlib.crc32(content[place + 4 : after - 4]) != expected:
            return f"wrong checksum of the chunk {kind.decode('latin-1')!r}"
        if kind == b"IEND":
            return None
        place = after
    return "truncated"
