"""Labels by colour: read exactly, unknown colours and palettes numbered anew refused."""

from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.datasets.color_maps import CAMVID_CODES, CAMVID_COLORS
from diga_hpc.datasets.label_spaces import (
    CAMVID_CLASSES,
    CITYSCAPES_CLASSES,
    CITYSCAPES_IDS,
    CITYSCAPES_PALETTE,
    CITYSCAPES_VOID,
    IGNORE,
    SPACES,
)
from diga_hpc.errors import UserError, one_line
from diga_hpc.loading import dataset as datasets
from helpers.image_files import config_with, write_image
from helpers.png import PALETTE, RGB, RGBA, chunk, write_png

CLASSES = "classes=[{name: thing, color: [1, 2, 3]}, {name: stuff, color: [4, 5, 6]}]"
MAP = "color_map: {thing: [[250, 0, 9], [7, 7, 7]], stuff: [[0, 128, 64]], ignored: [[0, 0, 0]]}"
COLORS = np.array([[250, 0, 9], [7, 7, 7], [0, 128, 64], [0, 0, 0]], np.uint8)
EXPECTED = np.array([0, 0, 1, IGNORE], np.uint8)
RANDOM = np.random.default_rng(0)
WHICH = RANDOM.integers(0, 4, (9, 11))


def write(root, values, kind=RGB, before=b""):
    """An image and a label file of these values."""
    write_image(root / "images/x.png", size=values.shape[:2])
    write_png(root / "labels/x.png", values, 8, kind, before=before)


def plte(colors) -> bytes:
    """The palette chunk of colours uint8 [n,3]."""
    return chunk(b"PLTE", colors.tobytes())


def source(tiny_yaml, root, keys="", space="custom", kind="folder, labels: labels"):
    overrides = [CLASSES] if space == "custom" else []
    section = f"{{kind: {kind}, {keys}}}"
    return datasets.open_source(config_with(tiny_yaml, section, space, root, *overrides))


