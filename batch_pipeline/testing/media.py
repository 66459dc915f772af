"""Makers of media files: real ones in every accepted format, and hostile ones.

The same arguments give the same picture, and on one machine the same bytes. Everything is made in
memory. Hostile files are small, but what they claim is large.
"""

import html
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import ExifTags, Image
from pillow_heif import register_heif_opener

from batch_pipeline.media.stills.boxes import boxes
from batch_pipeline.media.stills.jpeg2000_codestream import Codestream
from batch_pipeline.media.tone_mapping import ColourSpace

ImageFormat = Literal["jpeg", "png", "webp", "heic", "heif", "gif", "avif"]
VideoFormat = Literal[
    "mp4", "mov", "3gp", "avi", "webm", "mkv", "wmv", "ogv", "mxf", "flv",
    "mpeg-ps", "mpeg-ts", "m2ts", "mpeg-es",
]  # fmt: skip

IMAGE_FORMATS: tuple[ImageFormat, ...] = ("jpeg", "png", "webp", "heic", "heif", "gif", "avif")
VIDEO_FORMATS: tuple[VideoFormat, ...] = (
    "mp4", "mov", "3gp", "avi", "webm", "mkv", "wmv", "ogv", "mxf", "flv",
    "mpeg-ps", "mpeg-ts", "m2ts", "mpeg-es",
)  # fmt: skip

#: Position that `Exif` and `make_video` can write (degrees); no result may contain it.
GPS_LATITUDE, GPS_LONGITUDE = 48.858370, 2.294481

#: File names that a person or an attacker may give: path, reversed text, markup, length, controls.
HOSTILE_FILENAMES = (
    "../../../etc/passwd.jpg",
    "..\\..\\windows\\system.jpg",
    "/absolute.jpg",
    "photo\u202egpj.exe",
    "<b>bold</b><script>alert(1)</script>.jpg",
    "'; DROP TABLE uploads; --.jpg",
    "x" * 300 + ".jpg",
    "new\nline.jpg",
    "nul\x00byte.jpg",
    "\x1b[31mred.jpg",
    ".jpg",
    "",
)

