"""PNG files of any depth and colour type, written by hand: Pillow writes few of them."""

import struct
import zlib
from pathlib import Path

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
# Adam7: first row, first column, row step, column step of each pass.
PASSES = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk with its length and checksum."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def _rows(values: np.ndarray, bits: int) -> bytes:
    """Filter byte 0 and packed samples of each row; values [H,W] or [H,W,C]."""
    rows = []
    for row in values.reshape(len(values), -1):
        if bits == 16:
            packed = row.astype(">u2").tobytes()
        else:
            planes = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
            packed = np.packbits(planes.ravel()).tobytes()
        rows.append(b"\0" + packed)
    return b"".join(rows)


def write_png(
    path: Path,
    values: np.ndarray,
    bits: int = 8,
    color: int = GREY,
    *,
    palette: np.ndarray | None = None,
    interlaced: bool = False,
    further: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """Write samples [H,W] or [H,W,C] with so many bits each. further: chunks after the header."""
    height, width = values.shape[:2]
    if interlaced:
        parts = [values[top::down, left::right] for top, left, down, right in PASSES]
        rows = b"".join(_rows(part, bits) for part in parts if part.size)
    else:
        rows = _rows(values, bits)
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, int(interlaced))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    for kind, data in further:
        content += chunk(kind, data)
    if palette is not None:
        content += chunk(b"PLTE", np.asarray(palette, np.uint8).tobytes())
    content += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
