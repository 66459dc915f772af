"""Videos: from the bytes of a film to a few pictures of it and its facts.

This module has the order of the steps, and handles their failures. The steps:

- `video_streams`: open the container, choose the stream that is the film;
- `video_sampling`: frames spread over its whole length, in bounded work;
- `video_geometry`: cut, turn, mirror and stretch as a player does;
- `video_colours`: matrix, range and dynamic range, to sRGB;
- `video_metadata`: date and camera.

If some frames can be shown, a broken part never fails the film: the facts have a warning.
"""

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count, islice
from typing import BinaryIO

import av
from av import FFmpegError
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image, ImageStat

from batch_pipeline.errors import PermanentError
from batch_pipeline.media import video_metadata
from batch_pipeline.media.content import Frame, MediaContent, MediaFacts
from batch_pipeline.media.memory import DEFAULT_DECODE_BYTES
from batch_pipeline.media.pictures import VISION_PATCH, encode_jpeg, thumbnail_maker, vision_size
from batch_pipeline.media.sniffing import (
    AVI,
    MPEG_CAMCORDER,
    MPEG_ELEMENTARY,
    MPEG_TRANSPORT,
    MediaType,
    is_cut_short,
    room_ahead,
)
from batch_pipeline.media.stills.interest import Interest, interest_of
from batch_pipeline.media.video_colours import colour_warning, to_picture
from batch_pipeline.media.video_geometry import (
    ISO_FILMS,
    Aperture,
    aperture,
    is_on_its_side,
    placement,
    square_pixel_size,
)
from batch_pipeline.media.video_headers import (
    HEADER_BYTES,
    CamcorderNote,
    dates_in_header,
    note_of_camcorder,
)
from batch_pipeline.media.video_index import require_bounded_index
from batch_pipeline.media.video_memory import FrameMemory
from batch_pipeline.media.video_sampling import MOST_PACKETS, FrameReader
from batch_pipeline.media.video_streams import (
    Source,
    film_streams,
    open_container,
    read_alone,
    too_large_frames,
)

#: Approximate size of the copy on which a frame's content is judged (pixels, shorter side).
_JUDGED_SIDE = 128
#: Where to look for another frame if all frames show nothing (parts of the length).
_FURTHER_LOOKS = (0.97, 0.75, 0.25, 0.03)
#: Formats in which camcorders write their own data, and in how many of the first packets.
_CAMCORDER_FILMS, _NOTED_PACKETS = {MPEG_TRANSPORT, MPEG_CAMCORDER}, 50
#: More frames a second are not a frame rate but the tick of a clock.
_MAX_FRAME_RATE = 1000


def decode_video(
    source: BinaryIO,
    media_type: MediaType,
    *,
    max_bytes: int = DEFAULT_DECODE_BYTES,
    patch: int = VISION_PATCH,
) -> MediaContent:
    """Take up to `video_sampling.MAX_FRAMES` frames, spread over the whole length.

    Frames that cannot be decoded are left out, as long as at least one remains.

    Args:
        source: the file, seekable.
        media_type: the result of `sniff`.
        max_bytes: memory that decoding may use, besides the file.
        patch: sides of the frames for the vision model are multiples of this (pixels).

    Raises:
        PermanentError: ``no_video_stream``, ``too_many_pixels``, ``truncated`` or
            ``unreadable_video``.
    """
    guarded, memory = Source(source), FrameMemory(max_bytes)
    try:
        if media_type in ISO_FILMS:
            require_bounded_index(guarded, memory)
        content = _decode(guarded, media_type, memory, patch)
        if content is None:
            # Empty space before a finished file moves it: positions in the file then count from the
            # end of that space.
            guarded.origin = room_ahead(source)
            content = _decode(guarded, media_type, memory, patch) if guarded.origin else None
        if content is None:
            raise ValueError("not one frame could be decoded")
    except Exception as error:  # hostile files cause more than FFmpeg's own errors
        guarded.raise_storage_error()
        # FFmpeg also reports too many streams as a lack of memory.
        if isinstance(error, PermanentError | MemoryError) and not isinstance(error, FFmpegError):
            raise
        too_large = too_large_frames(guarded, media_type, memory)
        raise too_large or _explain(error, guarded, media_type) from error
    guarded.raise_storage_error()
    return content


