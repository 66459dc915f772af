"""Converts a picture at its final size to sRGB, and puts transparent parts on a ground."""

import io

import numpy as np
from PIL import Image, ImageCms

from batch_pipeline.media.stills.transparency import on_ground
from batch_pipeline.media.tone_mapping import SRGB, ColourSpace, to_srgb

_ICC_COLOR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


def to_opaque_srgb(
    picture: Image.Image, icc_profile: bytes | None, space: ColourSpace
) -> Image.Image:
    """Convert a small picture of mode L, RGB, RGBA or CMYK to RGB without metadata.

    Args:
        picture: at its final size.
        icc_profile: the profile in the file; a broken one, or one for other channels, is ignored.
        space: the colour space from code points; it counts if values can be brighter than white.
    """
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    opaque = picture.convert("RGB") if alpha else picture
    if icc_profile and not space.is_hdr:
        space = _space_of_profile(icc_profile) or space
    if space.is_hdr or (not icc_profile and space != SRGB):
        shown = Image.fromarray(to_srgb(np.asarray(opaque.convert("RGB")), space))
    else:
        shown = _by_profile(opaque, icc_profile)
    return on_ground(shown, alpha) if alpha else shown


def _by_profile(picture: Image.Image, icc_profile: bytes | None) -> Image.Image:
    if icc_profile:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            if profile.profile.xcolor_space.strip() == _ICC_COLOR_SPACES[picture.mode]:
                converted = ImageCms.profileToProfile(
                    picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
                )
                if converted is not None:  # None is for conversions in place
                    return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a broken profile: the unchanged colours are nearest to the intended ones
    return picture.convert("RGB")


def _space_of_profile(profile: bytes) -> ColourSpace | None:
    """Return the code points in a profile for PQ or HLG, because its tables would end at white."""
    count = min(int.from_bytes(profile[128:132], "big"), 200)
    for entry in range(132, 132 + 12 * count, 12):
        if profile[entry : entry + 4] == b"cicp":
            start = int.from_bytes(profile[entry + 4 : entry + 8], "big")
            codes = profile[start + 8 : start + 10]
            if len(codes) == 2:
                space = ColourSpace.from_codes(primaries=codes[0], transfer=codes[1])
                return space if space.is_hdr else None
    return None
