"""Text in pictures, read by the real Tesseract; needs the extra `ocr`: `make test-ocr`.

The extra is not part of `dev`: with it, all pictures of all other tests would be read too.
"""

import io

import pytest
from PIL import Image, ImageDraw, ImageFont

from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.model_servers import embedded
from batch_pipeline.model_servers.embedded import EmbeddedVision
from batch_pipeline.services.descriptions.audit import audit
from batch_pipeline_tests.integration.conftest import program

pytest.importorskip("pytesseract", reason="the extra ocr is not installed: make test-ocr")


@pytest.fixture(autouse=True)
def fresh_search_for_tesseract() -> None:
    program("tesseract")
    embedded._can_read_text.cache_clear()


def test_a_sign_in_a_picture_can_be_searched_for() -> None:
    sign = Image.new("RGB", (800, 300), "white")
    font = ImageFont.load_default(80)
    ImageDraw.Draw(sign).text((40, 100), "Fresh bread daily", "black", font)
    file = io.BytesIO()
    sign.save(file, "JPEG", quality=95)

    text = (
        EmbeddedVision()
        .describe(MediaFacts("image", "jpeg", 800, 300), [Frame(file.getvalue())])
        .text
    )

    assert text.endswith("Text can be read in it: “Fresh bread daily”.")
    assert audit(text).passed
