"""Checksums of PNG files: decoders skip them, so a damaged file would give other pixels."""

import re
import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
METADATA = re.compile(rb"eXIf|iTXt|tEXt|zTXt")


def damage(png: bytes | memoryview) -> str | None:
    """What is wrong with a PNG, or None: the length and the checksum (CRC-32) of every chunk.

    What follows the last chunk is ignored, as viewers do.
    """
    content = memoryview(png)
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


def has_metadata(part: bytes) -> bool:
    """Whether a part of a PNG, from anywhere in the file, holds a complete chunk of metadata.

    Its name alone may stand in the pixels by chance; its checksum does not.
    """
    for found in METADATA.finditer(part, 4):
        start = found.start()
        (length,) = struct.unpack_from(">I", part, start - 4)
        end = start + 4 + length
        if part[end : end + 4] == struct.pack(">I", zlib.crc32(part[start:end])):
            return True
    return False
