"""Decoding: storage errors stay storage errors, hostile files stay within limits, threads agree."""

import errno
import gc
import io
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from batch_pipeline.errors import PermanentError
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.memory import AT_ONCE, DECODES
from batch_pipeline.media.sniffing import ACCEPTED_TYPES, HEAD_BYTES, sniff
from batch_pipeline.testing.media import (
    IMAGE_FORMATS,
    VIDEO_FORMATS,
    cut_in_half,
    make_dng,
    make_ffconcat,
    make_hls_playlist,
    make_image,
    make_psd,
    make_tiff,
    make_video,
    paint,
)

EVERY_FORMAT = [*IMAGE_FORMATS, *VIDEO_FORMATS]


@cache  # made by the first test, not at import: every worker imports this module
def file_of(name: str) -> bytes:
    return make_image(name) if name in IMAGE_FORMATS else make_video(name, 3)


def decode_bytes(data: bytes):
    media_type = sniff(data[:HEAD_BYTES])
    assert media_type is not None
    return decode(io.BytesIO(data), media_type)


class FailingStorage(io.BytesIO):
    """A file whose storage fails after a number of bytes."""

    def __init__(self, data: bytes, after: int, error: BaseException) -> None:
        super().__init__(data)
        self._left = after
        self._error = error

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._left -= len(data)
        if self._left < 0:
            raise self._error
        return data


@pytest.mark.parametrize("media_type", ACCEPTED_TYPES, ids=lambda t: t.extension)
def test_an_empty_file_has_a_kind_of_its_own(media_type):
    with pytest.raises(PermanentError, match="0 bytes") as caught:
        decode(io.BytesIO(), media_type)

    assert caught.value.kind == "empty_file"


@pytest.mark.parametrize("name", EVERY_FORMAT)
def test_a_picture_with_too_many_bytes_is_not_read_and_a_video_is(name):
    data = file_of(name)
    media_type = sniff(data)
    assert media_type is not None
    assert decode(io.BytesIO(data), media_type, max_file_bytes=len(data)).frames
    if media_type.file_type == "video":
        assert decode(io.BytesIO(data), media_type, max_file_bytes=1000).frames
        return
    unreadable = FailingStorage(data, 0, AssertionError("it was read"))
    with pytest.raises(PermanentError, match=r"a picture may have 7 .*MAX_FILE_BYTES") as caught:
        decode(unreadable, media_type, max_file_bytes=7)
    assert caught.value.kind == "file_too_large"


@pytest.mark.parametrize("name", EVERY_FORMAT)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_an_error_of_the_storage_passes_through_as_it_is(name, share):
    data = file_of(name)
    media_type = sniff(data)
    assert media_type is not None
    error = OSError(errno.EIO, "disk gone")

    with pytest.raises(OSError, match="disk gone") as caught:
        decode(FailingStorage(data, int(len(data) * share), error), media_type)

    assert caught.value is error


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_running_out_of_memory_is_not_blamed_on_the_file(image_format):
    data = make_image(image_format)
    media_type = sniff(data)
    assert media_type is not None

    with pytest.raises(MemoryError):
        decode(FailingStorage(data, 0, MemoryError()), media_type)


def test_the_file_is_left_open_for_its_owner():
    for data in (make_image("jpeg"), make_video("mp4", 1)):
        source = io.BytesIO(data)
        media_type = sniff(data)
        assert media_type is not None

        decode(source, media_type)

        assert not source.closed


def test_threads_get_what_one_alone_gets():
    files = [file_of(name) for name in EVERY_FORMAT]
    alone = [decode_bytes(data).frames for data in files]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda data: decode_bytes(data).frames, files * 2))

    assert together == alone * 2


