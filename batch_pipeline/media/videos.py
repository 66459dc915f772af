"""Videos: a few frames spread over the whole length, whatever the length.

Here: everything that touches PyAV (FFmpeg's libraries). A container is opened by the one demuxer
that was sniffed and reads nothing but the file that it was given: other demuxers follow the
addresses and paths which scripts and playlists name. The size of a frame is judged before one is
decoded, and so is how many are decoded on the way to a position.
"""

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from itertools import islice
from typing import BinaryIO, NoReturn

import av
from av import FFmpegError, Packet
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image, ImageStat

from batch_pipeline.errors import PermanentError
from batch_pipeline.media import sniffing
from batch_pipeline.media.content import Frame, MediaContent, MediaFacts
from batch_pipeline.media.pictures import camera_name, encode_jpeg, thumbnail_maker, vision_size
from batch_pipeline.media.sniffing import MediaType, is_cut_short

#: Frames taken of one video; short ones give one a second.
MAX_FRAMES = 10
#: Largest frame (pixels): 8K cinema, the largest that cameras record. A decoder holds a dozen.
MAX_FRAME_PIXELS = 8192 * 4320
#: Decoded at most on the way from a key frame to a position (pixels, frames): about a second of
#: work. A position that lies further gets the last frame on the way.
_POSITION_PIXELS = 250_000_000
_POSITION_FRAMES = 600
#: A position further ahead than this is reached by a seek instead of decoding on (seconds).
_SEEK_DISTANCE = 4.0
#: A frame whose mean and spread of luminance both stay below these is taken for black (0-255).
_BLACK_MEAN, _BLACK_SPREAD = 32.0, 24.0
#: Pixels that are not square are stretched only within reason (width to height).
_MAX_ASPECT = 4

#: More frames a second are no rate but a clock's tick.
_MAX_FRAME_RATE = 1000
#: Where cameras write maker and model; no other entry is read but the date, as some are positions.
_CAMERA_ENTRIES = (
    ("com.apple.quicktime.make", "com.apple.quicktime.model"),
    ("com.android.manufacturer", "com.android.model"),
    ("make", "model"),
)

#: The one demuxer that may open each type.
_DEMUXERS = {
    sniffing.MP4: "mov",
    sniffing.MOV: "mov",
    sniffing.AVI: "avi",
    sniffing.WEBM: "matroska",
    sniffing.FLV: "flv",
    sniffing.MPEG_PROGRAM: "mpeg",
    sniffing.MPEG_TRANSPORT: "mpegts",
    sniffing.MPEG_ELEMENTARY: "mpegvideo",
}
#: PIL turns against the clock, as the display matrix does.
_TURNS = {
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}


def decode_video(source: BinaryIO, media_type: MediaType) -> MediaContent:
    """Take up to `MAX_FRAMES` frames, each from the middle of one of as many equal parts.

    Frames that cannot be decoded are left out as long as one remains.

    Args:
        source: the file, seekable.
        media_type: what `sniff` said of it.

    Raises:
        PermanentError: ``no_video_stream``, ``too_many_pixels``, ``truncated`` or
            ``unreadable_video``.
    """
    guarded = _Source(source)
    try:
        content = _decode(guarded, media_type)
    except (PermanentError, MemoryError):
        guarded.raise_storage_error()
        raise
    except Exception as error:  # hostile files bring out more than FFmpeg's own errors
        guarded.raise_storage_error()
        raise _explain(error, source, media_type) from error
    guarded.raise_storage_error()
    return content


