"""Data of your own: folders of images and labels, or an index file of pairs."""

import os
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from diga_hpc.datasets.base import FileDataset
from diga_hpc.datasets.files import FileFinder, Files, scan, unique_names
from diga_hpc.datasets.index_files import read_index
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.label_tables import id_table, identity_table
from diga_hpc.errors import UserError


class Folder(FileDataset):
    """Data of your own: folders of images and labels with the same stems, or an index of pairs."""

    kind: Literal["folder"]
    images: str = "images"
    """Folder of the images below `root`; subfolders are read too, hidden files are not."""
    labels: str | None = None
    """Folder below `root` of the labels, files of one channel, in subfolders as the images; may be
    that of the images. Empty: no labels."""
    image_suffix: str = ""
    """Text between the stem that an image shares with its label and the extension of the image:
    `_rgb_anon` if `a_rgb_anon.png` belongs to `a_gt_labelIds.png`. Other images are left out."""
    label_suffix: str = ""
    """Text between that stem and the extension of a label: `_ids` finds the label `a_ids.png` of
    the image `a.jpg`."""
    label_extension: Literal[".png", ".bmp", ".gif", ".tif", ".tiff"] = ".png"
    """Extension of the labels; lossless formats alone, since JPEG changes ids."""
    labelled_only: bool = False
    """Skip the images that have no label file."""
    index: Path | None = None
    """Text file to read instead of the folders: a line names an image, or an image and its label,
    relative to `root`; without it, labels are found as for folders. Columns end at a TAB, or at a
    blank or comma after a file name extension; lines that start with `# ` are skipped."""
    id_map: dict[int, int] | None = None
    """Id in a label file -> class index. Any other id that is not in `ignored_ids` is an error.
    Empty: the ids are class indices."""
    ignored_ids: tuple[int, ...] = (255,)
    """Ids in label files that mean "no label"; these pixels are left out of losses and results."""

    def files(self, root: Path) -> list[Files]:
        """Images of the folder or the index; an image in a subfolder is named `subfolder_stem`.

        Those of an index are named by their stems if these differ.
        """
        return self._select(root)[0]

    def left_out(self, root: Path) -> dict[str, int]:
        """Other files in the folder of images, and the images that the keys leave out."""
        return self._select(root)[1]

    def _select(self, root: Path) -> tuple[list[Files], dict[str, int]]:
        left_out: Counter[str] = Counter()
        if self.index is not None:
            files = self._of_index(self.index, root)
        else:
            files = self._of_folder(root, left_out)
        if self.labelled_only:
            finder = FileFinder()
            # A label that an index names is meant to exist: it is not skipped.
            kept = [f for f in files if f.label and (f.origin or finder.find(f.label))]
            left_out["images without a label"] = len(files) - len(kept)
            files = kept
        return files, dict(+left_out)

    def _of_index(self, index: Path, root: Path) -> list[Files]:
        lines = read_index(index, root)
        images = [root / line.columns[0] for line in lines]
        labels = [
            root / line.columns[1] if line.columns[1:] else self._label(root, image)
            for line, image in zip(lines, images, strict=True)
        ]
        names, origins = unique_names(images), [line.origin for line in lines]
        return [Files(*entry) for entry in zip(names, images, labels, origins, strict=True)]

    def _of_folder(self, root: Path, left_out: Counter[str]) -> list[Files]:
        folder, labels = root / self.images, root / (self.labels or self.images)
        beside = os.path.realpath(folder) == os.path.realpath(labels)
        found = scan(folder, recursive=True, without=None if beside else labels)
        left_out += found.left_out
        images = [image for image in found.images if self._is_image(image.stem)]
        others = len(found.images) - len(images)
        left_out[f"images without {self.image_suffix} in their name"] = others
        if beside and (self.labels is not None or self.label_suffix):
            images = self._without_labels(images, left_out)
        files = []
        for image in images:
            below = image.relative_to(folder).parent
            # Named with its folders: files made for all images, pseudo labels say, share one.
            name = "_".join((*below.parts, self._stem(image)))
            files.append(Files(name, image, self._label(root, image)))
        return files

    def _without_labels(self, images: list[Path], left_out: Counter[str]) -> list[Path]:
        """Images of a folder that holds their labels too, without these.

        Raises UserError where an image and its label would be one file.
        """
        stems = Counter(image.with_suffix("") for image in images)
        kept, own = [], []
        for image in images:
            label = image.with_name(self._label_name(image))
            bare = image.stem.removesuffix(self.label_suffix)
            labelled = image.parent / (bare + self.image_suffix)
            if image.suffix.lower() != self.label_extension or bare == image.stem != label.stem:
                kept.append(image)
            elif stems[labelled] > (labelled == image.with_suffix("")):
                left_out["labels beside images"] += 1
            elif label.stem == image.stem:
                own.append(image)
            elif stems[label.with_suffix("")]:
                kept.append(image)
            else:
                left_out["labels beside images"] += 1
        if own:
            more = f" ({len(own) - 1} more)" if own[1:] else ""
            raise UserError(
                f"{own[0]}: would be its own label{more}, since `images` and `labels` name one "
                "folder; set `label_suffix` to the text between stem and extension of the labels"
            )
        return kept

    def _label(self, root: Path, image: Path) -> Path | None:
        """Where the label of an image would be; None without `labels` or in another folder."""
        folder = root / self.images
        if self.labels is None or not image.is_relative_to(folder):
            return None
        below = image.relative_to(folder).parent
        return root / self.labels / below / self._label_name(image)

    def _is_image(self, stem: str) -> bool:
        return stem.endswith(self.image_suffix) and stem != self.image_suffix

    def _stem(self, image: Path) -> str:
        """The part of an image's stem that its label has too."""
        return image.stem.removesuffix(self.image_suffix)

    def _label_name(self, image: Path) -> str:
        return f"{self._stem(image)}{self.label_suffix}{self.label_extension}"

    def table(self, space: LabelSpace) -> np.ndarray:
        """Table of `id_map`. Raises UserError for an index that is no class of `space`."""
        if self.id_map is None:
            return identity_table(space.num_classes, self.ignored_ids)
        for file_id, index in self.id_map.items():
            if not (0 <= file_id < 256 and 0 <= index < space.num_classes):
                raise UserError(
                    f"`id_map` has {file_id}: {index}; file ids are 0..255 and class indices "
                    f"0..{space.num_classes - 1}"
                )
        return id_table(self.id_map, self.ignored_ids)
