"""Working sizes: the size asked for where the shape is alike, else the same area undistorted."""

import math

import pytest

from diga_hpc.images.sizes import fitting, half_working_size, working_size

SIZES = [(1, 1), (7, 13), (48, 96), (96, 48), (100, 100), (512, 1024), (1052, 1914)]
PHOTOS = [(160, 90), (90, 160), (1, 1), (1, 50), (50, 1), (375, 1242), (3024, 4032), (61, 67)]


@pytest.mark.parametrize(
    ("size", "photo"),
    [
        ((720, 1280), (1052, 1914)),  # GTA5, published
        ((720, 1280), (1046, 1914)),
        ((1052, 1914), (1046, 1914)),
        ((512, 1024), (1024, 2048)),
        ((240, 320), (720, 960)),
        ((240, 320), (728, 960)),  # an odd size of a 4:3 photo
    ],
)
def test_a_photo_of_about_the_same_shape_gets_exactly_the_size(size, photo):
    assert working_size(size, photo) == size
    assert half_working_size(None, size, photo) == size
    # As published: half of the size, rounded down.
    assert half_working_size(size, None, photo) == (size[0] // 2, size[1] // 2)


def test_a_portrait_is_not_squeezed_into_a_landscape():
    assert working_size((48, 96), (160, 90)) == (91, 51)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("photo", PHOTOS)
def test_shape_and_area(size, photo):
    height, width = working_size(size, photo)
    assert height >= 1 and width >= 1
    # The shape of the photo and the area of the size, to within the rounding of each side.
    area = size[0] * size[1]
    ideal = [math.sqrt(area * photo[i] / photo[1 - i]) for i in (0, 1)]
    is_kept = all(
        abs(found - max(side, 1)) <= 0.5 for found, side in zip((height, width), ideal, strict=True)
    )
    is_alike = 1 / 1.06 < (size[1] / size[0]) / (photo[1] / photo[0]) < 1.06
    assert is_kept or (is_alike and (height, width) == size)
    half_height, half_width = half_working_size(size, None, photo)
    assert half_height == max(height // 2, 1) and half_width == max(width // 2, 1)


@pytest.mark.parametrize("photo", PHOTOS)
def test_no_size_is_the_photo_s_own(photo):
    assert working_size(None, photo) == photo
    assert half_working_size(None, None, photo) == (max(photo[0] // 2, 1), max(photo[1] // 2, 1))


@pytest.mark.parametrize("crop", [(16, 24), (24, 16), (1, 1), (33, 33), (512, 896)])
@pytest.mark.parametrize("size", [*SIZES, *PHOTOS])
def test_a_size_that_is_too_small_grows_as_a_whole(size, crop):
    height, width = fitting(size, crop)
    if size[0] >= crop[0] and size[1] >= crop[1]:
        assert (height, width) == size
        return
    assert height >= crop[0] and width >= crop[1]
    assert height == crop[0] or width == crop[1]
    factor = max(crop[0] / size[0], crop[1] / size[1])
    assert abs(height - factor * size[0]) <= 0.51 and abs(width - factor * size[1]) <= 0.51
