"""How much memory the frames of a film take, and what is done where that is more than allowed.

A decoder holds frames that others refer to, and frames that wait for their turn. Where these would
take too much, key frames alone are decoded, which need no others; where even these would, the film
is refused, and FFmpeg is told the limit ahead of its first allocation.

Measured: H.264 with five references takes 12.6 frames at its peak, with one 6.2; key frames alone
take 1.5 to 2.6.
"""

from dataclasses import dataclass

from av.video.stream import VideoStream

#: Held at the peak: of all frames, and of key frames alone.
_FRAMES, _KEY_FRAMES = 14, 3
#: Beside the frames: packets, the pictures at their vision size, and their conversion (bytes).
_BESIDE = 32 * 1024**2
#: The least that a pixel takes: 8 bits at the usual quarter of colours (bytes).
_LEAST_PIXEL_BYTES = 1.5


@dataclass(frozen=True)
class FrameMemory:
    """The bound for one film."""

    max_bytes: int
    """What its decode may take, besides the file."""

    @property
    def max_pixels(self) -> int:
        """Frames of more pixels do not fit, whatever their format."""
        return self._pixels_that_fit(_KEY_FRAMES, _LEAST_PIXEL_BYTES)

    def fits(self, stream: VideoStream) -> bool:
        """Whether key frames of a stream can be decoded, at least."""
        return pixels_of(stream) <= self.max_pixels_of(stream)

    def max_pixels_of(self, stream: VideoStream) -> int:
        """The most pixels that a frame in the format of a stream may have."""
        return self._pixels_that_fit(_KEY_FRAMES, pixel_bytes(stream))

    def holds_key_frames_alone(self, stream: VideoStream) -> bool:
        """Whether the other frames have to be left out."""
        return pixels_of(stream) > self._pixels_that_fit(_FRAMES, pixel_bytes(stream))

    def needed(self, stream: VideoStream) -> int:
        """What key frames of a stream take (bytes)."""
        return round(_KEY_FRAMES * pixels_of(stream) * pixel_bytes(stream)) + _BESIDE

    def _pixels_that_fit(self, frames: int, bytes_a_pixel: float) -> int:
        return max(0, int((self.max_bytes - _BESIDE) / (frames * bytes_a_pixel)))


def pixels_of(stream: VideoStream) -> int:
    """Of a frame, as the container and the codec tell."""
    return stream.width * stream.height


def pixel_bytes(stream: VideoStream) -> float:
    """What a pixel takes in the format of a stream."""
    bits = stream.format.padded_bits_per_pixel if stream.format else 0
    return max(_LEAST_PIXEL_BYTES if not bits else bits / 8, 1.0)
