"""An OpenAI-compatible server as the language model, in place of vLLM engines."""

from __future__ import annotations

import json
import os
import re
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, NamedTuple

import httpx
from pydantic import SecretStr

from prompt_tuning.knowledge.dialogue import Answer, Question
from workers.failure import DescribedFailure
from workers.knowledge.ledger import failures_allowed
from workers.knowledge.llm_settings import LLMSettings, SamplingSettings
from workers.knowledge.openai_format import read_answer, request_body, storable

_CONNECT_SECONDS = 10.0
# Servers that are asked more than they can compute at once let requests wait.
_ANSWER_SECONDS = 600.0
_CHECK_SECONDS = 120.0
# An answer of 4096 tokens has a few tens of kilobytes.
_LARGEST_REPLY = 1024 * 1024
_LONGEST_PAUSE = 60.0
# Failures after which a question is given up, if the server answers others.
_MAX_TRIES = 4
# To find out whether a server answers at all.
_EASY = Question("specific", (), (), "Name a colour.", "The colour of grass:", (), seed=0)


class ServerFailure(DescribedFailure):
    """The server cannot answer: the message names the field to change, or how long it was away."""


class ServerModel(NamedTuple):
    """A model of a server, and the key to it, which no log shows."""

    url: str
    name: str
    key: SecretStr | None


