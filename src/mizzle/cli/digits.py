"""Scikit-learn's bundled handwritten digits (1797 pictures of 8x8, 10 classes), split into training and test rows.

From E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998: its test part.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mizzle.errors import ConfigError

SPLIT_SEED = 0
TRAIN_FRACTION = 0.8


@dataclass(frozen=True, slots=True)
class Digits:
    """Both parts of the data.

    Attributes:
        train: rows with "image", 64 floats in [0, 1] from left to right and top to bottom, and "label", int64.
        test_images: (n, 64) fp32.
        test_labels: (n,) int64.
    """

    train: pa.Table
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits() -> Digits:
    """The pictures in a random order of fixed seed: 1437 to train on, 360 to test with.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the demo trains on the digits that come with scikit-learn, which is not installed: "
            "pip install 'mizzle[demo]'"
        ) from error
    bundled = datasets.load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(bundled.target))
    images = (bundled.data[order] / 16).astype(np.float32)
    labels = bundled.target[order].astype(np.int64)
    num_train = int(TRAIN_FRACTION * len(order))
    flat = pa.array(images[:num_train].ravel())
    offsets = np.arange(0, len(flat) + 1, images.shape[1], dtype=np.int32)
    train = pa.table({"image": pa.ListArray.from_arrays(pa.array(offsets), flat), "label": labels[:num_train]})
    return Digits(train, images[num_train:], labels[num_train:])
