"""MNIST, as the four IDX files or as one .npz: images as nodes without a graph."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .graph import Graph, as_labels
from .npy import load_npz
from .raw import allowance, open_regular, too_much

__all__ = ["read_idx", "read_mnist"]

_VALIDATION = 5000
_KEYS = ("x_train", "y_train", "x_test", "y_test")
_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Raises
    ------
    InputError
        When it is missing, truncated or of another type.
    """
    with open_regular(path) as file:
        compressed = file.peek(2)[:2] == b"\x1f\x8b"
        room = allowance(file) if compressed else os.fstat(file.fileno()).st_size
        try:
            with gzip.GzipFile(fileobj=file) if compressed else file as stream:
                return _read_idx(stream, path, room)
        except (OSError, EOFError, zlib.error) as exc:
            kind = type(exc).__name__
            raise InputError(f"{path}: truncated or unreadable ({kind}); fetch it again") from None


def _read_idx(stream: IO[bytes] | gzip.GzipFile, path: Path, room: int) -> npt.NDArray[np.uint8]:
    start = stream.read(4)
    if start[:3] != b"\x00\x00\x08" or start[3:] not in (b"\x01", b"\x03"):
        raise InputError(f"{path}: not an IDX file of unsigned bytes; fetch it again")
    dimensions = start[3]
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise InputError(f"{path}: truncated in its header; fetch it again")
    shape = struct.unpack(f">{dimensions}I", sizes)
    size = math.prod(shape)
    if size > room:
        raise too_much(path, "fetch it again")
    content = stream.read(size)
    if len(content) != size or stream.read(1):
        raise InputError(f"{path}: does not hold the {size} bytes that its header says; fetch it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_mnist(files: Mapping[str, Path], name: str, seed: int) -> Graph:
    """Read MNIST from `mnist.npz` (x_train y_train x_test y_test) or the four IDX files.

    Pixels are scaled to [0, 1]. The test images are the published ones; 5000 of the training
    images (a twelfth of fewer) are drawn from the seed for validation.

    Parameters
    ----------
    files : mapping from the published name to the path
    seed : int

    Raises
    ------
    InputError
        For damaged files and sizes that disagree.
    """
    if "mnist.npz" in files:
        path = files["mnist.npz"]
        arrays, _ = load_npz(path, _KEYS)
        missing = [k for k in _KEYS if k not in arrays]
        if missing:
            raise InputError(f"{path}: lacks {', '.join(missing)}; fetch it again")
        origins = dict.fromkeys(_KEYS, path)
    else:
        origins = {key: files.get(f"{n}.gz") or files[n] for key, n in zip(_KEYS, _IDX, strict=True)}
        arrays = {key: read_idx(path) for key, path in origins.items()}

    labels = {key: as_labels(arrays[key], f"{origins[key]} ({key})") for key in ("y_train", "y_test")}
    images = {}
    for key, label_key in (("x_train", "y_train"), ("x_test", "y_test")):
        pixels = arrays[key]
        if pixels.ndim < 2 or pixels.dtype.kind not in "iuf" or pixels.size == 0:
            raise InputError(f"{origins[key]}: {key} is {pixels.dtype} {pixels.shape}, not images")
        if pixels.shape[0] != labels[label_key].size:
            raise InputError(
                f"{origins[key]}: {pixels.shape[0]} images for {labels[label_key].size} labels; "
                "fetch it again"
            )
        images[key] = pixels.reshape(pixels.shape[0], -1)
    if images["x_train"].shape[1] != images["x_test"].shape[1]:
        raise InputError(f"{origins['x_test']}: training and test images differ in size; fetch it again")

    n_train, n_test = (labels[k].size for k in ("y_train", "y_test"))
    features = np.empty((n_train + n_test, images["x_train"].shape[1]), dtype=np.float32)
    with np.errstate(over="ignore"):  # an overflow to Inf is reported with the other bad values
        np.divide(images["x_train"], np.float32(255), out=features[:n_train])
        np.divide(images["x_test"], np.float32(255), out=features[n_train:])
    order = np.random.default_rng(seed).permutation(n_train)
    n_val = min(_VALIDATION, n_train // 12)
    y = np.concatenate([labels["y_train"], labels["y_test"]])
    return Graph(
        name=name,
        adjacency=None,
        features=features,
        labels=y,
        train=np.sort(order[n_val:]),
        val=np.sort(order[:n_val]),
        test=np.arange(n_train, n_train + n_test, dtype=np.int64),
        num_classes=10,
        origin=str(origins["x_train"]),
    )
