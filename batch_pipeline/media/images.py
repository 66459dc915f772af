"""Images: one decode, no larger than needed, makes the vision input and the thumbnail.

This module turns a file into a picture that is upright and in sRGB, and checks limits first.
`batch_pipeline.media.stills` decodes the formats.
"""

import io

from PIL import Image

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.content import Frame, MediaContent, MediaFacts
from batch_pipeline.media.memory import DEFAULT_DECODE_BYTES
from batch_pipeline.media.metadata import Metadata, read_metadata
from batch_pipeline.media.pictures import VISION_PATCH, encode_jpeg, thumbnail_maker, vision_size
from batch_pipeline.media.sniffing import MediaType, is_cut_short
from batch_pipeline.media.stills.colours import to_opaque_srgb
from batch_pipeline.media.stills.formats import DECODERS
from batch_pipeline.media.stills.interest import Interest, interest_of
from batch_pipeline.media.stills.still import IncompletePictureError, Still

#: Larger pictures are refused even if there is enough memory: they take many seconds.
MAX_PIXELS = 1_000_000_000
#: A file that claims more pixels than the first number may have at most the second number of
#: pixels per byte. Photos have 1 to 10, blank pages some hundreds, made-up files thousands.
_BOMB_PIXELS, _BOMB_PIXELS_PER_BYTE = 100_000_000, 1000
#: The operation that undoes each EXIF orientation.
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Orientations 5 to 8 turn the picture on its side.
_FIRST_QUARTER_TURN = 5
#: Limits of the search for a frame that shows something (pixels, frames): about a second.
_SEARCH_PIXELS, _SEARCH_FRAMES = 100_000_000, 100


def decode_image(
    data: bytes,
    media_type: MediaType,
    *,
    max_bytes: int = DEFAULT_DECODE_BYTES,
    patch: int = VISION_PATCH,
) -> MediaContent:
    """Decode an image file. For an animation, take the first frame that shows something.

    Args:
        data: the file.
        media_type: the result of `sniff`.
        max_bytes: memory that decoding may use, besides the file.
        patch: sides of the picture for the vision model are multiples of this (pixels).

    Raises:
        PermanentError: ``too_many_pixels``, ``oversized_metadata``, ``truncated`` or
            ``unreadable_image``. Its `preview` has the decoded part of a truncated picture.
    """
    still: Still | None = None
    try:
        still = DECODERS[media_type.format](data)
        target = _check_size(still, len(data), max_bytes, patch)
        shown = _best_frame(still, target)
    except (PermanentError, MemoryError):
        raise
    except Exception as error:  # decoders raise all kinds of errors on hostile files
        raise _explain(error, still, data, media_type) from error
    metadata = _metadata(still)
    width, height = still.size
    shown, lies = _upright(shown, still, metadata)
    if lies:
        width, height = height, width
    facts = MediaFacts(
        file_type="image",
        format=media_type.format,
        width=width,
        height=height,
        captured_at=metadata.captured_at,
        date_source=metadata.date_source,
        camera=metadata.camera,
        caption=metadata.caption,
        place=metadata.place,
        frame_count=still.frame_count,
        clip=still.clip or _live_photo(metadata),
        warnings=tuple(still.warnings),
    )
    return MediaContent(
        facts=facts,
        frames=(Frame(encode_jpeg(shown)),),
        make_thumbnail=thumbnail_maker(shown, width, height),
    )


def _check_size(still: Still, file_bytes: int, max_bytes: int, patch: int) -> tuple[int, int]:
    """Refuse a picture that is too large; return the size to decode to."""
    width, height = still.size
    if width < 1 or height < 1:
        raise PermanentError("unreadable_image", f"the picture claims to be {width} x {height}")
    pixels = width * height
    claim = f"the picture is {width} x {height} = {pixels / 1e6:.1f} megapixels"
    if pixels > MAX_PIXELS:
        raise PermanentError(
            "too_many_pixels", f"{claim}; at most {MAX_PIXELS / 1e6:,.0f} megapixels are accepted"
        )
    if pixels > _BOMB_PIXELS and pixels > file_bytes * _BOMB_PIXELS_PER_BYTE:
        raise PermanentError(
            "too_many_pixels",
            f"{claim} in {file_bytes:,} bytes; above {_BOMB_PIXELS / 1e6:.0f} megapixels, a file "
            f"may have at most {_BOMB_PIXELS_PER_BYTE} pixels a byte",
        )
    target = vision_size(width, height, patch)
    needed = still.memory(target)
    if needed > max_bytes:
        raise PermanentError(
            "too_many_pixels",
            f"{claim}, which takes {needed / 1024**2:.0f} MiB to decode; at most "
            f"{max_bytes / 1024**2:.0f} MiB may be used (BATCH_PIPELINE_MAX_DECODE_MIB)",
        )
    return target


def _best_frame(still: Still, target: tuple[int, int]) -> Image.Image:
    """Return the first frame, or a later one if the first shows nothing, in sRGB."""

    def converted(picture: Image.Image) -> Image.Image:
        return to_opaque_srgb(picture, still.icc_profile, still.space)

    first = still.scaled(target)
    still.judge_missing_bytes(first)
    shown = converted(first)
    if still.frame_count == 1:
        return shown
    interest = interest_of(first)
    width, height = still.size
    frames = min(still.frame_count, _SEARCH_FRAMES, max(2, _SEARCH_PIXELS // (width * height)))
    for index in range(1, frames):
        if interest is Interest.VARIED:
            break
        try:
            frame = still.scaled_frame(index, target)
        except MemoryError:
            raise
        except Exception:  # keep the frames so far
            still.warnings.append(f"damaged: frame {index + 1} of the animation cannot be decoded")
            break
        if interest_of(frame) > interest:
            shown, interest = converted(frame), interest_of(frame)
    return shown


def _metadata(still: Still) -> Metadata:
    return read_metadata(still.exif, still.xmp, still.iptc, made=still.made, changed=still.changed)


def _upright(picture: Image.Image, still: Still, metadata: Metadata) -> tuple[Image.Image, bool]:
    """Turn a picture as its metadata says; also return whether width and height are swapped."""
    orientation = still.orientation or metadata.orientation
    if orientation in _ORIENTATIONS:
        picture = picture.transpose(_ORIENTATIONS[orientation])
    return picture, orientation >= _FIRST_QUARTER_TURN


def _live_photo(metadata: Metadata) -> str | None:
    """Name the film that an iPhone stores as a separate file."""
    return metadata.live_photo and f"the film of the Live Photo {metadata.live_photo}"


def _explain(
    error: Exception, still: Still | None, data: bytes, media_type: MediaType
) -> PermanentError:
    name = media_type.format.upper()
    reason = " ".join(str(error).split())
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return PermanentError("too_many_pixels", f"the {name} picture is too large: {reason}")
    preview = None
    if still is not None and isinstance(error, IncompletePictureError) and error.rest is not None:
        rest = to_opaque_srgb(error.rest, still.icc_profile, still.space)
        rest, _ = _upright(rest, still, _metadata(still))
        preview = thumbnail_maker(rest, *rest.size)()
    if (
        (still is not None and still.is_cut)
        or "file is truncated" in reason  # Pillow needed more bytes than there are
        or is_cut_short(io.BytesIO(data), media_type)
    ):
        return PermanentError(
            "truncated",
            f"the {name} ends before its picture does, after {len(data)} bytes: {reason}",
            preview=preview,
        )
    return PermanentError(
        "unreadable_image", f"the {name} cannot be decoded: {reason}", preview=preview
    )
