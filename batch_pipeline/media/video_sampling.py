"""Frames spread over the whole length of a film of any length, with limited work.

A film is divided into up to `MAX_FRAMES` equal parts. From each part, this module reads the frame
that a player shows in the middle. That frame may begin long before. On the way to it:

- A seek goes to the last key frame before the position, if the container has an index or if its
  seeks so far went forward.
- Packets before a later key frame are read, but not decoded.
- The remaining packets are decoded. When `_EXACT_PIXELS` or `_EXACT_FRAMES` are used for one
  position, any frame of its part is accepted; decoding goes on to the beginning of the part.
- All positions of a film together may use `_FILM_PIXELS` and `_FILM_FRAMES`, shared equally. If
  that is not enough, the last frame on the way is used, and `FrameReader.parts_missed` counts it.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction

import av
from av import FFmpegError, Packet
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

#: Frames taken from one video; short videos give one per second.
MAX_FRAMES = 10
#: Limit of decoding on the way to the frame in the middle of a part (pixels, frames): about a
#: second of work.
_EXACT_PIXELS, _EXACT_FRAMES = 250_000_000, 600
#: Limit of decoding to reach all parts of a film (pixels, frames): a minute of Full HD at 30 frames
#: a second after a single key frame.
_FILM_PIXELS, _FILM_FRAMES = 4_000_000_000, 12_000
#: Distance from which a position may be reached by a seek instead of by reading on (seconds).
_SEEK_DISTANCE = 4.0
#: Limit for packets that are held until it is known that no key frame follows, and what each takes
#: besides its data (bytes).
_WAITING_BYTES, _PACKET_BYTES = 16 * 1024**2, 600
#: Packets of a film that are read, decoded or not: ten seconds of work, nine hours at 30 a second.
MOST_PACKETS = 1_000_000


class FrameReader:
    """Reads the frames of a stream with their times, and skips those that cannot be decoded."""

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        rate: float,
        *,
        key_frames_alone: bool = False,
    ) -> None:
        self._container = container
        self._stream = stream
        self._frame_seconds = 1 / rate
        self.key_frames_alone = key_frames_alone
        self._time_base = stream.time_base or Fraction(1, av.time_base)
        self._start = stream.start_time or 0
        #: Pixels of a frame. Smaller frames count as this many: no more of them are decoded.
        self._pixels = max(_FILM_PIXELS // _FILM_FRAMES, stream.width * stream.height)
        #: Packets that may be decoded for one position, and for all of them.
        self._exact = max(1, min(_EXACT_FRAMES, _EXACT_PIXELS // self._pixels))
        if key_frames_alone:  # any frame within the part is accepted
            self._exact = 1
        self._left = max(MAX_FRAMES, min(_FILM_FRAMES, _FILM_PIXELS // self._pixels))
        #: How many packets one packet counts as; more if frames become larger on the way.
        self._cost = 1
        self._packets_read = 0
        self._has_begun = False
        self._seeks_lead_forward = True
        self._fell_short = False
        self._begin()
        self.position = 0.0
        """Position of the last frame that was read, or 0 (seconds from the start)."""
        self.reached = 0.0
        """Furthest position so far (seconds)."""
        self.parts_missed = 0
        """Number of parts that could not be reached within the budget."""
        self.bad_packets = 0
        """Number of packets that could not be decoded, although earlier ones could."""
        self.broke_off: str | None = None
        """Why the container could not be read to its end."""

    def frames(self, duration: float) -> Iterator[VideoFrame]:
        """Yield at most one frame for each part of a film of this length (seconds).

        `position` is the position of the yielded frame.
        """
        count = max(1, min(MAX_FRAMES, round(duration)))
        length = duration / count
        seen: set[float] = set()
        for part in range(count):
            frame = self._frame_of(part * length, (part + 1) * length, count - part)
            self.parts_missed += self._fell_short
            if frame is not None and self.position not in seen:
                seen.add(self.position)
                yield frame
        if not seen:  # the length was wrong: any frame is better than none
            frame = self.frame_at(0.0)
            if frame is not None:
                yield frame

    def frame_at(self, position: float) -> VideoFrame | None:
        """Read a frame at or near a position anywhere in the film (seconds)."""
        self._rewind()
        return self._frame_of(position, position, 1)

    def _frame_of(self, begin: float, end: float, parts_left: int) -> VideoFrame | None:
        """Read the frame that is shown in the middle of a part, or one near to it.

        None if the part before gave the same frame, or if no frame can be read.
        """
        middle = (begin + end) / 2
        budget = max(self._exact, self._left // parts_left)
        sought = self._seek(middle)
        frame = self._read(middle, begin, end, budget)
        if sought and (frame is None or self.position > end > begin):
            # The seek went past the last key frame, or past the wanted frame.
            self._seeks_lead_forward = False
            self._rewind()
            frame = self._read(middle, begin, end, budget)
        return frame

    def _seek(self, position: float) -> bool:
        """Go to the last key frame at or before a position, if that seems to go forward."""
        target = self._start + int(position / self._time_base)
        if position - self.position <= _SEEK_DISTANCE or not self._leads_forward(target):
            return False
        # Raw streams have no index; a wrong length may exceed FFmpeg's clock.
        with suppress(FFmpegError, OverflowError):
            self._container.seek(target, stream=self._stream)
            self._begin()
            first = self._next_packet()
            if first is not None:
                self._waiting.append(first)
                time = _time(first)
                if time is not None and self._seconds(time) <= self.position:
                    self._seeks_lead_forward = False
            return True
        return False

    def _leads_forward(self, target: int) -> bool:
        if not self._seeks_lead_forward:
            return False
        index = self._stream.index_entries
        if len(index) == 0 or not -(2**63) <= target < 2**63 or index[-1].timestamp < target:
            return True  # only the demuxer knows
        place = index.search_timestamp(target)
        return place >= 0 and self._seconds(index[place].timestamp) > self.position

    def _rewind(self) -> None:
        with suppress(FFmpegError):
            self._container.seek(self._start, stream=self._stream)
            self._begin()
            self.position = 0.0

    def _begin(self) -> None:
        """Forget the packets that were read before a seek."""
        self._packets = self._container.demux(self._stream)
        self._waiting: deque[Packet[VideoStream]] = deque()
        self._decoded: deque[VideoFrame] = deque()
        self._is_in_sync = False
        #: Whether the last frame is shown until the next one: no frame between them is broken.
        self._lasts = False

    def _read(self, position: float, begin: float, end: float, budget: int) -> VideoFrame | None:
        """Return the frame that is shown at a position, or the last one that is available before.

        Frames with errors are skipped until the end of the part. None at the end of the stream, or
        if the frame that is shown was read before.
        """
        self._read_up_to(self._start + int(position / self._time_base))
        self._fell_short = False
        sound = spoiled = None
        spent = 0
        while spent < budget or self._decoded:
            if self._decoded:
                frame = self._decoded.popleft()
                frame_position = self._position_of(frame)
                if self._lasts and frame_position > position:
                    self._decoded.appendleft(frame)
                    break
                self.position = frame_position
                self.reached = max(self.reached, self.position)
                self._lasts = not frame.is_corrupt and not self.key_frames_alone
                if frame.is_corrupt:
                    spoiled = frame
                else:
                    sound = frame
                if self.position >= (end if sound is None else position):
                    break
                if sound is not None and spent >= self._exact and self.position >= begin:
                    break
                continue
            packet = self._waiting.popleft() if self._waiting else self._next_packet()
            if packet is None:
                break
            self._decode(packet)
            spent += self._cost
        else:
            self._fell_short = self.position < begin
        if self.key_frames_alone:
            self._fell_short = not (sound or spoiled) or self.position < begin
        self._left = max(0, self._left - spent)
        return sound or spoiled

    def _read_up_to(self, target: int) -> None:
        """Read packets up to a time; keep those from the last key frame on for the decoder."""
        held = sum(packet.size + _PACKET_BYTES for packet in self._waiting)
        while held < _WAITING_BYTES:
            packet = self._next_packet()
            if packet is None:
                return
            time = _time(packet)
            if packet.is_keyframe and self._waiting and time is not None and time <= target:
                self._waiting.clear()
                self._decoded.clear()
                self._stream.codec_context.flush_buffers()
                self._is_in_sync = self._lasts = False
                held = 0
            self._waiting.append(packet)
            held += packet.size + _PACKET_BYTES
            if time is None or time > target:
                return

    def _next_packet(self) -> "Packet[VideoStream] | None":
        try:
            for packet in self._packets:
                self._packets_read += 1
                if self._packets_read > MOST_PACKETS:
                    self.broke_off = f"only its first {MOST_PACKETS:,} packets are read"
                    return None
                if packet.is_keyframe or not self.key_frames_alone:
                    return packet
        except MemoryError:
            raise
        except FFmpegError as error:  # keep the frames so far
            self.broke_off = error.strerror
        return None

    def _decode(self, packet: "Packet[VideoStream]") -> None:
        try:
            frames = packet.decode()
            if self.key_frames_alone:  # the decoder waits for more frames to sort them
                context = self._stream.codec_context
                frames += context.decode(None)
                context.flush_buffers()
        except MemoryError:
            raise
        except FFmpegError:
            # Before the first frame this is not damage: a recording may begin between key frames.
            # After a seek it is damage, if not even the key frame can be decoded.
            self.bad_packets += self._is_in_sync or (packet.is_keyframe and self._has_begun)
            self._lasts = False
            return
        largest = max((frame.width * frame.height for frame in frames), default=0)
        self._cost = max(self._cost, largest // self._pixels)
        self._is_in_sync = self._is_in_sync or bool(frames)
        self._has_begun = self._has_begun or bool(frames)
        self._decoded.extend(frames)

    def _position_of(self, frame: VideoFrame) -> float:
        if frame.pts is None:
            return self.position + self._frame_seconds
        return max(0.0, self._seconds(frame.pts))

    def _seconds(self, time: int) -> float:
        return float((time - self._start) * self._time_base)


def _time(packet: "Packet[VideoStream]") -> int | None:
    return packet.dts if packet.pts is None else packet.pts
