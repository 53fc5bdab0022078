"""Files of several pages, frames or views: refused unless the further ones are copies."""

import numpy as np
import pytest
from PIL import Image

from diga_hpc.errors import UserError
from diga_hpc.images.opening import read_header
from diga_hpc.images.pixels import read_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def exif(value: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = value
    return found


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "tif"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("read", [read_pixels, read_header])
def test_pages_and_frames(tmp_path, suffix, count, read):
    path = tmp_path / f"x.{suffix}"
    first, *more = (Image.fromarray(PIXELS // (i + 1)) for i in range(count))
    first.save(path, save_all=True, append_images=more)
    what = "pages" if suffix == "tif" else "frames of an animation"
    with pytest.raises(UserError) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: the file holds several {what} ({count}), of which only")
    assert "save one of them as a file of its own" in text


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "tif"])
def test_one_frame(tmp_path, suffix):
    grey = np.repeat(PIXELS[..., :1], 3, 2)
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(grey).save(tmp_path / f"x.{suffix}", save_all=True, **options)
    assert np.array_equal(read_pixels(tmp_path / f"x.{suffix}"), grey)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize(("kind", "accepted"), [(1, True), (4, True), (5, True), (2, False)])
@pytest.mark.parametrize("value", [1, 6])
def test_smaller_copies_in_a_tiff(tmp_path, compression, kind, accepted, value):
    path = tmp_path / "x.tif"
    copy = Image.fromarray(PIXELS[::2, ::2])
    copy.encoderinfo = {"tiffinfo": {254: kind}}
    Image.fromarray(PIXELS).save(
        path, save_all=True, append_images=[copy], compression=compression, exif=exif(value)
    )
    if not accepted:
        with pytest.raises(UserError, match=r"several pages \(2\)"):
            read_pixels(path)
        return
    upright = PIXELS if value == 1 else np.rot90(PIXELS, -1)
    assert np.array_equal(read_pixels(path), upright)
    assert read_header(path)[:3] == (*upright.shape[:2], value)


def test_the_views_of_a_camera(tmp_path):
    first, second = Image.fromarray(PIXELS), Image.fromarray(PIXELS[::2, ::2])
    first.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[second])
    first.save(tmp_path / "plain.jpg")
    assert np.array_equal(read_pixels(tmp_path / "x.jpg"), read_pixels(tmp_path / "plain.jpg"))
