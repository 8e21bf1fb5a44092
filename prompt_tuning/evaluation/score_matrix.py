"""Matrices of scores, which may be larger than all else that a process holds."""

from __future__ import annotations

import os
import tempfile
from math import prod

import numpy as np

_LARGEST_IN_MEMORY = 16 * 2**20


def empty_scores(items: int, classes: int) -> np.ndarray:
    """A matrix `(items, classes)`, float32, to be filled.

    A large one is a file without a name, in the folder for temporary files: the system may write
    its pages there and drop them from memory, and it goes when the matrix does.
    """
    shape = (items, classes)
    if 4 * prod(shape) <= _LARGEST_IN_MEMORY:
        return np.empty(shape, dtype=np.float32)
    with tempfile.TemporaryFile() as file:
        # Raises OSError where a write to a map of a full disk would end the process.
        os.posix_fallocate(file.fileno(), 0, 4 * prod(shape))
        return np.memmap(file, dtype=np.float32, shape=shape)
