"""Pixels of photographs: every mode, 16 bits, orientation, size limits, damaged files."""

import os
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from diga_hpc.errors import UserError, one_line
from diga_hpc.images import opening
from diga_hpc.images.opening import orientation, read_header
from diga_hpc.images.pixels import read_pixels
from helpers.png import GREY, GREY_ALPHA, RGB, RGBA, chunk, write_png

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
EXIF_ORIENTATION = 0x0112


def read_size(path, upright=True):
    return read_header(path, upright=upright)[:2]


def exif(value: int) -> Image.Exif:
    found = Image.Exif()
    found[EXIF_ORIENTATION] = value
    return found


def message(path, **how) -> str:
    with pytest.raises(UserError) as error:
        read_pixels(path, **how)
    text = one_line(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text


class TestOrientation:
    @pytest.mark.parametrize("value", range(1, 9))
    @pytest.mark.parametrize(
        ("suffix", "options"),
        [
            ("png", {}),
            ("jpg", {}),
            ("webp", {"lossless": True}),
            ("tif", {}),
            ("tif", {"compression": "tiff_lzw"}),
        ],
    )
    def test_images_are_turned_as_viewers_show_them(self, tmp_path, value, suffix, options):
        path, plain = tmp_path / f"x.{suffix}", tmp_path / f"plain.{suffix}"
        Image.fromarray(PIXELS).save(path, exif=exif(value), **options)
        Image.fromarray(PIXELS).save(plain, **options)
        stored = np.asarray(Image.open(plain).convert("RGB"))
        with_exif = Image.fromarray(stored)
        with_exif.getexif()[EXIF_ORIENTATION] = value
        shown = np.asarray(ImageOps.exif_transpose(with_exif))
        assert np.array_equal(read_pixels(path), shown)
        assert np.array_equal(read_pixels(path, upright=False), stored)
        assert orientation(path) == value
        assert read_size(path) == shown.shape[:2]
        assert read_size(path, upright=False) == (5, 7)

    @pytest.mark.parametrize("value", range(1, 9))
    @pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16"])
    @pytest.mark.parametrize("compression", [None, "tiff_lzw"])
    def test_tiff_of_other_modes(self, tmp_path, value, mode, compression):
        picture = Image.fromarray(PIXELS).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        picture.save(tmp_path / "plain.tif", compression=compression)
        picture.save(tmp_path / "x.tif", compression=compression, exif=exif(value))
        stored = read_pixels(tmp_path / "plain.tif")
        expected = np.asarray(picture.convert("RGB")) if mode != "I;16" else stored
        assert np.array_equal(stored, expected)
        with_exif = Image.fromarray(stored)
        with_exif.getexif()[EXIF_ORIENTATION] = value
        shown = np.asarray(ImageOps.exif_transpose(with_exif))
        assert np.array_equal(read_pixels(tmp_path / "x.tif"), shown)
        assert np.array_equal(read_pixels(tmp_path / "x.tif", upright=False), stored)

    def test_metadata_after_the_pixels_of_a_png(self, tmp_path):
        data = chunk(b"eXIf", exif(6).tobytes()[6:])
        write_png(tmp_path / "x.png", PIXELS, 8, RGB, after=data)
        assert orientation(tmp_path / "x.png") == 6 and read_size(tmp_path / "x.png") == (7, 5)
        assert np.array_equal(read_pixels(tmp_path / "x.png"), np.rot90(PIXELS, -1))

    @pytest.mark.parametrize("size", [4, 200])
    def test_metadata_after_many_parts_of_pixels(self, tmp_path, size):
        """Found at the end of a large file too; its name among the pixels is no metadata."""
        pixels = RANDOM.integers(0, 256, (size, size + 1, 3), dtype=np.uint8)
        pixels[0, :3] = np.frombuffer(b"\0\0\0\1eXIf.", np.uint8).reshape(3, 3)
        data = chunk(b"eXIf", exif(6).tobytes()[6:])
        for after, value in ((b"", 1), (data, 6)):
            path = tmp_path / f"{value}.png"
            write_png(path, pixels, 8, RGB, after=after)
            content = path.read_bytes()
            start = content.index(b"IDAT") - 4
            length = int.from_bytes(content[start : start + 4])
            stream = content[start + 8 : start + 8 + length]
            parts = [chunk(b"IDAT", stream[i : i + 97]) for i in range(0, length, 97)]
            path.write_bytes(content[:start] + b"".join(parts) + content[start + 12 + length :])
            assert orientation(path) == value
            assert np.array_equal(read_pixels(path), np.rot90(pixels, -1 if value == 6 else 0))

    def test_16_bits_are_turned_too(self, tmp_path):
        values = RANDOM.integers(0, 1 << 16, (5, 7, 3))
        data = chunk(b"eXIf", exif(8).tobytes()[6:])
        write_png(tmp_path / "x.png", values, 16, RGB, before=data)
        assert np.array_equal(read_pixels(tmp_path / "x.png"), np.rot90(values >> 8))

    @pytest.mark.parametrize("data", [b"Exif\0\0MM\0*", b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0"])
    def test_corrupt_metadata_is_ignored(self, tmp_path, data):
        Image.fromarray(PIXELS).save(tmp_path / "x.webp", lossless=True, exif=data)
        Image.fromarray(PIXELS).save(tmp_path / "x.jpg", exif=data)
        assert np.array_equal(read_pixels(tmp_path / "x.webp"), PIXELS)
        for name in ("x.webp", "x.jpg"):
            assert orientation(tmp_path / name) == 1 and read_size(tmp_path / name) == (5, 7)
        assert read_pixels(tmp_path / "x.jpg").shape == (5, 7, 3)

    @pytest.mark.parametrize("value", [0, 9, 255])
    def test_values_that_are_no_orientation(self, tmp_path, value):
        Image.fromarray(PIXELS).save(tmp_path / "x.png", exif=exif(value))
        assert np.array_equal(read_pixels(tmp_path / "x.png"), PIXELS)
        assert orientation(tmp_path / "x.png") == 1


class TestModes:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "gif", "webp"])
    def test_become_rgb(self, tmp_path, mode, suffix):
        path = tmp_path / f"x.{suffix}"
        picture = Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode)
        try:
            picture.save(path)
        except (OSError, ValueError):
            pytest.skip(f"{suffix} has no {mode}")
        got = read_pixels(path)
        assert got.shape == (4, 5, 3) and got.dtype == np.uint8 and got.flags.writeable
        assert got.min() >= 252

    def test_a_palette_with_transparency(self, tmp_path):
        ids = RANDOM.integers(0, 4, (5, 7), dtype=np.uint8)
        picture = Image.fromarray(ids).convert("P")
        picture.putdata(ids.ravel().tolist())
        colors = RANDOM.integers(0, 256, (4, 3), dtype=np.uint8)
        picture.putpalette(colors.tobytes())
        picture.save(tmp_path / "x.png", transparency=bytes([0, 255, 9, 255]))
        assert np.array_equal(read_pixels(tmp_path / "x.png"), colors[ids])

    def test_the_content_counts_not_the_suffix(self, tmp_path):
        Image.fromarray(PIXELS).save(tmp_path / "x.jpg", format="BMP")
        assert np.array_equal(read_pixels(tmp_path / "x.jpg"), PIXELS)

    @pytest.mark.parametrize("mode", ["F", "I", "LAB"])
    def test_refused(self, tmp_path, mode):
        picture = Image.new("L", (5, 4), 9)
        (picture.convert("RGB") if mode == "LAB" else picture).convert("F" if mode == "F" else "L")
        array = {"F": np.ones((4, 5), np.float32), "I": np.ones((4, 5), np.int32)}
        picture = Image.new("LAB", (5, 4)) if mode == "LAB" else Image.fromarray(array[mode])
        picture.save(tmp_path / "x.tif")
        assert f"pixels of the type {mode!r}" in message(tmp_path / "x.tif")

    def test_a_format_that_is_not_read(self, tmp_path):
        Image.fromarray(PIXELS).save(tmp_path / "x.png", format="TGA")
        assert "the content is TGA; convert it to one of PNG, JPEG" in message(tmp_path / "x.png")

    @pytest.mark.parametrize(("bits", "colors"), [(8, 2), (4, 16)])
    def test_a_grey_bmp_whose_bits_pillow_forgets(self, tmp_path, bits, colors):
        grey = [0, 255] if colors == 2 else range(colors)
        palette = b"".join(bytes([v, v, v, 0]) for v in grey)
        rows = bytes(8 * 4)
        header = struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, bits, 0, len(rows), 0, 0, colors, 0)
        start = 14 + len(header) + len(palette)
        file = struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start)
        (tmp_path / "x.bmp").write_bytes(file + header + palette + rows)
        assert f"a grey BMP of {bits} bits a pixel; save it as" in message(tmp_path / "x.bmp")


