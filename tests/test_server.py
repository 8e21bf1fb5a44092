"""Asking an OpenAI-compatible server that misbehaves in each of the ways that servers do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import run_datafree
from pydantic import SecretStr, ValidationError

from prompt_tuning.knowledge.dialogue import Answer, Question
from workers.failure import DescribedFailure
from workers.knowledge import server as server_module
from workers.knowledge.llm_settings import LLMSettings, SamplingSettings
from workers.knowledge.server import (
    ServerEngine,
    ServerFailure,
    ServerModel,
    check_server,
    describe_server,
    server_model,
)

SAMPLING = SamplingSettings(temperature=0.5, max_tokens=20)
KEY = "sk-very-secret"
QUESTION = Question("specific", (), (), "Describe a dog.", "Dogs:\nA dog:", (), seed=7)

Reply = tuple[int, str, dict[str, str]]


class Stub:
    """A server whose replies a function decides, from the request and how often it was made."""

    def __init__(self, port: int = 0) -> None:
        self.reply: Callable[[dict[str, Any], int], Reply] = lambda *_: completion("A dog.")
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self._times: Counter[str] = Counter()
        self.lock = threading.Lock()
        self._connections: list[socket.socket] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                stub._connections.append(self.connection)

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(raw)
                with stub.lock:
                    said = str(body.get("messages") or body.get("prompt"))
                    stub._times[said] += 1
                    times = stub._times[said]
                    stub.requests.append((self.path, body, dict(self.headers)))
                self._send(*stub.reply(body, times))

            def do_GET(self) -> None:
                self._send(200, json.dumps({"data": [{"id": "chatglm"}, {"id": "qwen"}]}), {})

            def _send(self, status: int, text: str, headers: dict[str, str]) -> None:
                data = text.encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.allow_reuse_address = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def completion(text: str | None, finish: str = "stop") -> Reply:
    choice = {"message": {"content": text}, "finish_reason": finish}
    return 200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}}), {}


def refusal(status: int, message: str, **headers: str) -> Reply:
    return status, json.dumps({"error": {"message": message}}), headers


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = time.sleep
    monkeypatch.setattr(server_module.time, "sleep", lambda seconds: slept(min(seconds, 0.02)))


def settings(stub: Stub, **fields: Any) -> LLMSettings:
    return LLMSettings(**{"source": "server", "url": stub.url, "model": "glm", **fields})


def engine(stub: Stub, key: str | None = None, **fields: Any) -> ServerEngine:
    chosen = settings(stub, **fields)
    return ServerEngine(chosen, model_of(chosen, key), False)


def model_of(chosen: LLMSettings, key: str | None = None) -> ServerModel:
    return ServerModel(str(chosen.url), chosen.model, SecretStr(key) if key else None)


def questions(count: int) -> list[Question]:
    return [replace(QUESTION, instruction=f"Describe dog {i}.", seed=i) for i in range(count)]


def test_a_question_is_sent_with_its_seed_and_key_and_its_answer_is_read(stub: Stub) -> None:
    stub.reply = lambda *_: completion("<think>Hm.</think>\n A dog runs. ", "length")
    answers = engine(stub, KEY).answer([QUESTION], SAMPLING)
    assert answers == [Answer("A dog runs.", False, 3)]
    path, body, headers = stub.requests[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "glm",
        "messages": [{"role": "user", "content": "Describe a dog."}],
        "max_tokens": 20,
        "temperature": 0.5,
        "seed": 7,
    }
    assert headers["Authorization"] == f"Bearer {KEY}"
    stub.reply = lambda *_: (
        *(200, json.dumps({"choices": [{"text": " A dog.\n", "finish_reason": "stop"}]})),
        {},
    )
    assert engine(stub, adapter="base").answer([QUESTION], SAMPLING) == [Answer("A dog.", True, 0)]
    path, body, headers = stub.requests[1]
    assert path == "/v1/completions"
    assert (body["prompt"], body["stop"]) == (QUESTION.pattern, ["\n"])
    assert "Authorization" not in headers


def test_no_more_questions_than_allowed_are_asked_at_once(stub: Stub) -> None:
    now, most = [0], [0]

    def reply(*_: object) -> Reply:
        with stub.lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with stub.lock:
            now[0] -= 1
        return completion("A dog.")

    stub.reply = reply
    answers = engine(stub, concurrency=5).answer(questions(40), SAMPLING)
    assert len(answers) == 40
    assert most[0] == 5


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(stub: Stub, status: int) -> None:
    stub.reply = lambda _, times: refusal(status, "busy") if times < 3 else completion("A dog.")
    assert engine(stub).answer([QUESTION], SAMPLING) == [Answer("A dog.", True, 3)]
    assert len(stub.requests) == 3


def test_retry_after_is_obeyed(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(server_module.time, "sleep", slept.append)
    waits = ["7", "Thu, 01 Jan 1970 00:00:00 GMT", "soon", None]
    stub.reply = lambda _, times: (
        refusal(429, "slow down", **({"Retry-After": wait} if (wait := waits[times - 1]) else {}))
        if times <= len(waits)
        else completion("A dog.")
    )
    engine(stub).answer([QUESTION], SAMPLING)
    # At least 1 s, doubled with each failure.
    assert slept == [7.0, 2.0, 4.0, 8.0]


def test_a_question_that_the_server_refuses_or_fails_on_is_put_in_quarantine(stub: Stub) -> None:
    def reply(body: dict[str, Any], times: int) -> Reply:
        said = body["messages"][0]["content"]
        if said == "Describe dog 3.":
            return refusal(400, "bad words")
        if said == "Describe dog 5.":
            return refusal(500, "CUDA error")
        if said == "Describe dog 7.":
            return completion("long " * 300_000)
        return completion("A dog.")

    stub.reply = reply
    answers = engine(stub).answer(questions(40), SAMPLING)
    assert {i: answer.failure for i, answer in enumerate(answers) if answer.failure} == {
        3: "the server refuses it: 400: bad words",
        5: "500: CUDA error",
        7: "its reply is larger than 1024 KiB",
    }


def test_a_server_that_fails_for_a_while_costs_no_question(stub: Stub) -> None:
    """Even if it answered others before: each question fails more often than one at fault may."""
    down = [False]
    stub.reply = lambda *_: refusal(500, "restarting") if down[0] else completion("A dog.")
    asked = engine(stub, concurrency=8)
    asked.answer(questions(8), SAMPLING)
    down[0] = True
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(asked.answer, questions(30)[8:], SAMPLING)
        time.sleep(0.5)
        down[0] = False
        answers = answering.result(60)
    assert [answer.failure for answer in answers] == [None] * 22


def test_the_last_question_alone_can_be_at_fault(stub: Stub) -> None:
    stub.reply = lambda body, _: (
        refusal(500, "boom") if "dog" in str(body) else completion("Green.")
    )
    assert engine(stub).answer([QUESTION], SAMPLING) == [Answer("", False, 0, "500: boom")]


def test_a_server_that_refuses_many_questions_ends_the_run(stub: Stub) -> None:
    stub.reply = lambda *_: refusal(400, "no chat template")
    with pytest.raises(ServerFailure, match=r"fails on 40 of 40 .* 400: no chat template"):
        engine(stub).answer(questions(40), SAMPLING)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((200, "<html>Log in</html>", {}), "not a completion ('<html>Log in</html>')"),
        ((200, 'data: {"choices": []}\n\n', {"Content-Type": "text/event-stream"}), "data: {"),
        ((200, "[]", {}), "not a completion"),
        ((200, "[" * 200_000, {}), "not a completion"),
        ((200, "{}", {"Content-Encoding": "gzip"}), "its reply cannot be read"),
        ((200, json.dumps({"choices": [{"message": {"content": 3}}]}), {}), "not a completion"),
        (refusal(503, "loading"), "503: loading"),
    ],
)
def test_a_server_that_never_answers_is_given_up_after_the_time_limit(
    stub: Stub, reply: Reply, says: str
) -> None:
    stub.reply = lambda *_: reply
    with pytest.raises(ServerFailure, match="has answered nothing for 0 minutes") as failure:
        engine(stub, timeout_minutes=0.005).answer([QUESTION], SAMPLING)
    assert says in str(failure.value)


def test_a_server_that_goes_away_and_comes_back_answers_the_rest(stub: Stub) -> None:
    asked = engine(stub, concurrency=4)

    def reply(body: dict[str, Any], _: int) -> Reply:
        time.sleep(0.01)
        return completion(f"Before: {body['messages'][0]['content']}")

    stub.reply = reply
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(asked.answer, questions(200), SAMPLING)
        while len(stub.requests) < 40:
            time.sleep(0.005)
        stub.close()
        time.sleep(0.2)
        again = Stub(stub.port)
        again.reply = lambda body, _: completion(f"After: {body['messages'][0]['content']}")
        answers = answering.result(60)
        again.close()
    assert all(answer.failure is None for answer in answers)
    assert [answer.text.split(": ")[1] for answer in answers] == [
        f"Describe dog {i}." for i in range(200)
    ]
    assert {answer.text.split(": ")[0] for answer in answers} == {"Before", "After"}


def test_a_server_that_is_gone_is_named(stub: Stub) -> None:
    stub.close()
    with pytest.raises(
        ServerFailure, match=r"127.*has answered nothing.*cannot be reached \(.*ref"
    ):
        engine(stub, timeout_minutes=0.005).answer([QUESTION], SAMPLING)
    chosen = settings(stub)
    with pytest.raises(DescribedFailure, match="cannot be reached"):
        check_server(chosen, model_of(chosen), SAMPLING)
    assert "refused" in describe_server(chosen, model_of(chosen), SAMPLING)


@pytest.mark.parametrize(
    ("key", "reply", "says"),
    [
        (None, refusal(401, "no key"), "key_variable: {url} asks for a key; name the environment"),
        (KEY, refusal(401, f"wrong key {KEY}"), "refuses the key in A_KEY (401: wrong key …)"),
        (
            KEY,
            refusal(404, "no such model"),
            "model: must be a model of {url} (got 'glm'; it has chatglm, qwen)",
        ),
        (KEY, (302, "", {"Location": "/login"}), "url: {url} answers 302"),
        (KEY, (200, f"<html>{KEY}", {}), "url: {url} must be an OpenAI-compatible server"),
        (KEY, (200, f"<html>{KEY}", {}), "its reply is not a completion ('<html>…')"),
        (KEY, refusal(429, "insufficient_quota: pay"), "insufficient_quota: pay"),
    ],
)
def test_a_wrong_key_model_or_url_is_found_before_the_run(
    stub: Stub, key: str | None, reply: Reply, says: str
) -> None:
    stub.reply = lambda *_: reply
    chosen = settings(stub, key_variable="A_KEY" if key else None)
    with pytest.raises(ServerFailure) as failure:
        check_server(chosen, model_of(chosen, key), SAMPLING)
    assert says.format(url=stub.url) in str(failure.value)
    assert KEY not in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'seed' is not supported with this model.",
        "body.seed: Extra inputs are not permitted",
        "Unknown argument: seed. Supported arguments: model",
    ],
)
def test_a_server_without_seeds_is_asked_without_them(stub: Stub, message: str) -> None:
    stub.reply = lambda body, _: refusal(422, message) if "seed" in body else completion("A dog.")
    assert engine(stub).answer([QUESTION], SAMPLING) == [Answer("A dog.", True, 3)]


def test_the_newer_name_of_the_token_limit_is_used_where_it_is_asked_for(stub: Stub) -> None:
    refused = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead."
    )
    stub.reply = lambda body, _: (
        refusal(400, refused) if "max_tokens" in body else completion("A dog.")
    )
    asked = engine(stub)
    assert asked.answer([QUESTION], SAMPLING) == [Answer("A dog.", True, 3)]
    assert stub.requests[-1][1]["max_completion_tokens"] == 20
    asked.answer([QUESTION], SAMPLING)
    assert len(stub.requests) == 3, "the refused name is not tried again"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:8000", "must be a URL"),
        ("ftp://server/v1", "must be a URL"),
        ("http://me:hush@server/v1", "must have no user name, password or query"),
        ("http://server:port/v1", "must be a URL"),
        ("http://a..b/v1", "must be a URL"),
        ("http://server/v1#part", "must be a URL"),
        ("http://server/v1?key=hush", "must have no user name, password or query"),
    ],
)
def test_a_url_that_is_none_or_holds_a_secret_is_refused(url: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        LLMSettings(source="server", url=url, model="glm")


def test_the_key_comes_from_the_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = LLMSettings(source="server", url="http://a/v1", model="glm", key_variable="A_KEY")
    for wrong in ("", "  ", "schlüssel", "two\nlines"):
        monkeypatch.setenv("A_KEY", wrong)
        with pytest.raises(ValueError, match=r"knowledge.llm.key_variable: .* A_KEY "):
            server_model(chosen)
    monkeypatch.setenv("A_KEY", f"{KEY}\n")
    found = server_model(chosen)
    assert found.key is not None
    assert found.key.get_secret_value() == KEY
    assert KEY not in repr(found)


def test_a_run_is_answered_by_a_server_and_its_key_is_nowhere(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line, Ray and the pool."""
    stub.reply = lambda body, _: completion(f"A dog and a car number {body['seed']} stand there.")
    llm = {"source": "server", "url": stub.url, "model": "glm", "key_variable": "A_KEY"}
    questions = {"per_category": 20, "relationships": 8, "attributes": 4}
    config = {
        "name": "served",
        "categories": ["dog", "car", "violin"],
        "knowledge": {"llm": llm, "questions": questions},
    }
    monkeypatch.chdir(tmp_path)
    Path("served.yaml").write_text(yaml.safe_dump(config), "utf-8")
    done = run_datafree(monkeypatch, capsys, "knowledge", "served.yaml")
    assert (done.code, done.err) == (
        2,
        "error: knowledge.llm.key_variable: the environment variable A_KEY is empty or not set\n",
    )
    monkeypatch.setenv("A_KEY", KEY)
    done = run_datafree(monkeypatch, capsys, "knowledge", "served.yaml")
    assert done.code == 0, done.err
    summary = json.loads(Path("runs/served/knowledge/summary.json").read_bytes())
    assert summary["asked"]["specific"] == 60
    assert summary["kept"]["specific"] >= 1
    assert (summary["source"], summary["repeats"]) == ("server", False)
    assert "may answer in other words" in done.out
    asked = len(stub.requests)
    assert asked == 1 + sum(summary["asked"].values()), "one to see that it answers"
    assert "Nothing to do" in run_datafree(monkeypatch, capsys, "knowledge", "served.yaml").out
    assert len(stub.requests) == asked
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
