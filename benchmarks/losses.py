"""Show that a change keeps every loss and every weight, bit by bit.

    git worktree add /tmp/before main                # the code before the change
    python benchmarks/losses.py record /tmp/losses_before --checkout /tmp/before
    python benchmarks/losses.py record /tmp/losses_after
    python benchmarks/losses.py compare /tmp/losses_before /tmp/losses_after

`record` trains a few steps of each stage of configs/demo.yaml, on 1 rank and on 2, on the CPU
(equal bits are not promised on a GPU), in about 2 minutes. It writes FOLDER/record.json: losses,
learning rates and consensus at each step, and a checksum of each tensor of student, teacher,
optimizer and centroids and of each pseudo label. `--camvid FOLDER` adds the recipe
configs/camvid_day_to_dusk.yaml on the photographs in that folder.

`compare` prints what differs; the exit code is 0 if nothing does, else 1. Records that were made on
different machines or with different versions of torch need not agree.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("source_only", "warm_up", "self_training")
# Metrics that depend on the arithmetic alone; the others are times, memory and counters.
PREFIXES = ("loss/", "consensus/", "lr/")
SETTINGS = (
    "engine.device=cpu",
    "engine.threads=1",
    "data.workers=0",
    "logging.every=1",
    "logging.tensorboard=false",
    "evaluation.teacher=false",
    "evaluation.adapt_normalization=false",
    "evaluation.panels=0",
)
# Labelling and evaluating all scenes would take longer than the training.
FEWER_SCENES = ("data.target.images=24", "data.validation.images=8")

# ------------------------------------------------------------------------------------------- record


def record(options: argparse.Namespace) -> int:
    """Train the recipes of a checkout and write OUT/record.json."""
    recipes: dict[str, tuple[str, ...]] = {"demo": FEWER_SCENES}
    if options.camvid:
        recipes["camvid_day_to_dusk"] = (f"data.root={options.camvid.resolve()}",)
    checkout = options.checkout.resolve()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    runs = {}
    for recipe in recipes:
        for ranks in options.ranks:
            name = f"{recipe}, {ranks} {'rank' if ranks == 1 else 'ranks'}"
            run_dir = folder / f"{recipe}_{ranks}"
            print(f"{name}: {run_dir}.log", flush=True)
            steps = [f"{stage}.steps={options.steps}" for stage in STAGES]
            settings = [*steps, *SETTINGS, *recipes[recipe], *options.settings]
            train(checkout, recipe, ranks, run_dir, settings)
            runs[name] = {"metrics": metrics(run_dir), "checksums": dict(checksums(run_dir))}
    (folder / "record.json").write_text(
        json.dumps({"made": circumstances(checkout), "runs": runs}, indent=1)
    )
    print(folder / "record.json")
    return 0


def train(checkout: Path, recipe: str, ranks: int, run_dir: Path, overrides: Sequence[str]) -> None:
    """Run `diga_hpc pipeline` of the checkout in a new run directory; SystemExit if it fails."""
    shutil.rmtree(run_dir, ignore_errors=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [
        *(sys.executable, *(launcher if ranks > 1 else []), "-m", "diga_hpc"),
        *("pipeline", f"configs/{recipe}.yaml", f"run_dir={run_dir}", *overrides),
    ]
    # The package of the checkout, not the one that is installed in this environment.
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with Path(f"{run_dir}.log").open("w") as log:
        done = subprocess.run(
            command, cwd=checkout, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    if done.returncode != 0:
        tail = "\n".join(Path(log.name).read_text().splitlines()[-5:])
        raise SystemExit(f"exit code {done.returncode}; the end of {log.name}:\n{tail}")


def metrics(run_dir: Path) -> dict[str, dict[str, float]]:
    """ "stage, step" -> metrics of that step."""
    entries = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {
        f"{entry['stage']}, step {entry['step']}": {
            key: value for key, value in entry.items() if key.startswith(PREFIXES)
        }
        for entry in entries
    }


def checksums(run_dir: Path) -> Iterator[tuple[str, str]]:
    """Names and SHA-256 of tensors and pseudo labels below the run directory."""
    for path in sorted([*run_dir.rglob("*.safetensors"), *run_dir.glob("pseudo_labels/**/*.png")]):
        name = str(path.relative_to(run_dir))
        if path.suffix == ".png":
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            yield from ((f"{name}: {tensor}", digest) for tensor, digest in tensors(path))


def tensors(path: Path) -> Iterator[tuple[str, str]]:
    """Names and SHA-256 of the tensors of a safetensors file: dtype, shape and bytes.

    Read here and not by the package, which is what is under test.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for name, entry in sorted(json.loads(content[8:start]).items()):
        if name != "__metadata__":
            first, end = (start + offset for offset in entry["data_offsets"])
            kind = f"{entry['dtype']} {entry['shape']} ".encode()
            yield name, hashlib.sha256(kind + content[first:end]).hexdigest()


