"""Pictures are fitted to the sizes that models need."""

import io

import pytest
from PIL import Image

from batch_pipeline.model_servers.picture_size import SMALLEST_SIDE, PictureSize, side_multiple


def jpeg(width: int, height: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(written, "JPEG")
    return written.getvalue()


def size_of(picture: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(picture)) as opened:
        return opened.size


@pytest.mark.parametrize(("width", "height"), [(64, 48), (1568, 1036)])
def test_a_picture_that_fits_is_sent_as_it_is(width, height):
    picture = jpeg(width, height)
    assert PictureSize(1568).fitted(picture) is picture


def test_a_picture_that_is_too_long_is_scaled():
    assert size_of(PictureSize(512).fitted(jpeg(1024, 768))) == (512, 384)


@pytest.mark.parametrize("size", [(1568, 28), (28, 28), (1000, 667), (500, 1568)])
def test_sides_are_multiples_of_what_the_model_needs_and_never_shorter(size):
    width, height = size_of(PictureSize(1568, 32).fitted(jpeg(*size)))
    assert width % 32 == height % 32 == 0
    assert min(width, height) >= SMALLEST_SIDE
    assert max(width, height) <= 1568


def test_a_very_narrow_picture_gets_a_border_and_is_not_stretched():
    fitted = PictureSize(1568).fitted(jpeg(640, 8))
    assert size_of(fitted) == (640, SMALLEST_SIDE)
    with Image.open(io.BytesIO(fitted)) as opened:
        assert opened.getpixel((320, 16))[2] > 100
        assert max(opened.getpixel((320, 2))) - min(opened.getpixel((320, 2))) < 40


@pytest.mark.parametrize(
    ("model", "multiple"),
    [
        ("qwen3-vl:8b", 32),
        ("Qwen/Qwen3-VL-8B-Instruct", 32),
        ("qwen3.5:9b", 32),
        ("qwen2.5vl:7b", 1),
        ("gemma4:12b", 1),
    ],
)
def test_the_multiple_for_sides_follows_from_the_name_of_the_model(model, multiple):
    assert side_multiple(model) == multiple
