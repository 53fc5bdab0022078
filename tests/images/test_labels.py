"""Values of label files: every depth and layout as written, lossy and ambiguous ones refused."""

import struct

import numpy as np
import pytest
from PIL import Image

from diga_hpc.errors import UserError, one_line
from diga_hpc.images.labels import (
    Colored,
    read_colors,
    read_ids,
    read_indexed,
    read_indexed_or_colors,
)
from diga_hpc.images.labels import read_first_channel as read_first_indexed
from helpers.png import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, chunk, write_png

RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(0, 19, (9, 11), dtype=np.uint8)
TRANSPOSED = Image.Exif()
TRANSPOSED[0x0112] = 6


def read_first_channel(path):
    return read_first_indexed(path).ids


def message(read, path) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    text = one_line(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text


class TestIds:
    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    @pytest.mark.parametrize("kind", [GREY, PALETTE])
    @pytest.mark.parametrize("interlaced", [False, True])
    def test_of_every_depth(self, tmp_path, bits, kind, interlaced):
        ids = RANDOM.integers(0, 1 << bits, (9, 11))
        ids[0, 0] = (1 << bits) - 1
        colors = RANDOM.integers(0, 256, (1 << bits, 3), dtype=np.uint8)
        before = chunk(b"PLTE", colors.tobytes()) if kind == PALETTE else b""
        path = tmp_path / "x.png"
        write_png(path, ids, bits, kind, interlaced=interlaced, before=before)
        found = read_indexed(path)
        assert np.array_equal(found.ids, ids) and found.ids.dtype == np.uint8
        assert np.array_equal(read_first_channel(path), ids)
        if kind == PALETTE:
            assert np.array_equal(found.palette[: 1 << bits], colors)
        else:
            assert found.palette is None

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 200), (3, 1)])
    @pytest.mark.parametrize("bits", [2, 4])
    def test_tiny_interlaced_ones(self, tmp_path, height, width, bits):
        ids = RANDOM.integers(0, 1 << bits, (height, width))
        write_png(tmp_path / "x.png", ids, bits, interlaced=True)
        assert np.array_equal(read_ids(tmp_path / "x.png"), ids)

    def test_16_bits(self, tmp_path):
        write_png(tmp_path / "x.png", IDS, 16)
        assert np.array_equal(read_ids(tmp_path / "x.png"), IDS)
        write_png(tmp_path / "x.png", IDS.astype(int) + 250, 16)
        assert f"a label of the value {int(IDS.max()) + 250}; ids are 0..255" in message(
            read_ids, tmp_path / "x.png"
        )

    def test_instance_ids(self, tmp_path):
        write_png(tmp_path / "x.png", IDS.astype(int) * 1000 + 26001, 16)
        assert "instance ids? read the file of class ids" in message(read_ids, tmp_path / "x.png")

    def test_transparency_of_an_id_changes_nothing(self, tmp_path):
        write_png(tmp_path / "x.png", IDS, 8, before=chunk(b"tRNS", b"\0\3"))
        assert np.array_equal(read_ids(tmp_path / "x.png"), IDS)

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_orientation_is_never_applied(self, tmp_path, suffix):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(IDS).save(path, exif=TRANSPOSED)
        assert np.array_equal(read_ids(path), IDS)
        colors = RANDOM.integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(colors).save(path, exif=TRANSPOSED)
        assert np.array_equal(read_colors(path), colors)
        assert np.array_equal(read_first_channel(path), colors[..., 0])

    @pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
    @pytest.mark.parametrize(("suffix", "mode"), [("tif", "L"), ("tif", "P"), ("bmp", "L")])
    def test_other_lossless_formats(self, tmp_path, suffix, mode, options):
        path = tmp_path / f"x.{suffix}"
        picture = Image.fromarray(IDS)
        if mode == "P":
            picture = picture.convert("P")
            picture.putdata(IDS.ravel().tolist())
            picture.putpalette(list(range(255, -1, -1)) * 3)
        picture.save(path, **options)
        assert np.array_equal(read_ids(path), IDS)