def circumstances(checkout: Path) -> dict[str, str]:
    """What decides about the bits beside the code, and which code it was."""
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit or "unknown",
        "torch": version("torch"),
        "numpy": version("numpy"),
        "machine": f"{platform.machine()} {processor()}",
    }


def processor() -> str:
    """Model of the CPU: its vector instructions decide the order of sums."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


# ------------------------------------------------------------------------------------------ compare


def compare(options: argparse.Namespace) -> int:
    """Print what differs between two records; 0 if nothing does."""
    before, after = (
        json.loads((folder / "record.json").read_text())
        for folder in (options.before, options.after)
    )
    for key, value in before["made"].items():
        if value != after["made"][key]:
            print(f"{key}: {value} -> {after['made'][key]}")
    found = False
    for name in sorted(before["runs"] | after["runs"]):
        if name not in before["runs"] or name not in after["runs"]:
            lines = [f"only in {options.before if name in before['runs'] else options.after}"]
        else:
            lines = differences(before["runs"][name], after["runs"][name])
        counts = before["runs"].get(name, after["runs"].get(name))
        size = f"{len(counts['metrics'])} steps, {len(counts['checksums'])} tensors and labels"
        print(f"{name} ({size}): {'DIFFERENT' if lines else 'identical'}")
        print("".join(f"    {line}\n" for line in lines), end="")
        found = found or bool(lines)
    return int(found)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Lines that say how two runs differ; empty if they do not."""
    old, new = (
        {
            f"{step}, {key}": value
            for step, row in run["metrics"].items()
            for key, value in row.items()
        }
        for run in (before, after)
    )
    lines = _differing("metrics", old, new)
    changed = [key for key in old if "loss/" in key and key in new and old[key] != new[key]]
    if changed:
        worst = max(changed, key=lambda key: abs(new[key] - old[key]) / (abs(old[key]) or 1.0))
        lines.append(f"largest relative change of a loss: {worst}: {old[worst]} -> {new[worst]}")
    return lines + _differing("tensors and labels", before["checksums"], after["checksums"])


def _differing(kind: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    changed = [key for key in before if key in after and before[key] != after[key]]
    groups = {
        "differ": changed,
        "are missing after": [key for key in before if key not in after],
        "are new after": [key for key in after if key not in before],
    }
    return [
        f"{len(keys)} of {len(before)} {kind} {verb}, first: {keys[0]}"
        for verb, keys in groups.items()
        if keys
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("record", help="train some steps and write FOLDER/record.json")
    one.add_argument("folder", type=Path, help="for the record, the runs and their logs")
    one.add_argument("settings", nargs="*", metavar="key=value", help="of the configuration")
    one.add_argument("--checkout", type=Path, default=ROOT, help="code to run (default: this one)")
    one.add_argument("--camvid", type=Path, help="folder of CamVid's photographs")
    one.add_argument("--steps", type=int, default=20, help="of each stage (default: 20)")
    one.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    one.set_defaults(command=record)
    two = commands.add_parser("compare", help="say what differs between two records")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    two.set_defaults(command=compare)
    options = parser.parse_args(arguments)
    return options.command(options)


if __name__ == "__main__":
    sys.exit(main())
