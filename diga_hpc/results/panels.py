"""Pictures of a report: the validation images and their labels, reduced in size and embedded."""

import base64
import io
import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

from diga_hpc.results.stage_order import StageOrder
from diga_hpc.run.directory import pictured

PANEL_WIDTH = 480  # pixels
# Characters of embedded pictures, so that a browser opens the report at once. Further images are
# only in RUN_DIR/panels.
PANEL_BUDGET = 4_000_000
JPEG_QUALITY = 80


def read_panels(panels: Path, order: StageOrder) -> dict[str, Any]:
    """Read the pictures of a folder such as RUN_DIR/panels until PANEL_BUDGET is used up.

    Of several validation sets, the first image of each comes before the second of any.

    Returns images: name -> kind -> data URI (empty for a corrupt file); kinds: the columns;
    left_out: number of images beyond the budget.
    """
    images: dict[str, dict[str, str]] = {}
    used, found = 0, _by_turns(pictured(panels))
    for image in found:
        folder = panels / image
        files = {file.stem: file for file in folder.iterdir() if file.suffix in (".png", ".jpg")}
        uris = {kind: _data_uri(files[kind]) for kind in order.pictures(files)}
        used += sum(len(uri) for uri in uris.values())
        if used > PANEL_BUDGET:
            break
        images[image] = uris
    kinds = order.pictures(kind for uris in images.values() for kind in uris)
    return {"images": images, "kinds": kinds, "left_out": len(found) - len(images)}


def _by_turns(images: list[str]) -> list[str]:
    """Images, as RunPaths.panel_images names them, one of each validation set after another."""
    sets: dict[str, list[str]] = defaultdict(list)
    for image in images:
        sets[image.rpartition("/")[0]].append(image)
    turns = itertools.zip_longest(*sets.values())
    return [image for turn in turns for image in turn if image is not None]


def _data_uri(path: Path) -> str:
    """Encode a picture at most PANEL_WIDTH wide; empty where the file is corrupt."""
    stream = io.BytesIO()
    options: dict[str, Any] = {"optimize": True}
    kind = "png"
    if path.suffix == ".jpg":
        kind, options = "jpeg", {"quality": JPEG_QUALITY}
    try:
        with Image.open(path) as opened:
            picture: Image.Image = opened
            height = max(1, round(picture.height * PANEL_WIDTH / picture.width))
            if picture.width > PANEL_WIDTH:
                # Pillow resizes palette pictures to the nearest pixel whatever filter is named, so
                # class indices stay class indices.
                picture = picture.resize((PANEL_WIDTH, height), Image.Resampling.LANCZOS)
            picture.save(stream, kind, **options)
    except (OSError, SyntaxError, ValueError):
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