def _decode(
    source: Source, media_type: MediaType, memory: FrameMemory, patch: int
) -> MediaContent | None:
    """Decode the best stream that can be decoded; None if there is none."""
    failure: FFmpegError | None = None
    for choice in count():
        with open_container(source, media_type, memory) as container:
            streams = film_streams(container, media_type, memory)
            if choice >= len(streams):
                break
            try:
                content = _content_of(
                    source, container, streams[choice], media_type, memory, patch=patch
                )
            except FFmpegError as error:  # a decoder that cannot be opened
                failure = failure or error
                continue
        if content is not None:
            return content
    if failure is not None:
        raise failure
    return None


def _content_of(
    source: Source,
    container: InputContainer,
    stream: VideoStream,
    media_type: MediaType,
    memory: FrameMemory,
    *,
    patch: int,
) -> MediaContent | None:
    """Decode one stream; None if no frame of it can be decoded."""
    read_alone(container, stream, memory)
    rate = _frame_rate(stream)
    # For a bare stream FFmpeg only guesses, from the claimed bit rate.
    is_bare = media_type is MPEG_ELEMENTARY
    duration = None if is_bare else _claimed_duration(container, stream)
    if duration is None:
        duration = _measured_duration(source, media_type, stream.index, memory)
    reader = FrameReader(
        container, stream, rate or 25.0, key_frames_alone=memory.holds_key_frames_alone(stream)
    )
    shown = aperture(source, stream, media_type)
    taken = [_take(frame, reader, stream, shown, patch) for frame in reader.frames(duration or 0.0)]
    if not taken:
        return None
    if all(each.dullness[0] for each in taken):
        taken += _further_look(reader, stream, duration or 0.0, shown, patch)
    # Frames may be out of order: a seek may go far back, and the budget may end before it reaches
    # frames that were already taken.
    taken.sort(key=lambda each: each.position)
    warnings = [each.warning for each in taken if each.warning]
    warnings += _warnings_of(reader, source, media_type, duration)
    entries = (container.metadata, stream.metadata)
    header = _dates_in_header(source, media_type)
    note = CamcorderNote()
    if media_type in _CAMCORDER_FILMS and stream.codec_context.codec.canonical_name == "h264":
        note = _note_of_camcorder(source, media_type, stream.index, memory)
    if note.date:
        header.append(("AVCHD camcorder", note.date))
    captured_at, date_source = video_metadata.captured_at(
        entries, header, a_day_will_do=media_type is AVI
    )
    preview = min(taken, key=lambda each: each.dullness)
    return MediaContent(
        facts=MediaFacts(
            file_type="video",
            format=media_type.format,
            width=taken[0].width,
            height=taken[0].height,
            captured_at=captured_at,
            date_source=date_source,
            camera=video_metadata.camera(entries) or note.camera,
            frame_count=stream.frames or max(len(taken), round((duration or 0) * (rate or 0))),
            duration_seconds=duration,
            frame_rate=rate,
            codec=stream.codec_context.codec.canonical_name,
            warnings=tuple(dict.fromkeys(warnings)),
        ),
        frames=tuple(Frame(encode_jpeg(each.picture), each.position) for each in taken),
        make_thumbnail=thumbnail_maker(preview.picture, preview.width, preview.height),
    )


def _dates_in_header(source: Source, media_type: MediaType) -> list[tuple[str, datetime]]:
    place = source.tell()
    source.seek(0)
    head = source.read(HEADER_BYTES)
    source.seek(place)
    return dates_in_header(head, media_type)


def _note_of_camcorder(
    source: Source, media_type: MediaType, index: int, memory: FrameMemory
) -> CamcorderNote:
    """Read a camcorder's data in its first frames, in a separate container."""
    place = source.tell()
    try:
        with open_container(source, media_type, memory) as container:
            stream = next(each for each in container.streams.video if each.index == index)
            read_alone(container, stream, memory)
            for packet in islice(container.demux(stream), _NOTED_PACKETS):
                note = note_of_camcorder(bytes(packet))
                if note.date or note.camera:
                    return note
    except FFmpegError:  # a broken part ends the search
        pass
    finally:
        source.seek(place)
    return CamcorderNote()


@dataclass(frozen=True)
class _Taken:
    """One frame, as shown, at its vision size."""

    position: float
    """Seconds from the start."""
    picture: Image.Image
    width: int
    """Of the original as shown (pixels)."""
    height: int
    dullness: tuple[int, float]
    """0 if it shows something, else more; of empty frames, the brightest has the lowest value."""
    warning: str | None


