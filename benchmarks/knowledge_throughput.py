"""Tokens per second of our pool and of plain `vllm.LLM.generate`, on the same questions.

    python benchmarks/knowledge_throughput.py

Both sides have one engine of the same class with the same options, CPUs and threads, in a Ray
actor of its own, loaded and warmed up by the same call before anything is measured. Plain uses
the data type that is faster on this machine, as a trial shows; ours uses `auto`. Ours answers
shards through the pool and publishes them to a ledger, and its whole wall time counts. Plain is
one `generate` of all prompts, tokenized beforehand, with the same sampling and a seed per
request; only that call counts. The two alternate. The last line is one JSON object; `ratio` is
ours ÷ plain.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from itertools import chain, islice
from pathlib import Path
from typing import Any

import ray
import yaml

from prompt_tuning.categories import CategoryList, built_in_text
from prompt_tuning.knowledge.category_facts import CategoryFacts
from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.knowledge.questions import QuestionSettings, QuestionWriter
from prompt_tuning.knowledge.templates import built_in_templates
from workers.knowledge import embedded_llm
from workers.knowledge.engine import LLMEngine
from workers.knowledge.engine_dtype import native_dtype
from workers.knowledge.ledger import Ledger, Shard, cut_shards
from workers.knowledge.llm_settings import LLMSettings, SamplingSettings, chosen_dtype
from workers.knowledge.pool import KnowledgePool
from workers.placement import Placement

SHARD_SIZE = 384  # as the knowledge stage takes on a CPU
SHARDS = 10
WARM_UP = 16
TRIAL = 256


class PlainEngine(LLMEngine):
    """The same engine; its `generate` is called directly, once."""

    def generate(self, questions: list[Question], sampling: SamplingSettings) -> tuple[int, float]:
        """Tokens and seconds of one call."""
        prompts, parameters = self._requests(questions, sampling)
        self._llm.reset_prefix_cache()  # of the round before
        start = time.perf_counter()
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - start
        return sum(len(output.outputs[0].token_ids) for output in outputs), seconds


def fastest_plain(
    settings: LLMSettings,
    model: Path | str,
    questions: list[Question],
    sampling: SamplingSettings,
    cpus: int,
) -> tuple[Any, dict[str, float]]:
    """A warm plain engine in the dtype in which it is fastest, and each one's tokens a second."""
    actor: Any = ray.remote(PlainEngine).options(num_cpus=cpus)
    engines, rates = {}, {}
    for dtype in ("bfloat16", "float32"):
        engine = actor.remote(settings.model_copy(update={"dtype": dtype}), model, False)
        ray.get(engine.generate.remote(questions[:WARM_UP], sampling))
        tokens, seconds = ray.get(engine.generate.remote(questions[:TRIAL], sampling))
        engines[dtype], rates[dtype] = engine, tokens / seconds
        print(f"plain in {dtype}: {rates[dtype]:.1f} tokens/s", flush=True)
    fastest = engines.pop(max(rates, key=rates.__getitem__))
    for engine in engines.values():
        ray.kill(engine)
    return fastest, rates


def asked_questions(count: int) -> list[Question]:
    """The sentences about VOC's categories that a run would ask for, as many as there should be."""
    categories = CategoryList.model_validate_json(json.dumps(yaml.safe_load(built_in_text("voc"))))
    each = 1 + count // len(categories)
    settings = QuestionSettings(per_category=each, relationships=each)
    writer = QuestionWriter(categories, settings, built_in_templates(), SHARD_SIZE)
    return list(islice(chain.from_iterable(writer.sentences(CategoryFacts())), count))


def embedded_model() -> Path:
    """The embedded model's checkpoint, where runs with the default cache keep it."""
    folder = embedded_llm.checkpoint_folder(Path("cache").absolute())
    embedded_llm.assemble(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=embedded_llm.EMBEDDED_MODEL)
    parser.add_argument("--questions", type=int, default=SHARDS * SHARD_SIZE)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    embedded = options.model == embedded_llm.EMBEDDED_MODEL
    model = embedded_model() if embedded else options.model
    settings, sampling = LLMSettings(model=options.model), SamplingSettings()
    questions = asked_questions(options.questions)
    size = min(SHARD_SIZE, options.questions // SHARDS)
    cpus = os.cpu_count() or 1
    tokens = 0

    def count_tokens(shard: Shard, answers: list[Answer], *_: object) -> None:
        nonlocal tokens
        tokens += sum(answer.tokens for answer in answers)

    measured: dict[str, list[tuple[int, float]]] = {"ours": [], "plain": []}
    # Room for ours and both plain ones, although only one of them works at a time.
    ray.init(address="local", num_cpus=3 * cpus, include_dashboard=False, log_to_driver=False)
    with (
        tempfile.TemporaryDirectory() as ledger,
        KnowledgePool(
            settings, sampling, Placement(1, cpus, 0), model, Ledger(Path(ledger))
        ) as pool,
    ):
        plain, trial = fastest_plain(settings, model, questions, sampling, cpus)
        pool.answer(cut_shards([questions[:WARM_UP]], WARM_UP, {"turn": "warm up"}), count_tokens)
        for turn in range(options.rounds):
            tokens, start = 0, time.perf_counter()
            pool.answer(cut_shards([questions], size, {"turn": turn}), count_tokens)
            measured["ours"].append((tokens, time.perf_counter() - start))
            measured["plain"].append(ray.get(plain.generate.remote(questions, sampling)))
            for side, rounds in measured.items():
                print(f"{side}: {rounds[-1][0]} tokens in {rounds[-1][1]:.2f} s", flush=True)
    ray.shutdown()
    rate = {
        side: sum(tokens for tokens, _ in rounds) / sum(seconds for _, seconds in rounds)
        for side, rounds in measured.items()
    }
    print(
        json.dumps(
            {
                "ratio": round(rate["ours"] / rate["plain"], 4),
                "ours_tokens_s": round(rate["ours"], 1),
                "plain_tokens_s": round(rate["plain"], 1),
                "rounds": {
                    side: [[tokens, round(seconds, 2)] for tokens, seconds in rounds]
                    for side, rounds in measured.items()
                },
                "plain_tokens_s_by_dtype": {dtype: round(rate, 1) for dtype, rate in trial.items()},
                "dtype": chosen_dtype(settings, native_dtype(on_gpu=False)),
                "model": options.model,
                "questions": len(questions),
                "shards": -(-len(questions) // size),
                "shard_size": size,
                "cpus": cpus,
                "engine": settings.model_dump(),
                "sampling": sampling.model_dump(),
            }
        )
    )


if __name__ == "__main__":
    main()