#: Muxer and encoder for each video format.
_VIDEO_ENCODERS: Mapping[VideoFormat, tuple[str, str]] = {
    "mp4": ("mp4", "libx264"),
    "mov": ("mov", "libx264"),
    "avi": ("avi", "mpeg4"),
    "webm": ("webm", "libvpx"),
    "mpeg-ps": ("mpeg", "mpeg2video"),
    "mpeg-ts": ("mpegts", "mpeg2video"),
    "mpeg-es": ("mpeg2video", "mpeg2video"),
    "flv": ("flv", "flv"),
    "3gp": ("3gp", "libx264"),
    "mkv": ("matroska", "libx264"),
    "wmv": ("asf", "wmv2"),
    "ogv": ("ogg", "libvpx"),
    "mxf": ("mxf", "mpeg2video"),
    "m2ts": ("mpegts", "libx264"),
}
_MUXER_OPTIONS: Mapping[VideoFormat, dict[str, str]] = {"m2ts": {"mpegts_m2ts_mode": "1"}}
#: Options that make an encoder fast; the size of these files does not matter.
_FAST: Mapping[str, dict[str, object]] = {
    "libx264": {"preset": "ultrafast"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"},
}

register_heif_opener()  # for saving only; the pipeline itself opens files without the registry


@dataclass(frozen=True)
class Exif:
    """Metadata that a camera writes with a picture."""

    orientation: int = 1
    captured_at: datetime | None = None
    make: str | None = None
    model: str | None = None
    with_gps: bool = False

    def to_bytes(self) -> bytes:
        """Encode as the EXIF block of an image file."""
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = self.orientation
        if self.make is not None:
            exif[ExifTags.Base.Make] = self.make
        if self.model is not None:
            exif[ExifTags.Base.Model] = self.model
        if self.captured_at is not None:
            details = exif.get_ifd(ExifTags.IFD.Exif)
            details[ExifTags.Base.DateTimeOriginal] = f"{self.captured_at:%Y:%m:%d %H:%M:%S}"
        if self.with_gps:
            gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
            gps[ExifTags.GPS.GPSLatitudeRef] = "N"
            gps[ExifTags.GPS.GPSLatitude] = _degrees(GPS_LATITUDE)
            gps[ExifTags.GPS.GPSLongitudeRef] = "E"
            gps[ExifTags.GPS.GPSLongitude] = _degrees(GPS_LONGITUDE)
        return exif.tobytes()


def paint(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Paint an RGB picture that compresses like a photo: soft shapes in several colours.

    Args:
        size: width and height (pixels).
        seed: another seed gives another picture.
    """
    shapes = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(shapes).resize(size, Image.Resampling.BICUBIC)


#: Options that make slow encoders fast: they then take a fifth of the time.
_QUICKLY: dict[str, dict[str, Any]] = {
    "HEIF": {"enc_params": {"preset": "ultrafast"}},
    "AVIF": {"speed": 10},
    "PNG": {"compress_level": 1},
    "WEBP": {"method": 0},
}


def encode_image(picture: Image.Image, image_format: ImageFormat, **options: Any) -> bytes:
    """Encode a picture; `options` are those of Pillow's `save` for the format."""
    output = io.BytesIO()
    writer = "HEIF" if image_format in {"heic", "heif"} else image_format.upper()
    if image_format == "gif" and picture.mode == "RGB":
        picture = picture.quantize(method=Image.Quantize.FASTOCTREE)  # the default takes 0.3 s
    options = _QUICKLY.get(writer, {}) | options
    picture.save(output, writer, **options)
    data = output.getvalue()
    if image_format == "heif":
        # The major brand becomes the general one, and no compatible brand shows HEVC.
        size = int.from_bytes(data[:4], "big")
        brands = data[8:size].replace(b"heic", b"mif1")
        data = data[:8] + brands + data[size:]
    return data


def make_image(
    image_format: ImageFormat = "jpeg",
    size: tuple[int, int] = (320, 240),
    *,
    seed: int = 0,
    exif: Exif | None = None,
) -> bytes:
    """Make an image file.

    Args:
        image_format: one of `IMAGE_FORMATS`.
        size: width and height as stored (pixels).
        seed: another seed gives another picture.
        exif: written to the formats that can hold it (all but GIF).
    """
    options = {} if exif is None else {"exif": exif.to_bytes()}
    return encode_image(paint(size, seed), image_format, **options)


def make_captioned_jpeg(
    *,
    exif: str = "",
    iptc: Mapping[int, str] = MappingProxyType({}),
    xmp: str = "",
    city: str = "",
) -> bytes:
    """Make a JPEG with texts that people write about a picture.

    Args:
        exif: its ``ImageDescription``.
        iptc: entries of record 2 of IPTC's older form, by their number; 120 is the caption.
        xmp: its ``dc:description``.
        city: its ``photoshop:City``, in XMP.
    """
    block = Image.Exif()
    if exif:
        block[ExifTags.Base.ImageDescription] = exif
    plain = encode_image(paint((320, 240)), "jpeg", exif=block.tobytes())
    segments = []
    if iptc:
        entries = b"".join(
            struct.pack(">BBBH", 0x1C, 2, number, len(text.encode())) + text.encode()
            for number, text in iptc.items()
        )
        resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(entries)) + entries
        segments.append((0xED, b"Photoshop 3.0\0" + resource))
    if xmp or city:
        listed = f'<rdf:Alt><rdf:li xml:lang="x-default">{html.escape(xmp)}</rdf:li></rdf:Alt>'
        packet = (
            f'<rdf:Description photoshop:City="{html.escape(city)}">'
            f"<dc:description>{listed if xmp else ''}</dc:description></rdf:Description>"
        )
        segments.append((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet.encode()))
    written = b"".join(
        struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
        for marker, content in segments
    )
    return plain[:2] + written + plain[2:]


def make_display_p3_profile() -> bytes:
    """Make the ICC profile of a wide-gamut display, which phones attach to their photos."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65_536) for value in values))

    gamma = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(2.2 * 256))
    name = b"desc\0\0\0\0" + struct.pack(">I", 11) + b"Display P3\0" + bytes(78 + 3)
    tags = {
        b"desc": name,
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.51512, 0.2412, -0.00105),
        b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.1571, 0.06657, 0.78407),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma),
    }
    start = 128 + 4 + 12 * len(tags)
    table, content = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", start + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    header = struct.pack(">I4xI", start + len(content), 0x02400000) + b"mntrRGB XYZ "
    header += bytes(12) + b"acsp" + bytes(28) + xyz(0.9642, 1.0, 0.8249)[8:]
    return header + bytes(128 - len(header)) + table + content


def make_photo(megapixels: float = 12, *, seed: int = 0) -> bytes:
    """Make a JPEG like a camera: 4:3, quality 90, with grain, maker, model and date."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    size = (width, round(width * 3 / 4))
    picture = paint(size, seed)
    # Grain makes decoding as expensive as for a real photo; one tile is repeated for speed.
    tile = np.random.default_rng(seed).integers(-6, 7, (256, 256, 1), dtype=np.int16)
    rows, columns = -(-size[1] // 256), -(-size[0] // 256)
    grain = np.tile(tile, (rows, columns, 1))[: size[1], : size[0]]
    pixels = (np.asarray(picture, dtype=np.int16) + grain).clip(0, 255).astype(np.uint8)
    exif = Exif(captured_at=datetime(2024, 5, 17, 18, 30), make="Example", model="Camera One")
    return encode_image(Image.fromarray(pixels), "jpeg", quality=90, exif=exif.to_bytes())


def make_animation(
    image_format: Literal["gif", "png", "webp", "avif"] = "gif",
    frames: int = 3,
    size: tuple[int, int] = (64, 48),
) -> bytes:
    """Make an animation whose first frame is red and whose others are shades of blue."""
    pictures = [
        Image.new("RGB", size, (0, 0, 80 + 40 * index % 160)) for index in range(frames - 1)
    ]
    return encode_image(
        Image.new("RGB", size, "red"),
        image_format,
        save_all=True,
        append_images=pictures,
        duration=40,
    )


def paint_progress(size: tuple[int, int]) -> Callable[[float], Image.Image]:
    """Return a painter of frames that are grey, from dark at the start to light at the end."""

    def painter(progress: float) -> Image.Image:
        level = 50 + round(180 * progress)
        return Image.new("RGB", size, (level, level, level))

    return painter


def make_video(
    video_format: VideoFormat = "mp4",
    seconds: float = 2.0,
    size: tuple[int, int] = (160, 120),
    *,
    fps: Fraction | int = 25,
    painter: Callable[[float], Image.Image | NDArray[np.uint16]] | None = None,
    rotation: int = 0,
    display_matrix: tuple[int, int, int, int] | None = None,
    colours: "VideoColours | None" = None,
    encoder: str | None = None,
    pixel_aspect: Fraction = Fraction(1),
    with_gps: bool = False,
    metadata: Mapping[str, str] | None = None,
    keyframe_interval: int = 25,
    muxer_options: Mapping[str, str] | None = None,
) -> bytes:
    """Make a video file without sound.

    Args:
        video_format: one of `VIDEO_FORMATS`.
        seconds: length; at least one frame is written.
        size: width and height as stored (pixels, even).
        fps: frames a second; with a fraction below 1, a film of hours is made quickly.
        painter: gives the picture for a progress of 0 to 1, or its R'G'B' values of 16 bits;
            default: `paint_progress`.
        rotation: of the display matrix (degrees, anticlockwise); MP4 and MOV only.
        display_matrix: the matrix itself: the directions (x, y) of a step to the right and a step
            down.
        colours: default: BT.601 as FFmpeg's scaler writes it, but not declared in the file.
        encoder: default: that of the format.
        pixel_aspect: width of a pixel divided by its height.
        with_gps: write a position where phones do; MP4 and MOV only.
        metadata: further entries of the container.
        keyframe_interval: distance of key frames (frames).
        muxer_options: as FFmpeg names them, e.g. ``{"moov_size": "9000"}``.
    """
    muxer, usual_encoder = _VIDEO_ENCODERS[video_format]
    encoder = encoder or usual_encoder
    painter = painter or paint_progress(size)
    options = {"fflags": "+bitexact", **_MUXER_OPTIONS.get(video_format, {})}
    options |= muxer_options or {}
    if metadata and muxer in {"mp4", "mov"}:
        options["movflags"] = options.get("movflags", "") + "+use_metadata_tags"
    count = max(1, round(seconds * fps))
    pictures = (painter(index / max(1, count - 1)) for index in range(count))
    frames = (_video_frame(picture, colours) for picture in pictures)
    output = io.BytesIO()
    with av.open(output, "w", format=muxer, options=options) as container:
        container.metadata.update(metadata or {})
        if with_gps:
            container.metadata["location"] = f"{GPS_LATITUDE:+.4f}{GPS_LONGITUDE:+09.4f}/"
        stream = cast("VideoStream", container.add_stream(encoder, rate=fps))
        stream.width, stream.height = size
        stream.pix_fmt = colours.pixel_format if colours else "yuv420p"
        if colours:
            stream.codec_context.colorspace = colours.matrix
            stream.codec_context.color_primaries = colours.primaries
            stream.codec_context.color_trc = colours.transfer
            stream.codec_context.color_range = colours.range
        stream.gop_size = keyframe_interval
        stream.thread_count = 1
        stream.codec_context.sample_aspect_ratio = pixel_aspect
        stream.options = _FAST.get(encoder, {})
        if rotation:
            stream.set_display_rotation(rotation)
        if display_matrix:
            a, b, c, d = (value * 65_536 for value in display_matrix)
            stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return output.getvalue()


def make_audio_only_mp4(seconds: float = 1.0) -> bytes:
    """Make an MP4 that claims to be a video but contains only silence."""
    return make_audio_only("mp4", seconds=seconds)


def cut_in_half(data: bytes) -> bytes:
    """Keep the first half of a file, as after an interrupted upload."""
    return data[: len(data) // 2]


def make_png_bomb(side: int = 20_000) -> bytes:
    """Make a 1-bit PNG of `side` x `side` black pixels: 49 KB for 400 megapixels."""
    row = b"\0" + bytes((side + 7) // 8)
    compressor = zlib.compressobj(9)
    pixels = b"".join([*(compressor.compress(row) for _ in range(side)), compressor.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return _png((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))


def make_png_text_bomb(text_bytes: int = 64 * 1024**2) -> bytes:
    """Make a PNG of one pixel with a text chunk that unpacks to `text_bytes` from 65 KB."""
    text = b"Comment\0\0" + zlib.compress(bytes(text_bytes), 9)
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0\0")
    return _png((b"IHDR", header), (b"zTXt", text), (b"IDAT", pixels), (b"IEND", b""))


def make_gif_bomb(side: int = 65_535) -> bytes:
    """Make a GIF of a few bytes whose header claims `side` x `side` pixels."""
    screen = struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + screen + frame + b";"


def make_oversized_video(
    side: int = 8000, *, muxer: str = "mp4", frames: int = 1, **options: str
) -> bytes:
    """Make an MP4, or another container, of grey frames of `side` x `side` pixels (16 x n).

    Further options are those of the encoder x264.
    """
    output = io.BytesIO()
    with av.open(output, "w", format=muxer) as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        # Grey is grey with the coarsest quantizer, too; choosing one takes half of the time.
        stream.options = _FAST["libx264"] | {"qp": "51"} | options
        grey = np.full((side * 3 // 2, side), 128, dtype=np.uint8)  # luminance, then both colours
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(grey, format="yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return output.getvalue()


def make_jpeg_with_segments(count: int) -> bytes:
    """Make a JPEG with `count` empty comment segments before its picture."""
    data = make_image("jpeg", (16, 16))
    return data[:2] + b"\xff\xfe\x00\x02" * count + data[2:]


def make_jpeg_with_large_exif(exif_bytes: int = 300_000) -> bytes:
    """Make a JPEG whose EXIF spans several segments, which readers join."""
    data = make_image("jpeg", (16, 16))
    segment = b"\xff\xe1" + struct.pack(">H", 60_008) + b"Exif\0\0" + bytes(60_000)
    return data[:2] + segment * -(-exif_bytes // 60_000) + data[2:]


#: A script after a picture; no file that is made from the picture may contain it.
APPENDED_SCRIPT = b"<script>alert('appended')</script>"


def make_jpeg_with_script_and_zip() -> bytes:
    """Make a JPEG that is also a ZIP archive and a script, with a script in its comment too."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("payload.html", APPENDED_SCRIPT)
    picture = encode_image(paint((64, 48)), "jpeg", comment=APPENDED_SCRIPT)
    return picture + APPENDED_SCRIPT + archive.getvalue()


def make_ffconcat(target: str) -> bytes:
    """Make a script that makes FFmpeg play another file."""
    return f"ffconcat version 1.0\nfile '{target}'\nduration 1\n".encode()


def make_hls_playlist(target: str) -> bytes:
    """Make a playlist that makes FFmpeg open another file or an address."""
    return (
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n"
        f"#EXTINF:2.0,\n{target}\n#EXT-X-ENDLIST\n"
    ).encode()


def make_unsupported_files() -> dict[str, bytes]:
    """Make the starts of files that are refused, by their type."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("hello.txt", "hello")
    return {
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        "HTML": b"<!DOCTYPE html>\n<html><body>hello</body></html>",
        "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
        "ZIP": archive.getvalue(),
        "ffconcat": make_ffconcat("secret.mp4"),
        "HLS": make_hls_playlist("file:///etc/passwd"),
        "EBML": b"\x1a\x45\xdf\xa3\x87\x42\x82\x84lego" + bytes(16),
        "Ogg audio": make_audio_only("ogg", "libopus", 0.1),
        "Windows Media audio": make_audio_only("asf", "mp2", 0.1),
        "MP3": b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(16),
        "WAV": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(16),
        "MPEG-4 audio": b"\x00\x00\x00\x18ftypM4A \x00\x00\x00\x00isommp42",
        "text": "Grüße, this is a note.\n".encode(),
        "unknown binary": bytes(range(1, 200)),
    }


def _degrees(value: float) -> tuple[float, float, float]:
    """Return degrees, minutes and seconds in EXIF's form."""
    minutes, seconds = divmod(value * 3600, 60)
    degrees, minutes = divmod(minutes, 60)
    return degrees, minutes, round(seconds, 2)


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in chunks:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        parts += [struct.pack(">I", len(data)), name, data, checksum]
    return b"".join(parts)


def encode_hdr(
    picture: NDArray[np.uint8], space: ColourSpace, *, white_nits: float = 203
) -> NDArray[np.uint16]:
    """Encode an sRGB picture with another transfer function and other primaries, 16 bits a value.

    Args:
        picture: shape ``(height, width, 3)``.
        space: PQ or HLG (on a display of 1,000 nits), with BT.709, BT.2020 or P3 primaries.
        white_nits: light of the picture's white.
    """
    # The matrices of ITU-R BT.2087 and of Display P3.
    to_primaries = {
        "bt709": np.eye(3),
        "bt2020": [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]],
        "p3": [[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]],
    }
    signal = picture / 255
    light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    light = white_nits * (light @ np.array(to_primaries[space.primaries]).T).clip(0)
    if space.transfer == "pq":
        root = (light / 10_000) ** 0.1593017578125
        signal = ((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375
    else:
        luminance = light @ (0.2627, 0.6780, 0.0593)
        scene = light / 1000 * (np.maximum(luminance, 1e-9)[..., None] / 1000) ** (1 / 1.2 - 1)
        logarithm = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        signal = np.where(scene <= 1 / 12, np.sqrt(3 * scene), logarithm)
    codes: NDArray[np.uint16] = (signal.clip(0, 1) * 65_535).round().astype(np.uint16)
    return codes


@dataclass(frozen=True)
class VideoColours:
    """How the colours of a video are written, and what it declares (code points of H.273)."""

    matrix: int = 2
    """As declared; 2 means unspecified."""
    primaries: int = 2
    transfer: int = 2
    range: int = 0
    """1 limited, 2 full, as declared and as written; 0 is not declared, and limited."""
    written_matrix: int = 6
    """The matrix that the values are written with: 1 BT.709, 6 BT.601, 9 BT.2020."""
    pixel_format: str = "yuv420p"


@dataclass(frozen=True)
class Track:
    """One stream of pictures."""

    size: tuple[int, int]
    colour: str
    frames: int = 20
    encoder: str = "libx264"
    disposition: Disposition = Disposition.default


def make_tracks(
    video_format: VideoFormat, *tracks: Track, fps: int = 10, with_sound: bool = False
) -> bytes:
    """Make a file of several streams, each of one colour with a white spot."""
    output = io.BytesIO()
    muxer = _VIDEO_ENCODERS[video_format][0]
    with av.open(output, "w", format=muxer, options={"fflags": "+bitexact"}) as container:
        streams = []
        for track in tracks:
            stream = cast("VideoStream", container.add_stream(track.encoder, rate=fps))
            stream.width, stream.height = track.size
            stream.pix_fmt = "yuvj420p" if track.encoder == "mjpeg" else "yuv420p"
            stream.thread_count = 1
            stream.options = _FAST.get(track.encoder, {})
            stream.disposition = track.disposition
            streams.append(stream)
        sound = None
        if with_sound:
            sound = container.add_stream("aac", rate=16_000, layout="mono")
        for number in range(max(track.frames for track in tracks)):
            for track, stream in zip(tracks, streams, strict=True):
                if number < track.frames:
                    picture = Image.new("RGB", track.size, track.colour)
                    picture.paste("white", (0, 0, track.size[0] // 4, track.size[1] // 4))
                    frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
                    container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
        if sound is not None:
            _add_silence(container, sound, max(track.frames for track in tracks) / fps)
    return output.getvalue()


def make_audio_only(
    muxer: str, encoder: str = "aac", seconds: float = 1.0, *, cover: bytes | None = None
) -> bytes:
    """Make a file of silence in a container that may hold films.

    Args:
        muxer: the container, as FFmpeg names it.
        encoder: as FFmpeg names it.
        seconds: length.
        cover: a JPEG to attach; Matroska only.
    """
    output = io.BytesIO()
    with av.open(output, "w", format=muxer) as container:
        if cover is not None:
            container.add_attachment("cover.jpg", "image/jpeg", cover)
        rate = 48_000 if encoder == "libopus" else 16_000
        stream = cast("AudioStream", container.add_stream(encoder, rate=rate, layout="mono"))
        _add_silence(container, stream, seconds)
    return output.getvalue()


def _add_silence(container: OutputContainer, stream: AudioStream, seconds: float) -> None:
    rate = stream.codec_context.sample_rate
    for start in range(0, round(seconds * rate), 960):
        silence = np.zeros((1, 960), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _video_frame(
    picture: Image.Image | NDArray[np.uint16], colours: VideoColours | None
) -> av.VideoFrame:
    values = np.asarray(picture)
    frame = av.VideoFrame.from_ndarray(
        values, format="rgb24" if values.dtype == np.uint8 else "rgb48le"
    )
    if colours is None:
        return frame
    written = frame.reformat(
        format=colours.pixel_format,
        dst_colorspace={1: 1, 6: 5, 9: 9}[colours.written_matrix],
        dst_color_range=colours.range or 1,
        src_color_range=2,
    )
    written.colorspace, written.color_range = colours.matrix, colours.range
    written.color_primaries, written.color_trc = colours.primaries, colours.transfer
    return written


def make_tiff(
    picture: NDArray[Any],
    *,
    tile: int = 0,
    separate: bool = False,
    packed: bool = True,
    entries: Mapping[int, Sequence[int]] | None = None,
) -> bytes:
    """Make a TIFF in strips of 16 rows, or in tiles; big-endian.

    Args:
        picture: shape ``(height, width, channels)``, with 3 (RGB) or 4 (CMYK) channels unless
            `entries` define others.
        tile: side of a tile (pixels, a multiple of 16); 0 for strips.
        separate: each strip has only one channel.
        packed: compress with Deflate; else as the entries say, or not at all.
        entries: numbers by tag, which are added to the entries for `picture` or replace them.
    """
    height, width, channels = picture.shape
    pixels = picture.astype(picture.dtype.newbyteorder(">"))
    if tile:
        padded = np.zeros((-(-height // tile) * tile, -(-width // tile) * tile, channels))
        padded = padded.astype(pixels.dtype)
        padded[:height, :width] = pixels
        blocks = [
            padded[top : top + tile, left : left + tile]
            for top in range(0, height, tile)
            for left in range(0, width, tile)
        ]
    else:
        planes = [pixels[..., each] for each in range(channels)] if separate else [pixels]
        blocks = [plane[top : top + 16] for plane in planes for top in range(0, height, 16)]
    stored = [zlib.compress(block.tobytes()) if packed else block.tobytes() for block in blocks]
    starts = [8 + sum(map(len, stored[:index])) for index in range(len(stored))]
    bits = [8 * picture.itemsize] * channels
    places = {322: [tile], 323: [tile], 324: starts, 325: list(map(len, stored))}
    if not tile:
        places = {273: starts, 278: [16], 279: list(map(len, stored))}
    values: dict[int, Sequence[int]] = {
        256: [width], 257: [height], 258: bits, 259: [8 if packed else 1],
        262: [5 if channels == 4 else 2], 277: [channels], 284: [1 + separate],
        **places, **(entries or {}),
    }  # fmt: skip
    directory = 8 + sum(map(len, stored))
    written, behind = struct.pack(">H", len(values)), b""
    for tag, numbers in sorted(values.items()):
        value = struct.pack(f">{len(numbers)}I", *numbers)
        written += struct.pack(">HHI", tag, 4, len(numbers))
        if len(value) > 4:
            place = directory + 2 + 12 * len(values) + 4 + len(behind)
            behind, value = behind + value, struct.pack(">I", place)
        written += value
    header = b"MM\0*" + struct.pack(">I", directory)
    return header + b"".join(stored) + written + bytes(4) + behind


def make_psd(picture: Image.Image) -> bytes:
    """Make a Photoshop document of one RGB picture and no layers."""
    pixels = np.moveaxis(np.asarray(picture), -1, 0).tobytes()
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, picture.height, picture.width, 8, 3)
    return header + bytes(4) + bytes(4) + bytes(4) + b"\0\0" + pixels


#: In parts of 10,000, row by row.
_XYZ_TO_SRGB = (32406, -15372, -4986, -9689, 18758, 415, 557, -2040, 10570)


def make_dng(
    size: tuple[int, int] = (640, 480), *, preview: bytes | None = None, orientation: int = 1
) -> bytes:
    """Make a raw file of a camera that has seen only green, perhaps with a JPEG preview.

    Args:
        size: of the sensor (pixels, even).
        preview: the JPEG.
        orientation: as EXIF numbers it.
    """
    width, height = size
    mosaic = np.full((height, width), 1200, dtype="<u2")  # red and blue of the Bayer pattern
    mosaic[0::2, 1::2] = mosaic[1::2, 0::2] = 12_000  # green
    pixels = mosaic.tobytes()
    shots = {306: b"2023:08:09 10:11:12\0", 271: b"Example\0", 272: b"Raw One\0"}
    sensor: dict[int, tuple[int, list[int] | bytes]] = {
        254: (4, [0]), 256: (4, [width]), 257: (4, [height]), 258: (3, [16]), 259: (3, [1]),
        262: (3, [32803]), 273: (4, [0]), 277: (3, [1]), 278: (4, [height]),
        279: (4, [len(pixels)]), 33421: (3, [2, 2]), 33422: (1, b"\0\1\1\2"), 50717: (4, [16383]),
    }  # fmt: skip
    common: dict[int, tuple[int, list[int] | bytes]] = {
        **{tag: (2, text) for tag, text in shots.items()},
        274: (3, [orientation]), 50706: (1, b"\1\4\0\0"), 50708: (2, b"Example Raw One\0"),
        # XYZ to the camera's colours: those of sRGB, so that green is green.
        50721: (10, b"".join(struct.pack("<ii", value, 10_000) for value in _XYZ_TO_SRGB)),
        50728: (5, struct.pack("<6I", 1, 1, 1, 1, 1, 1)), 50778: (3, [21]),
    }  # fmt: skip
    if preview is None:
        return _little_tiff([common | sensor], {(0, 273): pixels})
    with Image.open(io.BytesIO(preview)) as picture:
        columns, rows = picture.size
    first: dict[int, tuple[int, list[int] | bytes]] = {
        254: (4, [1]), 256: (4, [columns]), 257: (4, [rows]), 258: (3, [8, 8, 8]), 259: (3, [7]),
        262: (3, [6]), 273: (4, [0]), 277: (3, [3]), 278: (4, [rows]), 279: (4, [len(preview)]),
        330: (4, [0]),
    }  # fmt: skip
    return _little_tiff([common | first, sensor], {(0, 273): preview, (1, 273): pixels})


def _little_tiff(
    directories: list[dict[int, tuple[int, list[int] | bytes]]],
    contents: Mapping[tuple[int, int], bytes],
) -> bytes:
    """Write a little-endian TIFF; entry 330 points to the second directory.

    Args:
        directories: type and elements of each entry.
        contents: the data after the directories, by the entry that points to it.
    """
    codes = {1: "B", 2: "c", 3: "H", 4: "I"}
    places: dict[tuple[int, int], int] = {}
    output = b""
    for _ in range(2):  # the first pass only measures the length of everything
        output, starts = b"II*\0" + struct.pack("<I", 8), []
        for index, entries in enumerate(directories):
            starts.append(len(output))
            head, behind = struct.pack("<H", len(entries)), b""
            for tag, (kind, elements) in sorted(entries.items()):
                if isinstance(elements, bytes):
                    value, count = elements, len(elements) // {5: 8, 10: 8}.get(kind, 1)
                else:
                    pointed = places.get((index, tag))
                    numbers = elements if pointed is None else [pointed]
                    value = struct.pack(f"<{len(numbers)}{codes[kind]}", *numbers)
                    count = len(numbers)
                if len(value) > 4:
                    place = starts[-1] + 2 + 12 * len(entries) + 4 + len(behind)
                    behind += value + bytes(len(value) % 2)
                    value = struct.pack("<I", place)
                head += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
            output += head + bytes(4) + behind
        if len(starts) > 1:
            places[0, 330] = starts[1]
        for key, content in contents.items():
            places[key] = len(output)
            output += content
    return output


def make_motion_photo() -> bytes:
    """Make a JPEG with a film after it, as phones do."""
    return make_photo(0.3) + make_video("mp4", 1)


def make_hdr_png(picture: NDArray[np.uint8], space: ColourSpace) -> bytes:
    """Make a PNG of 16 bits a value whose cICP chunk says PQ or HLG, with BT.2020 primaries."""
    codes = encode_hdr(picture, space).astype(">u2")
    height, width, _ = codes.shape
    rows = b"".join(b"\0" + row.tobytes() for row in codes)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    cicp = bytes((9, {"pq": 16, "hlg": 18}[space.transfer], 0, 1))
    chunks = ((b"IHDR", header), (b"cICP", cicp), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return _png(*chunks)


def add_png_chunks(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Put chunks after the header of a PNG."""
    behind_header = 8 + 25
    return png[:behind_header] + _png(*chunks)[8:] + png[behind_header:]


def clean_aperture_box(
    stored: tuple[int, int], left: int, top: int, right: int, bottom: int
) -> bytes:
    """Make a `clap` box that shows a part of a picture.

    Args:
        stored: width and height of the whole (pixels).
        left: edges of the part (pixels).
        top: as `left`.
        right: as `left`.
        bottom: as `left`.
    """
    width, height = stored
    # Offsets of the middle, in halves of a pixel.
    across, down = left + right - width, top + bottom - height
    numbers = struct.pack(">IIIIiIiI", right - left, 1, bottom - top, 1, across, 2, down, 2)
    return _small_box(b"clap", numbers)


def pixel_aspect_box(width: int, height: int) -> bytes:
    """Make a `pasp` box: width and height of a pixel."""
    return _small_box(b"pasp", struct.pack(">II", width, height))


def with_film_boxes(film: bytes, added: bytes) -> bytes:
    """Put boxes into the sample entry of the first track of an MP4 whose `moov` box is its last."""
    path = []
    start, end = 0, len(film)
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        content, end = next((s, e) for n, s, e in boxes(film, start, end) if n == name)
        path.append(content - 8)
        start = content
    entry, place = next((s, e) for _, s, e in boxes(film, start + 8, end))
    return _grown(film, [*path, entry - 8], place, added)


def with_matroska_video(
    film: bytes, added: Sequence[tuple[int, int]], *, without_unit: bool = False
) -> bytes:
    """Add properties to the film of a Matroska file with one track.

    Args:
        film: the file as FFmpeg writes it, with empty space for the new properties.
        added: identifiers of elements, and their numbers.
        without_unit: drop the unit of the display size, which FFmpeg writes as unknown.
    """
    if without_unit:
        film = film.replace(b"\x54\xb2\x81\x04", b"\xec\x82\0\0", 1)
    new = b"".join(struct.pack(">HBI", each, 0x84, number) for each, number in added)
    identifier = b"\x16\x54\xae\x6b"
    tracks = film.find(identifier, film.find(identifier) + 1)  # the first is in the index
    track = film.find(b"\xae\x01", tracks)  # its length has 8 bytes
    video = film.find(b"\xe0", track + 9)
    end = video + 2 + (film[video + 1] & 0x7F)
    changed = bytearray(film[:end] + new + film[end:])
    changed[video + 1] += len(new)
    changed[track + 8] += len(new)
    changed[tracks + 12 - film[tracks + 4].bit_length()] += len(new)  # the last byte of its length
    # The empty space becomes shorter by the same length, so that the positions in the index stay
    # correct.
    space = film.find(b"\xec\x01")
    changed[space + 8] -= len(new)
    del changed[space + 9 : space + 9 + len(new)]
    return bytes(changed)


def with_heif_boxes(data: bytes, added: bytes) -> bytes:
    """Add properties before all others to the primary picture of a HEIC or AVIF.

    The file must have only one picture, perhaps with its transparency, as our encoders write it.
    """
    meta, meta_end = next((s, e) for n, s, e in boxes(data) if n == b"meta")
    parts = {n: (s, e) for n, s, e in boxes(data, meta + 4, meta_end)}
    inner = {n: (s, e) for n, s, e in boxes(data, *parts[b"iprp"])}
    count = sum(1 for _ in boxes(data, *inner[b"ipco"]))
    new = sum(1 for _ in boxes(added))
    associations = inner[b"ipma"][0] + 8 + 2  # after version, count and the first item's number
    numbers = bytes(0x80 | (count + each) for each in range(1, new + 1))
    # Bytes are inserted from the end of the file to its start, so earlier positions stay valid.
    around = [meta - 8, parts[b"iprp"][0] - 8, inner[b"ipma"][0] - 8]
    place = associations + 1 + data[associations]
    changed = bytearray(_grown(data, around, place, numbers))
    changed[associations] += new
    around[-1] = inner[b"ipco"][0] - 8
    whole = _grown(bytes(changed), around, inner[b"ipco"][1], added)
    return _with_moved_items(whole, len(whole) - len(data))


def _with_moved_items(data: bytes, by: int) -> bytes:
    """Add a number to the position of every item in the file."""
    meta, meta_end = next((s, e) for n, s, e in boxes(data) if n == b"meta")
    iloc = next(s for n, s, _ in boxes(data, meta + 4, meta_end) if n == b"iloc")
    moved = bytearray(data)
    version, sizes = data[iloc], data[iloc + 4]
    base_bytes = data[iloc + 5] >> 4
    place = iloc + 8
    for _ in range(int.from_bytes(data[iloc + 6 : iloc + 8], "big")):
        place += 2 + (2 if version else 0) + 2
        base = place
        place += base_bytes
        extents = int.from_bytes(data[place : place + 2], "big")
        place += 2
        for extent in range(extents):
            where = place if sizes >> 4 else base
            if extent == 0 or sizes >> 4:
                size = (sizes >> 4) or base_bytes
                value = int.from_bytes(moved[where : where + size], "big") + by
                moved[where : where + size] = value.to_bytes(size, "big")
            place += (sizes >> 4) + (sizes & 15)
    return bytes(moved)


def make_jpeg2000(
    picture: Image.Image,
    space: int,
    *boxes_of_header: bytes,
    parameters: bytes = b"",
    **options: Any,
) -> bytes:
    """Make a lossless JPEG 2000 file whose boxes define the meaning of its components.

    Args:
        picture: its bands are the components, in mode L, LA, RGB, RGBA or I;16.
        space: number of the colour space.
        boxes_of_header: more boxes of the header: palette, channels.
        parameters: parameters of the colour space.
        options: options of Pillow's encoder.
    """
    codestream = io.BytesIO()
    # The encoder must not mix the components, because they may have any meaning.
    picture.save(codestream, "JPEG2000", **{"no_jp2": True, "mct": 0, **options})
    colour = _small_box(b"colr", struct.pack(">BBBI", 1, 0, 0, space) + parameters)
    return wrap_jpeg2000(codestream.getvalue(), colour, *boxes_of_header)


def make_subsampled_jpeg2000(picture: Image.Image, pixel_format: str) -> bytes:
    """Make a codestream in which several pixels share their colours.

    Args:
        picture: an RGB picture.
        pixel_format: FFmpeg's name, e.g. ``yuv420p``.
    """
    encoder = av.CodecContext.create("jpeg2000", "w")
    encoder.width, encoder.height = picture.size
    encoder.pix_fmt, encoder.time_base = pixel_format, Fraction(1, 25)
    encoder.options = {"format": "j2k", "pred": "dwt53"}
    frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24").reformat(
        format=pixel_format, dst_colorspace="ITU601", dst_color_range="JPEG"
    )
    return b"".join(bytes(packet) for packet in encoder.encode(frame) + encoder.encode(None))


def with_more_tile_parts(codestream: bytes) -> bytes:
    """Give the only tile of a JPEG 2000 codestream one more part than its header counts.

    Some programs write such files, and Pillow refuses them.
    """
    tile = Codestream.of(codestream).first_tile
    length = int.from_bytes(codestream[tile + 6 : tile + 10], "big")
    head = codestream[tile : tile + 11] + b"\1"
    part = struct.pack(">2sHHIBB2s", b"\xff\x90", 10, 0, 14, 1, 1, b"\xff\x93")
    return codestream[:tile] + head + codestream[tile + 12 : tile + length] + part + b"\xff\xd9"


def wrap_jpeg2000(codestream: bytes, *boxes_of_header: bytes) -> bytes:
    """Put a codestream of 8 bits in the boxes of a file."""
    width, height = (int.from_bytes(codestream[at : at + 4], "big") for at in (8, 12))
    count, depth = int.from_bytes(codestream[40:42], "big"), codestream[42]
    header = struct.pack(">IIHBBBB", height, width, count, depth, 7, 0, 0)
    return b"".join(
        [
            _small_box(b"jP  ", b"\r\n\x87\n"),
            _small_box(b"ftyp", b"jp2 \0\0\0\0jp2 "),
            _small_box(b"jp2h", _small_box(b"ihdr", header) + b"".join(boxes_of_header)),
            _small_box(b"jp2c", codestream),
        ]
    )


def jpeg2000_palette(colours: Sequence[Sequence[int]]) -> bytes:
    """Make the boxes of a palette, one of 8 bits for each channel of the picture."""
    columns = len(colours[0])
    table = struct.pack(">HB", len(colours), columns) + b"\7" * columns
    mapping = b"".join(struct.pack(">HBB", 0, 1, column) for column in range(columns))
    entries = b"".join(map(bytes, colours))
    return _small_box(b"pclr", table + entries) + _small_box(b"cmap", mapping)


def jpeg2000_channels(*channels: tuple[int, int, int]) -> bytes:
    """Make the box that defines channels.

    Args:
        channels: number of the channel; 0: colour, 1: alpha, 2: associated alpha; and the number of
            the colour from 1, or 0 for all.
    """
    numbers = b"".join(struct.pack(">HHH", *each) for each in channels)
    return _small_box(b"cdef", struct.pack(">H", len(channels)) + numbers)


def _small_box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def _grown(data: bytes, around: Sequence[int], place: int, added: bytes) -> bytes:
    """Insert bytes at `place`, and lengthen the boxes around them, which begin at `around`."""
    changed = bytearray(data)
    for start in around:
        size = int.from_bytes(changed[start : start + 4], "big") + len(added)
        changed[start : start + 4] = size.to_bytes(4, "big")
    changed[place:place] = added
    return bytes(changed)
