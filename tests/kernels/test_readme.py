"""kernels/README.md: examples that run, recorded numbers, a folder that works alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "kernels/README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)
# | `operation` | size | plain PyTorch ms | ours ms | plain MiB | ours MiB |
MEASURED = re.findall(
    r"\| `(\w+)` \| [^|]+ \| (\d+) ms \| (\d+) ms \| ([\d.]+) MiB \| ([\d.]+) MiB \|", README
)


def run_python(code: str, **options) -> None:
    """Without the interpreter: the examples must run on a CPU without Triton."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment | options.pop("env", {}),
        **options,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_examples_run_on_a_cpu_too():
    """Both blocks, one after the other: the second uses tensors of the first."""
    assert len(EXAMPLES) == 2
    run_python("\n".join(EXAMPLES))


@pytest.mark.slow
def test_the_folder_works_alone(tmp_path):
    """As a copy under another name, without diga_hpc."""
    shutil.copytree(ROOT / "kernels", tmp_path / "losses")
    example = EXAMPLES[0].replace("from diga_hpc import kernels", "import losses as kernels")
    only_here = "import sys\nassert not any(name.startswith('diga_hpc') for name in sys.modules)\n"
    run_python(example + only_here, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / "kernels" / target).exists(), target
    for name in re.findall(r"^\| (`.+?\.py`.*?) \|", README, re.M):
        for pattern in re.findall(r"`(.+?)`", name):
            assert list((ROOT / "kernels").glob(pattern)), pattern


def test_every_operation_is_measured():
    from diga_hpc import kernels

    operations = {name for name in kernels.__all__ if name.endswith(("_loss", "_labels"))}
    (open_ones,) = re.findall(r"Not measured yet: (.*?)\.\s", README, re.S)
    assert {row[0] for row in MEASURED} | set(re.findall(r"`(\w+)`", open_ones)) == operations


@pytest.mark.parametrize("measured", MEASURED, ids=lambda row: row[0])
def test_numbers_are_the_recorded_ones(measured):
    """Medians with cold caches, of the pass with gradient where there is one."""
    operation, *expected = measured
    file = ROOT / "benchmarks/results/kernels_AMD_EPYC_1_threads.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [r for r in rows if r["case"].startswith(operation + " ") and r["column"] == "cold"]
    # The last row of each contender is that of the newest run and of the longest pass.
    eager, ours = ({r["contender"]: r for r in rows}[name] for name in ("eager", "reference"))
    found = [f"{r['median_us'] / 1000:.0f}" for r in (eager, ours)]
    found += [f"{r['extra_peak_bytes'] / 2**20:.1f}" for r in (eager, ours)]
    assert found == expected
