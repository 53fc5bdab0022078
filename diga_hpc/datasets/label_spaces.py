"""Label spaces: the classes that a network predicts, with their names and colours."""

from dataclasses import dataclass, field

import numpy as np

from diga_hpc.errors import UserError

IGNORE = 255  # class index of pixels without a label, left out of losses and results

CITYSCAPES_CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
CITYSCAPES_PALETTE = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)
# Cityscapes id -> train id, the index in CITYSCAPES_CLASSES; other ids from 0 to 34 are ignored.
CITYSCAPES_IDS = {
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    19: 6,
    20: 7,
    21: 8,
    22: 9,
    23: 10,
    24: 11,
    25: 12,
    26: 13,
    27: 14,
    28: 15,
    31: 16,
    32: 17,
    33: 18,
}
# Names of the other ids; 34 is the license plate too, of which GTA5 has some.
CITYSCAPES_VOID = {
    0: "unlabeled",
    1: "ego vehicle",
    2: "rectification border",
    3: "out of roi",
    4: "static",
    5: "dynamic",
    6: "ground",
    9: "parking",
    10: "rail track",
    14: "guard rail",
    15: "bridge",
    16: "tunnel",
    18: "polegroup",
    29: "caravan",
    30: "trailer",
    34: "license plate",
}
# Train ids of the SYNTHIA protocols: 16 classes are all but terrain, truck and train; 13 classes
# leave out wall, fence and pole as well.
SYNTHIA_16 = tuple(i for i in range(19) if i not in (9, 14, 16))
SYNTHIA_13 = tuple(i for i in SYNTHIA_16 if i not in (3, 4, 5))

STREETS_CLASSES = (
    "road",
    "sidewalk",
    "building",
    "pole",
    "traffic sign",
    "vegetation",
    "sky",
    "person",
    "car",
)
CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign/symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
CAMVID_PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)
VOC_PALETTE = (
    (0, 0, 0),
    (128, 0, 0),
    (0, 128, 0),
    (128, 128, 0),
    (0, 0, 128),
    (128, 0, 128),
    (0, 128, 128),
    (128, 128, 128),
    (64, 0, 0),
    (192, 0, 0),
    (64, 128, 0),
    (192, 128, 0),
    (64, 0, 128),
    (192, 0, 128),
    (64, 128, 128),
    (192, 128, 128),
    (0, 64, 0),
    (128, 64, 0),
    (0, 192, 0),
    (128, 192, 0),
    (0, 64, 128),
)


@dataclass(frozen=True)
class LabelSpace:
    """The classes that a network predicts, in the order of its output channels."""

    name: str
    classes: tuple[str, ...]
    """Name of each class."""
    palette: tuple[tuple[int, int, int], ...]
    """Colour of each class: red, green, blue, 0 to 255."""
    protocols: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Means over some of the classes, reported beside the mean over all: name -> class indices."""

    def __post_init__(self) -> None:
        """Raise UserError for two classes of one name: results have one value for each name."""
        for i, name in enumerate(self.classes):
            if name in self.classes[:i]:
                raise UserError(
                    f"label space {self.name!r}: the classes {self.classes.index(name)} and {i} "
                    f"are both named {name!r}; rename one of them"
                )

    @property
    def num_classes(self) -> int:
        """Number of classes K, without "no label"."""
        return len(self.classes)

    def palette_bytes(self) -> bytes:
        """Palette of a PNG: 768 bytes, three for each id; ids that are no class are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.palette
        return table.tobytes()


_CITYSCAPES_COLORS = dict(zip(CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, strict=True))

# The only list of label spaces: `label_space` of a configuration is checked against it. An
# extension adds one with SPACES[name] = LabelSpace(name, ...).
SPACES = {
    space.name: space
    for space in (
        LabelSpace(
            "streets", STREETS_CLASSES, tuple(_CITYSCAPES_COLORS[name] for name in STREETS_CLASSES)
        ),
        LabelSpace("camvid", CAMVID_CLASSES, CAMVID_PALETTE),
        LabelSpace("voc", VOC_CLASSES, VOC_PALETTE),
        LabelSpace("cityscapes", CITYSCAPES_CLASSES, CITYSCAPES_PALETTE),
        LabelSpace(
            "synthia",
            tuple(CITYSCAPES_CLASSES[i] for i in SYNTHIA_16),
            tuple(CITYSCAPES_PALETTE[i] for i in SYNTHIA_16),
            {"miou_13": tuple(SYNTHIA_16.index(i) for i in SYNTHIA_13)},
        ),
    )
}
CUSTOM = "custom"  # the label space whose classes the configuration lists under `classes`
