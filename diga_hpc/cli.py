"""The command `diga-hpc`.

Heavy modules are imported inside the commands, so that --help is instant.
"""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from diga_hpc import config as configuration
from diga_hpc import terminal
from diga_hpc.errors import EXIT_FAILED, UserError
from diga_hpc.launch import options
from diga_hpc.section import nearest
from diga_hpc.terminal import log_to_terminal

app = typer.Typer(
    help="Adapt a segmentation network from labelled source images to unlabelled target images "
    "(DiGA, CVPR 2023).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file, for example configs/demo.yaml")
]
Overrides = Annotated[
    Optional[list[str]],
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides of keys of the file, for example seed=1 data.root=DIR",
    ),
]
StopAfter = Annotated[
    Optional[int],
    typer.Option(
        min=1,
        help="Stop cleanly after this many training steps, as a signal would; the same command "
        "resumes.",
    ),
]
Round = Annotated[int, typer.Option("--round", min=1, help="Which round of self-training.")]


@app.command()
def pipeline(config: ConfigPath, overrides: Overrides = None, stop_after: StopAfter = None) -> None:
    """Run every stage that is not done yet, then evaluation and report.

    Run the same command again to resume. On several processes: torchrun --nproc-per-node 2 -m
    diga_hpc pipeline CONFIG
    """
    _run("pipeline", config, overrides, stop_after=stop_after)


@app.command("train-translator")
def train_translator(
    config: ConfigPath, overrides: Overrides = None, stop_after: StopAfter = None
) -> None:
    """Train the learned image translator and write its file (section `translation`)."""
    _run("train-translator", config, overrides, stop_after=stop_after)


@app.command("warm-up")
def warm_up(config: ConfigPath, overrides: Overrides = None, stop_after: StopAfter = None) -> None:
    """Train the warm-up (and before it the source-only network, if the configuration has one)."""
    _run("warm-up", config, overrides, stop_after=stop_after)


@app.command("pseudo-labels")
def pseudo_labels(config: ConfigPath, overrides: Overrides = None, round_number: Round = 1) -> None:
    """Label the target's images with the network trained before a round; compute centroids."""
    _run("pseudo-labels", config, overrides, round_number=round_number)


@app.command("self-train")
def self_train(
    config: ConfigPath,
    overrides: Overrides = None,
    round_number: Round = 1,
    stop_after: StopAfter = None,
) -> None:
    """Train one round of self-training on the pseudo labels made for it."""
    _run("self-train", config, overrides, round_number=round_number, stop_after=stop_after)


@app.command()
def evaluate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Measure every trained network on the validation images: results.json and report.html."""
    _run("evaluate", config, overrides)


@app.command()
def stage(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Command of a stage (warm-up, evaluate ...) or a stage of an extension.",
        ),
    ],
    config: ConfigPath,
    overrides: Overrides = None,
    round_number: Round = 1,
    stop_after: StopAfter = None,
) -> None:
    """Run one stage by its name, for example a stage that an extension has registered."""
    _run(name, config, overrides, round_number=round_number, stop_after=stop_after)


@app.command()
def demo(
    run_dir: Annotated[Path, typer.Option(help="Where to write.")] = Path("runs/demo"),
    overrides: Overrides = None,
) -> None:
    """Run the complete pipeline on built-in street scenes: no files needed, minutes on a CPU."""
    built_in = Path(__file__).parent / "configs" / "demo.yaml"
    _run("pipeline", built_in, [f"run_dir={run_dir}", *(overrides or [])])


@app.command()
def predict(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR", help="A run directory, or a checkpoint directory step_* of one."
        ),
    ],
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="A folder of images, or one image.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="Folder to write to: labels/, masks/ ...")
    ],
    network: Annotated[str, typer.Option(help="student or teacher")] = "student",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Segment images again that have their pictures.")
    ] = False,
) -> None:
    """Segment your own images: class indices, colour masks, and masks laid over the images.

    The same command goes on where it ended. Unreadable images are named at the end (exit code 2).
    """
    from diga_hpc.results.predict import predict as run_predict

    log_to_terminal()
    count = run_predict(weights, images, output, network, overwrite)
    print(f"{count} images segmented: {output}/labels, {output}/masks, {output}/overlays")


@app.command()
def check(
    config: ConfigPath,
    overrides: Overrides = None,
    quick: Annotated[
        bool, typer.Option(help="Look at 20 images of each data set instead of all.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check configuration and data without training: every file, labels, sizes, stages.

    All problems are listed; with any that a run would refuse, the exit code is 2.
    """
    from diga_hpc.results.check import check as run_check

    log_to_terminal()
    resolved = configuration.load(config, overrides or [])
    run_check(resolved, limit=20 if quick else None, as_json=as_json)


