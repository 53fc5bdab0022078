"""The safetensors format: write with a checksum in one pass, read the header without torch.

    8 bytes      length of the header, little endian
    header       JSON: name -> dtype, shape, data_offsets; __metadata__: strings
    data         the tensors' bytes, one after the other

Format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch

# torch's name of a dtype (without `torch.`) -> the format's name, and bytes per element.
DTYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
ELEMENT_BYTES = dict(DTYPES.values())
METADATA = "__metadata__"
# Bytes written, or read, at once.
CHUNK = 8 << 20
# Bytes; the limit is part of the format.
LARGEST_HEADER = 100 << 20


def write(path: Path, tensors: dict[str, "torch.Tensor"]) -> tuple[int, str]:
    """Write CPU tensors, sync to disk, and return the file's size in bytes and SHA-256."""
    # Widest elements first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")][0]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    return write_bytes(path, _chunks(encode_header(header), [tensors[name] for name in names]))


def write_bytes(path: Path, chunks: Iterator[bytes | memoryview]) -> tuple[int, str]:
    """Write the chunks, sync to disk, and return the file's size in bytes and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as stream:
        for chunk in chunks:
            stream.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return size, digest.hexdigest()


def encode_header(header: dict[str, Any]) -> bytes:
    """The bytes before the data: length and header."""
    text = json.dumps(header, separators=(",", ":")).encode()
    # The data begin at a multiple of 8 bytes, as the format asks.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a file, and the offset of its data in bytes; checks that the file is complete.

    Raises ValueError if the file is truncated or not safetensors, OSError if it cannot be read.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise ValueError("no safetensors header")
        try:
            header = json.loads(stream.read(length))
            described = sorted(_span(entry) for name, entry in header.items() if name != METADATA)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"damaged safetensors header ({type(error).__name__})") from error
    # As the format asks: without gaps, so that a file can hold nothing but its tensors.
    end = 0
    for start, stop in described:
        if start != end:
            raise ValueError("its tensors overlap or leave gaps")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"it has {size} bytes, its header says {8 + length + end}")
    return header, 8 + length


def read_data(stream: BinaryIO) -> Iterator[bytes]:
    """The rest of a file, in chunks."""
    while chunk := stream.read(CHUNK):
        yield chunk


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    """First byte of a tensor and the byte after its last, relative to the data."""
    start, stop = entry["data_offsets"]
    if stop - start != math.prod(entry["shape"]) * ELEMENT_BYTES[entry["dtype"]] or start < 0:
        raise ValueError("shape and size differ")
    return start, stop


def _chunks(header: bytes, tensors: list["torch.Tensor"]) -> Iterator[bytes | memoryview]:
    import torch

    yield header
    for tensor in tensors:
        # Through uint8, since NumPy has no bfloat16.
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(content), CHUNK):
            yield content[start : start + CHUNK]