class TestRefused:
    @pytest.mark.parametrize("name", ["x.png", "x.jpg"])
    @pytest.mark.parametrize("read", [read_ids, read_colors, read_first_channel])
    @pytest.mark.parametrize(
        ("kind", "options", "word"),
        [
            ("JPEG", {"quality": 100}, "JPEG, which is lossy"),
            ("WEBP", {}, "WEBP, which is lossy"),
            ("WEBP", {"lossless": True}, "WEBP, which is lossy"),
            ("TIFF", {"compression": "jpeg"}, "TIFF (jpeg), which is lossy"),
            ("GIF", {}, "GIF, which may merge or reorder ids"),
        ],
    )
    def test_lossy_content_whatever_the_suffix(self, tmp_path, name, read, kind, options, word):
        Image.fromarray(IDS).save(tmp_path / name, format=kind, **options)
        text = message(read, tmp_path / name)
        assert word in text and "export the labels anew as PNG" in text

    @pytest.mark.parametrize(
        ("kind", "bits", "found"),
        [
            (RGB, 8, "RGB (9, 11, 3)"),
            (RGBA, 8, "RGBA (9, 11, 4)"),
            (GREY_ALPHA, 8, "LA (9, 11, 2)"),
            (RGB, 16, "16-bit RGB (9, 11, 3)"),
            (RGBA, 16, "16-bit RGBA (9, 11, 4)"),
        ],
    )
    def test_several_channels(self, tmp_path, kind, bits, found):
        channels = {RGB: 3, RGBA: 4, GREY_ALPHA: 2}[kind]
        write_png(tmp_path / "x.png", np.repeat(IDS[..., None], channels, 2), bits, kind)
        text = message(read_ids, tmp_path / "x.png")
        assert f"one channel, found {found}; labels by colour are read with `color_map`" in text
        assert "ids in the first channel with `first_channel: true`" in text

    def test_an_animation(self, tmp_path):
        Image.fromarray(IDS).save(
            tmp_path / "x.png", save_all=True, append_images=[Image.fromarray(IDS + 1)]
        )
        assert "several frames of an animation (2)" in message(read_ids, tmp_path / "x.png")

    def test_a_tiff_in_which_white_is_zero(self, tmp_path):
        Image.fromarray(IDS).save(tmp_path / "x.tif", tiffinfo={262: 0})
        assert "inverted or packed values" in message(read_ids, tmp_path / "x.tif")

    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    @pytest.mark.parametrize("palette", [False, True])
    @pytest.mark.parametrize("fill_order", [1, 2])
    def test_packed_tiffs_are_exact_or_refused(self, tmp_path, bits, palette, fill_order):
        ids = RANDOM.integers(0, 1 << bits, (6, 8))
        write_packed_tiff(tmp_path / "x.tif", ids, bits, palette, fill_order)
        exact = (bits == 1 and not palette) or (fill_order == 1 and (palette or bits == 8))
        if exact:
            assert np.array_equal(read_ids(tmp_path / "x.tif"), ids)
        else:
            assert "inverted or packed values; save it as 8-bit PNG" in message(
                read_ids, tmp_path / "x.tif"
            )

    def test_pages_of_a_tiff(self, tmp_path):
        Image.fromarray(IDS).save(
            tmp_path / "x.tif", save_all=True, append_images=[Image.fromarray(IDS + 1)]
        )
        assert "several pages (2)" in message(read_ids, tmp_path / "x.tif")
        smaller = Image.fromarray(IDS[::2, ::2])
        smaller.encoderinfo = {"tiffinfo": {254: 1}}
        Image.fromarray(IDS).save(tmp_path / "x.tif", save_all=True, append_images=[smaller])
        assert np.array_equal(read_ids(tmp_path / "x.tif"), IDS)

    def test_floating_point(self, tmp_path):
        Image.fromarray(IDS.astype(np.float32)).save(tmp_path / "x.tif")
        assert "one channel, found 32-bit F (9, 11, 1)" in message(read_ids, tmp_path / "x.tif")


def write_packed_tiff(path, ids, bits, palette, fill_order) -> None:
    """An uncompressed TIFF of ids [H,W]; in fill order 2 the first pixel has the lowest bits."""
    each = np.unpackbits(ids.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
    packed = np.packbits(each.reshape(len(ids), -1), axis=1)
    if fill_order == 2:
        packed = np.packbits(np.unpackbits(packed).reshape(-1, 8)[:, ::-1])
    data = packed.tobytes()
    height, width = ids.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 3 if palette else 1)]
    tags += [(266, fill_order), (273, 8), (277, 1), (278, height), (279, len(data))]
    colors = RANDOM.integers(0, 1 << 16, 3 << bits).astype("<u2").tobytes() if palette else b""
    start = 8 + len(data)
    end = start + 2 + 12 * (len(tags) + palette) + 4
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    if palette:
        entries += struct.pack("<HHII", 320, 3, 3 << bits, end)
    head = struct.pack("<2sHI", b"II", 42, start)
    count = struct.pack("<H", len(tags) + palette)
    path.write_bytes(head + data + count + entries + bytes(4) + colors)