def message(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return one_line(error.value)


class TestColorMap:
    @pytest.mark.parametrize("kind", [RGB, RGBA, PALETTE])
    def test_exact(self, tiny_yaml, tmp_path, kind):
        values, before = COLORS[WHICH], b""
        if kind == RGBA:
            values = np.dstack([values, np.full((9, 11, 1), 255)])
        if kind == PALETTE:
            values, before = WHICH, chunk(b"PLTE", COLORS.tobytes())
        write(tmp_path, values, kind, before)
        label = source(tiny_yaml, tmp_path, MAP).load(0).label
        assert np.array_equal(label.numpy(), EXPECTED[WHICH])

    def test_colours_of_the_label_space(self, tiny_yaml, tmp_path):
        palette = np.array([*CITYSCAPES_PALETTE, (0, 0, 0)], np.uint8)
        which = RANDOM.integers(0, 20, (9, 11))
        write(tmp_path, palette[which])
        label = source(tiny_yaml, tmp_path, "color_map: label_space", "cityscapes").load(0).label
        assert np.array_equal(label.numpy(), np.where(which == 19, IGNORE, which))

    def test_an_unknown_colour(self, tiny_yaml, tmp_path):
        values = COLORS[WHICH]
        values[:2, :3] = (90, 91, 92)
        write(tmp_path, values)
        text = message(lambda: source(tiny_yaml, tmp_path, MAP).load(0))
        assert f"{tmp_path}/labels/x.png: unknown colour [90, 91, 92] in 6 pixels of the" in text
        assert "add it to `color_map`, under its class or under `ignored`" in text

    @pytest.mark.parametrize("color", [(250, 0, 10), (240, 8, 9), (250, 0, 200)])
    def test_a_colour_near_a_known_one(self, tiny_yaml, tmp_path, color):
        values = COLORS[WHICH]
        values[4, 4] = color
        write(tmp_path, values)
        text = message(lambda: source(tiny_yaml, tmp_path, MAP).load(0))
        assert f"unknown colour {list(color)} in 1 pixels" in text
        assert "it is near [250, 0, 9] ('thing')" in text

    def test_channels_in_reverse_order(self, tiny_yaml, tmp_path):
        write(tmp_path, COLORS[WHICH][..., ::-1])
        text = message(lambda: source(tiny_yaml, tmp_path, MAP).load(0))
        assert "the channels are in the order BGR" in text

    def test_an_antialiased_copy(self, tiny_yaml, tmp_path):
        big = Image.fromarray(COLORS[np.kron(WHICH, np.ones((8, 8), int))])
        write(tmp_path, np.asarray(big.resize((33, 27), Image.Resampling.BICUBIC)))
        text = message(lambda: source(tiny_yaml, tmp_path, MAP).load(0))
        assert "other colours of the label; so many are those of a resized, antialiased" in text

    def test_a_jpeg_copy(self, tiny_yaml, tmp_path):
        write(tmp_path, COLORS[WHICH])
        Image.fromarray(COLORS[WHICH]).save(tmp_path / "labels/x.png", format="JPEG")
        assert "lossy" in message(lambda: source(tiny_yaml, tmp_path, MAP).load(0))

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ("color_map: {thing: [[1, 2, 3]], stuff: [[1, 2, 3]]}", "'stuff' and 'thing' have the"),
            ("color_map: {thing: [[0, 0, 0]], ignored: [[0, 0, 0]]}", "'ignored' and 'thing' have"),
            ("color_map: {Thing: [[1, 2, 3]]}", "`color_map` has 'Thing', which is no class"),
            ("color_map: {thign: [[1, 2, 3]]}", "did you mean `thing`?"),
            (
                "color_map: camvid",
                "`label_space` is 'custom', but kind camvid (`color_map`) has no",
            ),
        ],
    )
    def test_maps_that_do_not_fit(self, tiny_yaml, tmp_path, keys, expected):
        write(tmp_path, COLORS[WHICH])
        assert expected in message(lambda: source(tiny_yaml, tmp_path, keys))

    @pytest.mark.parametrize("space", ["custom", "cityscapes"])
    def test_camvids_colours_in_another_label_space(self, tiny_yaml, tmp_path, space):
        """Kind folder has no `absent_classes` and no `class_map`."""
        write(tmp_path, COLORS[WHICH])
        text = message(lambda: source(tiny_yaml, tmp_path, "color_map: camvid", space))
        assert text.endswith("write `color_map` as a mapping: class name -> list of its colours")
        assert "absent_classes" not in text and "class_map" not in text
        assert ("set `label_space: camvid`, or" in text) == (space == "cityscapes")

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            (f"{MAP}, id_map: {{0: 1}}", "`color_map` and `id_map` are both set"),
            (f"{MAP}, ignored_ids: []", "`color_map` and `ignored_ids` are both set"),
            (f"{MAP}, first_channel: true", "`color_map` and `first_channel` are both set"),
            ("color_map: camvit", "`data.source.color_map` = 'camvit': expected label_space, camv"),
            ("color_map: {thing: [[1, 2, 300]]}", "[[red, green, blue], ...] for each class, num"),
            ("color_map: {thing: [[1, 2]]}", "expected label_space, camvid, or class name: [[red"),
            ("color_map: {thing: [1, 2, 3]}", "expected label_space, camvid, or class name: [[red"),
            ("color_map: 7", "`data.source.color_map` = 7: expected label_space, camvid, or class"),
            ("id_map: {300: 1}", "300"),
            ("id_map: {-1: 1}", "-1"),
            ("ignored_ids: [300]", "300"),
            ("id_map: {3: 1}, ignored_ids: [3]", "the id 3 is in `id_map` and in `ignored_ids`"),
        ],
    )
    def test_keys_that_contradict_or_exceed_bounds(self, tiny_yaml, tmp_path, keys, expected):
        write(tmp_path, COLORS[WHICH])
        text = message(lambda: source(tiny_yaml, tmp_path, keys))
        assert "data.source" in text and expected in text


