"""Compile every kernel ahead of time and read the registers, spills and instructions that it takes.

    python tests/helpers/kernel_resources.py            print {kernel: {target: resources}}
    python tests/helpers/kernel_resources.py --accept   also record it, for this version of Triton,
                                                        in tests/kernels/recorded/

No GPU is needed. The operations are called with meta tensors (shapes without values); each launch
is intercepted, and its arguments become the signature to compile. Resources on CUDA: registers and
stack bytes of a thread (`cuobjdump --dump-resource-usage`), instructions of the innermost loop that
takes the time, and accesses to spilled registers inside loops (`cuobjdump -sass`). On ROCm: the
metadata of the assembly.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path

# Before Triton is imported: an interpreted kernel cannot be compiled.
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from diga_hpc.kernels import consensus, cross_entropy, ohem, symmetric_kl, warm_up
from diga_hpc.kernels._triton_label_strips import label_strips
from diga_hpc.kernels._triton_scaled_gradient import scaled_gradient

RECORD = Path(__file__).parents[1] / "kernels" / "recorded" / "kernel_resources.json"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}


# ---------------------------------------------------------------------------------------- the calls


def empty(
    *shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> torch.Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)


def warm_up_call(K: int, h: int, w: int, **layout) -> None:
    logits, labels = empty(6, K, h, w, **layout), empty(3, 512, 896, dtype=torch.uint8)
    outputs = warm_up._warm_up._init_fn(
        logits, logits, labels, None, 0.5, 1.0, 255, True, True, True
    )
    label_gradient, label_factor, gradient, factor = outputs[1], outputs[2], outputs[4], outputs[5]
    one = empty()
    scaled_gradient._init_fn(gradient, factor, one, label_gradient, label_factor, one, logits.dtype)


def masked_kl_call(K: int, h: int, w: int) -> None:
    logits, mask = empty(2, K, h, w), empty(1, 512, 512, dtype=torch.bool)
    symmetric_kl._symmetric_kl._init_fn(logits, logits, mask, 512, 512, 0.5, 1.0, False, True)


def cross_entropy_call(K: int, h: int, w: int) -> None:
    logits, labels = empty(2, K, h, w), empty(2, 512, 512, dtype=torch.int64)
    cross_entropy._cross_entropy._init_fn(logits, labels, empty(K), 255, True, True, True)


def ohem_call(K: int, h: int, w: int, **layout) -> None:
    logits, labels = empty(4, K, h, w, **layout), empty(4, 512, 896, dtype=torch.uint8)
    target = cross_entropy.CellTarget(labels, None, 255)
    ohem._ohem(logits, target, 0.7, 100_000, True, lambda counts: counts, True)


def argmax_call(K: int, maps: list[tuple[int, int]], size: tuple[int, int], **layout) -> None:
    label_strips([empty(1, K, *nodes, **layout) for nodes in maps], size, True, clamp=True)


def consensus_call(K: int, D: int, h: int, w: int, **layout) -> None:
    features, labels = empty(3, D, h, w, **layout), empty(3, 512, 896, dtype=torch.uint8)
    consensus.consensus(features, empty(K, D), labels, None, 255, True)


CALLS: dict[str, Callable[[], None]] = {
    "warm_up K=19 stride 8": lambda: warm_up_call(19, 65, 113),
    "warm_up K=19 stride 4 bf16 channels_last": lambda: warm_up_call(
        19, 129, 225, dtype=torch.bfloat16, channels_last=True
    ),
    "masked kl K=150": lambda: masked_kl_call(150, 128, 128),
    "weighted cross_entropy K=16": lambda: cross_entropy_call(16, 128, 128),
    "weighted cross_entropy K=5": lambda: cross_entropy_call(5, 128, 128),
    "ohem K=16 stride 8": lambda: ohem_call(16, 65, 113),
    "ohem K=19 stride 4 bf16 channels_last": lambda: ohem_call(
        19, 129, 225, dtype=torch.bfloat16, channels_last=True
    ),
    "argmax 2 scales K=19": lambda: argmax_call(19, [(129, 257), (65, 129)], (1024, 2048)),
    "argmax 1 scale stride 4 bf16 channels_last": lambda: argmax_call(
        19, [(256, 512)], (1024, 2048), dtype=torch.bfloat16, channels_last=True
    ),
    "argmax shrinking K=150": lambda: argmax_call(150, [(128, 128)], (64, 64)),
    "consensus K=19 D=256": lambda: consensus_call(19, 256, 65, 113),
    "consensus K=150 D=64 channels_last": lambda: consensus_call(
        150, 64, 128, 128, channels_last=True
    ),
}


# ------------------------------------------------------------------------- from launches to sources


@contextlib.contextmanager
def intercepted() -> Iterator[list[tuple[JITFunction, dict, int]]]:
    """Collect the launches within the block, (kernel, arguments by name, warps); none is run."""
    launches: list[tuple[JITFunction, dict, int]] = []

    def record(
        kernel: JITFunction, *arguments: object, grid: object, warmup: bool, **options: object
    ) -> None:
        warps = options.pop("num_warps", 4)
        launches.append(
            (kernel, dict(zip(kernel.arg_names, arguments, strict=False)) | options, warps)
        )

    with unittest.mock.patch.object(JITFunction, "run", record):
        yield launches


def source(kernel: JITFunction, arguments: dict) -> ASTSource:
    """What Triton would compile for a launch with these arguments."""
    signature, constants, attributes = {}, {}, {}

    def describe(value: object, path: tuple[int, ...], constant: bool, align: bool) -> str | tuple:
        """The type of one argument, or of all in a tuple."""
        if isinstance(value, tuple):
            return tuple(describe(v, (*path, i), constant, True) for i, v in enumerate(value))
        aligned = isinstance(value, torch.Tensor)  # as the allocator makes them
        if isinstance(value, torch.Tensor):
            kind = "*" + TYPES[value.dtype]
        elif constant or (isinstance(value, int) and value == 1):
            kind, constants[path] = "constexpr", value
        elif isinstance(value, float):
            kind = "fp32"
        else:
            kind, aligned = "i32", align and value % 16 == 0
        if aligned:
            attributes[path] = [["tt.divisibility", 16]]
        return kind

    for position, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        align = not parameter.do_not_specialize_on_alignment
        signature[parameter.name] = describe(value, (position,), parameter.is_constexpr, align)
    return ASTSource(kernel, signature, constexprs=constants, attrs=attributes)


def title(kernel: JITFunction, arguments: dict) -> str:
    flags = [name for name, value in arguments.items() if name.isupper() and value is True]
    return " ".join([kernel.__name__.lstrip("_"), *(flag.lower() for flag in flags)])


# ------------------------------------------------------------------------------------ from compiled


def cuda_resources(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            cuobjdump(option, file.name) for option in ("--dump-resource-usage", "-sass")
        )
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    lines = {int(a, 16): text for a, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", sass)}
    # A jump back is a loop, unless it returns from code that was moved after the final EXIT.
    ends = [address for address, text in lines.items() if text.startswith("EXIT")]
    loops = [
        (int(target, 16), address)
        for address, text in lines.items()
        for target in re.findall(
            r"^(?:@!?U?P\d\s+)?BRA[\w.]*\s+(?:\S+,\s*)?`?\(?(?:\.\S*)?(0x[0-9a-f]+)", text
        )
        if int(target, 16) < address and not any(int(target, 16) < end < address for end in ends)
    ]
    spills = sum(
        any(a <= x <= b for a, b in loops)
        for x, text in lines.items()
        if re.search(r"\b(LDL|STL)", text)
    )
    innermost = [(a, b) for a, b in loops if not any(a <= c and d < b for c, d in loops)]
    bodies = [[text for x, text in lines.items() if a <= x <= b] for a, b in innermost]
    with_exponentials = [body for body in bodies if any("MUFU.EX2" in text for text in body)]
    # The loop that takes the time: the one with exponentials, or else (label kernels) the longest.
    pixel = min(with_exponentials, key=len, default=[]) or max(bodies, key=len, default=[])
    return {
        "registers": found["REG"],
        "stack": found["STACK"],
        "shared": found["SHARED"],
        "spills_in_loops": spills,
        "pixel_loop": len(pixel),
        "pixel_loop_mufu": sum("MUFU" in text for text in pixel),
    }


def cuobjdump(option: str, path: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


def hip_resources(assembly: str) -> dict[str, int]:
    def note(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly).group(1))

    return {
        "registers": note("vgpr_count"),
        "stack": note("private_segment_fixed_size"),
        "spills_in_loops": note("vgpr_spill_count") + note("sgpr_spill_count"),
    }


def measure() -> dict[str, dict[str, dict[str, int]]]:
    """{call: kernel: {target: resources}}; a kernel that two calls share is compiled once."""
    result, seen = {}, set()
    for call_name, call in CALLS.items():
        with intercepted() as launches:
            call()
        for kernel, arguments, warps in launches:
            code = source(kernel, arguments)
            key = (kernel.__name__, str(code.signature), str(code.constants), str(code.attrs))
            if key in seen:
                continue
            seen.add(key)
            row = result.setdefault(f"{call_name}: {title(kernel, arguments)}", {})
            for name, target in TARGETS.items():
                compiled = triton.compile(code, target=target, options={"num_warps": warps})
                hip = target.backend == "hip"
                row[name] = (
                    hip_resources(compiled.asm["amdgcn"])
                    if hip
                    else cuda_resources(compiled.asm["cubin"])
                )
    return result


def main() -> None:
    found = measure()
    if "--accept" in sys.argv:
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record[triton.__version__] = found
        lines = [
            f"{json.dumps(version)}: {{\n"
            + ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
            + "\n}"
            for version, rows in sorted(record.items())
        ]
        RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
