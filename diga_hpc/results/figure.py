"""Figure of a run: one row of pictures, before and after adaptation, for a README or a slide.

figure(run_dir, path)      source image | target image | truth | labels before | labels after

The pictures are those of RUN_DIR/panels; the source image is read from the run's data.
"""

import io
import math
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.label_tables import identity_table
from diga_hpc.errors import UserError
from diga_hpc.inspection.opening import SOURCE, open_entries
from diga_hpc.loading.dataset import open_dataset
from diga_hpc.loading.pictures import read_image, read_label, to_picture
from diga_hpc.method.scores import ConfusionMatrix, scores
from diga_hpc.results.stage_order import StageOrder
from diga_hpc.results.tables import EMPTY, Results, read_rows
from diga_hpc.run.directory import RunPaths
from diga_hpc.run.files import atomic_write, read_json
from diga_hpc.stages.plan import stage_name

WIDTH, GAP, MARGIN = 1280, 8, 6  # pixels
TITLE_SIZE, NOTE_SIZE = 17, 14  # pixels
INK, SOFT, PAGE = "#1c1c1a", "#61615c", "white"
# Bytes: a README should open at once.
LARGEST = 200_000
# Colours to reduce the figure to, one after another until it is small enough.
REDUCTIONS = (256, 64, 16)


class Panel(NamedTuple):
    """One picture of the row, RGB, and its caption in two lines."""

    picture: Image.Image
    title: str
    note: str


class Example(NamedTuple):
    """The pictures of one validation image, and the name of one of several validation sets."""

    of: str | None
    image: Image.Image
    truth: Image.Image
    before: Image.Image
    after: Image.Image


def figure(run_dir: Path, path: Path) -> None:
    """Write the figure of a finished run as a PNG file of at most LARGEST bytes, WIDTH pixels wide.

    The labels are those of the first trained stage (the source-only network, where the run has
    one) and of the last. Of the images in RUN_DIR/panels, the one is shown whose mIoU rises most.

    Raises UserError where the run has no evaluated stages or pictures, its source cannot be read,
    or the file cannot be written.
    """
    if path.suffix != ".png":
        raise UserError(f"{path}: expected a name that ends in .png")
    paths = RunPaths(run_dir)
    config = configuration.load(paths.config_file)
    if config.data.validation is None:
        raise UserError(
            f"{paths.config_file}: `data.validation` is not set, so nothing was measured and there "
            "are no pictures to show; name labelled images there and run `diga-hpc evaluate`"
        )
    rows = read_rows(run_dir)
    order = StageOrder(config, map(stage_name, rows))
    results = Results(rows, order)
    evaluated = [stage for stage in order.planned if results.get(stage) is not None]
    if len(evaluated) < 2:
        raise UserError(
            f"{paths.results}: {len(evaluated)} stages evaluated, a comparison needs two; finish "
            "the run, or run `diga-hpc evaluate`"
        )
    # Not the stages between: the ends show the gain of the method.
    before, after = evaluated[0], evaluated[-1]
    example = _most_improved(paths, config.space, before, after)
    of = example.of
    count = results.get(after, "images", of=of)

    def measured(stage: str) -> str:
        miou = results.get(stage, of=of)
        place = f"{count} images of {of}" if of else f"{count} images"
        return f"{EMPTY if miou is None else f'{miou:.1f} %'} mIoU on {place}"

    panels = [
        Panel(_source_image(paths, config), "source image", "labelled"),
        Panel(example.image, "target image", "no labels used"),
        Panel(example.truth, "truth", "for the evaluation only"),
        Panel(example.before, f"before: {order.short_title(before)}", measured(before)),
        Panel(example.after, f"after: {order.short_title(after)}", measured(after)),
    ]
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(_encode(_compose(panels)))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another place"
        ) from error


def _source_image(paths: RunPaths, config: Config) -> Image.Image:
    """First image of the source. Raises UserError if it is not that of the run's training."""
    entries = open_entries(config, SOURCE)
    assert entries is not None, "the configuration has a source"
    recorded = read_json(paths.data, {}).get(SOURCE, {}).get("files", {})
    name = entries.name(0)
    if recorded and recorded.get(name) != entries.identity(0, entries.facts(0, decode=False)):
        raise UserError(
            f"{entries.root or name}: the source image {name} is not the one that {paths.path} was "
            "trained on; put the data of then back, or set data.source.root in its config.yaml"
        )
    return to_picture(open_dataset(entries).load(0).image)


def _most_improved(paths: RunPaths, space: LabelSpace, before: str, after: str) -> Example:
    """Read the validation image whose mIoU rises most from one stage to the other."""
    kinds = ("truth", before, after)
    complete = [
        image
        for image in paths.panel_images()
        if all(paths.panel(image, kind).is_file() for kind in kinds)
    ]
    if not complete:
        raise UserError(
            f"{paths.panels}: no image with the labels of {before} and {after}; set "
            "evaluation.panels to 1 or more, remove results.json and run `diga-hpc evaluate`"
        )

    def gain(name: str) -> float:
        truth, first, last = (_labels(paths.panel(name, kind), space) for kind in kinds)
        before, after = _miou(truth, first, space), _miou(truth, last, space)
        # An image without a labelled pixel shows nothing.
        return -math.inf if before is None or after is None else after - before

    best = max(complete, key=gain)
    image = to_picture(read_image(paths.panel(best, "image", suffix=".jpg")))
    of = best.rpartition("/")[0] or None
    return Example(of, image, *(_colored(paths.panel(best, kind)) for kind in kinds))


def _labels(path: Path, space: LabelSpace) -> torch.Tensor:
    """Read class indices uint8 [H,W]."""
    return read_label(path, identity_table(space.num_classes))


def _miou(truth: torch.Tensor, predicted: torch.Tensor, space: LabelSpace) -> float | None:
    matrix = ConfusionMatrix(space.num_classes, torch.device("cpu"))
    matrix.add(truth, predicted)
    miou: float | None = scores(matrix.counts, space)["miou"]
    return miou


def _colored(path: Path) -> Image.Image:
    """Read a palette picture of labels in the colours of its classes."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _compose(panels: list[Panel]) -> Image.Image:
    """Draw the panels side by side, each as large as the others, with its caption below it."""
    width = (WIDTH - (len(panels) - 1) * GAP) // len(panels)
    # The labels have the shape of the target image; a source image of another shape is cropped.
    truth = panels[2].picture
    height = round(width * truth.height / truth.width)
    fonts = [ImageFont.load_default(size) for size in (TITLE_SIZE, NOTE_SIZE)]
    caption = MARGIN + TITLE_SIZE + MARGIN + NOTE_SIZE + MARGIN
    canvas = Image.new("RGB", (WIDTH, height + caption), PAGE)
    draw = ImageDraw.Draw(canvas)
    for i, panel in enumerate(panels):
        left = i * (width + GAP)
        canvas.paste(ImageOps.fit(panel.picture, (width, height)), (left, 0))
        top = height + MARGIN
        draw.text((left, top), panel.title, INK, fonts[0])
        draw.text((left, top + TITLE_SIZE + MARGIN), panel.note, SOFT, fonts[1])
    return canvas


def _encode(picture: Image.Image) -> bytes:
    """Encode as PNG, with fewer colours where it would have more than LARGEST bytes."""
    data = _png(picture)
    for colors in REDUCTIONS:
        if len(data) <= LARGEST:
            break
        data = _png(picture.quantize(colors))
    return data


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "png", optimize=True)
    return stream.getvalue()
