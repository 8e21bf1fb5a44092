"""Does `knowledge.llm.source: server` ask as fast as a client written for it?

    python benchmarks/server_source.py [--questions 768] [--concurrency 32] [--rounds 3]

vLLM's own server answers with the packaged Gemma, on this machine. In each round the same questions
are asked twice, in turns: by a hand-written loop (a pool of threads, one connection each, no
retries, nothing written) and by the pool of the product (a Ray actor, shards of 384 questions, the
ledger). Ray is started before. The last line is one JSON object; `ratio` is the hand-written loop's
seconds over the product's, the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from orchestrator.cluster.connect import connect, disconnect
from prompt_tuning.knowledge.dialogue import Question
from workers.knowledge import embedded_llm
from workers.knowledge.ledger import Ledger, cut_shards
from workers.knowledge.llm_settings import LLMSettings, SamplingSettings
from workers.knowledge.openai_format import request_body
from workers.knowledge.pool import KnowledgePool
from workers.knowledge.server import ServerEngine, ServerModel
from workers.placement import Placement

SAMPLING = SamplingSettings(max_tokens=24)
SHARD = 384


def questions(count: int, start: int) -> list[Question]:
    pattern = "Sentences about photos.\nA dog: A dog sleeps on a red sofa.\nA {} number {}:"
    things = ("cat", "bicycle", "violin", "lemon", "car")
    return [
        Question("specific", (), (), "", pattern.format(things[i % 5], i), (), seed=i)
        for i in range(start, start + count)
    ]


def by_hand(settings: LLMSettings, asked: list[Question]) -> float:
    started = time.perf_counter()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    with (
        httpx.Client(timeout=300, limits=limits) as client,
        ThreadPoolExecutor(settings.concurrency) as pool,
    ):

        def ask(question: Question) -> str:
            body = request_body(settings, question, SAMPLING)
            reply = client.post(f"{settings.url}/completions", json=body)
            return str(reply.json()["choices"][0]["text"])

        assert len(list(pool.map(ask, asked))) == len(asked)
    return time.perf_counter() - started


def by_product(settings: LLMSettings, asked: list[Question], folder: Path) -> float:
    model = ServerModel(str(settings.url), settings.model, None)
    pool = KnowledgePool(
        settings, SAMPLING, Placement(1, 1, 0), model, Ledger(folder), ServerEngine
    )
    shards = list(cut_shards([asked], SHARD, {}))
    with pool as engines:
        # The actor's process starts before the time is taken, as the hand-written loop's has.
        engines.answer(cut_shards([questions(1, 10**6 + asked[0].seed)], 1, {}), lambda *_: None)
        started = time.perf_counter()
        engines.answer(shards, lambda *_: None)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=768)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    args = parser.parse_args()
    checkpoint = embedded_llm.checkpoint_folder(args.cache.resolve())
    embedded_llm.assemble(checkpoint)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(port)]
    options = ["--model", str(checkpoint), "--served-model-name", "gemma", "--enforce-eager"]
    options += ["--max-model-len", "1024", "--max-num-seqs", "128", "--host", "127.0.0.1"]
    server = subprocess.Popen(
        [*command, *options],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    settings = LLMSettings(
        source="server",
        url=f"http://127.0.0.1:{port}/v1",
        model="gemma",
        adapter="base",
        concurrency=args.concurrency,
    )
    try:
        while True:
            assert server.poll() is None, "the server ended"
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        connect(cpus=2, dashboard=False)
        by_hand(settings, questions(64, 10**7))
        hand, product = [], []
        for turn in range(args.rounds):
            asked = questions(args.questions, turn * args.questions)
            with tempfile.TemporaryDirectory() as folder:
                if turn % 2:
                    hand.append(by_hand(settings, asked))
                    product.append(by_product(settings, asked, Path(folder)))
                else:
                    product.append(by_product(settings, asked, Path(folder)))
                    hand.append(by_hand(settings, asked))
            print(f"by hand {hand[-1]:.1f} s, product {product[-1]:.1f} s", flush=True)
        disconnect()
    finally:
        server.terminate()
    ratios = [one / other for one, other in zip(hand, product, strict=True)]
    figures = {"by_hand": hand, "product": product, "ratio": statistics.median(ratios)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
