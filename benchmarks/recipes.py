"""Recipes: FLOP and memory of a step of each stage, and dry runs at the true size of the images.

python benchmarks/recipes.py                          # a table of all configurations
python benchmarks/recipes.py gta5_to_cityscapes --write      # the line `Step:` of its header
python benchmarks/recipes.py gta5_to_cityscapes --run        # two steps of every stage, on the CPU
python benchmarks/recipes.py gta5_to_cityscapes --run --record KEY=VALUE ...

FLOP are those of convolutions and matrix products of one optimiser step over all ranks, two per
multiplication with addition, counted on the meta device: the student forward and backward on all
of its views (forward alone on the target for `warm_up.target_statistics`), and the teacher forward;
of a translator, its training without VGG19. Views (with a trained translator too) and losses are
not counted. Memory is the estimate of `diga-hpc check`, of one of the ranks that the recipe's
command starts.

`--run` writes a few files of the true sizes in the data sets' layouts, and runs every job of the
recipe in a process of its own: wall time, CPU time and peak memory of the process (resident set).
Each is a row; `--record` appends them to results/recipes.jsonl.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _full_size import write
from _measure import environment
from torch.utils.flop_counter import FlopCounterMode

from diga_hpc import config as configuration
from diga_hpc import models
from diga_hpc.config import Config, TranslationSection
from diga_hpc.launch import recipes
from diga_hpc.launch.chain import chain
from diga_hpc.launch.recipes import Recipe
from diga_hpc.models.base import SegmentationModel
from diga_hpc.models.translation import Generator, MultiScaleCritic
from diga_hpc.stages.memory import estimates
from diga_hpc.stages.plan import Planned, trained

RECORDS = Path(__file__).parent / "results/recipes.jsonl"
# Images of one sample that the teacher sees in a step: both views of the source, and the target.
TEACHER_VIEWS = {"source_only": 0, "warm_up": 2, "self_training": 3}
# Without them a full-size run needs minutes per step more, and measures other things.
DRY_RUN = [
    "model.weights=random",
    "engine.device=cpu",
    "engine.micro_batch=1",
    "data.workers=0",
    "logging.every=1",
    "logging.tensorboard=false",
    "evaluation.panels=0",
]


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", help="names of recipes (default: all), KEY=VALUE")
    parser.add_argument("--write", action="store_true", help="write the line `Step:` of the header")
    parser.add_argument("--run", action="store_true", help="two steps of every stage, full size")
    parser.add_argument("--record", action="store_true", help=f"append the rows to {RECORDS}")
    asked = parser.parse_intermixed_args()
    overrides = [word for word in asked.recipes if "=" in word]
    names = [word for word in asked.recipes if "=" not in word]
    found = [r for r in recipes.read_all() if r.name in names or not names]
    if len(found) < len(set(names)):
        parser.error(f"unknown recipe in {names}; `diga-hpc recipes` lists all")
    if asked.run:
        for recipe in found:
            for row in dry_run(recipe, overrides):
                print(json.dumps(row), flush=True)
                if asked.record:
                    with RECORDS.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
        return
    print("| recipe | stage | TFLOP a step | memory of one rank, GiB |\n| --- | --- | --: | --: |")
    for recipe in found:
        needs = steps(recipe, overrides)
        for stage, (flop, memory) in needs.items():
            print(f"| {recipe.name} | {stage} | {_tera(flop)} | {memory:.1f} |", flush=True)
        if asked.write:
            write_step(recipe, needs)


# ------------------------------------------------------------------------------------ FLOP, memory


def steps(recipe: Recipe, overrides: Sequence[str] = ()) -> dict[str, tuple[int, float]]:
    """Kind of each stage that trains -> FLOP of a step, memory of one rank in GiB."""
    config = configuration.load(recipe.file, overrides)
    network = models.build(config.model, config.space.num_classes, weights="random").to("meta")
    needs = {}
    for stage in trained(config):
        if stage.training:
            share = stage.training.batch.share(ranks(recipe))
            engine = config.engine.model_copy(update={"micro_batch": share})
            memory = estimates(config.model_copy(update={"engine": engine}))[stage.kind]
            needs[stage.kind] = step_flop(config, stage, network), memory / 2**30
    return needs


def step_flop(config: Config, stage: Planned, network: SegmentationModel) -> int:
    """FLOP of one optimiser step of a stage, over all ranks. network: on the meta device."""
    assert stage.training is not None
    if isinstance(stage.training, TranslationSection):
        return translation_flop(stage.training)
    total, crop = stage.training.batch.total, stage.training.crop
    flop = _pass_flop(network, total * stage.views, crop, backward=True)
    # Without gradient: the teacher, and the student on the target for its running statistics.
    without = total * TEACHER_VIEWS[stage.kind]
    without += total * getattr(stage.training, "target_statistics", False)
    return flop + (_pass_flop(network, without, crop, backward=False) if without else 0)


def translation_flop(section: TranslationSection) -> int:
    """FLOP of one step that trains a translator, over all ranks (stages/translation)."""
    with torch.device("meta"):
        generator = Generator(section.width, section.blocks)
        critic = MultiScaleCritic(section.width)
        image = torch.empty(section.batch.total, 3, *section.crop)
    counter = FlopCounterMode(display=False)
    with counter:
        with torch.no_grad():
            translations = generator.translate(image, image)
        for translated in translations:
            sum(scores.sum() for scores in critic(torch.cat([image, translated]))).backward()
        # The discriminators are frozen for the generator.
        critic.requires_grad_(False)
        made = generator(image, image)
        of_critics = [scores.sum() for translated in made[:2] for scores in critic(translated)]
        sum([*of_critics, *(image.sum() for image in made)]).backward()
    return int(counter.get_total_flops())


def _pass_flop(
    network: SegmentationModel, images: int, crop: tuple[int, int], *, backward: bool
) -> int:
    network.train()
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(backward):
        prediction = network(torch.empty(images, 3, *crop, device="meta"))
        if backward:
            outputs = [prediction.logits, getattr(prediction, "auxiliary", None)]
            sum(each.sum() for each in outputs if each is not None).backward()
    return int(counter.get_total_flops())


def ranks(recipe: Recipe) -> int:
    """Ranks that the command of a recipe starts."""
    found = re.search(r"--nproc-per-node[ =](\d+)", recipe.command)
    return int(found[1]) if found else 1


def step_line(needs: Mapping[str, tuple[int, float]]) -> str:
    """Text of `Step:` in a header."""
    parts = [f"{stage} {_tera(flop)}, {gib:.1f}" for stage, (flop, gib) in needs.items()]
    return f"{'; '.join(parts)} (TFLOP, GiB)."


def write_step(recipe: Recipe, needs: Mapping[str, tuple[int, float]]) -> None:
    """Write the line `Step:` into the header of a recipe."""
    text = recipe.file.read_text(encoding="utf-8")
    before, after = re.split(r"(?m)^# Step: .*\n", text, maxsplit=1)
    text = f"{before}# Step: {step_line(needs)}\n{after}"
    recipe.file.write_text(text, encoding="utf-8")


def _tera(flop: int) -> str:
    return f"{flop / 1e12:.3g}"


# ----------------------------------------------------------------------------------------- dry runs


def dry_run(recipe: Recipe, overrides: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Run every job of a recipe with two steps a stage; a row for each, as it ends."""
    with tempfile.TemporaryDirectory(prefix="full_size_") as name:
        folder = Path(name)
        config = configuration.load(recipe.file, overrides)
        keys = [*DRY_RUN, f"run_dir={folder / 'run'}", *write(config, folder / "data")]
        keys += [f"{stage.kind}.steps=2" for stage in trained(config) if not stage.round]
        if config.self_training:
            keys += ["self_training.steps=2", "self_training.rounds=1"]
        keys += overrides
        for link in chain(configuration.load(recipe.file, keys)):
            command = ["stage", link.command, str(recipe.file), *keys]
            command += [f"--round={link.round}"] if link.round else []
            needs = _measured(command, folder / f"{link.name}.log")
            log = folder / f"{link.name}.log"
            yield {"recipe": recipe.name, "job": link.name, **needs, **environment()}
            if needs["exit_code"]:
                print(log.read_text()[-2000:], file=sys.stderr)
                return


def _measured(arguments: Sequence[str], log: Path) -> dict[str, Any]:
    """Run diga-hpc in a process: seconds, and the most memory it held, in GiB."""
    start = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "diga_hpc", *arguments], stdout=stream, stderr=stream
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
        "exit_code": process.returncode,
    }


if __name__ == "__main__":
    main()
