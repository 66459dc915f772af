"""Photoshop documents show their composite: all modes and depths, PSD and PSB, packed or not."""

import io
import struct
from datetime import datetime

import numpy as np
import pytest
from PIL import Image, ImageCms

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.images import decode_image
from batch_pipeline.media.sniffing import sniff
from batch_pipeline.testing.media import Exif, encode_image, paint

SIZE = (140, 84)
PICTURE = paint(SIZE)
ARRAY = np.asarray(PICTURE)
BITMAP, GREY, RGB, CMYK, INKS = 0, 1, 3, 4, 7
ANOTHER = np.full((1, *ARRAY.shape[:2]), 77, np.uint8)
"""A channel in addition to the colours."""


def packed_row(row: bytes) -> bytes:
    """Write run lengths without any compression."""
    parts = [row[start : start + 128] for start in range(0, len(row), 128)]
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def document(
    planes: np.ndarray, mode: int, *, version: int = 1, packed: bool = False, bits: int = 0
) -> bytes:
    """Write planes of shape (channels, height, width or bytes)."""
    bits = bits or planes.dtype.itemsize * 8
    rows = [row.tobytes() for plane in planes for row in plane]
    header = struct.pack(">4sH6xHIIHH", b"8BPS", version, len(planes), SIZE[1], SIZE[0], bits, mode)
    layers = bytes(8 if version == 2 else 4)
    if not packed:
        return header + bytes(8) + layers + b"\0\0" + b"".join(rows)
    rows = [packed_row(row) for row in rows]
    counts = struct.pack(f">{len(rows)}{'I' if version == 2 else 'H'}", *map(len, rows))
    return header + bytes(8) + layers + b"\0\1" + counts + b"".join(rows)


