"""Answers from a file: questions go out as OpenAI's batch requests, and answers come back as JSONL.

So any batch service can answer, or a person. The order of answers does not matter, some may be
missing, and a file may be imported twice: the first answer to a question stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError
from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.storage import digest, file_digest, replacing, write_atomic
from workers.knowledge.openai_format import read_answer, request_body

if TYPE_CHECKING:
    from orchestrator.plan.knowledge import KnowledgePlan
    from workers.knowledge.ledger import Ledger, Shard
    from workers.knowledge.pool import OnShard

# An answer of 4096 tokens has a few tens of kilobytes.
_LONGEST_ROW = 1024 * 1024


class OpenQuestions(InputError):
    """Questions that no imported file has answered. `questions`: by their ids."""

    def __init__(self, questions: dict[str, Question]) -> None:
        super().__init__(
            f"knowledge.llm.source: file: {len(questions)} questions have no answer yet; "
            "`datafree knowledge CONFIG --export requests.jsonl` writes them"
        )
        self.questions = questions


@dataclass(frozen=True)
class _Imported:
    """An answer whose shard is not complete. `file`: the digest of the file that it came from."""

    answer: Answer
    file: str


class ImportedAnswers:
    """Completes shards from the answers of imported files, in place of the pool of engines.

    A question that failed in two files is put in quarantine, as one that fails twice in the pool.

    Args:
        file: a file to import now, beside those imported before.

    Raises:
        InputError: with file and row, if the file cannot be read.
    """

    def __init__(self, plan: KnowledgePlan, ledger: Ledger, file: Path | None = None) -> None:
        self._identity, self._ledger, self._file = plan.llm_identity, ledger, file
        self._kept_in = plan.cache / "imported" / f"{digest(plan.llm_identity)[:20]}.json"
        self._answers = self._read_kept()
        self._rows = _read_rows(file) if file else {}
        self._asked: set[str] = set()
        source = file_digest(file) if file else ""
        for name, (_, answer) in self._rows.items():
            self._answers[name] = _first_answer(self._answers.get(name), _Imported(answer, source))

    def answer(self, shards: Iterable[Shard], on_shard: OnShard) -> None:
        """Write every shard whose questions are all answered to the ledger, and keep the others'
        answers for the next import.

        Raises:
            OpenQuestions: if any question has no answer.
            InputError: if the file answers what was never asked.
        """
        missing: dict[str, Question] = {}
        for shard in shards:
            ids = [self.id_of(question) for question in shard.questions]
            self._asked.update(ids)
            if self._ledger.has(shard):
                on_shard(shard, self._ledger.read(shard), False, 0)
                continue
            answers = [self._final_answer(name) for name in ids]
            if None in answers:
                for name, question, answer in zip(ids, shard.questions, answers, strict=True):
                    if answer is None:
                        missing[name] = question
                continue
            complete = [answer for answer in answers if answer is not None]
            self._ledger.write(shard, complete)
            on_shard(shard, complete, True, 0)
        if missing:
            self._keep()
            self.check_all_asked()
            raise OpenQuestions(missing)

    def check_all_asked(self) -> None:
        """Raise InputError for a row of the file whose question was not asked so far."""
        for name, (row, _) in self._rows.items():
            if name not in self._asked:
                raise InputError(
                    f"{self._file}: row {row}: custom_id {name[:80]!r} must be one that --export "
                    "wrote for this config; rows with such ids were taken"
                )

    def id_of(self, question: Question) -> str:
        """The `custom_id` of a question: the same in every export of the same config."""
        return digest([self._identity, asdict(question)])[:32]

    def _final_answer(self, name: str) -> Answer | None:
        imported = self._answers.get(name)
        return imported.answer if imported and _is_final(imported) else None

    def _read_kept(self) -> dict[str, _Imported]:
        try:
            kept = json.loads(self._kept_in.read_bytes())
        except FileNotFoundError:
            return {}
        return {name: _Imported(Answer(**row), file) for name, (row, file) in kept.items()}

    def _keep(self) -> None:
        """Write the answers to questions that were asked so far, for the next import."""
        kept = {
            name: (asdict(imported.answer), imported.file)
            for name, imported in self._answers.items()
            if name in self._asked
        }
        write_atomic(self._kept_in, json.dumps(kept, ensure_ascii=False).encode())


def write_requests(plan: KnowledgePlan, questions: dict[str, Question], file: Path) -> None:
    """Write questions in the format of OpenAI's batch service, one request a row."""
    settings = plan.config.knowledge
    url = "/v1/completions" if settings.llm.adapter == "base" else "/v1/chat/completions"
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for name, question in questions.items():
            body = request_body(settings.llm, question, settings.sampling)
            row = {"custom_id": name, "method": "POST", "url": url, "body": body}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _first_answer(known: _Imported | None, new: _Imported) -> _Imported:
    """The answer to keep: the first that is no failure; a second file's failure is final."""
    if known is None or (known.answer.failure and not new.answer.failure):
        return new
    if known.answer.failure and known.file not in ("", new.file):
        return _Imported(known.answer, "")
    return known


def _is_final(imported: _Imported) -> bool:
    return imported.answer.failure is None or imported.file == ""


def _read_rows(file: Path) -> dict[str, tuple[int, Answer]]:
    """Row number and answer by `custom_id`; of several rows, the first that is no failure."""
    rows: dict[str, tuple[int, Answer]] = {}
    for number, line in _lines(file):
        try:
            name, answer = _read_row(json.loads(line))
        except (ValueError, RecursionError) as error:
            text = str(error) if not isinstance(error, json.JSONDecodeError) else "must be JSON"
            raise InputError(f"{file}: row {number}: {text}") from None
        if name not in rows or (rows[name][1].failure and not answer.failure):
            rows[name] = number, answer
    return rows


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(_LONGEST_ROW + 1):
                number += 1
                if len(line) > _LONGEST_ROW:
                    raise InputError(
                        f"{file}: row {number}: must have at most {_LONGEST_ROW // 1024} KiB"
                    )
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None


def _read_row(row: Any) -> tuple[str, Answer]:
    """The id and the answer of a row: a result of a batch, or `custom_id` and `answer`."""
    if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
        raise ValueError("must be an object with a custom_id")
    name = row["custom_id"]
    if isinstance(row.get("answer"), str):  # written by a person
        return name, Answer(row["answer"].strip(), True, 0)
    response, error = row.get("response"), row.get("error")
    if not isinstance(response, dict):
        if error:
            return name, Answer("", False, 0, f"the batch says: {str(error)[:200]}")
        raise ValueError("must have a response, an error or an answer")
    body = response.get("body")
    if error or response.get("status_code", 200) != 200:
        return name, Answer("", False, 0, f"the batch says: {str(error or body)[:200]}")
    return name, read_answer(body)