class TestFirstChannel:
    @pytest.mark.parametrize("bits", [8, 16])
    @pytest.mark.parametrize("kind", [RGB, RGBA, GREY_ALPHA])
    @pytest.mark.parametrize("interlaced", [False, True])
    def test_exact(self, tmp_path, bits, kind, interlaced):
        channels = {RGB: 3, RGBA: 4, GREY_ALPHA: 2}[kind]
        values = RANDOM.integers(0, 1 << bits, (9, 11, channels))
        values[..., 0] = IDS
        write_png(tmp_path / "x.png", values, bits, kind, interlaced=interlaced)
        assert np.array_equal(read_first_channel(tmp_path / "x.png"), IDS)

    def test_a_value_that_is_no_id(self, tmp_path):
        values = np.zeros((9, 11, 3), int)
        values[2, 3] = (256, 0, 0)
        write_png(tmp_path / "x.png", values, 16, RGB)
        assert "a label of the value 256" in message(read_first_channel, tmp_path / "x.png")


class TestColors:
    COLORS = RANDOM.integers(0, 256, (19, 3), dtype=np.uint8)

    @pytest.mark.parametrize("kind", [RGB, RGBA, PALETTE])
    def test_exact(self, tmp_path, kind):
        values, before = self.COLORS[IDS], b""
        if kind == RGBA:
            values = np.dstack([values, np.full((9, 11, 1), 255, np.uint8)])
        if kind == PALETTE:
            values, before = IDS, chunk(b"PLTE", self.COLORS.tobytes())
        write_png(tmp_path / "x.png", values, 8, kind, before=before)
        assert np.array_equal(read_colors(tmp_path / "x.png"), self.COLORS[IDS])
        found = read_indexed_or_colors(tmp_path / "x.png")
        assert isinstance(found, Colored) == (kind != PALETTE)
        assert np.array_equal(found[0], IDS if kind == PALETTE else self.COLORS[IDS])

    def test_masks_of_black_and_white(self, tmp_path):
        write_png(tmp_path / "x.png", IDS % 2, 1)
        assert np.array_equal(read_colors(tmp_path / "x.png")[..., 0], IDS % 2 * 255)

    def test_transparent_pixels_are_refused(self, tmp_path):
        values = np.dstack([self.COLORS[IDS], np.full((9, 11, 1), 255, np.uint8)])
        values[:2, :3, 3] = 0
        write_png(tmp_path / "x.png", values, 8, RGBA)
        assert "6 pixels of the label file are transparent" in message(
            read_colors, tmp_path / "x.png"
        )
        before = chunk(b"PLTE", self.COLORS.tobytes()) + chunk(b"tRNS", bytes([0]))
        write_png(tmp_path / "x.png", IDS, 8, PALETTE, before=before)
        assert f"{(IDS == 0).sum()} pixels" in message(read_colors, tmp_path / "x.png")

    def test_16_bits_are_refused(self, tmp_path):
        write_png(tmp_path / "x.png", self.COLORS[IDS], 16, RGB)
        assert "16-bit RGB (9, 11, 3); colours of labels are read from RGB" in message(
            read_colors, tmp_path / "x.png"
        )


def test_random_damage(tmp_path):
    """Read with the right shape, or refused in one line; never another exception."""
    write_png(tmp_path / "x.png", IDS % 16, 4, interlaced=True)
    whole = (tmp_path / "x.png").read_bytes()
    rng = np.random.default_rng(1)
    path, refused = tmp_path / "damaged.png", 0
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(0, len(data))] = rng.integers(0, 256)
        path.write_bytes(data)
        for read in (read_ids, read_colors, read_first_channel):
            try:
                read(path)
            except UserError as error:
                refused += 1
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert refused > 300


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_re_encoded_labels_are_equal_or_refused(tmp_path, mode, form):
    """Random sizes, ids, palettes, depths, compressions and orientations."""
    rng = np.random.default_rng(3)
    equal = 0
    for _ in range(40):
        ids = rng.integers(0, rng.choice([2, 3, 16, 34, 256]), rng.integers(1, 40, 2))
        ids = (ids % 2 if mode == "1" else ids).astype(np.uint8)
        picture = Image.fromarray(
            {"1": ids.astype(bool), "I;16": ids.astype(np.uint16)}.get(mode, ids)
        )
        if mode == "P":
            picture = picture.convert("P")
            picture.putdata(ids.ravel().tolist())
            picture.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        options = {}
        if form == "TIFF":
            options["compression"] = str(rng.choice(["raw", "tiff_lzw", "packbits", "lzma"]))
        if form == "PNG" and mode == "P" and ids.max() < 16:
            options["bits"] = 4
        if form != "BMP":
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = int(rng.integers(1, 9))
        try:
            picture.save(tmp_path / "x.png", format=form, **options)
        except OSError:
            continue
        try:
            assert np.array_equal(read_ids(tmp_path / "x.png"), ids), (ids.shape, options)
            equal += 1
        except UserError as error:
            assert "\n" not in str(error)
    # A BMP has no 16 bits; what Pillow writes of two grey values it reads wrongly.
    assert equal > 10 or form == "BMP"
