"""PNG files written byte by byte: depths, colour types and interlacing that Pillow cannot write."""

import struct
import zlib
from pathlib import Path

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
# First row, first column, step of rows, step of columns of the passes of Adam7.
ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_png(
    path: Path,
    values: np.ndarray,
    bits: int = 8,
    kind: int = GREY,
    *,
    interlaced: bool = False,
    before: bytes = b"",
    after: bytes = b"",
) -> None:
    """Write values [H,W] or [H,W,C] of `bits` bits; before, after: chunks around the pixels."""
    values = np.asarray(values).reshape(*values.shape[:2], CHANNELS[kind])
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = b"".join(_rows(values[y::dy, x::dx], bits) for y, x, dy, dx in passes)
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, int(interlaced))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", zlib.compress(rows))
        + after
        + chunk(b"IEND", b"")
    )


def _rows(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples, each with the filter type 0 in front."""
    if not values.size:
        return b""
    flat = values.reshape(values.shape[0], -1)
    if bits == 16:
        packed = flat.astype(">u2").view(np.uint8)
    else:
        each = np.unpackbits(flat.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        packed = np.packbits(each.reshape(flat.shape[0], -1), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in packed)