def shown(data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    media_type = sniff(data)
    assert media_type is not None
    assert media_type.format == "psd"
    content = decode_image(data, media_type)
    assert (content.facts.width, content.facts.height) == SIZE
    picture = Image.open(io.BytesIO(content.frames[0].jpeg)).convert("RGB")
    return np.asarray(picture, dtype=int), content.facts.warnings


def planes_of(picture: np.ndarray) -> np.ndarray:
    return np.moveaxis(picture, -1, 0)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("more", [0, 1, 2])
def test_channels_beside_the_colours_change_nothing(version, packed, more):
    planes = np.concatenate([planes_of(ARRAY), *[ANOTHER] * more])

    found, _ = shown(document(planes, RGB, version=version, packed=packed))

    assert np.abs(found - ARRAY).mean() < 4


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_samples_of_16_bits_are_decoded(version, packed):
    planes = (planes_of(ARRAY).astype(">u2") * 257).astype(">u2")

    found, _ = shown(document(planes, RGB, version=version, packed=packed))

    assert np.abs(found - ARRAY).mean() < 4


@pytest.mark.parametrize("packed", [False, True])
def test_cmyk_with_a_special_ink_is_decoded(packed):
    planes = 255 - planes_of(np.asarray(PICTURE.convert("CMYK")))

    found, _ = shown(document(np.concatenate([planes, ANOTHER]), CMYK, packed=packed))

    assert np.abs(found - ARRAY).mean() < 5


def test_a_set_bit_of_a_bitmap_is_black():
    dark = np.asarray(PICTURE.convert("L")) < 128
    bits = np.packbits(dark, axis=1)[None]

    found, _ = shown(document(bits, BITMAP, bits=1))

    assert np.abs(found[..., 0] - np.where(dark, 0, 255)).mean() < 12


def test_single_inks_are_shown_with_a_warning():
    found, warnings = shown(document(planes_of(ARRAY), INKS))

    assert np.abs(found - ARRAY).mean() < 4
    assert warnings == ("colours are not true: the document is of single inks",)


def test_rows_of_a_psb_may_be_packed_longer_than_a_psd_can_say():
    rows = [packed_row(row.tobytes()) for plane in planes_of(ARRAY) for row in plane]
    # Empty runs ("no operation") can make a packed row as long as an attacker wants.
    rows[0] = b"\x80" * 70_000 + rows[0]
    counts = struct.pack(f">{len(rows)}I", *map(len, rows))
    whole = document(planes_of(ARRAY), RGB, version=2)
    data = whole[:42] + b"\0\1" + counts + b"".join(rows)

    found, _ = shown(data)

    assert np.abs(found - ARRAY).mean() < 4


def test_an_unsupported_variant_is_refused_by_name():
    data = document(planes_of(ARRAY), RGB).replace(bytes(12) + b"\0\0", bytes(12) + b"\0\3", 1)

    with pytest.raises(PermanentError, match="compression 3"):
        shown(data)


@pytest.mark.parametrize(("mode", "bits"), [(65, 8), (RGB, 7)])
def test_an_unknown_mode_is_refused_by_name(mode, bits):
    with pytest.raises(PermanentError, match=f"mode {mode} with 3 channels of {bits} bits"):
        shown(document(planes_of(ARRAY), mode, bits=bits))


@pytest.mark.parametrize("length", [6, 25, 30, 39])
def test_a_document_that_ends_in_its_head_is_truncated(length):
    with pytest.raises(PermanentError) as raised:
        shown(document(planes_of(ARRAY), RGB)[:length])

    assert raised.value.kind == "truncated"


def linear_profile() -> bytes:
    """The profile of Photoshop's 32-bit documents: colours of sRGB, and linear curves."""
    colours = {
        b"rXYZ": (0.4361, 0.2225, 0.0139),
        b"gXYZ": (0.3851, 0.7169, 0.0971),
        b"bXYZ": (0.1431, 0.0606, 0.7141),
        b"wtpt": (0.9642, 1.0, 0.8249),
    }
    tags = {
        name: b"XYZ " + bytes(4) + struct.pack(">3i", *(round(each * 65536) for each in xyz))
        for name, xyz in colours.items()
    }
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv" + bytes(8))
    table, content = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        place = 128 + 4 + 12 * len(tags) + len(content)
        table += struct.pack(">4sII", name, place, len(value))
        content += value
    size = 128 + len(table) + len(content)
    head = struct.pack(">I4x4s4s4s4s12x4s", size, b"\2\x10\0\0", b"mntr", b"RGB ", b"XYZ ", b"acsp")
    white = struct.pack(">3i", 63190, 65536, 54061)
    return (head.ljust(68, b"\0") + white).ljust(128, b"\0") + table + content


def test_light_of_32_bits_is_converted_once_whatever_its_profile():
    light = np.where(ARRAY > 10, (ARRAY / 255) ** 2.2, 0).astype(">f4")
    plain = document(planes_of(light), RGB, bits=32)
    profile = linear_profile()
    assert ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space == "RGB "
    resource = b"8BIM" + struct.pack(">HHI", 1039, 0, len(profile)) + profile
    resource += bytes(len(profile) % 2)
    data = plain[:30] + struct.pack(">I", len(resource)) + resource + plain[34:]

    found, _ = shown(data)

    assert np.abs(found - ARRAY).mean() < 6


def resource(number: int, content: bytes) -> bytes:
    head = b"8BIM" + struct.pack(">HHI", number, 0, len(content))
    return head + content + bytes(len(content) % 2)


def version_info(*, has_composite: bool) -> bytes:
    name = struct.pack(">I", 5) + "Adobe".encode("utf-16-be")
    return resource(1057, struct.pack(">IB", 1, has_composite) + name * 2 + struct.pack(">I", 1))


def small_preview(picture: Image.Image, number: int = 1036) -> bytes:
    jpeg = encode_image(picture, "jpeg", quality=95)
    width, height = picture.size
    head = struct.pack(">6I2H", 1, width, height, width * 3, width * height * 3, len(jpeg), 24, 1)
    return resource(number, head + jpeg)


def placeholder(*resources: bytes) -> bytes:
    """A document whose composite is only white."""
    plain = document(np.full_like(planes_of(ARRAY), 255), RGB)
    block = b"".join(resources)
    return plain[:30] + struct.pack(">I", len(block)) + block + plain[34:]


SMALL = PICTURE.resize((70, 42))
NO_COMPOSITE, COMPOSITE = version_info(has_composite=False), version_info(has_composite=True)


@pytest.mark.parametrize(
    "preview",
    [
        small_preview(SMALL),
        small_preview(Image.merge("RGB", SMALL.split()[::-1]), 1033),
        small_preview(Image.new("RGB", SMALL.size, "blue"), 1033) + small_preview(SMALL),
    ],
    ids=["a preview", "of the old form", "of both forms"],
)
def test_a_document_without_a_composite_shows_its_preview_and_says_so(preview):
    found, warnings = shown(placeholder(preview, NO_COMPOSITE))

    assert np.abs(found - ARRAY).mean() < 8
    assert warnings == (
        "only its small preview is shown: the file was saved without a composite picture (in "
        "Photoshop, save it again with Maximize Compatibility)",
    )


def test_a_document_without_a_composite_keeps_its_metadata():
    exif = Exif(6, datetime(2021, 5, 6, 7, 8, 9), "Example", "One").to_bytes()[6:]

    data = placeholder(small_preview(SMALL), NO_COMPOSITE, resource(1058, exif))
    facts = decode_image(data, sniff(data)).facts

    assert (facts.width, facts.height) == SIZE[::-1]
    assert facts.captured_at == datetime(2021, 5, 6, 7, 8, 9)
    assert facts.camera == "Example One"


@pytest.mark.parametrize(
    "resources", [(), (resource(1036, bytes(40)),), (resource(1036, b"x"),)], ids=len
)
def test_a_document_without_a_composite_or_preview_is_refused_with_what_to_do(resources):
    with pytest.raises(PermanentError, match="Maximize Compatibility") as raised:
        shown(placeholder(NO_COMPOSITE, *resources))

    assert raised.value.kind == "unreadable_image"


@pytest.mark.parametrize("resources", [(COMPOSITE,), (), (resource(1057, b"x"),)])
def test_the_preview_of_a_document_with_a_composite_is_not_used(resources):
    found, warnings = shown(placeholder(small_preview(SMALL), *resources))

    assert found.min() > 250
    assert warnings == ()
