"""A large HEIC is decoded tile by tile; the result is the same as when decoded as a whole."""

import io
import struct
import subprocess
import sys
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.content import MediaContent
from batch_pipeline.media.images import decode_image
from batch_pipeline.media.sniffing import HEIC
from batch_pipeline.media.stills import heif
from batch_pipeline.media.stills.boxes import boxes
from batch_pipeline.media.stills.heif_grid import read_grid
from batch_pipeline.media.stills.heif_items import read_items
from batch_pipeline.testing.media import encode_image, paint

TILE = 64


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def taken_apart(tile: Image.Image) -> tuple[bytes, bytes]:
    """The configuration of the decoder, and the picture, of a HEIC of one tile."""
    data = encode_image(tile, "heic", quality=90)
    place = data.index(b"hvcC") - 4
    configuration = data[place : place + int.from_bytes(data[place : place + 4], "big")]
    [content] = [data[start:end] for name, start, end in boxes(data) if name == b"mdat"]
    return configuration, content


def make_grid(
    picture: Image.Image,
    *,
    quarter_turns: int = 0,
    tile: int = TILE,
    repeated: int = 1,
    more: bytes = b"",
    times: int = 0,
) -> bytes:
    """Make a HEIC of tiles; `repeated` times as wide and high, of the same tiles again.

    Each tile has the property `more` this many times.
    """
    columns, rows = -(-picture.width // tile), -(-picture.height // tile)
    canvas = Image.new("RGB", (columns * tile, rows * tile))
    canvas.paste(picture, (0, 0))
    parts = [
        taken_apart(canvas.crop((x * tile, y * tile, (x + 1) * tile, (y + 1) * tile)))
        for y in range(rows)
        for x in range(columns)
    ]
    size = (picture.width * repeated, picture.height * repeated)
    numbers = [
        y % rows * columns + x % columns
        for y in range(rows * repeated)
        for x in range(columns * repeated)
    ]
    grid = len(numbers) + 1
    configuration, contents = parts[0][0], [content for _, content in parts]
    described = struct.pack(">BBBBII", 0, 1, rows * repeated - 1, columns * repeated - 1, *size)
    properties = [
        configuration,
        box(b"ispe", struct.pack(">III", 0, tile, tile)),
        box(b"ispe", struct.pack(">III", 0, *size)),
        box(b"irot", bytes([quarter_turns])),
        box(b"free", more),
    ]
    own = bytes([2 + times, 0x81, 2]) + b"\5" * times
    belong = b"".join(struct.pack(">H", item) + own for item in range(1, grid))
    belong += struct.pack(">HBBB", grid, 2, 3, 0x84)
    entries = b"".join(
        box(b"infe", struct.pack(">IHH4sB", 2 << 24, item, 0, name, 0))
        for item, name in [*((item, b"hvc1") for item in range(1, grid)), (grid, b"grid")]
    )
    ends = np.cumsum([0, *map(len, contents)])

    def meta(start: int) -> bytes:
        places = b"".join(
            struct.pack(">HHHHII", item, 0, 0, 1, start + int(ends[number]), len(contents[number]))
            for item, number in enumerate(numbers, start=1)
        )
        places += struct.pack(">HHHHII", grid, 1, 0, 1, 0, len(described))
        return box(
            b"meta",
            bytes(4)
            + box(b"hdlr", b"\0\0\0\0\0\0\0\0pict" + bytes(13))
            + box(b"pitm", struct.pack(">IH", 0, grid))
            + box(b"iinf", struct.pack(">IH", 0, grid) + entries)
            + box(
                b"iref",
                bytes(4)
                + box(b"dimg", struct.pack(f">HH{grid - 1}H", grid, grid - 1, *range(1, grid))),
            )
            + box(
                b"iprp",
                box(b"ipco", b"".join(properties))
                + box(b"ipma", struct.pack(">II", 0, grid) + belong),
            )
            + box(b"idat", described)
            + box(b"iloc", struct.pack(">IBBH", 1 << 24, 0x44, 0, grid) + places),
        )

    head = box(b"ftyp", b"heic\0\0\0\0heicmif1")
    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + box(b"mdat", b"".join(contents))


def shown(content: MediaContent) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content.frames[0].jpeg)), dtype=float)


@pytest.mark.parametrize("quarter_turns", range(4))
@pytest.mark.parametrize("size", [(168, 112), (200, 150)])
def test_a_picture_decoded_by_tiles_equals_one_decoded_whole(size, quarter_turns, monkeypatch):
    data = make_grid(paint(size), quarter_turns=quarter_turns)
    whole = decode_image(data, HEIC)

    monkeypatch.setattr(heif, "_WHOLE_PIXELS", 1)
    by_tiles = decode_image(data, HEIC)

    assert (by_tiles.facts.width, by_tiles.facts.height) == (whole.facts.width, whole.facts.height)
    assert (by_tiles.facts.width > by_tiles.facts.height) == (quarter_turns % 2 == 0)
    assert np.abs(shown(by_tiles) - shown(whole)).mean() < 4


def test_a_broken_tile_leaves_a_warning_or_is_refused(monkeypatch):
    monkeypatch.setattr(heif, "_WHOLE_PIXELS", 1)
    data = bytearray(make_grid(paint((168, 112))))
    data[-3000:-2900] = bytes(100)

    with suppress(PermanentError):
        assert decode_image(bytes(data), HEIC).frames


def test_a_property_that_every_tile_names_again_and_again_is_not_copied() -> None:
    data = make_grid(paint((168, 112)), more=bytes(64 * 1024), times=250)
    tracemalloc.start()
    try:
        read_grid(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 10 * 1024**2


def test_hostile_grids_raise_nothing_else(monkeypatch):
    monkeypatch.setattr(heif, "_WHOLE_PIXELS", 1)
    data = make_grid(paint((168, 112)))
    for place in range(24, data.index(b"mdat"), 37):
        damaged = bytearray(data)
        damaged[place : place + 3] = b"\xff\xff\xff"
        with suppress(PermanentError):
            decode_image(bytes(damaged), HEIC)


PEAK = """
import re, sys
from pathlib import Path
from batch_pipeline.media.images import decode_image
from batch_pipeline.media.sniffing import HEIC

def peak():  # in MiB
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10

data = Path(sys.argv[1]).read_bytes()
used = peak()
content = decode_image(data, HEIC)
print(content.facts.width, content.facts.height, peak() - used)
"""


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from Linux")
def test_200_megapixels_of_a_phone_take_no_more_memory_than_is_stated(tmp_path):
    data = make_grid(paint((2048, 1536)), tile=512, repeated=8)
    (tmp_path / "large.heic").write_bytes(data)

    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "large.heic")],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )

    width, height, added = map(int, result.stdout.split())
    assert (width, height) == (16_384, 12_288)
    assert added < 300


def test_positions_of_no_bytes_do_not_fill_the_memory() -> None:
    """An AVIF may have this after its end, where its decoder does not look."""
    items = b"".join(struct.pack(">HHHH", number, 0, 0, 0xFFFF) for number in range(200))
    positions = b"\1" + bytes(5) + struct.pack(">H", 200) + items
    meta = box(
        b"meta",
        bytes(4)
        + box(b"pitm", struct.pack(">IH", 0, 1))
        + box(b"iloc", positions)
        + box(b"iinf", bytes(6))
        + box(b"iprp", b""),
    )

    found = read_items(meta)

    assert sum(map(len, found.places.values())) <= len(positions)
