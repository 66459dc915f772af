"""A picture with a gain map shows the picture for ordinary screens, without the map."""

import io

import numpy as np
import pytest
from PIL import Image

from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.images import decode_image
from batch_pipeline.testing.media import encode_image, paint

SIZE = (784, 588)
PICTURE = paint(SIZE)
#: Metadata of a phone about the map, and about the two pictures of the file.
XMP_OF_MAP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    b'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0" '
    b'hdrgm:GainMapMax="2.0" hdrgm:HDRCapacityMax="2.0"/></rdf:RDF></x:xmpmeta>'
)
XMP_OF_PICTURE = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    b'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" '
    b'xmlns:Container="http://ns.google.com/photos/1.0/container/" '
    b'xmlns:Item="http://ns.google.com/photos/1.0/container/item/" hdrgm:Version="1.0">'
    b'<Container:Directory><rdf:Seq><rdf:li rdf:parseType="Resource"><Container:Item '
    b'Item:Semantic="Primary" Item:Mime="image/jpeg"/></rdf:li><rdf:li '
    b'rdf:parseType="Resource"><Container:Item Item:Semantic="GainMap" Item:Mime="image/jpeg" '
    b'Item:Length="%d"/></rdf:li></rdf:Seq></Container:Directory>'
    b"</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def gain_map() -> Image.Image:
    """The map is brightest where the picture is darkest, so that they cannot be confused."""
    return Image.eval(PICTURE.convert("L").resize((128, 96)), lambda value: 255 - value)


def ultra_hdr_jpeg() -> bytes:
    """The picture, followed by the map as a separate JPEG."""
    map_bytes = encode_image(gain_map(), "jpeg", xmp=XMP_OF_MAP)
    picture = encode_image(PICTURE, "jpeg", quality=95, xmp=XMP_OF_PICTURE % len(map_bytes))
    return picture + map_bytes


def heic_with_map() -> bytes:
    """The map as a second picture of the file; the file says which one is shown."""
    import pillow_heif  # noqa: PLC0415

    file = pillow_heif.from_pillow(PICTURE)
    file.add_from_pillow(gain_map().convert("RGB"))
    encoded = io.BytesIO()
    file.save(encoded, primary_index=0, quality=95)
    return encoded.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("make", [ultra_hdr_jpeg, heic_with_map])
def test_the_picture_is_shown_as_if_it_had_no_map(make):
    data = make()

    content = decode_image(data, accept(data))

    assert (content.facts.width, content.facts.height) == SIZE
    assert content.facts.clip is None, "the map is no film"
    assert content.facts.warnings == ()
    assert content.facts.frame_count == 1
    shown = np.asarray(Image.open(io.BytesIO(content.frames[0].jpeg)), dtype=int)
    difference = np.abs(shown - np.asarray(PICTURE, dtype=int)).mean()
    assert difference < 5
    as_map = np.asarray(gain_map().resize(SIZE), dtype=int)
    assert np.abs(shown.mean(axis=2) - as_map).mean() > 30