class _Source:
    """The file as FFmpeg may see it: bytes, without a name; remembers an error of the storage.

    FFmpeg takes an error in reading for the end of the file, so that a storage that fails would
    look like a truncated video.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: Exception | None = None

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            self._error = error
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # Hostile files ask for positions that no file has: an answer, not an error of the storage.
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def raise_storage_error(self) -> None:
        if self._error is not None:
            raise self._error


@dataclass(frozen=True)
class _Taken:
    """One frame, turned as shown, at its vision size."""

    position: float
    """Seconds from the start."""
    picture: Image.Image
    on_its_side: bool
    """Whether width and height of the stream are swapped when shown."""


def _decode(source: _Source, media_type: MediaType) -> MediaContent:
    with _open(source, media_type) as container:
        stream = _video_stream(container, media_type)
        rate = _frame_rate(stream)
        duration = _claimed_duration(container, stream) or _measured_duration(source, media_type)
        reader = _FrameReader(container, stream, rate or 25.0)
        # A seek may lead far back, and the budget end ahead of frames that were taken already.
        taken = sorted(_take_frames(reader, duration or 0.0), key=lambda frame: frame.position)
        if not taken:
            raise ValueError("not one frame could be decoded")
        width, height = _display_size(stream)
        if taken[0].on_its_side:
            width, height = height, width
        facts = MediaFacts(
            file_type="video",
            format=media_type.format,
            width=width,
            height=height,
            captured_at=_captured_at(container.metadata),
            camera=_camera(container.metadata),
            frame_count=stream.frames or max(len(taken), round((duration or 0) * (rate or 0))),
            duration_seconds=duration,
            frame_rate=rate,
            codec=stream.codec_context.codec.canonical_name,
        )
    return MediaContent(
        facts=facts,
        frames=tuple(Frame(encode_jpeg(frame.picture), frame.position) for frame in taken),
        make_thumbnail=thumbnail_maker(_preview_of(taken), width, height),
    )


def _open(source: _Source, media_type: MediaType) -> InputContainer:
    source.seek(0)
    return av.open(
        source,
        "r",
        format=_DEMUXERS[media_type],
        # The limit holds while FFmpeg probes, too, which decodes frames of some formats.
        options={"max_pixels": str(MAX_FRAME_PIXELS), "protocol_whitelist": "none"},
        io_open=_refuse_to_open,
        metadata_errors="replace",
    )


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError("a video may not make us open another file")


def _video_stream(container: InputContainer, media_type: MediaType) -> VideoStream:
    streams = [
        stream
        for stream in container.streams.video
        # The cover of a piece of music is a "video" of one frame.
        if not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        kinds = sorted({str(stream.type) for stream in container.streams}) or ["nothing"]
        raise PermanentError(
            "no_video_stream",
            f"the {media_type.format.upper()} file holds no video, only {', '.join(kinds)}",
        )
    stream = streams[0]
    if stream.codec_context is None:
        raise ValueError("no decoder is installed for its video codec")
    width, height = stream.width, stream.height
    if width * height > MAX_FRAME_PIXELS:
        raise PermanentError(
            "too_many_pixels",
            f"the video's frames are {width} x {height} = {width * height / 1e6:.1f} megapixels; "
            f"at most {MAX_FRAME_PIXELS / 1e6:.1f} megapixels (8K) are accepted",
        )
    # Frames may grow in mid-stream.
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    # Uploads are worked side by side already; more threads only multiply the frames in memory.
    stream.thread_count = 1
    return stream


class _FrameReader:
    """The frames of a stream with their times, passing over what cannot be decoded."""

    def __init__(self, container: InputContainer, stream: VideoStream, rate: float) -> None:
        self._container = container
        self.stream = stream
        self._frame_seconds = 1 / rate
        self._time_base = stream.time_base or Fraction(1, av.time_base)
        self._start = stream.start_time or 0
        self._frames = self._decoded()
        self.position = 0.0
        """Of the frame read last, or 0 (seconds from the start)."""
        #: How many frames are read at most on the way to a position.
        self._budget = max(
            1, min(_POSITION_FRAMES, _POSITION_PIXELS // max(1, stream.width * stream.height))
        )

    def seek(self, position: float) -> None:
        """Go to the last key frame at or ahead of a position; stays where it is if that fails."""
        # Raw streams have no index; a length that is a lie may exceed FFmpeg's clock.
        with suppress(FFmpegError, OverflowError):
            self._container.seek(self._start + int(position / self._time_base), stream=self.stream)
            self._frames = self._decoded()

    def read(self, position: float) -> VideoFrame | None:
        """Return the first frame at or behind a position, or the last that can be had ahead of it.

        None at the end of the stream.
        """
        found = None
        for frame in islice(self._frames, self._budget):
            found = frame
            if frame.time is None:
                self.position += self._frame_seconds
            else:
                self.position = max(0.0, frame.time - float(self._start * self._time_base))
            if self.position >= position:
                break
        return found

    def _decoded(self) -> Iterator[VideoFrame]:
        try:
            for packet in self._container.demux(self.stream):
                yield from (frame for frame in _decode_packet(packet) if not frame.is_corrupt)
        except MemoryError:
            raise
        except FFmpegError:
            return  # the container breaks off: the frames so far count


def _decode_packet(packet: "Packet[VideoStream]") -> list[VideoFrame]:
    try:
        return packet.decode()
    except MemoryError:
        raise
    except FFmpegError:
        return []


def _take_frames(reader: _FrameReader, duration: float) -> Iterator[_Taken]:
    count = max(1, min(MAX_FRAMES, round(duration)))
    positions = [duration * (part + 0.5) / count for part in range(count)]
    seen: set[float] = set()
    for position in positions:
        if position - reader.position > _SEEK_DISTANCE:
            reader.seek(position)
        taken = _take(reader, position)
        if taken is not None and taken.position not in seen:
            seen.add(taken.position)
            yield taken
    if not seen:  # the length was a lie, or no seek works: any frame is better than none
        reader.seek(0.0)
        taken = _take(reader, 0.0)
        if taken is not None:
            yield taken


def _take(reader: _FrameReader, position: float) -> _Taken | None:
    frame = reader.read(position)
    if frame is None:
        return None
    # The target is the same lying and standing, so the frame may be turned when it is small.
    width, height = vision_size(*_display_size(reader.stream))
    # AREA averages all pixels of a large frame; the default of FFmpeg's scaler skips some.
    scaled = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
    picture = Image.fromarray(scaled.to_ndarray())
    turns = round(frame.rotation / 90) % 4
    if turns:
        picture = picture.transpose(_TURNS[turns])
    return _Taken(reader.position, picture, on_its_side=turns % 2 == 1)


def _display_size(stream: VideoStream) -> tuple[int, int]:
    """Width and height before rotation, with pixels that are not square stretched (DVD, DV)."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, _MAX_ASPECT) <= aspect <= _MAX_ASPECT:
        aspect = Fraction(1)
    return round(stream.width * aspect), stream.height


