"""The features of image files, kept in memory: an image is encoded once, however often the artifact
that scores it is improved."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from prompt_tuning.backbones.base import VLM
from prompt_tuning.features import Features
from prompt_tuning.tagging.tag_stream import encode_files

_MOST_BYTES = 2**29

Key = tuple[Path, int, int]


class EncodedFiles:
    """The latest files' features, up to `_MOST_BYTES`; safe to use from several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, Features] = OrderedDict()
        self._vlm: Callable[[], VLM | None] = lambda: None  # weak: a replaced model is freed
        self._bytes = 0
        self._lock = threading.Lock()

    def features(self, vlm: VLM, files: Sequence[Path], threads: int = 1) -> list[Features | str]:
        """Each file's features, a batch of one, or why it cannot be read (see `encode_files`)."""
        keys = [_key(file) for file in files]
        with self._lock:
            if vlm is not self._vlm():
                self._kept, self._vlm, self._bytes = OrderedDict(), weakref.ref(vlm), 0
            found = {key: self._kept[key] for key in keys if key in self._kept}
            for key in found:
                self._kept.move_to_end(key)
        missing = [file for file, key in zip(files, keys, strict=True) if key not in found]
        encoded = iter(list(encode_files(vlm, missing, threads)))
        results = [found[key] if key in found else next(encoded) for key in keys]
        with self._lock:
            for key, result in zip(keys, results, strict=True):
                if isinstance(result, Features) and key not in self._kept and vlm is self._vlm():
                    self._kept[key] = result
                    self._bytes += _size(result)
            while self._bytes > _MOST_BYTES:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
        return results


def _key(file: Path) -> Key:
    """A file as it is now. A missing one has a key as well: encoding it gives the reason."""
    try:
        status = file.stat()
    except OSError:
        return file, 0, 0
    return file, status.st_mtime_ns, status.st_size


def _size(features: Features) -> int:
    tensors = (features.pooled, features.regions, features.tiles)
    return sum(each.nbytes for each in tensors if each is not None)