@app.command()
def show(
    config: ConfigPath,
    overrides: Overrides = None,
    key: Annotated[
        Optional[str], typer.Option(help="Only the value of this key, for example run_dir.")
    ] = None,
) -> None:
    """Print the resolved configuration: the file, its overrides and every default."""
    resolved = configuration.load(config, overrides or [])
    if key is None:
        print(configuration.as_yaml(resolved), end="")
        return
    values = configuration.flat(resolved)
    if key not in values:
        near = nearest(key, values)
        hint = f"did you mean `{near}`? " if near else ""
        raise UserError(
            f"no key `{key}` in the configuration; {hint}`diga-hpc show {config}` prints all"
        )
    print(values[key])


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A folder step_*, or a run directory for all of its checkpoints.",
        ),
    ],
    config: Annotated[
        bool, typer.Option("--config", help="Also print the configuration of the run.")
    ] = False,
) -> None:
    """List the checkpoints of a run: stage, step, configuration, and whether each is complete."""
    from diga_hpc.results.inspection import describe

    text, complete = describe(path, config)
    print(text)
    if not complete:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def export(
    path: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A folder step_*, or a run directory.")
    ],
    to: Annotated[Path, typer.Option(metavar="FILE", help="The .safetensors file to write.")],
    network: Annotated[str, typer.Option(help="student or teacher")] = "student",
) -> None:
    """Write a trained network for use elsewhere; `model.weights` of another run takes it too."""
    from diga_hpc.results.export import export as run_export

    run_export(path, to, network)
    print(f"{network} of {path}: {to}")


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run directory.")],
) -> None:
    """Write RUN_DIR/report.html: curves, results, per-class IoU, pictures."""
    from diga_hpc.results.report import write_report

    _require_run(run_dir)
    print(write_report(run_dir))


@app.command()
def recipes(
    names: Annotated[
        Optional[list[str]], typer.Argument(metavar="[NAME]...", help="Only these recipes.")
    ] = None,
) -> None:
    """List the configurations that come with the package: what, command, published result, state.

    A step is given as FLOP over all ranks and as memory of one rank; `diga-hpc show` prints a
    recipe with all keys.
    """
    from diga_hpc.launch.recipes import read_all

    found = {recipe.name: recipe for recipe in read_all()}
    for name in names or found:
        if name not in found:
            near = nearest(name, found)
            hint = f"did you mean {near!r}? " if near else ""
            raise UserError(f"no recipe {name!r}; {hint}`diga-hpc recipes` lists all")
    print("\n\n".join(str(found[name]) for name in names or found))


@app.command("plan")
def print_plan(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the jobs that run the pipeline as a chain, one per line: NAME COMMAND ROUND.

    `diga-hpc stage COMMAND --round ROUND CONFIG` runs a job; ROUND is 0 where there are no rounds.
    slurm/pipeline.sh submits these jobs to Slurm.
    """
    from diga_hpc.launch.chain import chain

    print(*chain(configuration.load(config, overrides or [])), sep="\n")


@app.command()
def figure(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="The directory of a finished run.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .png file to write.")],
) -> None:
    """Draw one row of pictures: source, target, truth, labels before and after adaptation."""
    from diga_hpc.results.figure import figure as draw_figure

    _require_run(run_dir)
    draw_figure(run_dir, file)
    print(file)


@app.command()
def launch(
    stage: options.Stage,
    config: ConfigPath,
    overrides: Overrides = None,
    nodes: options.Nodes = 1,
    gpus_per_node: options.GpusPerNode = 0,
    tasks_per_node: options.TasksPerNode = None,
    cpus_per_task: options.CpusPerTask = None,
    partition: Optional[str] = None,
    account: Optional[str] = None,
    qos: Optional[str] = None,
    time: options.Time = None,
    signal_delay: options.SignalDelay = 120,
    dependency: options.Dependency = None,
    sbatch: options.Sbatch = None,
    sweep: options.Sweep = None,
    parallel: options.Parallel = None,
    executor: options.Executor = "slurm",
    round_number: Round = 1,
    dry_run: options.DryRun = False,
    wait: options.Wait = False,
) -> None:
    """Submit a stage, the pipeline or a sweep to Slurm, a task per GPU; interrupted jobs resume."""
    from diga_hpc.launch.request import sbatch_options
    from diga_hpc.launch.submit import check_executor, sbatch_text, submit
    from diga_hpc.launch.sweep import parse

    log_to_terminal()
    asked: dict[str, Any] = dict(
        round_number=round_number,
        sweep=parse(sweep or []),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        tasks_per_node=tasks_per_node,
        cpus_per_task=cpus_per_task,
        partition=partition,
        account=account,
        qos=qos,
        time=time,
        signal_delay=signal_delay,
        parallel=parallel,
        dependency=dependency,
        sbatch=sbatch_options(sbatch or []),
    )
    check_executor(executor)
    if dry_run:
        print(sbatch_text(stage, config, overrides or [], **asked), end="")
        return
    submission = submit(stage, config, overrides or [], executor=executor, **asked)
    for job_id in submission.job_ids:
        print(f"job {job_id}")
    print(f"diga-hpc status {submission.folder}")
    if wait:
        submission.print_results()


@app.command()
def status(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A run directory, or a sweep's.")
    ],
    lines: Annotated[
        int, typer.Option(min=1, help="Lines to show of the log of each failed rank.")
    ] = 10,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of a sweep as Markdown.")
    ] = False,
) -> None:
    """Show the jobs, stages and failures of a run, or the table of a sweep, with means over seeds.

    The means are over runs that differ in their seed alone, with the sample deviation.
    """
    from diga_hpc.launch.show import markdown, show

    if as_markdown:
        print(markdown(directory), end="")
    else:
        show(directory, lines)


def _require_run(run_dir: Path) -> None:
    if not (run_dir / "config.yaml").is_file():
        raise UserError(
            f"{run_dir}: not a run directory (no config.yaml in it); name the run_dir of a run"
        )


def _run(
    command: str,
    config: Path,
    overrides: list[str] | None,
    *,
    round_number: int = 1,
    stop_after: int | None = None,
) -> None:
    from diga_hpc import job

    log_to_terminal()
    job.run(command, config, overrides or [], round_number=round_number, stop_after=stop_after)


def main() -> None:
    """Entry point: see terminal.run."""
    terminal.run(app)
