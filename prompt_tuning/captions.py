"""Captions (sentences with labels): those that need no language model, and the files of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from prompt_tuning.categories import CategoryList
from prompt_tuning.clip_templates import CLIP_TEMPLATES
from prompt_tuning.knowledge.noun_matching import NounMatcher
from prompt_tuning.parquet_rows import RowWriter, row_groups
from prompt_tuning.plain_text import plain_lines
from prompt_tuning.settings import Settings
from prompt_tuning.storage import digest


class CaptionSettings(Settings):
    """Which captions are used, and the share that is held out to choose checkpoints.

    `files`: files of your own captions, one per line: `sentence` or `sentence<TAB>label;label`.
    `templates`: whether CLIP's 80 prompt templates with each category's name are captions too.
    `allow_missing`: whether to tune even if some labels have no caption to tune on.
    `min_words`, `max_words`: answers with fewer or more words are dropped.
    """

    files: tuple[str, ...] = ()
    templates: bool = False
    allow_missing: bool = False
    min_words: Annotated[int, Field(ge=1)] = 4
    max_words: Annotated[int, Field(ge=1)] = 60
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _some_length_is_allowed(self) -> CaptionSettings:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}")
        return self


@dataclass(frozen=True)
class Caption:
    """A sentence with the ascending indices of its categories.

    `kind`: the kind of its question, or `file` or `template`.
    """

    text: str
    labels: tuple[int, ...]
    kind: str


_SCHEMA = pa.schema(
    {
        "text": pa.string(),
        "labels": pa.list_(pa.string()),
        "kind": pa.string(),
        "question": pa.string(),
        "model": pa.string(),
        "seed": pa.int64(),
        "key": pa.string(),
    }
)
_READ = ["text", "labels", "kind"]
_PACKED = pa.schema(
    {
        "text": pa.string(),
        "labels": pa.list_(pa.int32()),
        "kind": pa.dictionary(pa.int8(), pa.string()),
    }
)
_CAPTIONS_PER_BATCH = 8192


def is_held_out(caption: Caption, share: float) -> bool:
    """Whether a caption is held out to choose checkpoints. This depends only on its text."""
    return int(digest(caption.text)[:8], 16) / 2**32 < share


def read_caption_file(path: Path, categories: CategoryList) -> Iterator[Caption]:
    """Read captions from lines of `sentence` or `sentence<TAB>label;label`.

    Labels may be synonyms. A sentence without labels gets the categories that it names.

    Raises:
        OSError: if the file cannot be read.
        ValueError: with file and row, for a label that is not a category, a sentence without any
            category, or an encoding that `plain_lines` does not read.
    """
    matcher = NounMatcher(categories.categories)
    for row, line in enumerate(plain_lines(path.read_bytes(), str(path)), start=1):
        text, _, labels_text = line.partition("\t")
        if not text.strip():
            continue
        named = set()
        for name in filter(None, map(str.strip, labels_text.split(";"))):
            label = categories.find(name)
            if label is None:
                raise ValueError(f"{path}, row {row}: {name!r} is not in the category list")
            named.add(label)
        labels = tuple(sorted(named)) or matcher.find(text)
        if not labels:
            raise ValueError(f"{path}, row {row}: the sentence names no category; add <TAB>label")
        yield Caption(text.strip(), labels, "file")


def template_captions(categories: CategoryList) -> Iterator[Caption]:
    """CLIP's 80 ImageNet templates with each category's name, which is the only label.

    Radford et al., 2021, arXiv 2103.00020, §3.1.4.
    """

    for label, name in enumerate(categories.names):
        for template in CLIP_TEMPLATES:
            yield Caption(template.format(name), (label,), "template")


def given_captions(settings: CaptionSettings, categories: CategoryList) -> Iterator[Caption]:
    """The captions that need no language model: from files, then from templates.

    Raises:
        OSError, ValueError: as `read_caption_file`.
    """
    for file in settings.files:
        yield from read_caption_file(Path(file), categories)
    if settings.templates:
        yield from template_captions(categories)


class PackedCaptions:
    """Many captions in memory, as columns: a hundred bytes each and not a thousand."""

    def __init__(self, captions: Iterable[Caption]) -> None:
        self._batches: list[pa.RecordBatch] = []
        ahead = iter(captions)
        while some := list(islice(ahead, _CAPTIONS_PER_BATCH)):
            columns = [[getattr(caption, name) for caption in some] for name in _READ]
            self._batches.append(pa.record_batch(dict(zip(_READ, columns, strict=True)), _PACKED))

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self._batches)

    def __iter__(self) -> Iterator[Caption]:
        for batch in self._batches:
            for row in batch.to_pylist():
                yield Caption(row["text"], tuple(row["labels"]), row["kind"])


class CaptionWriter(RowWriter):
    """Writes captions with their sources to a Parquet file, row by row.

    Columns: text, labels (category names) and kind; for captions of a language model also the
    question, the model, the sampling seed and the shard's key.
    """

    def __init__(self, path: Path, categories: CategoryList) -> None:
        super().__init__(path, _SCHEMA)
        self._names = categories.names

    def write_caption(self, caption: Caption, **source: str | int) -> None:
        """Write one caption; `source`: values for the columns question, model, seed and key."""
        labels = [self._names[label] for label in caption.labels]
        self.write(text=caption.text, labels=labels, kind=caption.kind, **source)


def read_captions(path: Path, categories: CategoryList) -> Iterator[Caption]:
    """Read what a `CaptionWriter` wrote, with one row group in memory."""
    index = _index(categories)
    with pq.ParquetFile(path) as file:
        for group, _ in row_groups(file):
            for row in file.read_row_group(group, columns=_READ).to_pylist():
                yield _caption(row, index)


def captions_at(path: Path, categories: CategoryList, rows: Iterable[int]) -> dict[int, Caption]:
    """The captions of these rows of a file that a `CaptionWriter` wrote, by row."""
    index, wanted = _index(categories), np.unique(np.fromiter(rows, dtype=np.int64))
    captions = {}
    with pq.ParquetFile(path) as file:
        for group, span in row_groups(file):
            low, high = np.searchsorted(wanted, [span.start, span.stop])
            if low < high:
                here = wanted[low:high]
                read = file.read_row_group(group, columns=_READ).take(here - span.start)
                for place, row in zip(here.tolist(), read.to_pylist(), strict=True):
                    captions[place] = _caption(row, index)
    return captions


def _index(categories: CategoryList) -> dict[str, int]:
    return {name: i for i, name in enumerate(categories.names)}


def _caption(row: dict[str, Any], index: dict[str, int]) -> Caption:
    return Caption(row["text"], tuple(index[name] for name in row["labels"]), row["kind"])
