"""Pictures small enough for an event log."""

import io
import os

import pytest
from PIL import Image

from batch_pipeline.media.previews import tiny_webp

EXIF_DESCRIPTION = 0x010E


@pytest.mark.parametrize("size", [(256, 256), (256, 3), (1, 1)])
def test_a_tiny_picture_fits_even_if_it_is_noise_and_carries_no_metadata(size):
    noise = Image.frombytes("RGB", size, os.urandom(3 * size[0] * size[1]))
    exif = Image.Exif()
    exif[EXIF_DESCRIPTION] = "taken at home"
    jpeg = io.BytesIO()
    noise.save(jpeg, "JPEG", quality=95, exif=exif)
    tiny = tiny_webp(jpeg.getvalue(), 700)
    assert len(tiny) <= 700
    assert b"taken at home" not in tiny
    with Image.open(io.BytesIO(tiny)) as picture:
        assert picture.format == "WEBP"
