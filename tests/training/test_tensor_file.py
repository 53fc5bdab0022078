"""The safetensors format: written as the safetensors library reads it, checked without torch."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from diga_hpc.training import tensor_file


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in tensor_file.DTYPES])
def test_files_are_those_that_the_safetensors_library_reads(tmp_path, dtype):
    tensors = {
        "odd": torch.arange(15).reshape(3, 5).to(dtype),
        "strided": torch.arange(12).reshape(3, 4).t().to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
        "count": torch.tensor([2**40]),
    }
    size, _ = tensor_file.write(tmp_path / "x.safetensors", tensors)
    got = load_file(tmp_path / "x.safetensors")
    assert size == (tmp_path / "x.safetensors").stat().st_size and got.keys() == tensors.keys()
    assert all(
        got[name].dtype == t.dtype and torch.equal(got[name], t) for name, t in tensors.items()
    )
    header, _ = tensor_file.read_header(tmp_path / "x.safetensors")
    assert {name: entry["shape"] for name, entry in header.items()} == {
        name: list(t.shape) for name, t in tensors.items()
    }


def test_size_and_checksum_are_those_of_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    size, digest = tensor_file.write(path, {"a": torch.ones(3)})
    content = path.read_bytes()
    assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())
    # The data begin aligned.
    assert tensor_file.read_header(path)[1] % 8 == 0


def test_files_of_the_safetensors_library_are_read(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3)}, path, metadata={"format": "pt"})
    header, start = tensor_file.read_header(path)
    assert header["a"]["shape"] == [2, 3] and header["__metadata__"] == {"format": "pt"}
    assert path.stat().st_size == start + 24


@pytest.mark.parametrize("keep", [0, 7, 8, 20, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    tensor_file.write(path, {"a": torch.ones(3)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="safetensors header|it has .* bytes, its header says"):
        tensor_file.read_header(path)
