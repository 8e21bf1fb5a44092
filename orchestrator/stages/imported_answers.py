"""Answers from a file: questions go out as OpenAI's batch requests, and answers come back as JSONL.

So any batch service can answer, or a person. The order of answers does not matter, some may be
missing, and a file may be imported twice: the first answer to a question stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.errors import InputError
from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.storage import digest, file_digest, replacing, write_atomic
from workers.knowledge.ledger import failures_allowed
from workers.knowledge.openai_format import read_answer, request_body, storable

if TYPE_CHECKING:
    from orchestrator.plan.knowledge import KnowledgePlan
    from workers.knowledge.ledger import Ledger, Shard
    from workers.knowledge.pool import OnShard

# An answer of 4096 tokens has a few tens of kilobytes.
_LONGEST_ROW = 1024 * 1024
# A question as such is refused. Other failures (expired, too many requests) may pass.
_REFUSALS = (400, 413, 422)


class OpenQuestions(InputError):
    """Questions that no imported file has answered. `questions`: by their ids."""

    def __init__(self, questions: dict[str, Question]) -> None:
        super().__init__(
            f"knowledge.llm.source: file: {len(questions)} questions have no answer yet; "
            "`datafree knowledge CONFIG --export requests.jsonl` writes them"
        )
        self.questions = questions


class Row(NamedTuple):
    """A row of a file. `final`: asking again would not help."""

    number: int
    answer: Answer
    final: bool = True


class ImportedAnswers:
    """Completes shards from the answers of imported files, in place of the pool of engines.

    The first answer to a question stays. A question that a service has refused in two files is put
    in quarantine, as one that fails twice in the pool. Imported files stay in the cache, so answers
    to a shard may come in several.

    Args:
        file: a file to import now, beside those imported before.

    Raises:
        InputError: with file and row, if the file cannot be read.
    """

    def __init__(self, plan: KnowledgePlan, ledger: Ledger, file: Path | None = None) -> None:
        self._identity, self._ledger, self._file = plan.llm_identity, ledger, file
        self._kept = plan.cache / "imported" / digest(plan.llm_identity)[:20]
        self._rows = _read_rows(file) if file else {}
        self._source = file_digest(file) if file else ""
        self._asked: set[str] = set()
        self._answers: dict[str, Answer] = {}
        refused_by: dict[str, str] = {}
        files = {kept.stem.split("-")[1]: _read_kept(kept) for kept in self._kept_files()}
        files[self._source] = {**files.get(self._source, {}), **self._rows}
        for source, rows in files.items():
            for name, row in rows.items():
                known = self._answers.get(name)
                if row.answer.failure is None:
                    if known is None or known.failure is not None:
                        self._answers[name] = row.answer
                elif row.final and refused_by.setdefault(name, source) != source:
                    self._answers.setdefault(name, row.answer)

    def _kept_files(self) -> list[Path]:
        """In the order in which they were imported."""
        return sorted(self._kept.glob("*.json"))

    def answer(self, shards: Iterable[Shard], on_shard: OnShard) -> None:
        """Write every shard whose questions are all answered to the ledger.

        Raises:
            OpenQuestions: if any question has no answer.
            InputError: if the file answers what was never asked, or if a service has refused many
                questions of a shard.
        """
        missing: dict[str, Question] = {}
        for shard in shards:
            ids = [self.id_of(question) for question in shard.questions]
            self._asked.update(ids)
            if self._ledger.has(shard):
                on_shard(shard, self._ledger.read(shard), False, 0)
            elif open_ := [i for i, name in enumerate(ids) if name not in self._answers]:
                missing |= {ids[i]: shard.questions[i] for i in open_}
            else:
                answers = [self._answers[name] for name in ids]
                _check_refusals(answers)
                self._ledger.write(shard, answers)
                on_shard(shard, answers, True, 0)
        if missing:
            self.keep()
            raise OpenQuestions(missing)

    def keep(self) -> None:
        """Keep the file's answers to what was asked so far, for the next import.

        Raises:
            InputError: for a row whose question was not asked.
        """
        asked = {name: row for name, row in self._rows.items() if name in self._asked}
        if asked:
            kept = self._kept_files()
            same = [file for file in kept if file.stem.endswith(f"-{self._source}")]
            target = same[0] if same else self._kept / f"{len(kept):06}-{self._source}.json"
            rows = {**(_read_kept(target) if same else {}), **asked}
            data = {name: (asdict(row.answer), row.final) for name, row in rows.items()}
            write_atomic(target, json.dumps(data).encode())
        for name, row in self._rows.items():
            if name not in self._asked:
                raise InputError(
                    f"{self._file}: row {row.number}: custom_id {name[:80]!r} must be one that "
                    "--export wrote for this config; rows with such ids were taken"
                )

    def id_of(self, question: Question) -> str:
        """The `custom_id` of a question: the same in every export of the same config."""
        return digest([self._identity, asdict(question)])[:32]


def _read_kept(file: Path) -> dict[str, Row]:
    kept = json.loads(file.read_bytes())
    return {name: Row(0, Answer(**answer), final) for name, (answer, final) in kept.items()}


def _check_refusals(answers: list[Answer]) -> None:
    """As for engines, more than a few refused questions mean that something else is wrong."""
    refused = [answer.failure for answer in answers if answer.failure is not None]
    if len(refused) > failures_allowed(len(answers)):
        raise InputError(
            f"knowledge.llm.source: file: the service has refused {len(refused)} of {len(answers)} "
            f"questions twice, more than a tenth; the first: {refused[0]}"
        )


def write_requests(plan: KnowledgePlan, questions: dict[str, Question], file: Path) -> None:
    """Write questions in the format of OpenAI's batch service, one request a row."""
    settings = plan.config.knowledge
    url = "/v1/completions" if settings.llm.adapter == "base" else "/v1/chat/completions"
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for name, question in questions.items():
            body = request_body(settings.llm, question, settings.sampling)
            row = {"custom_id": name, "method": "POST", "url": url, "body": body}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _read_rows(file: Path) -> dict[str, Row]:
    """Rows by `custom_id`; of several with the same, the first that has an answer."""
    rows: dict[str, Row] = {}
    for number, line in _lines(file):
        try:
            name, answer, final = _read_row(json.loads(line))
        except UnicodeDecodeError:
            raise InputError(f"{file}: row {number}: must be UTF-8") from None
        except (ValueError, RecursionError) as error:
            text = str(error) if not isinstance(error, json.JSONDecodeError) else "must be JSON"
            raise InputError(f"{file}: row {number}: {text}") from None
        if name not in rows or (rows[name].answer.failure and not answer.failure):
            rows[name] = Row(number, answer, final)
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


def _read_row(row: Any) -> tuple[str, Answer, bool]:
    """The id, the answer, and whether a failure is final, of a row: a result of a batch service, or
    `custom_id` and `answer`."""
    if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
        raise ValueError("must be an object with a custom_id")
    name = row["custom_id"]
    if isinstance(row.get("answer"), str):  # written by a person
        return name, Answer(storable(row["answer"]).strip(), True, 0), True
    response, error = row.get("response"), row.get("error")
    if not isinstance(response, dict):
        if error:
            return name, _failure(error), False
        raise ValueError("must have a response, an error or an answer")
    status, body = response.get("status_code", 200), response.get("body")
    if error or status != 200:
        return name, _failure(error or body), status in _REFUSALS
    return name, read_answer(body), True


def _failure(said: object) -> Answer:
    return Answer("", False, 0, f"the batch says: {storable(str(said))[:200]}")