class TestCamvid:
    NAMES = list(CAMVID_COLORS)
    VALUES = np.array(list(CAMVID_COLORS.values()), np.uint8)

    def test_the_table(self):
        assert len(CAMVID_COLORS) == len(CAMVID_CODES) == 32
        groups = [CAMVID_CODES[c] for c in CAMVID_COLORS.values()]
        assert set(groups) == {*range(11), IGNORE}
        spot = {"Bridge": "building", "LaneMkgsNonDriv": "road", "Child": "pedestrian"}
        for name, group in spot.items():
            assert CAMVID_CLASSES[CAMVID_CODES[CAMVID_COLORS[name]]] == group

    @pytest.mark.parametrize("kind", ["folder", "camvid"])
    def test_32_colours_become_11_classes(self, tiny_yaml, tmp_path, kind):
        which = np.arange(32).reshape(4, 8)
        write(tmp_path, self.VALUES[which])
        keys, kind = "color_map: camvid", "folder, labels: labels"
        if kind == "camvid":
            (tmp_path / "images").rename(tmp_path / "train")
            (tmp_path / "labels").rename(tmp_path / "trainannot")
        label = source(tiny_yaml, tmp_path, keys, "camvid", kind).load(0).label.numpy()
        expected = [CAMVID_CODES[CAMVID_COLORS[name]] for name in self.NAMES]
        assert label.ravel().tolist() == expected

    def camvid(self, tiny_yaml, root, space="camvid"):
        (root / "images").rename(root / "train")
        (root / "labels").rename(root / "trainannot")
        return source(tiny_yaml, root, "", space, "camvid").load(0).label.numpy()

    def test_colour_files_and_id_files_of_the_kind(self, tiny_yaml, tmp_path):
        which = RANDOM.integers(0, 32, (9, 11))
        write(tmp_path, self.VALUES[which])
        groups = np.array([CAMVID_CODES[c] for c in CAMVID_COLORS.values()], np.uint8)
        assert np.array_equal(self.camvid(tiny_yaml, tmp_path), groups[which])

    def test_the_typo_of_some_copies(self, tiny_yaml, tmp_path):
        values = self.VALUES[RANDOM.integers(0, 32, (9, 11))]
        values[3, :] = (0, 128, 92)
        write(tmp_path, values)
        text = message(lambda: self.camvid(tiny_yaml, tmp_path))
        assert "unknown colour [0, 128, 92] in 11 pixels" in text
        assert "near [0, 128, 64] ('building') and [0, 128, 192] ('bicyclist')" in text

    def test_palettes_numbered_anew(self, tiny_yaml, tmp_path):
        which = np.array([[2, 8, 19, 31]]).repeat(3, 0)
        write(tmp_path, np.arange(4)[None].repeat(3, 0), PALETTE)
        before = chunk(b"PLTE", self.VALUES[which[0]].tobytes())
        write(tmp_path, np.arange(4)[None].repeat(3, 0), PALETTE, before)
        assert "numbered anew, as image editors do: save the colours as RGB" in message(
            lambda: self.camvid(tiny_yaml, tmp_path)
        )


