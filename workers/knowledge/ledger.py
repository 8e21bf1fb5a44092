"""The ledger of answered shards: each shard is written once, as a whole, and not asked again."""

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
    """Questions that one call answers. `key`: a hash of all that the answers depend on."""

    key: str
    questions: tuple[Question, ...]


def cut_shards(
    blocks: Iterable[Iterable[Question]], size: int, identity: dict[str, Any]
) -> Iterator[Shard]:
    """Cut blocks of questions into shards of at most `size` questions, lazily and in order.

    A shard holds questions of one block only, so a change in a block changes no other shards.
    `identity`: what answers depend on besides their question.
    """
    for block in blocks:
        questions = iter(block)
        while part := tuple(islice(questions, size)):
            yield Shard(digest([identity, [asdict(question) for question in part]]), part)


def failures_allowed(questions: int) -> int:
    """How many of a shard's questions may fail before whoever answers counts as broken."""
    return max(3, questions // 10)


class Ledger:
    """Answers by shard key, in a folder that several drivers may share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, shard: Shard) -> bool:
        """Whether the shard's answers are complete and unaltered."""
        return is_published(self._shard_folder(shard))

    def write(self, shard: Shard, answers: list[Answer]) -> None:
        """Write a shard's answers, in the order of its questions.

        Raises:
            OSError: with folder and reason, if they cannot be written; then nothing is left.
        """
        assert len(answers) == len(shard.questions)
        # By columns: to make a dictionary of each answer first takes several times as long.
        columns = [[getattr(answer, name) for answer in answers] for name in _SCHEMA.names]
        table = pa.table(columns, schema=_SCHEMA)
        try:
            with publishing(self._shard_folder(shard)) as staging:
                pq.write_table(table, staging / _ANSWERS)
        except OSError as error:
            # Arrow's message has no path and no short reason.
            number = error.errno or errno.EIO
            raise OSError(number, os.strerror(number), str(self._shard_folder(shard))) from error

    def read(self, shard: Shard) -> list[Answer]:
        """The answers of a shard for which `has` is true."""
        rows = pq.read_table(self._shard_folder(shard) / _ANSWERS).to_pylist()
        return [Answer(**row) for row in rows]

    def _shard_folder(self, shard: Shard) -> Path:
        # A folder with a hundred thousand subfolders is slow to search.
        return self._folder / shard.key[:2] / shard.key
