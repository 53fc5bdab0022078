"""Ahead-of-time compilation of every kernel: no spills in loops, resources as recorded.

No GPU is needed: `helpers/kernel_resources.py` compiles for sm_80, sm_90, sm_100 and gfx942.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Minutes, unless Triton has cached the compiled kernels.
pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
RESOURCES = TESTS / "helpers" / "kernel_resources.py"
ACCEPT = "if that is intended, record it: python tests/helpers/kernel_resources.py --accept"


def run_python(*arguments: str | Path) -> str:
    """Standard output of a new Python process, because Triton may be interpreted in this one."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    folders = [str(TESTS.parent), str(TESTS), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, dict[str, int]]]:
    """{kernel of a call: {target: resources}}; seconds if Triton has cached them, else minutes."""
    return json.loads(run_python(RESOURCES))


def test_no_spills_in_loops(compiled):
    for kernel, targets in compiled.items():
        assert set(targets) == {"sm_80", "sm_90", "sm_100", "gfx942"}
        for target, resources in targets.items():
            assert resources["spills_in_loops"] == 0, (kernel, target)


def test_pixel_loops_were_found(compiled):
    """Guards the test above: a loop that is not found has no spills either."""
    scans = [row["sm_90"] for kernel, row in compiled.items() if ": scan_cells" in kernel]
    assert len(scans) >= 5
    assert all(40 < scan["pixel_loop"] < 250 and scan["pixel_loop_mufu"] >= 5 for scan in scans)
    strips = [row["sm_90"] for kernel, row in compiled.items() if ": label_strips" in kernel]
    assert len(strips) >= 5
    assert all(60 < strip["pixel_loop"] < 400 for strip in strips)


def test_resources_are_those_recorded(compiled):
    import triton

    record = json.loads((TESTS / "kernels/recorded/kernel_resources.json").read_text())
    if triton.__version__ not in record:
        pytest.skip(
            f"nothing is recorded for Triton {triton.__version__}: "
            "python tests/helpers/kernel_resources.py --accept adds it"
        )
    expected = record[triton.__version__]
    assert set(compiled) == set(expected), f"other kernels than recorded; {ACCEPT}"
    for kernel, targets in compiled.items():
        for target, resources in targets.items():
            assert resources == expected[kernel][target], (
                f"{kernel} on {target}: {resources}; {ACCEPT}"
            )


KINDS = """
from helpers.kernel_resources import *
from triton.runtime.jit import create_function_from_signature

kinds = set()
for size in [(512, 1024), (513, 1025), (375, 1242), (480, 640), (601, 800), (1080, 1920)]:
    nodes = [n // 8 for n in size]
    half = [n // 2 for n in nodes]
    labels = empty(1, *size, dtype=torch.uint8)
    with intercepted() as launches:
        argmax_call(19, [nodes, half], size)
        label_strips([empty(1, 19, *nodes)], size, False, clamp=False, labels=labels)
    for kernel, arguments, _ in launches:
        backend = triton.compiler.make_backend(TARGETS["sm_90"])
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        kinds.add(str(bind(**arguments)[1]))
print(len(kinds))
"""


def test_labels_of_images_of_any_size_compile_once():
    """Six sizes, two kernels by Triton's own cache key: one of two scales, one of the consensus."""
    assert run_python("-c", KINDS).strip() == "2"