@pytest.mark.parametrize(
    "media_type", [t for t in ACCEPTED_TYPES if t.file_type == "video"], ids=lambda t: t.extension
)
def test_scripts_and_playlists_open_no_other_file_whatever_type_they_claim(
    media_type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Given a canary that could be decoded, and a server that must not be called.
    (tmp_path / "canary.mp4").write_bytes(make_video("mp4", 1))
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        hostile = {
            "sibling.mp4": make_ffconcat("canary.mp4"),
            "itself.mp4": make_ffconcat("itself.mp4"),
            "local.mp4": make_hls_playlist((tmp_path / "canary.mp4").as_uri()),
            "remote.mp4": make_hls_playlist(f"http://127.0.0.1:{port}/canary.mp4"),
        }
        for name, data in hostile.items():
            assert sniff(data) is None
            (tmp_path / name).write_bytes(data)

            # When it is decoded nevertheless, because a row of another client names it
            with (tmp_path / name).open("rb") as source, pytest.raises(PermanentError) as caught:
                decode(source, media_type)

            assert caught.value.kind in {"unreadable_video", "truncated", "no_video_stream"}
        with pytest.raises(BlockingIOError):
            server.accept()


IN_BOUNDED_MEMORY = """
import io, resource, sys
from batch_pipeline.errors import PermanentError
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.memory import AT_ONCE, DECODES
from batch_pipeline.media.sniffing import HEAD_BYTES, sniff
from batch_pipeline.testing import media

hostile = [
    media.make_png_bomb(20_000),
    media.make_png_bomb(11_000),
    media.make_gif_bomb(),
    media.make_png_text_bomb(),
    media.make_jpeg_with_segments(1_000_000),
    media.make_oversized_video(),
]
for ordinary in (media.make_image(), media.make_video()):  # what is loaded once is loaded now
    decode(io.BytesIO(ordinary), sniff(ordinary))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 32 * 1024**2,) * 2)
for data in hostile:
    try:
        decode(io.BytesIO(data), sniff(data[:HEAD_BYTES]), max_bytes=256 * 1024**2)
    except PermanentError as error:
        print(error.kind)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process by RLIMIT_AS")
def test_files_that_claim_gigabytes_are_refused_within_32_megabytes():
    result = subprocess.run(
        [sys.executable, "-c", IN_BOUNDED_MEMORY],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert result.stdout.split() == [
        "too_many_pixels",
        "too_many_pixels",
        "too_many_pixels",
        "oversized_metadata",
        "oversized_metadata",
        "too_many_pixels",
    ], result.stderr


def test_as_many_files_are_decoded_at_a_time_as_there_are_cores():
    with ThreadPoolExecutor(1) as pool:
        with ExitStack() as busy:
            for _ in range(AT_ONCE):
                busy.enter_context(DECODES)
            waiting = pool.submit(decode_bytes, make_image("jpeg"))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
        assert waiting.result(timeout=60).facts.format == "jpeg"
    assert DECODES.acquire(blocking=False), "a decode keeps its place"
    DECODES.release()


def jpeg2000():
    output = io.BytesIO()
    paint((200, 150)).save(output, "JPEG2000")
    return output.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        *(partial(file_of, name) for name in EVERY_FORMAT),
        jpeg2000,
        lambda: make_psd(paint((200, 150))),
        lambda: make_tiff(np.asarray(paint((200, 150)))),
        lambda: make_dng((200, 150)),
        lambda: make_image("jpeg", (784, 588))[:-20],
        lambda: cut_in_half(make_image("jpeg", (784, 588))),
        lambda: cut_in_half(make_image("png", (784, 588))),
        lambda: cut_in_half(make_video("mp4", 3)),
    ],
)
def test_pictures_are_freed_at_once_and_not_by_the_garbage_collector(make):
    data = make()

    def decode_and_drop():
        with suppress(PermanentError):
            decode_bytes(data).make_thumbnail()

    decode_and_drop()  # libraries that the first file loads stay loaded
    gc.disable()
    gc.freeze()  # looks only at what is made from here on
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        decode_and_drop()
        gc.collect()
        held = [left for left in gc.garbage if type(left).__module__.startswith(("PIL", "batch_"))]
        assert held == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
