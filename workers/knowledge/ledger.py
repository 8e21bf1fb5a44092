"""The ledger of answered shards: a shard is published once, whole, and never asked again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.storage import digest, is_published, publishing

_ANSWERS = "answers.parquet"
_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("finished", pa.bool_()),
        ("tokens", pa.int32()),
        ("failure", pa.string()),
    ]
)


@dataclass(frozen=True)
class Shard:
    """Questions that are answered in one call; `key` hashes all that forms the answers."""

    key: str
    questions: tuple[Question, ...]


def cut_shards(
    blocks: Iterable[Iterable[Question]], size: int, identity: dict[str, Any]
) -> Iterator[Shard]:
    """Shards of at most `size` questions, in order, made as they are taken.

    A shard never holds questions of two blocks, so that what is new in one changes only its own.
    """
    for block in blocks:
        questions = iter(block)
        while part := tuple(islice(questions, size)):
            yield Shard(digest([identity, [asdict(question) for question in part]]), part)


class Ledger:
    """Answers by shard key, in a folder that all drivers may share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, shard: Shard) -> bool:
        """Whether the shard's answers are there, whole and unaltered."""
        return is_published(self._place(shard))

    def write(self, shard: Shard, answers: list[Answer]) -> None:
        """Publish a shard's answers, in the order of its questions.

        Raises:
            OSError: naming folder and reason, when they cannot be kept; nothing is left then.
        """
        assert len(answers) == len(shard.questions)
        table = pa.Table.from_pylist([asdict(answer) for answer in answers], schema=_SCHEMA)
        try:
            with publishing(self._place(shard)) as staging:
                pq.write_table(table, staging / _ANSWERS)
        except OSError as error:
            # Arrow's own say neither where nor, in a word, why.
            number = error.errno or errno.EIO
            raise OSError(number, os.strerror(number), str(self._place(shard))) from error

    def read(self, shard: Shard) -> list[Answer]:
        """The answers of a shard that is there."""
        rows = pq.read_table(self._place(shard) / _ANSWERS).to_pylist()
        return [Answer(**row) for row in rows]

    def _place(self, shard: Shard) -> Path:
        # A folder of a hundred thousand folders is slow to search.
        return self._folder / shard.key[:2] / shard.key