def server_model(settings: LLMSettings) -> ServerModel:
    """The model of the settings' server, with the key from the environment.

    Raises:
        ValueError: if the environment has no usable key.
    """
    assert settings.url is not None  # checked by the settings
    if settings.key_variable is None:
        return ServerModel(settings.url, settings.model, None)
    key = os.environ.get(settings.key_variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        state = "holds no valid key" if key else "is empty or not set"
        raise ValueError(
            f"knowledge.llm.key_variable: the environment variable {settings.key_variable} {state}"
        )
    return ServerModel(settings.url, settings.model, SecretStr(key))


class NoAnswerYet(Exception):
    """A question got no answer, and may get one later.

    `pause`: the seconds to wait that the server asked for, if it did. `question_at_fault`: whether
    the question itself may be the cause.
    """

    def __init__(self, reason: str, pause: float | None, question_at_fault: bool) -> None:
        super().__init__(reason)
        self.pause, self.question_at_fault = pause, question_at_fault


class NotACompletion(NoAnswerYet):
    """The reply has another form: this may be no OpenAI-compatible server."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, None, True)


class ServerClient:
    """Asks one question at a time, from any thread."""

    def __init__(
        self, settings: LLMSettings, server: ServerModel, seconds: float = _ANSWER_SECONDS
    ) -> None:
        self._settings, self._server, self._seconds = settings, server, seconds
        self._completes = settings.adapter == "base"
        # Parameters that the server has refused, with what takes their place.
        self._renamed: dict[str, str | None] = {}
        headers = {"Authorization": f"Bearer {server.key.get_secret_value()}"} if server.key else {}
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(seconds, connect=_CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    def ask(self, question: Question, sampling: SamplingSettings) -> Answer:
        """The server's answer, or an answer with a `failure` if it refuses this question.

        Raises:
            NoAnswerYet: if the question should be asked again.
            ServerFailure: if no question can be answered.
        """
        request = request_body(self._settings, question, sampling)
        while True:
            sent = {self._renamed.get(name, name): value for name, value in request.items()}
            sent.pop(None, None)
            status, reply = self._post(sent)
            if status not in (400, 422) or not self._rename_refused(reply, sent):
                break
        if status == 200:
            return self._read(reply)
        if status in (400, 413, 422):
            return Answer("", False, 0, f"the server refuses it: {self._say(status, reply)}")
        raise ServerFailure(self._explain(status, reply))

    def _post(self, request: dict[Any, Any]) -> tuple[int, str]:
        """The status and text of a reply that waiting does not change."""
        path = "/completions" if self._completes else "/chat/completions"
        try:
            with self._http.stream("POST", self._server.url + path, json=request) as response:
                parts, size = [], 0
                for part in response.iter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > _LARGEST_REPLY:
                        raise NotACompletion(
                            f"its reply is larger than {_LARGEST_REPLY // 1024} KiB"
                        )
        except httpx.ReadTimeout:
            # Of a server that is asked too much at once, rather than of the question.
            raise NoAnswerYet(f"no reply within {self._seconds:.0f} s", None, False) from None
        except httpx.DecodingError as error:
            raise NotACompletion(f"its reply cannot be read ({error})") from None
        except httpx.RequestError as error:
            reason = f"cannot be reached ({str(error) or type(error).__name__})"
            raise NoAnswerYet(reason, None, False) from None
        status, reply = response.status_code, b"".join(parts).decode("utf-8", "replace")
        busy = status in (408, 425, 429) or status >= 500
        # With a spent budget this would be asked in vain for hours.
        if busy and "insufficient_quota" not in reply:
            raise NoAnswerYet(
                self._say(status, reply),
                _seconds(response.headers.get("Retry-After")),
                # 503 comes from busy servers, 429 from limits of rates.
                question_at_fault=status in (500, 502, 504),
            )
        return status, reply

    def _rename_refused(self, reply: str, sent: dict[Any, Any]) -> bool:
        """Whether the server refuses a parameter that can be left out or has a newer name."""
        if not re.search(
            "unsupported|not support|unknown|unrecogn|not permit", reply, re.IGNORECASE
        ):
            return False
        for name, instead in (("seed", None), ("max_tokens", "max_completion_tokens")):
            if name in sent and re.search(rf"\b{name}\b", reply):
                self._renamed[name] = instead
                return True
        return False

    def _read(self, reply: str) -> Answer:
        try:
            body = json.loads(reply)
            return read_answer(body)
        except (ValueError, RecursionError):
            raise NotACompletion(
                f"its reply is not a completion ({self._shorten(reply)!r})"
            ) from None

    def _explain(self, status: int, reply: str) -> str:
        said, variable = self._say(status, reply), self._settings.key_variable
        if status in (401, 403) and self._server.key is None:
            return (
                f"knowledge.llm.key_variable: {self._server.url} asks for a key; name the "
                f"environment variable that holds it ({said})"
            )
        if status in (401, 403):
            return (
                f"knowledge.llm.key_variable: {self._server.url} refuses the key in {variable} "
                f"({said})"
            )
        if status == 404:
            return f"knowledge.llm.model: {self._unknown_model()} ({said})"
        return f"knowledge.llm.url: {self._server.url} answers {said}"

    def _unknown_model(self) -> str:
        """A sentence about a model or path that the server does not have."""
        try:
            reply = self._http.get(f"{self._server.url}/models", timeout=_CONNECT_SECONDS).json()
            names = [str(model["id"]) for model in reply["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return (
                f"{self._server.url} has no model {self._server.name!r}, or is not an "
                "OpenAI-compatible server (its URL often ends with /v1)"
            )
        if not names or self._server.name in names:
            return f"{self._server.url} cannot {'complete' if self._completes else 'chat'} with it"
        listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        return f"must be a model of {self._server.url} (got {self._server.name!r}; it has {listed})"

    def _say(self, status: int, reply: str) -> str:
        """The status with the server's own message, in a line that is free of the key."""
        try:
            body = json.loads(reply)
            error = body.get("error", body)
            text = str(error.get("message") or error) if isinstance(error, dict) else str(error)
        except (ValueError, AttributeError, RecursionError):
            text = reply
        return f"{status}: {self._shorten(text)}" if text.strip() else str(status)

    def _shorten(self, text: str) -> str:
        """The beginning of a reply in one line, without the key."""
        if self._server.key is not None:
            text = text.replace(self._server.key.get_secret_value(), "…")
        return textwrap.shorten(storable(text), 200, placeholder=" …")


class ServerEngine:
    """Answers shards as `LLMEngine` does, by asking a server. The pool runs it as a Ray actor."""

    # The next shards are asked while the last answers of one are awaited.
    concurrent_calls = 16

    def __init__(self, settings: LLMSettings, server: ServerModel, on_gpu: bool) -> None:
        self._settings, self._server = settings, server
        self._client = ServerClient(settings, server)
        self._threads = ThreadPoolExecutor(settings.concurrency)
        self._last_answer = time.monotonic()

    def answer(self, questions: list[Question], sampling: SamplingSettings) -> list[Answer]:
        """Answer a shard, `concurrency` questions at once.

        Raises:
            ServerFailure: if the server can answer no question, has answered none for
                `timeout_minutes`, or refuses many questions of the shard.
        """
        answers = list(self._threads.map(partial(self._ask, sampling=sampling), questions))
        failures = [answer.failure for answer in answers if answer.failure]
        if len(failures) > failures_allowed(len(questions)):
            raise ServerFailure(
                f"knowledge.llm: {self._server.url} fails on {len(failures)} of "
                f"{len(questions)} questions; the first: {failures[0]}"
            )
        return answers

    def _ask(self, question: Question, sampling: SamplingSettings) -> Answer:
        began, failures, pause = time.monotonic(), 0, 1.0
        failed_before = began
        while True:
            try:
                answer = self._client.ask(question, sampling)
            except NoAnswerYet as error:
                failures += error.question_at_fault
                if failures >= _MAX_TRIES and self._answers_others(failed_before, sampling):
                    return Answer("", False, 0, str(error))
                failed_before = time.monotonic()
                away = failed_before - max(self._last_answer, began)
                limit = 60 * self._settings.timeout_minutes
                if away >= limit:
                    raise ServerFailure(
                        f"knowledge.llm.url: {self._server.url} has answered nothing for "
                        f"{away / 60:.0f} minutes: {error}"
                    ) from None
                time.sleep(min(max(pause, error.pause or 0), limit - away))
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._last_answer = time.monotonic()
                return answer

    def _answers_others(self, since: float, sampling: SamplingSettings) -> bool:
        """Whether the server has answered a question since this time, or answers an easy one."""
        if self._last_answer >= since:
            return True
        try:
            return self._client.ask(_EASY, sampling).failure is None
        except NoAnswerYet:
            return False


def check_server(settings: LLMSettings, server: ServerModel, sampling: SamplingSettings) -> None:
    """Ask one question, to find out before the run that key, model and URL are right.

    Raises:
        ServerFailure: if they are not.
        DescribedFailure: if the server cannot be reached, or is too busy.
    """
    client = ServerClient(settings, server, _CHECK_SECONDS)
    for pause in (1.0, 2.0, None):
        try:
            answer = client.ask(_EASY, sampling)
        except NoAnswerYet as error:
            if pause is None and isinstance(error, NotACompletion):
                raise ServerFailure(
                    f"knowledge.llm.url: {server.url} must be an OpenAI-compatible server; its URL "
                    f"often ends with /v1 (got: {error})"
                ) from None
            if pause is None:
                raise DescribedFailure(f"knowledge.llm.url: {server.url}: {error}") from None
            time.sleep(min(max(pause, error.pause or 0), _LONGEST_PAUSE))
        else:
            if answer.failure:
                raise ServerFailure(f"knowledge.llm: {server.url}: {answer.failure}")
            return


def describe_server(settings: LLMSettings, server: ServerModel, sampling: SamplingSettings) -> str:
    """Whether the server answers now, in a few words."""
    try:
        ServerClient(settings, server, seconds=_CONNECT_SECONDS).ask(_EASY, sampling)
    except (NoAnswerYet, ServerFailure) as error:
        return f"{server.url}: {error}"
    return f"{server.url} answers"


def _seconds(retry_after: str | None) -> float | None:
    """The seconds of a `Retry-After` header, which is a number or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
