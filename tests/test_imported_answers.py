"""`datafree knowledge --export` and `--import`: a batch service or a person answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import Done, run_datafree

CONFIG = """
name: mine
categories: [dog, violin, lemon]
knowledge:
  llm: {source: file, model: gpt-9}
  questions: {per_category: 6, relationships: 6, attributes: 4}
"""
Row = dict[str, Any]
Call = Callable[..., Done]


@pytest.fixture
def knowledge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(CONFIG, "utf-8")
    return lambda *options: run_datafree(monkeypatch, capsys, "knowledge", "mine.yaml", *options)


def read(name: str) -> list[Row]:
    return [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]


def write(name: str, rows: list[Row]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def answered(request: Row, text: str = "") -> Row:
    """A row of a batch service's results."""
    said = request["body"]["messages"][0]["content"]
    named = [name for name in ("dog", "violin", "lemon") if name in said]
    number = request["custom_id"][:4]
    text = text or f"A {' and a '.join(named) or 'colour'} near the house at number {number}."
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    return {
        "id": "batch_req_1",
        "custom_id": request["custom_id"],
        "response": {"status_code": 200, "body": body | {"usage": {"completion_tokens": 9}}},
        "error": None,
    }


def failed(request: Row, status: int = 400) -> Row:
    body = {"error": {"code": "content_policy", "message": "no"}}
    return {
        "custom_id": request["custom_id"],
        "response": {"status_code": status, "body": body},
        "error": None,
    }


def finish(knowledge: Call, file: str = "open.jsonl") -> Done:
    """Answer everything that is asked until nothing is open."""
    for _ in range(5):
        write("answers.jsonl", [answered(request) for request in reversed(read(file))])
        done = knowledge("--import", "answers.jsonl", "--export", file)
        assert done.code == 0, done.err
        if "captions.parquet" in done.out:
            return done
    raise AssertionError("questions stay open")


def test_questions_go_out_and_answers_come_back_until_none_is_open(knowledge: Call) -> None:
    done = knowledge("--export", "open.jsonl")
    assert done.code == 0, done.err
    first = read("open.jsonl")
    assert f"{len(first)} questions: open.jsonl" in done.out
    assert len(first) == 8 + 3 * (2 + 4 + 2 + 4)  # lists are asked first
    assert set(first[0]) == {"custom_id", "method", "url", "body"}
    assert (first[0]["method"], first[0]["url"]) == ("POST", "/v1/chat/completions")
    assert set(first[0]["body"]) == {"model", "messages", "max_tokens", "temperature", "seed"}
    assert first[0]["body"]["model"] == "gpt-9"
    assert len({row["custom_id"] for row in first}) == len(first)
    knowledge("--export", "again.jsonl")
    assert read("again.jsonl") == first
    done = finish(knowledge)
    assert "may answer in other words" in done.out
    summary = json.loads(Path("runs/mine/knowledge/summary.json").read_bytes())
    assert (summary["source"], summary["repeats"]) == ("file", False)
    assert summary["not_answered"] == 0
    captions = pq.read_table("runs/mine/knowledge/captions.parquet").to_pylist()
    assert len(captions) == sum(summary["kept"].values()) > 10
    assert "Nothing to do" in knowledge().out


def test_the_order_of_answers_and_how_often_they_come_change_nothing(
    knowledge: Call, tmp_path: Path
) -> None:
    knowledge("--export", "open.jsonl")
    rows = [answered(request) for request in read("open.jsonl")]
    # In three files, one of them twice, with later answers to the same questions.
    write("a.jsonl", rows[20:])
    write("b.jsonl", [*rows[:10], *(answered(row, "Too late.") for row in read("open.jsonl")[:5])])
    write("c.jsonl", rows[5:20])
    for file, left in (("a.jsonl", 20), ("a.jsonl", 20), ("b.jsonl", 10)):
        done = knowledge("--import", file, "--export", "open.jsonl")
        assert len(read("open.jsonl")) == left, done
    assert knowledge("--import", "c.jsonl", "--export", "open.jsonl").code == 0
    finish(knowledge)
    mixed = Path("runs/mine/knowledge/answers.parquet").read_bytes()
    options = ("--cache", "other", "--runs", "others")
    knowledge("--export", "open.jsonl", *options)
    finish(lambda *more: knowledge(*more, *options))
    assert Path("others/mine/knowledge/answers.parquet").read_bytes() == mixed


def test_a_question_that_fails_in_two_files_is_put_in_quarantine(knowledge: Call) -> None:
    knowledge("--export", "open.jsonl")
    asked = read("open.jsonl")
    write("a.jsonl", [failed(asked[0]), failed(asked[1]), *map(answered, asked[2:])])
    for _ in range(2):  # the same file twice is one failure
        knowledge("--import", "a.jsonl", "--export", "open.jsonl")
        assert [row["custom_id"] for row in read("open.jsonl")] == [
            row["custom_id"] for row in asked[:2]
        ]
    write("b.jsonl", [failed(asked[0], 422), failed(asked[1]), answered(asked[1])])
    knowledge("--import", "b.jsonl", "--export", "open.jsonl")
    done = finish(knowledge)
    summary = json.loads(Path("runs/mine/knowledge/summary.json").read_bytes())
    assert summary["not_answered"] == 1
    assert "content_policy" in summary["quarantined"][0]["reason"]
    assert "1 questions are in quarantine" in done.out


