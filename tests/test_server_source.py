"""`knowledge.llm.source: server` against vLLM's own server, on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from command_line import Done, run_datafree
from tiny_llm import write_tiny_chat_llm

# Starting vLLM's server takes half a minute; test_server has the same run with a stub in its place.
pytestmark = pytest.mark.slow

KEY = "sk-of-this-test"
# Seeks garbage less often, as our own engines do while they load: it starts in a fifth less time.
SERVE = """
import gc, runpy
gc.set_threshold(100_000)
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
"""


class Server:
    """vLLM's OpenAI-compatible server as a process of its own, always at the same address."""

    def __init__(self, model: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._model, self._process = model, None

    def start(self) -> None:
        command = [sys.executable, "-c", SERVE]
        options = {
            "--model": str(self._model),
            "--served-model-name": "tiny",
            "--host": "127.0.0.1",
            "--port": str(self._port),
            "--api-key": KEY,
            "--max-model-len": "1024",
            "--max-num-seqs": "16",
            "--dtype": "float32",
        }
        arguments = [part for option in options.items() for part in option]
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [*command, *arguments, "--enforce-eager", "--no-enable-chunked-prefill"],
            env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=(self._model / "server.log").open("ab"),
            start_new_session=True,
        )

    def wait(self) -> None:
        deadline = time.monotonic() + 240
        while True:
            try:
                if httpx.get(self.url.replace("/v1", "/health"), timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            log = self._model / "server.log"
            assert self._process is not None
            assert self._process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(write_tiny_chat_llm(tmp_path_factory.mktemp("llm")))
    server.start()
    server.wait()
    yield server
    server.kill()


@pytest.fixture
def config(server: Server, tmp_path: Path) -> Path:
    (tmp_path / "own.tsv").write_text("My dog sleeps.\tdog\nA car by a tree.\n", "utf-8")
    llm = {"source": "server", "url": server.url, "model": "tiny", "key_variable": "TINY_KEY"}
    values = {
        "name": "served",
        "categories": ["dog", "bicycle", "violin", "lemon", "car", "tree"],
        "knowledge": {
            "llm": {**llm, "concurrency": 8},
            "questions": {"per_category": 150, "relationships": 12, "attributes": 6},
            "sampling": {"max_tokens": 6},
        },
        "captions": {"files": ["own.tsv"]},
    }
    (tmp_path / "served.yaml").write_text(yaml.safe_dump(values), "utf-8")
    return tmp_path / "served.yaml"


@pytest.fixture
def knowledge(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    monkeypatch.chdir(config.parent)
    monkeypatch.setenv("TINY_KEY", KEY)
    return lambda *options: run_datafree(monkeypatch, capsys, "knowledge", config, *options)


def shards(folder: Path) -> dict[Path, int]:
    """When each published shard was written."""
    return {
        path: path.stat().st_mtime_ns
        for path in (folder / "cache/answers").glob("*/[0-9a-f]*/manifest.json")
    }


def test_a_server_that_dies_and_comes_back_is_asked_each_question_once(
    server: Server, config: Path
) -> None:
    log = (config.parent / "log").open("wb")
    command = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "knowledge", str(config)],
        cwd=config.parent,
        env={**os.environ, "TINY_KEY": KEY, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=log,
        stderr=log,
    )
    deadline = time.monotonic() + 240
    while len(shards(config.parent)) < 5:
        assert command.poll() is None, (config.parent / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.kill()
    before = shards(config.parent)
    server.start()  # answers again in some seconds
    assert command.wait(240) == 0, (config.parent / "log").read_text()
    after = shards(config.parent)
    assert len(after) > len(before)
    assert {path: after[path] for path in before} == before
    check_results(config.parent, (config.parent / "log").read_text(), specific=900)


def test_a_server_answers_everything_and_its_key_is_nowhere(
    server: Server, knowledge: Callable[..., Done], tmp_path: Path
) -> None:
    server.wait()
    done = knowledge("--preview", "2")
    assert done.code == 0, done.err
    assert done.out.count("dropped: ") + done.out.count("kept: ") >= 3
    assert "sentences are kept" in done.out
    assert "a list" in done.out
    assert not (tmp_path / "runs/served/knowledge").exists()
    done = knowledge("--set=knowledge.questions.per_category=30")
    assert done.code == 0, done.err
    check_results(tmp_path, done.out, specific=180)


def check_results(folder: Path, printed: str, specific: int) -> None:
    summary = json.loads((folder / "runs/served/knowledge/summary.json").read_bytes())
    assert summary["asked"]["specific"] == specific
    assert summary["not_answered"] == 0
    assert summary["tokens"] > specific
    assert (summary["source"], summary["repeats"]) == ("server", False)
    assert "may answer in other words" in printed
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("model=large", KEY, "knowledge.llm.model: must be a model of {url} (got 'large'; it has"),
        ("key_variable=NONE", KEY, "knowledge.llm.key_variable: the environment variable NONE is"),
        ("key_variable=null", KEY, "knowledge.llm.key_variable: {url} asks for a key; name the"),
        ("concurrency=8", "sk-no", "knowledge.llm.key_variable: {url} refuses the key in TINY_KEY"),
        ("url=http://127.0.0.1:1/v1", KEY, "failed: knowledge.llm.url: http://127.0.0.1:1/v1: "),
        ("url=http://me:hush@a/v1", KEY, "knowledge.llm.url: must have no user name, password"),
    ],
)
def test_what_is_wrong_with_a_server_is_said_in_one_line(
    server: Server,
    knowledge: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    key: str,
    says: str,
) -> None:
    server.wait()
    monkeypatch.setenv("TINY_KEY", key)
    done = knowledge(f"--set=knowledge.llm.{override}")
    assert says.format(url=server.url) in done.err
    assert done.code == (1 if says.startswith("failed") else 2)
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert "hush" not in done.err
    assert key not in done.err