class TestSixteenBits:
    @pytest.mark.parametrize("kind", [GREY, RGB, GREY_ALPHA, RGBA])
    @pytest.mark.parametrize("interlaced", [False, True])
    @pytest.mark.parametrize("bits", [None, 16, 12, 8])
    def test_exact(self, tmp_path, kind, interlaced, bits):
        used = bits or 16
        channels = {GREY: 1, RGB: 3, GREY_ALPHA: 2, RGBA: 4}[kind]
        values = RANDOM.integers(0, 1 << used, (9, 11, channels))
        if channels in (2, 4):
            values[..., -1] = 65535
        write_png(tmp_path / "x.png", values, 16, kind, interlaced=interlaced)
        colors = values[..., :1] if channels < 3 else values[..., :3]
        expected = np.broadcast_to(colors >> (used - 8), (9, 11, 3))
        assert np.array_equal(read_pixels(tmp_path / "x.png", bits=bits), expected)

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_tiff(self, tmp_path, order, channels):
        values = RANDOM.integers(0, 1 << 12, (5, 7, channels))
        write_tiff16(tmp_path / "x.tif", values, order)
        colors = values[..., : min(channels, 3)]
        expected = np.broadcast_to(colors >> 4, (5, 7, 3))
        assert np.array_equal(read_pixels(tmp_path / "x.tif", bits=12), expected)

    @pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
    @pytest.mark.parametrize("mode", ["I;16", "I;16B"])
    def test_compressed_grey_tiff(self, tmp_path, compression, mode):
        values = RANDOM.integers(0, 1 << 16, (5, 7)).astype("<u2" if mode == "I;16" else ">u2")
        picture = Image.frombytes(mode, (7, 5), values.tobytes())
        picture.save(tmp_path / "x.tif", compression=compression)
        assert np.array_equal(read_pixels(tmp_path / "x.tif")[..., 1], values >> 8)

    @pytest.mark.parametrize(("used", "remedy"), [(10, 12), (12, 12), (14, 14)])
    @pytest.mark.parametrize("kind", [GREY, RGB])
    def test_values_of_a_camera_are_refused(self, tmp_path, used, remedy, kind):
        shape = (5, 7, 3) if kind == RGB else (5, 7)
        values = RANDOM.integers(0, 1 << used, shape)
        values[0, 0] = (1 << used) - 1
        write_png(tmp_path / "x.png", values, 16, kind)
        text = message(tmp_path / "x.png")
        assert f"largest value is {(1 << used) - 1}" in text
        assert f"`image_bits: {remedy}`" in text and "`image_bits: 16` to take" in text
        taken = read_pixels(tmp_path / "x.png", bits=16)
        assert taken.max() == ((1 << used) - 1) >> 8

    def test_opaque_alpha_does_not_hide_them(self, tmp_path):
        values = np.full((5, 7, 4), 65535)
        values[..., :3] = 4000
        write_png(tmp_path / "x.png", values, 16, RGBA)
        assert "largest value is 4000" in message(tmp_path / "x.png")

    def test_a_value_above_the_bits(self, tmp_path):
        write_png(tmp_path / "x.png", np.full((5, 7), 5000), 16)
        assert "the value 5000 does not fit `image_bits: 12`" in message(
            tmp_path / "x.png", bits=12
        )

    def test_8_bits_do_not_depend_on_the_key(self, tmp_path):
        Image.fromarray(PIXELS).save(tmp_path / "x.png")
        assert np.array_equal(read_pixels(tmp_path / "x.png", bits=12), PIXELS)

    def test_inverted_grey_is_refused(self, tmp_path):
        write_tiff16(tmp_path / "x.tif", np.full((5, 7, 1), 60000), "<", photometric=0)
        assert "in a layout that is not read; save the image as PNG" in message(tmp_path / "x.tif")

    def test_separate_planes_are_refused(self, tmp_path):
        write_tiff16(tmp_path / "x.tif", np.full((5, 7, 3), 60000), "<", planar=2)
        assert "in a layout that is not read" in message(tmp_path / "x.tif")