def _preview_of(taken: list[_Taken]) -> Image.Image:
    """The first frame that is not black, as many videos fade in; of black ones the brightest."""
    lights = []
    for frame in taken:
        luminance = ImageStat.Stat(frame.picture.convert("L"))
        if luminance.mean[0] >= _BLACK_MEAN or luminance.stddev[0] >= _BLACK_SPREAD:
            return frame.picture
        lights.append(luminance.mean[0])
    return taken[lights.index(max(lights))].picture


def _frame_rate(stream: VideoStream) -> float | None:
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate if 0 < rate <= _MAX_FRAME_RATE else None


def _claimed_duration(container: InputContainer, stream: VideoStream) -> float | None:
    """What the container says (seconds); None when it says nothing, as live recordings do."""
    if stream.duration and stream.duration > 0 and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and container.duration > 0:
        return container.duration / av.time_base
    return None


def _measured_duration(source: _Source, media_type: MediaType) -> float | None:
    """Read all packets, decoding none, for the time of the last (seconds)."""
    # A container of its own, as not all can be rewound; the other one must find its place again.
    place = source.tell()
    packets, first, end = 0, None, 0
    with _open(source, media_type) as container:
        stream = _video_stream(container, media_type)
        for packet in container.demux(stream):
            if packet.size == 0:  # asks decoders for what they still hold
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


def _captured_at(metadata: dict[str, str]) -> datetime | None:
    # Only this entry is the camera's local time. `creation_time` is UTC by the standard, without a
    # hint of the zone, and would name the wrong hour or day.
    try:
        local = datetime.fromisoformat(metadata["com.apple.quicktime.creationdate"])
    except (KeyError, ValueError):
        return None
    return local.replace(tzinfo=None)


def _camera(metadata: dict[str, str]) -> str | None:
    for make, model in _CAMERA_ENTRIES:
        name = camera_name(metadata.get(make), metadata.get(model))
        if name:
            return name
    return None


def _explain(error: Exception, source: BinaryIO, media_type: MediaType) -> PermanentError:
    name = media_type.format.upper()
    reason = error.strerror if isinstance(error, FFmpegError) else str(error)
    if is_cut_short(source, media_type):
        length = source.seek(0, io.SEEK_END)
        return PermanentError(
            "truncated", f"the {name} ends before its content does, after {length} bytes: {reason}"
        )
    return PermanentError("unreadable_video", f"the {name} cannot be decoded: {reason}")
