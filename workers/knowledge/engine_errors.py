"""Errors of engines that cannot load, as one line that names the config field to change.

Kept apart from the engine, whose source is part of the key of every answer.
"""

from __future__ import annotations

import re
import textwrap
from itertools import takewhile

# A pattern in vLLM's text (its group, if any, is a value to use), the field to change, and how.
_LOAD_FAILURES = (
    (
        r"custom code which must be executed|trust_remote_code=True`",
        "trust_remote_code",
        "this model comes with its own code, which only runs if this is true",
    ),
    (r"does not support float16", "dtype", "the model overflows in float16; use float32"),
    (r"Bfloat16 is only supp", "dtype", "this GPU lacks bfloat16; use float16 or float32"),
    (r"the derived max_model_len \(\w+=(\d+)", "max_model_len", "the model supports at most {}"),
    (r"maximum model length is (\d+)", "max_model_len", "the memory suffices for at most {}"),
    (r"KV cache is needed, which is larger", "max_model_len", "the memory does not suffice"),
    (r"divisible by(?: tensor parallel size| \d)", "tensor_parallel", "it cannot split the model"),
    (r"the number of available GPUs", "tensor_parallel", "one machine has too few GPUs"),
    (
        r"out of memory|No available memory for the cache blocks|desired GPU memory utilization",
        "tensor_parallel",
        "GPU memory is too small; split the model over more GPUs, or use a smaller model",
    ),
    (r"instantiate the backend tokenizer", "model", "its tokenizer is missing or unreadable"),
    (
        r"can't allocate memory|Available memory on node|running low on memory",
        "model",
        "the model is too large for this machine's memory",
    ),
)


def load_failure(model: str, error: Exception) -> RuntimeError:
    """The error to show when an engine with `knowledge.llm.model` `model` could not load.

    Its message is one line with the field to change and vLLM's reason; its note is all that vLLM
    printed.
    """
    text = str(error)
    own = re.search(r"^(?:ValueError: )?(knowledge\.llm\.\w+: .*)", text, re.MULTILINE)
    failure = RuntimeError(own[1] if own else _explain(model, text))
    failure.add_note(text)
    return failure


def _explain(model: str, text: str) -> str:
    lines = text.splitlines()
    for pattern, field, advice in _LOAD_FAILURES:
        for i, line in enumerate(lines):
            if found := re.search(pattern, line):
                advice = advice.format(*found.groups())
                return f"knowledge.llm.{field}: {advice}, vLLM says: {_message(lines[i:])}"
    starts = [i for i, line in enumerate(lines) if _is_error(line)]
    root = lines[starts[-1] :] if starts else lines[-1:]
    return f"knowledge.llm.model: {model!r} cannot be loaded, vLLM says: {_message(root)}"


def _is_error(line: str) -> bool:
    # Without errors that only refer to another one.
    return bool(
        re.match(r"(\(.*?\) ERROR .*?\] )?[\w.]*(Error|Exception): |  Value error, ", line)
        and not re.search(r"root cause|validation errors? for", line)
    )


def _message(lines: list[str]) -> str:
    """The error at the start of these lines, in one line, without its class and the additions of
    the logger and of pydantic."""
    ends = re.compile(r"Traceback|The above exception|During handling|    For further|\(\w+ pid=")
    message = " ".join([*lines[:1], *takewhile(lambda line: not ends.match(line), lines[1:])])
    message = re.sub(r"^\(.*?\) ERROR .*?\] ", "", message.strip())
    message = re.sub(r"^[\w.]*(Error|Exception): |^Value error, ", "", message)
    message = re.sub(r" \[type=\w+, input_value=.*$", "", message)
    return textwrap.shorten(message, 300, placeholder=" …")
