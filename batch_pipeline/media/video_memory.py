"""How much memory the frames of a film take, and what happens if that is more than allowed.

A decoder holds frames that other frames refer to, and frames that wait for their turn. If these
need too much memory, only key frames are decoded, which do not need other frames. If even these
need too much, the film is refused. FFmpeg gets the limit before its first allocation.

Measured: H.264 with five references takes 12.6 frames at its peak, with one reference 6.2. Key
frames alone take 1.5 to 2.6.
"""

from dataclasses import dataclass

from av.video.stream import VideoStream

#: Frames in memory at the peak: if all frames are decoded, and if only key frames are.
_FRAMES, _KEY_FRAMES = 14, 3
#: Other memory: packets, the pictures at their vision size, and their conversion (bytes).
_BESIDE = 32 * 1024**2
#: Decoders may make the sides of a frame this much longer (pixels).
_PADDING = 64
#: Least memory of a pixel: 8 bits, with colours at the usual quarter of the size (bytes).
_LEAST_PIXEL_BYTES = 1.5


@dataclass(frozen=True)
class FrameMemory:
    """The memory limit for one film."""

    max_bytes: int
    """Memory that decoding may use, besides the file."""

    @property
    def max_pixels(self) -> int:
        """Return the most pixels of a frame in any format; larger frames do not fit."""
        return self._pixels_that_fit(_KEY_FRAMES, _LEAST_PIXEL_BYTES)

    @property
    def max_pixels_of_all_frames(self) -> int:
        """Return the same if all frames are decoded, and not only key frames."""
        return self._pixels_that_fit(_FRAMES, _LEAST_PIXEL_BYTES)

    def fits(self, stream: VideoStream) -> bool:
        """Return whether at least the key frames of a stream can be decoded."""
        return pixels_of(stream) <= self._pixels_that_fit(_KEY_FRAMES, pixel_bytes(stream))

    def max_pixels_of(self, stream: VideoStream) -> int:
        """Return the most pixels of a frame, because frames may become larger in the stream."""
        frames = _KEY_FRAMES if self.holds_key_frames_alone(stream) else _FRAMES
        padded = (stream.width + _PADDING) * (stream.height + _PADDING)
        return max(self._pixels_that_fit(frames, pixel_bytes(stream)), padded)

    def holds_key_frames_alone(self, stream: VideoStream) -> bool:
        """Return whether only the key frames of a stream can be decoded."""
        return pixels_of(stream) > self._pixels_that_fit(_FRAMES, pixel_bytes(stream))

    def needed(self, stream: VideoStream) -> int:
        """Return the memory that key frames of a stream take (bytes)."""
        return round(_KEY_FRAMES * pixels_of(stream) * pixel_bytes(stream)) + _BESIDE

    def _pixels_that_fit(self, frames: int, bytes_a_pixel: float) -> int:
        return max(0, int((self.max_bytes - _BESIDE) / (frames * bytes_a_pixel)))


def pixels_of(stream: VideoStream) -> int:
    """Return the pixels of a frame, by the container and the codec."""
    return stream.width * stream.height


def pixel_bytes(stream: VideoStream) -> float:
    """Return the bytes of a pixel in the format of a stream."""
    bits = stream.format.padded_bits_per_pixel if stream.format else 0
    return max(_LEAST_PIXEL_BYTES if not bits else bits / 8, 1.0)
