"""From the Y'CbCr of a frame to a picture in sRGB: matrix, range, dynamic range and gamut.

If a file leaves something open, this module decides in the same way as players:

- No matrix named: BT.2020 where its primaries, PQ or HLG are named; else BT.709 for high
  definition (1280 pixels or more on the long side, or more than 576 on the short one) and BT.601
  below.
- A matrix that FFmpeg's scaler cannot undo (YCgCo, ICtCp, reserved values): BT.709.
- No range named: limited, but full where the pixel format says so (JPEG).
- Primaries of BT.601 count as those of BT.709: players do the same, and it is hardly visible.
"""

from typing import cast

from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from batch_pipeline.media.apertures import Box
from batch_pipeline.media.pictures import VISION_SIDE
from batch_pipeline.media.tone_mapping import SRGB, Codes, ColourSpace, to_srgb
from batch_pipeline.media.video_side_data import side_data_of

# Numbers of ITU-T H.273, which FFmpeg uses too.
_RGB, _BT709, _UNSPECIFIED, _BT601, _BT2020 = 0, 1, 2, 6, 9
#: Matrices that FFmpeg's scaler undoes.
_KNOWN_MATRICES = {_BT709, 4, 5, _BT601, 7, _BT2020}
_BT2020_PRIMARIES = 9
_HDR_TRANSFERS = {16, 18}
_FULL_RANGE = 2
_WIDE_PRIMARIES = {"bt2020", "p3"}

_HD_LONG_SIDE, _SD_SHORT_SIDE = 1280, 576
#: Longest side to which a whole frame is scaled (pixels). If a tiny part of it is shown, the whole
#: would take gigabytes at the scale of the part.
_LONGEST_SIDE = 2 * VISION_SIDE

#: Sample entries of Dolby Vision.
_DOLBY_VISION_TAGS = {"dvh1", "dvhe", "dva1", "dvav", "dav1"}
#: Code of profile 5, "IPT"; only Dolby's own data can turn it into colours.
_IPT = 15


def to_picture(frame: VideoFrame, size: tuple[int, int], part: Box) -> Image.Image:
    """Scale a part of a frame to `size` and convert it to sRGB, without loss at any bit depth.

    Args:
        frame: the whole frame.
        size: size of the result (pixels).
        part: the part of the frame that is shown.
    """
    space = _colour_space(frame)
    frame.colorspace = _matrix(frame)
    across, down = size[0] / (part[2] - part[0]), size[1] / (part[3] - part[1])
    across, down = min(across, _LONGEST_SIDE / frame.width), min(down, _LONGEST_SIDE / frame.height)
    scaled = frame.reformat(
        width=max(1, round(frame.width * across)),
        height=max(1, round(frame.height * down)),
        format="rgb24" if space == SRGB else "rgb48le",
        dst_color_range=_FULL_RANGE,
        # AREA averages all pixels of a large frame; the default of FFmpeg's scaler skips some.
        interpolation="AREA",
        threads=1,
    )
    picture = Image.fromarray(to_srgb(cast("Codes", scaled.to_ndarray()), space))
    if picture.size == size:
        return picture
    edges = (part[0] * across, part[1] * down, part[2] * across, part[3] * down)
    left, top = min(round(edges[0]), picture.width - 1), min(round(edges[1]), picture.height - 1)
    right, bottom = min(round(edges[2]), picture.width), min(round(edges[3]), picture.height)
    shown = picture.crop((left, top, max(left + 1, right), max(top + 1, bottom)))
    return shown.resize(size, Image.Resampling.BILINEAR) if shown.size != size else shown


def colour_warning(frame: VideoFrame, stream: VideoStream) -> str | None:
    """Return a warning if the colours of a film cannot be shown correctly."""
    is_dolby_vision = stream.codec_tag in _DOLBY_VISION_TAGS or _has_dolby_vision(frame)
    if frame.colorspace == _IPT or (is_dolby_vision and frame.color_trc == _UNSPECIFIED):
        return "colours are not true: Dolby Vision without a picture for other players"
    return None


def _colour_space(frame: VideoFrame) -> ColourSpace:
    space = ColourSpace.from_codes(frame.color_primaries, frame.color_trc)
    if space.is_hdr and frame.color_primaries == _UNSPECIFIED:
        return ColourSpace(space.transfer, "bt2020")
    return space if space.is_hdr or space.primaries in _WIDE_PRIMARIES else SRGB


def _matrix(frame: VideoFrame) -> int:
    matrix = int(frame.colorspace)
    if matrix in _KNOWN_MATRICES or frame.format.is_rgb:
        return matrix
    if matrix != _UNSPECIFIED:
        return _BT709
    if frame.color_primaries == _BT2020_PRIMARIES or frame.color_trc in _HDR_TRANSFERS:
        return _BT2020
    short, long = sorted((frame.width, frame.height))
    return _BT709 if long >= _HD_LONG_SIDE or short > _SD_SHORT_SIDE else _BT601


def _has_dolby_vision(frame: VideoFrame) -> bool:
    try:
        return side_data_of(frame, "DOVI_METADATA") is not None
    except ValueError:  # PyAV does not know this kind of side data
        return False