def write_tiff16(path, values, order, photometric=None, planar=1) -> None:
    """An uncompressed TIFF of values [H,W,C] below 2**16."""
    height, width, channels = values.shape
    if photometric is None:
        photometric = 1 if channels == 1 else 2
    stored = np.moveaxis(values, 2, 0) if planar == 2 else values
    data = stored.astype(f"{order}u2").tobytes()
    strips = channels if planar == 2 else 1
    extra = [(338, 3, [2])] if channels == 4 else []
    tags = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [16] * channels),
        (259, 3, [1]),
        (262, 3, [photometric]),
        (273, 4, [8 + i * len(data) // strips for i in range(strips)]),
        (277, 3, [channels]),
        (278, 4, [height]),
        (279, 4, [len(data) // strips] * strips),
        (284, 3, [planar]),
        *extra,
    ]
    start = 8 + len(data)
    after = start + 2 + 12 * len(tags) + 4
    entries, more = b"", b""
    for tag, kind, numbers in tags:
        code = {3: "H", 4: "I"}[kind]
        value = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(value) > 4:
            place, more = struct.pack(f"{order}I", after + len(more)), more + value
            value = place
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + value.ljust(4, b"\0")
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    path.write_bytes(
        mark
        + struct.pack(f"{order}I", start)
        + data
        + struct.pack(f"{order}H", len(tags))
        + entries
        + b"\0\0\0\0"
        + more
    )


class TestLimits:
    @pytest.mark.filterwarnings("error")
    def test_more_pixels_than_pillow_allows(self, tmp_path):
        size = (18000, 10000)
        Image.new("1", size).save(tmp_path / "x.png")
        assert read_size(tmp_path / "x.png") == size[::-1]
        with opening.opened(tmp_path / "x.png", "image") as picture:
            assert picture.size == size

    def test_more_than_a_gigapixel(self, tmp_path):
        write_png(tmp_path / "x.png", np.zeros((1, 1)), 8)
        data = bytearray((tmp_path / "x.png").read_bytes())
        data[16:24] = struct.pack(">II", 40_000, 40_000)
        data[29:33] = struct.pack(">I", __import__("zlib").crc32(bytes(data[12:29])))
        (tmp_path / "x.png").write_bytes(data)
        assert "1,600 megapixels; at most 1,000 are read" in message(tmp_path / "x.png")


class TestDamaged:
    @pytest.mark.parametrize(
        "error",
        [
            struct.error("unpack"),
            EOFError(),
            IndexError("index"),
            KeyError("key"),
            TypeError("type"),
            OverflowError("large"),
            RecursionError("deep"),
            Image.DecompressionBombError("bomb"),
            UnicodeDecodeError("utf-8", b"\xdf", 0, 1, "invalid"),
            __import__("zlib").error("Error -3"),
        ],
    )
    def test_whatever_a_decoder_raises_is_one_line(self, tmp_path, monkeypatch, error):
        def fail(*_, **__):
            raise error

        (tmp_path / "x.png").write_bytes(b"")
        monkeypatch.setattr(Image, "open", fail)
        assert "not a readable image (" in message(tmp_path / "x.png")

    def test_a_png_without_a_header(self, tmp_path):
        """Its checksums are right: the message names the file, not the buffer that was read."""
        (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""))
        text = message(tmp_path / "x.png")
        assert "not a readable image (" in text and "BytesIO" not in text

    def test_a_png_is_read_once(self, tmp_path, monkeypatch):
        Image.fromarray(PIXELS).save(tmp_path / "x.png")
        opens, plain = [], type(tmp_path).open
        monkeypatch.setattr(
            type(tmp_path), "open", lambda path, *how: opens.append(path) or plain(path, *how)
        )
        monkeypatch.setattr("builtins.open", None)
        assert np.array_equal(read_pixels(tmp_path / "x.png"), PIXELS) and len(opens) == 1

    def test_memory(self, tmp_path, monkeypatch):
        def fail(*_, **__):
            raise MemoryError

        (tmp_path / "x.png").write_bytes(b"")
        monkeypatch.setattr(Image, "open", fail)
        assert "the image does not fit in memory" in message(tmp_path / "x.png")

    def test_a_name_that_is_not_utf_8(self, tmp_path):
        path = tmp_path / os.fsdecode(b"stra\xdfe\xff.png")
        path.write_bytes(b"nothing")
        with pytest.raises(UserError) as error:
            read_pixels(path)
        assert str(error.value).encode().startswith(f"{tmp_path}/stra\\xdfe\\xff.png: ".encode())
        Image.fromarray(PIXELS).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(path)
        assert np.array_equal(read_pixels(path), PIXELS)

    def test_random_damage(self, tmp_path):
        """Read with the right shape, or refused in one line; never another exception."""
        files = {}
        for suffix in ("png", "jpg", "webp", "tif", "bmp", "gif"):
            Image.fromarray(PIXELS).save(tmp_path / f"x.{suffix}")
            files[suffix] = (tmp_path / f"x.{suffix}").read_bytes()
        rng = np.random.default_rng(1)
        refused = 0
        for i in range(300):
            suffix = list(files)[i % len(files)]
            data = bytearray(files[suffix])
            for place in rng.integers(0, len(data), rng.integers(1, 6)):
                data[place] = rng.integers(0, 256)
            path = tmp_path / f"damaged.{suffix}"
            path.write_bytes(data[: rng.integers(1, len(data) + 1)] if i % 3 == 0 else data)
            try:
                pixels = read_pixels(path)
                assert pixels.dtype == np.uint8 and pixels.shape == (*read_size(path), 3)
            except UserError as error:
                refused += 1
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        assert refused > 100