def _take(
    frame: VideoFrame, reader: FrameReader, stream: VideoStream, shown: Aperture, patch: int
) -> _Taken:
    part = shown((frame.width, frame.height))
    width, height = square_pixel_size(part, stream)
    transpose, warning = placement(frame), colour_warning(frame, stream)
    # The target size is the same after a rotation, so the frame can be turned when it is small.
    picture = to_picture(frame, vision_size(width, height, patch), part)
    if transpose is not None:
        picture = picture.transpose(transpose)
    if is_on_its_side(transpose):
        width, height = height, width
    return _Taken(reader.position, picture, width, height, _dullness(picture), warning)


def _dullness(picture: Image.Image) -> tuple[int, float]:
    small = picture.reduce(max(1, min(picture.size) // _JUDGED_SIDE))
    interest = interest_of(small)
    light = ImageStat.Stat(small.convert("L")).mean[0] if interest is Interest.NOTHING else 0.0
    return Interest.VARIED - interest, -light


def _further_look(
    reader: FrameReader, stream: VideoStream, duration: float, shown: Aperture, patch: int
) -> list[_Taken]:
    """Look for another frame that shows something, besides those of the parts."""
    for share in _FURTHER_LOOKS:
        frame = reader.frame_at(duration * share)
        if frame is not None:
            taken = _take(frame, reader, stream, shown, patch)
            if taken.dullness[0] == 0:
                return [taken]
    return []


def _warnings_of(
    reader: FrameReader, source: Source, media_type: MediaType, duration: float | None
) -> Iterator[str]:
    if reader.parts_missed and reader.key_frames_alone:
        yield (
            f"{reader.parts_missed} parts of the film are not shown: its frames are so large that "
            "only key frames are decoded, and these are too far apart"
        )
    elif reader.parts_missed:
        yield (
            f"{reader.parts_missed} frames come before their part of the film, the last at "
            f"{reader.reached:.0f} s of {duration or 0:.0f} s: its key frames are too far apart"
        )
    if reader.bad_packets:
        yield f"damaged: frames could not be decoded ({reader.bad_packets} found)"
    if is_cut_short(source, media_type):
        length = source.seek(0, io.SEEK_END)
        yield f"damaged: the file ends before its content does, after {length} bytes"
    elif reader.broke_off:
        yield f"damaged: the file cannot be read to its end: {reader.broke_off}"


def _frame_rate(stream: VideoStream) -> float | None:
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate if 0 < rate <= _MAX_FRAME_RATE else None


def _claimed_duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the container's duration (seconds); None if it has none, as in live recordings."""
    if stream.duration and stream.duration > 0 and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and container.duration > 0:
        return container.duration / av.time_base
    return None


def _measured_duration(
    source: Source, media_type: MediaType, index: int, memory: FrameMemory
) -> float | None:
    """Read the packets of a stream without decoding, to get the time of the last (seconds)."""
    # A separate container, because not all can be rewound; the other must find its place again.
    place = source.tell()
    packets, first, end = 0, None, 0
    with open_container(source, media_type, memory) as container:
        stream = next(each for each in container.streams.video if each.index == index)
        read_alone(container, stream, memory)
        with suppress(FFmpegError):  # a broken part ends the measure, and not the film
            for packet in islice(container.demux(stream), MOST_PACKETS):
                if packet.size == 0:  # an empty packet only flushes decoders
                    continue
                packets += 1
                time = packet.pts if packet.pts is not None else packet.dts
                if time is not None:
                    first = time if first is None else min(first, time)
                    end = max(end, time + (packet.duration or 0))
        rate = _frame_rate(stream)
        time_base = stream.time_base
    source.seek(place)
    if first is not None and end > first and time_base:
        return float((end - first) * time_base)
    return packets / rate if packets and rate else None


def _explain(error: Exception, source: Source, media_type: MediaType) -> PermanentError:
    name = media_type.format.upper()
    reason = error.strerror if isinstance(error, FFmpegError) else str(error)
    if isinstance(error, EOFError) or is_cut_short(source, media_type):
        length = source.seek(0, io.SEEK_END)
        return PermanentError(
            "truncated", f"the {name} ends before its content does, after {length} bytes: {reason}"
        )
    return PermanentError("unreadable_video", f"the {name} cannot be decoded: {reason}")
