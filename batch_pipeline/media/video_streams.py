"""Opens the containers of films with one demuxer, and chooses the stream that is the film.

This module ensures that a container reads only its own bytes, and chooses among its streams. A
container is opened only by the demuxer for its sniffed type: other demuxers follow the addresses
and paths in scripts and playlists.
"""

import io
from collections.abc import Iterable
from typing import BinaryIO, NoReturn

import av
from av import FFmpegError
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from batch_pipeline.errors import PermanentError
from batch_pipeline.media import sniffing
from batch_pipeline.media.sniffing import MediaType
from batch_pipeline.media.video_memory import FrameMemory, pixel_bytes, pixels_of

#: Streams of one container that are tried; each may be read to its end.
_MAX_CHOICES = 3

#: The one demuxer that may open each type.
_DEMUXERS = {
    sniffing.MP4: "mov",
    sniffing.MOV: "mov",
    sniffing.THREE_GP: "mov",
    sniffing.AVI: "avi",
    sniffing.WEBM: "matroska",
    sniffing.MKV: "matroska",
    sniffing.WMV: "asf",
    sniffing.OGV: "ogg",
    sniffing.MXF: "mxf",
    sniffing.FLV: "flv",
    sniffing.MPEG_PROGRAM: "mpeg",
    sniffing.MPEG_TRANSPORT: "mpegts",
    sniffing.MPEG_CAMCORDER: "mpegts",
    sniffing.MPEG_ELEMENTARY: "mpegvideo",
}
#: Streams with these marks are not the film: the cover of a piece of music, the stills of chapters,
#: a layer that shows nothing without another stream.
_NO_FILM = (
    Disposition.attached_pic
    | Disposition.timed_thumbnails
    | Disposition.still_image
    | Disposition.dependent
)
#: Codecs of still pictures: a stream in one of them is the film only if there is no better one.
_STILL_CODECS = {"mjpeg", "png", "gif", "bmp", "webp", "tiff", "jpegls", "mjpegb"}
#: Not decoded, not even as a cover: texts in a PNG are unpacked without a limit.
_REFUSED_CODECS = {"png", "apng"}
_DECODERS = ",".join(sorted(av.codecs_available - _REFUSED_CODECS))
#: PyAV passes no limits on for the probing of files whose header has no list of streams.
_WITHOUT_LIMITS = {sniffing.FLV, sniffing.MPEG_PROGRAM}
#: For a look at the streams; the length is not searched for at the end of the file.
_WITHOUT_DECODERS = {"codec_whitelist": "none", "skip_estimate_duration_from_pts": "1"}


class Source:
    """The file as FFmpeg sees it: bytes without a name. It remembers an error of the storage.

    FFmpeg treats a read error as the end of the file, so a failing storage would look like a
    truncated video.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: Exception | None = None
        self.origin = 0
        """Where the file begins for FFmpeg (bytes)."""

    def read(self, size: int = -1) -> bytes:
        """Read this many bytes, or all."""
        try:
            return self._file.read(size)
        except Exception as error:
            self._error = error
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, counted from `origin`."""
        # Hostile files seek to impossible positions. That must not count as a storage error.
        if whence == io.SEEK_SET:
            offset += self.origin
        return self._file.seek(offset, whence) - self.origin

    def tell(self) -> int:
        """Return the position, counted from `origin`."""
        return self._file.tell() - self.origin

    def raise_storage_error(self) -> None:
        """Raise the error that reading the file raised, if any."""
        if self._error is not None:
            raise self._error


