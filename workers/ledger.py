"""The ledger of answered shards: a shard is published once, whole, and never asked again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prompt_tuning.captions import Answer
from prompt_tuning.questions import Question
from prompt_tuning.store import digest, is_published, publishing

_ANSWERS = "answers.parquet"


@dataclass(frozen=True)
class Shard:
    """Questions that are answered in one call; `key` hashes all that forms the answers."""

    key: str
    questions: tuple[Question, ...]


def cut_shards(questions: list[Question], size: int, identity: dict[str, Any]) -> list[Shard]:
    """Shards of at most `size` questions of one kind, in order."""
    shards = []
    for kind in dict.fromkeys(question.kind for question in questions):
        of_kind = [question for question in questions if question.kind == kind]
        for start in range(0, len(of_kind), size):
            part = tuple(of_kind[start : start + size])
            shards.append(Shard(digest([identity, [asdict(q) for q in part]]), part))
    return shards


class Ledger:
    """Answers by shard key, in a folder that all drivers may share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, shard: Shard) -> bool:
        """Whether the shard's answers are there, whole and unaltered."""
        return is_published(self._folder / shard.key)

    def write(self, shard: Shard, answers: list[Answer]) -> None:
        """Publish a shard's answers."""
        assert len(answers) == len(shard.questions)
        with publishing(self._folder / shard.key) as staging:
            table = pa.Table.from_pylist([asdict(answer) for answer in answers])
            pq.write_table(table, staging / _ANSWERS)

    def read(self, shard: Shard) -> list[Answer]:
        """The answers of a shard that is there."""
        rows = pq.read_table(self._folder / shard.key / _ANSWERS).to_pylist()
        return [Answer(**row) for row in rows]
