"""Layouts of data sets on disk: folders in one of several places, labels parallel to images."""

import json
from pathlib import Path
from typing import Any

from diga_hpc.datasets.files import Files, LeftOut, scan, unique_names
from diga_hpc.errors import UserError
from diga_hpc.images import archives


def first_folder(root: Path, *places: str) -> Path:
    """The first of these folders below `root` that exists; the first place if none does.

    Archives and copies of a data set put its folders in different places: into a wrapper folder,
    for example, or with the parts of a path in another order.
    """
    folders = [root / place for place in places]
    return next((folder for folder in folders if archives.is_dir(folder)), folders[0])


def unwrapped(root: Path, wrapper: str, inside: str) -> Path:
    """`root`, or the folder `wrapper` in it if that one, and not `root`, has the folder `inside`.

    The official archive of the data set unpacks into this wrapper folder.
    """
    found = first_folder(root, inside, f"{wrapper}/{inside}")
    return root / wrapper if found == root / wrapper / inside else root


def parallel_trees(
    images: Path, labels: Path, image_ending: str, label_ending: str, left_out: LeftOut
) -> list[Files]:
    """Images `X{image_ending}.*` of a folder and its subfolders, with the labels
    `X{label_ending}.png` in the same subfolders of another.

    An image is named X; where two are equal, all with their subfolders. Raises UserError as `scan`.
    """
    found = scan(images, recursive=True)
    chosen = [image for image in found.images if image.stem.endswith(image_ending)]
    left_out.update(found.left_out)
    left_out[f"images without {image_ending} in their name"] += len(found.images) - len(chosen)
    files = []
    for name, image in zip(unique_names(chosen), chosen, strict=True):
        stem = image.stem.removesuffix(image_ending)
        label = labels / image.relative_to(images).parent / f"{stem}{label_ending}.png"
        files.append(Files(name.removesuffix(image_ending), image, label))
    return files


def read_json(path: Path) -> Any:
    """Content of a JSON file that comes with a data set; None if there is no such file.

    Raises UserError for a file that is no JSON.
    """
    if not archives.is_file(path):
        return None
    content = archives.read_bytes(path)
    try:
        return json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error}); restore the original file") from error