def open_container(source: Source, media_type: MediaType, memory: FrameMemory) -> InputContainer:
    """Open a file as the type that was sniffed, even if it also looks like another type."""
    container = _open(source, media_type, _WITHOUT_DECODERS)
    films = _known(container.streams.video)
    # FFmpeg probes by decoding some frames of all streams, and holds them until it is done.
    pixels = sum(map(pixels_of, films))
    few = 0 < pixels <= memory.max_pixels_of_all_frames
    if pixels > memory.max_pixels or (media_type in _WITHOUT_LIMITS and not few):
        return container
    container.close()
    limits = {"max_pixels": str(memory.max_pixels // max(1, len(films)))}
    return _open(source, media_type, limits if few else {**limits, "skip_frame": "nokey"})


def too_large_frames(
    source: Source, media_type: MediaType, memory: FrameMemory
) -> PermanentError | None:
    """Return an error if a file that did not decode claims frames that are too large.

    FFmpeg forgets a size above its limit, so the file is opened here without a limit and without a
    decoder.
    """
    try:
        with _open(source, media_type, _WITHOUT_DECODERS) as container:
            large = [each for each in _known(container.streams.video) if not memory.fits(each)]
            return _too_many_pixels(large[0], memory) if large else None
    except FFmpegError:
        return None


def _open(source: Source, media_type: MediaType, options: dict[str, str]) -> InputContainer:
    source.seek(0)
    return av.open(
        source,
        "r",
        format=_DEMUXERS[media_type],
        options={"protocol_whitelist": "none", "codec_whitelist": _DECODERS, **options},
        io_open=_refuse_to_open,
        metadata_errors="replace",
    )


def _known(streams: Iterable[VideoStream]) -> list[VideoStream]:
    """Return the streams of codecs that are known; the others have no size either."""
    return [stream for stream in streams if stream.codec_context is not None]


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError("a video may not make us open another file")


def film_streams(
    container: InputContainer, media_type: MediaType, memory: FrameMemory
) -> list[VideoStream]:
    """Return the streams that may be the film, the best first; never an empty list.

    The order is: moving streams before stills, frames of at least half the largest size before
    smaller ones, the default stream before others, and larger before smaller ones.

    Raises:
        PermanentError: ``no_video_stream``, ``too_many_pixels`` or ``unreadable_video``.
    """
    films = [stream for stream in container.streams.video if not _is_beside(stream, container)]
    if not films:
        raise PermanentError("no_video_stream", _what_there_is(container, media_type))
    readable = [each for each in _known(films) if each.codec_context.name not in _REFUSED_CODECS]
    if not readable:
        raise PermanentError(
            "unreadable_video",
            f"no decoder is installed for the video of the {media_type.format.upper()} file, or it "
            "consists of PNG pictures, which are not accepted",
        )
    bounded = [stream for stream in readable if memory.fits(stream)]
    if not bounded:
        raise _too_many_pixels(readable[0], memory)
    largest = max(pixels_of(stream) for stream in bounded if _moves(stream) == _any_moves(bounded))

    def rank(stream: VideoStream) -> tuple[bool, bool, bool, int]:
        return (
            _moves(stream),
            2 * pixels_of(stream) >= largest,
            bool(stream.disposition & Disposition.default),
            pixels_of(stream),
        )

    return sorted(bounded, key=rank, reverse=True)[:_MAX_CHOICES]


def read_alone(container: InputContainer, stream: VideoStream, memory: FrameMemory) -> None:
    """Make the container read and decode only this stream, within the limits of a frame."""
    for other in container.streams:
        # Sound and subtitles are not needed, and broken ones would cost time.
        other.discard = Discard.default if other is stream else Discard.all
    # Frames may become larger in the middle of the stream.
    stream.codec_context.options = {"max_pixels": str(memory.max_pixels_of(stream))}
    # Uploads are already processed in parallel; more threads would only put more frames in memory.
    stream.thread_count = 1


def _too_many_pixels(stream: VideoStream, memory: FrameMemory) -> PermanentError:
    width, height = stream.width, stream.height
    return PermanentError(
        "too_many_pixels",
        f"the video's frames are {width} x {height} = {width * height / 1e6:.1f} megapixels of "
        f"{pixel_bytes(stream):g} bytes, which takes {memory.needed(stream) / 1024**2:.0f} MiB to "
        f"decode; at most {memory.max_bytes / 1024**2:.0f} MiB may be used "
        "(BATCH_PIPELINE_MAX_DECODE_MIB)",
    )


def _is_beside(stream: VideoStream, container: InputContainer) -> bool:
    """Return whether a stream is a picture that belongs to a film or a piece of music."""
    if stream.disposition & _NO_FILM:
        return True
    return stream.frames == 1 and _is_still_codec(stream) and bool(container.streams.audio)


def _is_still_codec(stream: VideoStream) -> bool:
    context = stream.codec_context
    return context is not None and context.codec.canonical_name in _STILL_CODECS


def _moves(stream: VideoStream) -> bool:
    return stream.frames != 1 and not _is_still_codec(stream)


def _any_moves(streams: list[VideoStream]) -> bool:
    return any(_moves(stream) for stream in streams)


def _what_there_is(container: InputContainer, media_type: MediaType) -> str:
    kinds = {str(stream.type) for stream in container.streams if stream.type != "video"}
    if container.streams.video:
        kinds.add("a cover picture")
    found = ", ".join(sorted(kinds)) or "nothing"
    return f"the {media_type.format.upper()} file holds no video, only {found}"
