"""JPEG: decoded at a half, a quarter or an eighth of its size if that is enough.

The decoder gets the picture without its metadata, which is read here. So a broken or huge segment
of metadata cannot fail a good picture.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from batch_pipeline.media.iptc import iptc_of_photoshop
from batch_pipeline.media.sniffing import HEAD_BYTES, sniff
from batch_pipeline.media.stills.pieces import Piece, joined
from batch_pipeline.media.stills.scaling import scaling_bytes
from batch_pipeline.media.stills.still import (
    IncompletePictureError,
    PillowStill,
    motion_photo,
    oversized_metadata,
)

#: Maximum number of segments before the picture. Depth maps and colour profiles take hundreds.
MAX_SEGMENTS = 4096
#: Maximum number of scans; programs write up to a few dozen. Each takes time for the whole picture,
#: even if it is only some bytes long: a file of 1 MB could take minutes.
_MAX_SCANS = 500
#: A marker that is not a fill byte, a stuffed byte or a restart.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
#: The segments of a colour profile are numbered with one byte.
_MAX_PROFILE_SEGMENTS = 255
#: Bytes that are decoded before another thread may hold Python's lock, for which this thread then
#: has to wait. With Pillow's 64 KiB, two cores were idle for a tenth of the time in a batch of
#: photos, with 4 MiB for half as long.
_BYTES_AT_ONCE = 4 * 1024**2
#: The first box of a film contains only brands.
_MAX_FTYP_BYTES = 512
_SOI, _EOI, _SOS, _SOF_PROGRESSIVE = 0xD8, 0xD9, 0xDA, (0xC2, 0xC6, 0xCA, 0xCE)
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_APP0, _APP1, _APP2, _APP13, _APP14, _COM = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE
_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_TIFF_STARTS = (b"II*\0", b"MM\0*")


@dataclass
class _Anatomy:
    """The parts of a JPEG."""

    picture: list[Piece] = field(default_factory=list)
    exif: list[list[Piece]] = field(default_factory=list)
    """Blocks, each of one or more segments."""
    xmp: bytes | None = None
    photoshop: list[Piece] = field(default_factory=list)
    """Image resources, perhaps in several segments."""
    frame_header: bytes = b""
    progressive: bool = False
    components_of_first_scan: int = 0
    first_scan: int = 0
    """Its start in the file."""


class JpegStill(PillowStill):
    """A JPEG, or the first picture of an MPO."""

    def __init__(self, data: bytes) -> None:
        self._anatomy = take_apart(data)
        self._data = data
        self._with_end = False
        if self._in_several_scans():
            _require_few_scans(data, self._anatomy.first_scan)
        super().__init__()
        self.exif = [b"".join(block) for block in self._anatomy.exif]
        self.xmp = self._anatomy.xmp
        self.iptc = iptc_of_photoshop(b"".join(self._anatomy.photoshop))
        self.clip = _embedded_clip(data)

    def memory(self, target: tuple[int, int]) -> int:
        """Return the size of the reduced picture; with several scans, also of all coefficients."""
        self._picture.draft(None, target)
        reduced = self._picture.size[0] * self._picture.size[1] * 4
        return reduced + scaling_bytes(self._picture.size, target) + self._coefficient_bytes()

    def prepare(self, picture: ImageFile, target: tuple[int, int]) -> None:
        """Choose the smallest scale that is not below `target`."""
        picture.draft(None, target)

    def _salvage(self, error: Exception, target: tuple[int, int]) -> ImageFile | None:
        if not self._in_several_scans():
            # An error is raised if more than the last rows are missing.
            if super()._salvage(error, target) is None:
                return None
            self.warnings.clear()
        # Without the end marker, a decoder does not return its last rows, or any.
        self._with_end = True
        picture = self._open()
        self.prepare(picture, target)
        picture.load()
        if self._in_several_scans() and not _reaches_last_scan(self._data):
            raise IncompletePictureError(str(error), self._shrink(picture, target)) from error
        self.warnings.append("damaged: the JPEG ends without its end marker; a little may be lost")
        return picture

    def _open(self) -> ImageFile:
        end = [b"\xff\xd9"] if self._with_end else []
        picture = _Plugin(joined([*self._anatomy.picture, *end]))
        picture.decodermaxblock = _BYTES_AT_ONCE
        return picture

    def _in_several_scans(self) -> bool:
        components = self._anatomy.frame_header[5:6]
        return self._anatomy.progressive or self._anatomy.components_of_first_scan < sum(components)

    def _coefficient_bytes(self) -> int:
        if not self._in_several_scans():
            return 0
        width, height = self.size
        factors = self._anatomy.frame_header[7::3]
        sampling = [((factor >> 4) or 1, (factor & 15) or 1) for factor in factors] or [(1, 1)]
        widest, highest = max(h for h, _ in sampling), max(v for _, v in sampling)
        samples = sum(width * h // widest * (height * v // highest) for h, v in sampling)
        return 2 * samples


class _Plugin(JpegImageFile):
    """Does not read a resolution from EXIF: it is not needed, and broken EXIF causes warnings."""

    def _read_dpi_from_exif(self) -> None:
        pass


def take_apart(data: bytes) -> _Anatomy:
    """Divide a JPEG into its picture and its metadata.

    Raises:
        PermanentError: ``oversized_metadata``.
    """
    view = memoryview(data)
    found = _Anatomy(picture=[view[:2]])
    profile_segments = 0
    for number, (marker, start, end) in enumerate(_segments(data)):
        content = view[start + 4 : end]
        if number >= MAX_SEGMENTS:
            raise oversized_metadata(
                f"the JPEG has more than {MAX_SEGMENTS} segments before its picture; "
                "no camera writes that"
            )
        if marker == _SOS:
            found.components_of_first_scan = content[0] if len(content) else 0
            found.first_scan = start
            found.picture.append(view[start:])
            break
        if marker in _FRAME_HEADERS and not found.frame_header:
            found.frame_header, found.progressive = bytes(content), marker in _SOF_PROGRESSIVE
        if marker == _APP2 and content[: len(_ICC)] == _ICC:
            profile_segments += 1
            if profile_segments <= _MAX_PROFILE_SEGMENTS:
                found.picture.append(view[start:end])
        elif marker == _APP1:
            _keep_app1(found, content)
        elif marker == _APP13 and content[: len(_PHOTOSHOP)] == _PHOTOSHOP:
            found.photoshop.append(content[len(_PHOTOSHOP) :])
        elif not _APP1 <= marker <= _APP14 - 1 and marker not in {_COM, 0xEF}:
            found.picture.append(view[start:end])
    return found


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment, up to the first scan with only its header."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:  # garbage between segments is skipped
            position = data.find(b"\xff", position)
            if position < 0:
                return
            continue
        marker = data[position + 1]
        if marker in {0xFF, 0x00, 0x01} or 0xD0 <= marker <= _SOI:
            position += 1 if marker == 0xFF else 2
            continue
        end = position + 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
        yield marker, position, min(end, len(data))
        if marker in {_SOS, _EOI}:
            return
        position = end


def _keep_app1(found: _Anatomy, content: memoryview) -> None:
    if content[: len(_EXIF)] == _EXIF:
        block = content[len(_EXIF) :]
        if found.exif and bytes(block[:4]) not in _TIFF_STARTS:
            found.exif[-1].append(block)
        else:
            found.exif.append([block])
    elif content[: len(_XMP)] == _XMP and found.xmp is None:
        found.xmp = bytes(content[len(_XMP) :])


def _embedded_clip(data: bytes) -> str | None:
    """Name the film that a phone appends to a JPEG."""
    start = data.find(b"ftyp", data.find(b"\xff\xd9")) - 4
    size = int.from_bytes(data[start : start + 4], "big") if start > 0 else 0
    if not 16 <= size <= _MAX_FTYP_BYTES:
        return None
    found = sniff(data[start : start + HEAD_BYTES])
    return motion_photo(len(data) - start) if found and found.file_type == "video" else None


def _require_few_scans(data: bytes, position: int) -> None:
    """Raise `ValueError` if there are too many scans from a position to the end of the picture."""
    scans = 0
    while (found := _MARKER.search(data, position)) and data[found.start() + 1] != _EOI:
        scans += data[found.start() + 1] == _SOS
        if scans > _MAX_SCANS:
            raise ValueError(f"it has more than {_MAX_SCANS} scans")
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")


def _reaches_last_scan(data: bytes) -> bool:
    """Return whether the scans of a JPEG complete all coefficients; the last scan may be cut.

    Each scan is for a band of coefficients of some components, down to some bit.
    """
    missing: set[tuple[int, int]] | None = None
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data):
        marker = data[position + 1]
        if marker < 0xC0 or 0xD0 <= marker <= _EOI or marker == 0xFF:
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        content = data[position + 4 : end]
        if marker in _FRAME_HEADERS and missing is None:
            components = set(content[6 : 6 + 3 * content[5] : 3])
            missing = {(component, index) for component in components for index in range(64)}
        elif marker == _SOS and missing is not None:
            scanned = set(content[1 : 1 + 2 * content[0] : 2])
            first, last, low_bit = content[-3], content[-2], content[-1] & 15
            if low_bit == 0:
                missing -= {(c, index) for c in scanned for index in range(first, last + 1)}
        position = max(end, position + 2)
    return missing is not None and not missing
