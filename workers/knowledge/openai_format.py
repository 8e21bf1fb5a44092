"""Questions and answers in the format of OpenAI's API: of servers, and of files of requests.

Kept apart from the client, because its code is part of the key of every answer: a mended retry must
not ask a paid service everything again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prompt_tuning.knowledge.dialogue import Answer, Question

if TYPE_CHECKING:
    from workers.knowledge.llm_settings import LLMSettings, SamplingSettings


def request_body(
    settings: LLMSettings, question: Question, sampling: SamplingSettings
) -> dict[str, Any]:
    """The body of a request in OpenAI's format: a chat, or a completion with adapter `base`."""
    body: dict[str, Any] = {"model": settings.model}
    if settings.adapter == "base":
        body |= {"prompt": question.pattern, "stop": ["\n"]}
    else:
        body["messages"] = [{"role": "user", "content": question.instruction}]
    body |= {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
    if sampling.top_p is not None:
        body["top_p"] = sampling.top_p
    return body | {"seed": question.seed}


def read_answer(body: Any) -> Answer:
    """The answer in the body of a reply in OpenAI's format. Raises ValueError if it has none."""
    try:
        choice = body["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        tokens = (body.get("usage") or {}).get("completion_tokens")
        finished = choice.get("finish_reason") == "stop"
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("must have choices with a message or text") from None
    if not isinstance(text, str | None):
        raise ValueError("must have a text as its message's content")
    # Without the thinking of models that think.
    answer = storable(text or "").rpartition("</think>")[2].strip()
    if not isinstance(tokens, int) or not 0 <= tokens < 2**31:
        tokens = 0  # servers need not count, and only sums of these are shown
    return Answer(answer, finished, tokens)


def storable(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON allows and UTF-8 does not."""
    return text.encode("utf-8", "replace").decode()