class TestPalettes:
    IDS = np.tile(np.repeat(np.arange(8), 8), (40, 1)).astype(np.uint8)

    def editor(self, root, ids):
        """A palette PNG as an image editor makes it of a picture of the classes' colours."""
        write(root, ids, PALETTE)
        colors = np.array([*CITYSCAPES_PALETTE, (0, 0, 0)], np.uint8)[ids]
        Image.fromarray(colors).quantize(len(np.unique(ids))).save(root / "labels/x.png")

    def test_of_an_image_editor_are_refused_or_read_by_colour(self, tiny_yaml, tmp_path):
        self.editor(tmp_path, self.IDS)
        text = message(lambda: source(tiny_yaml, tmp_path, space="cityscapes").load(0))
        assert f"{tmp_path}/labels/x.png: id 0 means class 'road', but its palette colour" in text
        assert "set `color_map: label_space` to read the colours" in text
        by_color = source(tiny_yaml, tmp_path, "color_map: label_space", "cityscapes")
        assert np.array_equal(by_color.load(0).label.numpy(), self.IDS)

    def test_with_black_for_no_label(self, tiny_yaml, tmp_path):
        self.editor(tmp_path, np.where(self.IDS == 3, 19, self.IDS).astype(np.uint8))
        text = message(lambda: source(tiny_yaml, tmp_path, space="cityscapes").load(0))
        assert "numbered anew" in text

    @pytest.mark.parametrize("kind", ["gta5", "cityscapes"])
    def test_of_cityscapes_colours(self, tiny_yaml, tmp_path, kind):
        colors = np.array([CITYSCAPES_PALETTE[i] for i in (13, 0, 10)], np.uint8)
        before = chunk(b"PLTE", np.vstack([np.zeros((7, 3), np.uint8), colors]).tobytes())
        ids = np.array([[7, 8, 9, 7]] * 3)
        write(tmp_path, ids, PALETTE, before)
        if kind == "cityscapes":
            stem = tmp_path / "leftImg8bit/train/a/x_leftImg8bit.png"
            write_image(stem, size=ids.shape)
            write_png(
                tmp_path / "gtFine/train/a/x_gtFine_labelIds.png", ids, 8, PALETTE, before=before
            )
        dataset = source(tiny_yaml, tmp_path, "", "cityscapes", kind)
        text = message(lambda: dataset.load(0))
        assert (
            "id 7 means class 'road', but its palette colour [0, 0, 142] is that of 'car'" in text
        )
        assert "kind folder with `color_map: label_space`" in text

    # Names and colours of ids without a class in Cityscapes' palette.
    VOID: ClassVar = {
        "dynamic": (111, 74, 0),
        "ground": (81, 0, 81),
        "parking": (250, 170, 160),
        "rail track": (230, 150, 140),
        "guard rail": (180, 165, 180),
        "bridge": (150, 100, 100),
        "tunnel": (150, 120, 90),
        "caravan": (0, 0, 90),
        "trailer": (0, 0, 110),
        "unlabeled": (0, 0, 0),
    }

    def re_indexed(self, root, colors):
        """Ids 0, 1, ... in the order of colours, as a palette PNG."""
        colors = np.array(colors, np.uint8)
        write(root, np.arange(len(colors))[None].repeat(3, 0), PALETTE, plte(colors))

    @pytest.mark.parametrize("name", VOID)
    @pytest.mark.parametrize("classes", [(13, 0), (0, 13)])
    def test_numbered_anew_with_a_colour_of_no_class(self, tiny_yaml, tmp_path, name, classes):
        self.re_indexed(tmp_path, [CITYSCAPES_PALETTE[i] for i in classes] + [self.VOID[name]])
        read = source(tiny_yaml, tmp_path, space="cityscapes")
        if classes == (0, 13):
            # Id 0 is road, with its colour; 1 is that of a car.
            assert "id 1 means class 'sidewalk'" in message(lambda: read.load(0))
        else:
            assert "id 0 means class 'road'" in message(lambda: read.load(0))

    @pytest.mark.parametrize(
        ("colors", "wrong"),
        [
            ([0, 13, 10, None], True),
            ([13, 0, None, None, None], True),
            ([0, 1, 13, 10, None], False),  # as many have their own
            ([0, 1, 13, None, None], False),
            ([None, 13, None, None], False),
        ],
    )
    def test_most_of_the_known_colours_decide(self, tiny_yaml, tmp_path, colors, wrong):
        table = [
            (9, 9, 200 + i) if c is None else CITYSCAPES_PALETTE[c] for i, c in enumerate(colors)
        ]
        self.re_indexed(tmp_path, table)
        read = source(tiny_yaml, tmp_path, space="cityscapes")
        if wrong:
            text = message(lambda: read.load(0))
            assert text.endswith("if the ids are right, save the file as grey PNG")
        else:
            assert read.load(0).label[0].tolist() == list(range(len(colors)))

    def test_ids_without_a_class_count_among_others(self, tiny_yaml, tmp_path):
        """Eight colours of classes: in GTA5, 0 to 6 are no label."""
        self.re_indexed(tmp_path, CITYSCAPES_PALETTE[1:9])
        text = message(lambda: source(tiny_yaml, tmp_path, "", "cityscapes", "gta5").load(0))
        assert "id 7 means class 'road', but its palette colour [107, 142, 35] is" in text

    def test_the_palette_of_cityscapes_is_not_counted(self, tiny_yaml, tmp_path, monkeypatch):
        """Colours of polegroup and license plate are those of pole and car."""
        table = np.zeros((256, 3), np.uint8)
        for i, train_id in CITYSCAPES_IDS.items():
            table[i] = CITYSCAPES_PALETTE[train_id]
        for i, name in CITYSCAPES_VOID.items():
            table[i] = self.VOID.get(name, (0, 0, 0))
        table[[18, 34]] = (153, 153, 153), (0, 0, 142)
        ids = np.array([[7, 18, 34, 26, 4, 5]] * 3)
        write(tmp_path, ids, PALETTE, plte(table))
        monkeypatch.setattr(np, "bincount", None)
        label = source(tiny_yaml, tmp_path, "", "cityscapes", "gta5").label(0)
        assert label[0].tolist() == [0, IGNORE, IGNORE, 13, IGNORE, IGNORE]

    def test_that_fit_are_read(self, tiny_yaml, tmp_path):
        """Of the label space, as written here; of GTA5; of no meaning; of one class alone."""
        for colors in (
            SPACES["cityscapes"].palette_bytes(),
            bytes(range(256)) * 3,
            RANDOM.integers(0, 256, 768, dtype=np.uint8).tobytes(),
        ):
            write(tmp_path, self.IDS, PALETTE, chunk(b"PLTE", colors))
            label = source(tiny_yaml, tmp_path, space="cityscapes").load(0).label
            assert np.array_equal(label.numpy(), self.IDS)

    def test_ignored_ids_may_have_any_colour(self, tiny_yaml, tmp_path):
        table = np.zeros((256, 3), np.uint8)
        table[:19] = CITYSCAPES_PALETTE
        table[255] = CITYSCAPES_PALETTE[3]
        ids = np.where(self.IDS == 2, 255, self.IDS)
        write(tmp_path, ids, PALETTE, chunk(b"PLTE", table.tobytes()))
        label = source(tiny_yaml, tmp_path, space="cityscapes").load(0).label
        assert np.array_equal(label.numpy(), ids)

    def test_a_map_with_names_is_checked_too(self, tiny_yaml, tmp_path):
        colors = np.array([CITYSCAPES_PALETTE[i] for i in (0, 13, 10)], np.uint8)
        ids = np.array([[0, 1, 2]] * 3)
        write(tmp_path, ids, PALETTE, chunk(b"PLTE", colors.tobytes()))
        right, wrong = "id_map: {0: road, 1: car, 2: sky}", "id_map: {0: road, 1: bus, 2: sky}"
        label = source(tiny_yaml, tmp_path, right, "cityscapes").load(0).label
        assert [CITYSCAPES_CLASSES[i] for i in label[0]] == ["road", "car", "sky"]
        text = message(lambda: source(tiny_yaml, tmp_path, wrong, "cityscapes").load(0))
        assert "id 1 means class 'bus'" in text and "is that of 'car'" in text


def test_a_color_map_survives_the_resolved_configuration(tiny_yaml, tmp_path):
    section = f"{{kind: folder, labels: labels, {MAP}}}"
    config = config_with(tiny_yaml, section, "custom", tmp_path, CLASSES)
    (tmp_path / "again.yaml").write_text(configuration.as_yaml(config))
    assert configuration.load(tmp_path / "again.yaml") == config