def test_what_may_pass_is_asked_again_however_often_it_fails(knowledge: Call) -> None:
    knowledge("--export", "open.jsonl")
    asked = read("open.jsonl")
    expired = {"custom_id": asked[1]["custom_id"], "response": None, "error": {"code": "expired"}}
    for round_ in range(4):
        write("a.jsonl", [failed(asked[0], 429), expired, {**answered(asked[2]), "id": round_}])
        knowledge("--import", "a.jsonl", "--export", "open.jsonl")
        assert len(read("open.jsonl")) == len(asked) - 1
    finish(knowledge)


def test_a_service_that_refuses_most_questions_ends_the_import(knowledge: Call) -> None:
    knowledge("--export", "open.jsonl")
    asked = read("open.jsonl")
    write("a.jsonl", [failed(request) for request in asked])
    write("b.jsonl", [failed(request, 422) for request in asked])
    knowledge("--import", "a.jsonl", "--export", "open.jsonl")
    done = knowledge("--import", "b.jsonl", "--export", "open.jsonl")
    assert done.code == 2
    assert "questions twice, more than a tenth; the first: the batch says: " in done.err


def test_other_configs_keep_their_own_answers(knowledge: Call) -> None:
    knowledge("--export", "open.jsonl")
    asked = read("open.jsonl")
    write("a.jsonl", [answered(request) for request in asked[:-1]])
    knowledge("--import", "a.jsonl", "--export", "open.jsonl")
    other = "--set=categories=[chair, piano]"
    knowledge("--export", "other.jsonl", other, "--set=name=other")
    write("b.jsonl", [answered(request) for request in read("other.jsonl")[:5]])
    knowledge("--import", "b.jsonl", "--export", "other.jsonl", other, "--set=name=other")
    # And a label more, so that the first round opens again, and is closed again.
    knowledge("--export", "more.jsonl", "--set=categories=[dog, violin, lemon, car]")
    knowledge("--export", "open.jsonl")
    assert read("open.jsonl") == asked[-1:]


def test_strange_text_is_stored_as_far_as_it_can_be(knowledge: Call) -> None:
    knowledge("--export", "open.jsonl")
    asked = read("open.jsonl")
    rows = [answered(request, "half \ud83d of a pair") for request in asked]
    rows[0]["response"]["body"]["usage"]["completion_tokens"] = 10**12
    rows[1] = {"custom_id": asked[1]["custom_id"], "answer": "half \ud83d of a pair"}
    write("a.jsonl", rows)
    done = knowledge("--import", "a.jsonl", "--export", "open.jsonl")
    assert done.code == 0, done.err


def test_a_person_may_answer_in_plain_rows(knowledge: Call) -> None:
    knowledge("--export", "open.jsonl")
    rows = [{"custom_id": row["custom_id"], "answer": "small"} for row in read("open.jsonl")]
    write("mine.jsonl", rows)
    done = knowledge("--import", "mine.jsonl")
    assert done.code == 2
    assert "questions have no answer yet; `datafree knowledge CONFIG --export" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "row 2: must be JSON"),
        ("[" * 100_000, "row 2: "),
        ("3", "row 2: must be an object with a custom_id"),
        ('{"answer": "x"}', "row 2: must be an object with a custom_id"),
        ('{"custom_id": "ID"}', "row 2: must have a response, an error or an answer"),
        ('{"custom_id": "ID", "response": {"body": {}}}', "row 2: must have choices"),
        ('{"custom_id": "ID", "response": {"body": {"choices": 3}}}', "row 2: must have choices"),
        ('{"custom_id": "unheard", "answer": "x"}', "row 2: custom_id 'unheard' must be one that"),
        ('{"custom_id": "ID", "answer": "' + "x" * 2_000_000 + '"}', "at most 1024 KiB"),
        (b"\xff\xfe", "row 2: "),
    ],
    ids=range(10),
)
def test_a_malformed_row_is_named(knowledge: Call, line: str | bytes, says: str) -> None:
    knowledge("--export", "open.jsonl")
    asked = read("open.jsonl")
    first = json.dumps(answered(asked[0])).encode()
    second = line if isinstance(line, bytes) else line.encode()
    second = second.replace(b"ID", asked[1]["custom_id"].encode())
    Path("bad.jsonl").write_bytes(first + b"\n" + second + b"\n")
    done = knowledge("--import", "bad.jsonl")
    assert done.code == 2
    assert "bad.jsonl: " in done.err
    assert says in done.err
    assert "Traceback" not in done.err


def test_files_are_refused_where_another_source_answers(knowledge: Call) -> None:
    refused = knowledge("--export", "open.jsonl", "--set=knowledge.llm={}")
    assert refused.code == 2
    assert "--import and --export need knowledge.llm.source: file (got 'vllm')" in refused.err
    assert "nowhere.jsonl must be a file of answers" in knowledge("--import", "nowhere.jsonl").err
    assert "--preview needs a language model" in knowledge("--preview", "2").err
    Path("x").touch()
    for options, says in (
        (("--import", "x", "--export", "x"), "must be another file than that of --import"),
        (("--export", "."), "must be a file in an existing folder"),
        (("--export", "no/x"), "must be a file in an existing folder"),
        (("--export", "y", "--dry-run"), "--dry-run goes with neither"),
        (("--preview", "1", "--strict"), "--preview goes with no other option"),
    ):
        done = knowledge(*options)
        assert (done.code, says in done.err) == (2, True), done
    unnamed = knowledge("--set=knowledge.llm={source: file}")
    assert "model must be named with source: file" in unnamed.err


def test_a_run_says_how_to_get_its_questions_answered(
    knowledge: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing_else = ("--set=evaluation.dataset=none", "--set=vlm.kind=embedded")
    done = run_datafree(monkeypatch, capsys, "run", "mine.yaml", *nothing_else)
    assert done.code == 2, done
    assert "questions have no answer yet; `datafree knowledge CONFIG --export" in done.err
