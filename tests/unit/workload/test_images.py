"""Pictures: whole PNG files of the size that was asked, none like another."""

import io
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.plan import ImagesSpec
from pinchpoint.workload.images import VARIANTS, _joined_adler, picture

Image = pytest.importorskip("PIL.Image")


def decoded(data: bytes) -> "Image.Image":
    """Raises where a checksum is wrong."""
    Image.open(io.BytesIO(data)).verify()
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@given(st.integers(0, 2**64), st.integers(1, 40), st.integers(1, 40))
def test_a_picture_is_a_valid_file_of_the_size_asked(number: int, width: int, height: int) -> None:
    image = decoded(picture(number, ImagesSpec(1, width, height)))
    assert (image.size, image.mode, image.format) == ((width, height), "RGB", "PNG")


def test_two_pictures_of_one_variant_differ_in_their_pixels() -> None:
    shape = ImagesSpec(1, 64, 48)
    pictures = [picture(number * VARIANTS, shape) for number in range(20)]
    assert len({decoded(data).tobytes() for data in pictures}) == 20
    assert len({len(data) for data in pictures}) == 1  # and cost the same


def test_the_same_number_gives_the_same_picture() -> None:
    assert picture(77, ImagesSpec(1, 32, 32)) == picture(77, ImagesSpec(1, 32, 32))


def test_a_picture_weighs_as_much_as_a_photo() -> None:
    shape = ImagesSpec(1, 512, 512)
    bytes_per_pixel = len(picture(3, shape)) / (512 * 512)
    assert 1.0 < bytes_per_pixel < 2.0
    colours = decoded(picture(3, shape)).getcolors(1 << 20)
    assert len(colours) > 10_000


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_a_checksum_of_two_stretches_is_that_of_the_whole(one: bytes, other: bytes) -> None:
    assert _joined_adler(zlib.adler32(one), zlib.adler32(other), len(other)) == zlib.adler32(one + other)
