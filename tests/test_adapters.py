"""Each adapter through a real vLLM engine in a real Ray actor, and the message when one fails."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError
from sentencepiece import SentencePieceProcessor
from tiny_llm import write_tiny_chat_llm, write_tiny_chatglm, write_tiny_llama, write_tiny_llm

from orchestrator.cluster.connect import connect, disconnect
from prompt_tuning.knowledge.dialogue import Answer, Question
from workers.knowledge.adapters import ChatAdapter, ChatGLM3Adapter, choose_adapter
from workers.knowledge.engine import LLMEngine
from workers.knowledge.engine_dtype import native_dtype
from workers.knowledge.engine_errors import load_failure
from workers.knowledge.llm_settings import LLMSettings, SamplingSettings

# Cold, for at 1 the dice outweigh what a tiny random model has read.
SAMPLING = SamplingSettings(temperature=0.1, max_tokens=48)
HUB_NAME = "someone/tiny-chatglm"
PATHS = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(PATHS))  # workers import this file
        connect(cpus=2, dashboard=False)
        yield
        disconnect()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "base": write_tiny_llm(folder / "base"),
        "chat": write_tiny_chat_llm(folder / "chat"),
        "chatglm3": write_tiny_chatglm(folder / "chatglm3"),
    }


@pytest.fixture(scope="module")
def hub(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that is offline and has the ChatGLM in its hub cache."""
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / ("models--" + HUB_NAME.replace("/", "--"))
    shutil.copytree(checkpoints["chatglm3"], repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    return {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


def start(model: Path | str, environment: dict[str, str] | None = None, **settings: Any) -> Any:
    actor = ray.remote(LLMEngine).options(
        num_cpus=1, runtime_env={"env_vars": environment} if environment else None
    )
    engine_settings = LLMSettings(model=str(model), **{"max_num_seqs": 16, **settings})
    return actor.remote(engine_settings, model, False)


def question(text: str, seed: int = 0) -> Question:
    return Question("specific", ("dog",), ("dog",), text, text, (), seed)


QUESTIONS = [question(f"Describe a {word}.", seed) for word in ("dog", "cup") for seed in range(16)]


def ask(engine: Any, questions: list[Question] = QUESTIONS) -> list[Answer]:
    return ray.get(engine.answer.remote(questions, SAMPLING))


def prompt_ids(engine: Any, text: str) -> list[int]:
    asked = question(text)
    return ray.get(engine.__ray_call__.remote(lambda self: self._adapter.prompt_ids(asked)))


def chosen(engine: Any, name: str, model: Path | str) -> str:
    """What `choose_adapter` picks, in the engine's process."""
    settings = LLMSettings(adapter=name)
    call = engine.__ray_call__.remote(lambda _: type(choose_adapter(settings, model)).__name__)
    return ray.get(call)


def dtype(engine: Any) -> str:
    """In what its model computes."""
    name = engine.__ray_call__.remote(lambda self: str(self._llm.llm_engine.model_config.dtype))
    return str(ray.get(name)).removeprefix("torch.")


def check_answers(engine: Any) -> list[Answer]:
    answers = ask(engine)
    with pytest.raises(RayTaskError, match="maximum context length is 1024"):
        ask(engine, [*QUESTIONS, question("dog" * 1024)])
    assert ask(engine) == answers, "the same seeds, the same bytes"
    assert ask(engine, QUESTIONS[20:]) == answers[20:], "whatever else is asked"
    assert len({answer.text for answer in answers}) > len(QUESTIONS) / 2
    assert answers[0] != answers[16], "the same seed, another question"
    assert {answer.finished for answer in answers} == {True, False}, "some stop, some are cut"
    assert all(answer.finished or answer.tokens == SAMPLING.max_tokens for answer in answers)
    return answers


def test_base_model_completes_patterns(checkpoints: dict[str, Path]) -> None:
    one, two = start(checkpoints["base"]), start(checkpoints["base"])
    answers = check_answers(one)
    assert not any("\n" in answer.text for answer in answers), "a newline ends an answer"
    assert ask(two) == answers
    assert prompt_ids(one, "ab") == [0, *prompt_ids(one, "a")[1:], *prompt_ids(one, "b")[1:]]

    def cores(_: LLMEngine) -> list[set[int]]:
        return [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]

    assert dtype(one) == native_dtype(on_gpu=False)
    everywhere = os.sched_getaffinity(0)
    for engine in (one, two):
        threads = ray.get(engine.__ray_call__.remote(cores))
        assert all(allowed == everywhere for allowed in threads), "no engine is tied to a core"


@pytest.fixture(scope="module")
def chat_engine(checkpoints: dict[str, Path]) -> Any:
    return start(checkpoints["chat"], dtype="float32")


def test_an_engine_computes_in_the_dtype_that_is_asked_for(chat_engine: Any) -> None:
    assert dtype(chat_engine) == "float32"


def test_chat_model_is_asked_by_its_template(
    checkpoints: dict[str, Path], chat_engine: Any
) -> None:
    from transformers import AutoTokenizer

    answers = check_answers(chat_engine)
    assert any("\n" in answer.text for answer in answers), "no newline ends an answer"
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["chat"])
    asked = tokenizer.decode(prompt_ids(chat_engine, "Describe a dog."))
    assert asked == "[user]Describe a dog.[assistant]<think></think>", "its thoughts are off"
    assert chosen(chat_engine, "auto", checkpoints["base"]) == "BaseAdapter"
    assert chosen(chat_engine, "base", checkpoints["chat"]) == "BaseAdapter"
    assert chosen(chat_engine, "chat", checkpoints["chat"]) == "ChatAdapter"


@pytest.fixture(scope="module")
def chatglm_engine(checkpoints: dict[str, Path], hub: dict[str, str]) -> Any:
    return start(checkpoints["chatglm3"], hub)


def test_chatglm_is_asked_in_its_own_layout(
    checkpoints: dict[str, Path], chatglm_engine: Any
) -> None:
    engine = chatglm_engine
    answers = check_answers(engine)
    assert sum(bool(answer.text) for answer in answers) > len(answers) / 2

    pieces = SentencePieceProcessor(model_file=str(checkpoints["chatglm3"] / "tokenizer.model"))
    words = pieces.vocab_size()
    start_of_user = [words + 1, words + 3, words + 6]  # [gMASK] sop <|user|>
    line_end = [pieces.piece_to_id("▁"), pieces.piece_to_id("<0x0A>")]
    message = pieces.encode("A dog runs.")
    assert pieces.id_to_piece(message[0]).startswith("▁")
    assert prompt_ids(engine, "A dog runs.") == [*start_of_user, *line_end, *message, words + 7]

    assert chosen(engine, "auto", HUB_NAME) == "ChatGLM3Adapter"
    assert chosen(engine, "chatglm3", checkpoints["chatglm3"]) == "ChatGLM3Adapter"


def test_chatglm_answers_are_read_without_its_special_tokens(checkpoints: dict[str, Path]) -> None:
    file = str(checkpoints["chatglm3"] / "tokenizer.model")
    pieces = SentencePieceProcessor(model_file=file)
    adapter = ChatGLM3Adapter(pieces)
    tokens = [*pieces.encode("\n"), *pieces.encode("A dog runs."), 2, pieces.vocab_size() + 6]
    assert adapter.text(SimpleNamespace(token_ids=tokens)) == "A dog runs."
    assert adapter.sampling_options["stop_token_ids"] == [
        2,
        pieces.vocab_size() + 6,
        pieces.vocab_size() + 8,
    ]


def test_thoughts_are_no_answer() -> None:
    adapter = ChatAdapter(SimpleNamespace(chat_template="{{ messages }}"))
    thinking = SimpleNamespace(text="<think>\nA dog?\n</think>\n\nA dog runs. ")
    assert adapter.text(thinking) == "A dog runs."


def test_an_engine_that_fails_midway_ends(chatglm_engine: Any) -> None:
    # The last test of this engine.
    def lose_its_mind(self: LLMEngine) -> None:
        self._adapter.prompt_ids = lambda question: [10**6]

    ray.get(chatglm_engine.__ray_call__.remote(lose_its_mind))
    with pytest.raises(RayActorError):
        ask(chatglm_engine)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["VLLM::Worker_TP1", "VLLM::EngineCore"])
def test_an_engine_that_has_lost_a_process_ends(checkpoints: dict[str, Path], victim: str) -> None:
    # Passive, for four processes on two cores would spend their time waiting for each other.
    engine = start(checkpoints["base"], {"OMP_WAIT_POLICY": "passive"}, tensor_parallel=2)
    check_answers(engine)
    pid = ray.get(engine.__ray_call__.remote(lambda _: os.getpid()))
    working = engine.answer.remote(QUESTIONS * 40, SAMPLING)
    children = psutil.Process(pid).children(recursive=True)
    (process,) = [child for child in children if child.cmdline()[0] == victim]
    process.kill()
    with pytest.raises(RayActorError):
        ray.get(working, timeout=60)


def failure_to_load(engine: Any) -> RuntimeError:
    with pytest.raises(RayActorError) as raised:
        ray.get(engine.__ray_ready__.remote())
    return load_failure("its/name", raised.value)


class Loader:
    """Loads engines one after the other in its process, which has to import vLLM only once."""

    def load(self, settings: LLMSettings, model: Path | str) -> None:
        LLMEngine(settings, model, on_gpu=False)


@pytest.fixture(scope="module")
def long_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes more tokens than 1 GiB can remember: 64 KiB each."""
    return write_tiny_llama(
        tmp_path_factory.mktemp("long"),
        head_dim=256,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=2**17,
    )


@pytest.fixture(scope="module")
def failures(
    checkpoints: dict[str, Path], long_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, RuntimeError]:
    """The errors of engines that cannot load, by cause."""
    folder = tmp_path_factory.mktemp("broken")

    def changed(name: str, of: str = "base", **config: Any) -> Path:
        shutil.copytree(checkpoints[of], folder / name)
        file = folder / name / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}), "utf-8")
        return folder / name

    own_code = {"AutoConfig": "configuration_wonder.WonderConfig"}
    tiktoken = changed("tiktoken", of="chatglm3")
    (tiktoken / "tokenizer.model").write_text("IQ== 0\nIg== 1\n", "utf-8")
    no_json = changed("no_json")
    (no_json / "config.json").write_text("{", "utf-8")
    no_tokenizer = changed("no_tokenizer")
    for file in no_tokenizer.glob("tokenizer*"):
        file.unlink()
    tried: dict[str, tuple[Path | str, dict[str, Any]]] = {
        "architecture": (changed("architecture", architectures=["NoSuchForCausalLM"]), {}),
        "no such name": ("nobody/nothing", {}),
        "no JSON": (no_json, {}),
        "no tokenizer": (no_tokenizer, {}),
        "tiktoken": (tiktoken, {}),
        "own code": (changed("own_code", model_type="wonder", auto_map=own_code), {}),
        "too long": (checkpoints["base"], {"max_model_len": 4096}),
        "cache": (long_checkpoint, {"max_model_len": 20_000}),
        "memory": (changed("memory", intermediate_size=2**34), {}),
        "heads": (checkpoints["base"], {"tensor_parallel": 3}),
        "overflow": (changed("overflow", model_type="gemma3_text"), {"dtype": "float16"}),
        "no template": (checkpoints["base"], {"adapter": "chat"}),
        "no pieces": (checkpoints["base"], {"adapter": "chatglm3"}),
    }
    environment = {"env_vars": {"HF_HUB_OFFLINE": "1"}}
    loader = ray.remote(Loader).options(num_cpus=1, runtime_env=environment).remote()

    def failure(model: Path | str, settings: dict[str, Any]) -> RuntimeError:
        engine_settings = LLMSettings(model=str(model), **{"max_num_seqs": 16, **settings})
        with pytest.raises(RayTaskError) as raised:
            ray.get(loader.load.remote(engine_settings, model))
        return load_failure("its/name", raised.value)

    return {name: failure(model, settings) for name, (model, settings) in tried.items()}


@pytest.mark.parametrize(
    ("name", "field", "words"),
    [
        ("architecture", "model", "NoSuchForCausalLM"),
        ("no such name", "model", "local cache"),
        ("no JSON", "model", "config.json cannot be read"),
        ("no tokenizer", "model", "its tokenizer is missing"),
        ("tiktoken", "model", "zai-org/GLM-4-9B-0414"),
        ("own code", "trust_remote_code", "custom code"),
        ("too long", "max_model_len", "at most 1024"),
        ("cache", "max_model_len", "at most 163"),
        ("memory", "model", "4398046511104 bytes"),
        ("heads", "tensor_parallel", "attention heads (2)"),
        ("overflow", "dtype", "does not support float16"),
        ("no template", "adapter", "no chat template"),
        ("no pieces", "adapter", "tokenizer.model"),
    ],
)
def test_a_failure_to_load_names_the_field(
    failures: dict[str, RuntimeError], name: str, field: str, words: str
) -> None:
    message = str(failures[name])
    assert message.startswith(f"knowledge.llm.{field}: ")
    assert words in message
    assert "\n" not in message
    assert "errors.pydantic.dev" not in message
    assert any("knowledge/engine.py" in note for note in failures[name].__notes__), (
        "the whole traceback"
    )


@pytest.mark.slow
def test_a_failure_in_another_process_names_the_field(long_checkpoint: Path) -> None:
    failure = failure_to_load(start(long_checkpoint, max_model_len=40_000, tensor_parallel=2))
    # Two share the cache of each token.
    assert str(failure).startswith(
        "knowledge.llm.max_model_len: the memory suffices for at most 327"
    )


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "tensor_parallel",
            "vLLM says: CUDA out of memory.",
        ),
        (
            "ValueError: Free memory on device cuda:0 (3.1/23.64 GiB) on startup is less than "
            "desired GPU memory utilization (0.92, 21.75 GiB).",
            "tensor_parallel",
            "vLLM says: Free memory",
        ),
        (
            "ValueError: No available memory for the cache blocks.",
            "tensor_parallel",
            "vLLM says: No available memory",
        ),
        (
            "  Value error, World size (4) is larger than the number of available GPUs (1) in this "
            "node. [type=value_error, input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]",
            "tensor_parallel",
            "in this node.",
        ),
        (
            "huggingface_hub.errors.GatedRepoError: 401 Client Error.\n\n"
            "Cannot access gated repo for url https://huggingface.co/a/b/resolve/main/config.json.",
            "model",
            "vLLM says: 401 Client Error. Cannot access gated repo",
        ),
        (
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least "
            "8.0. Your Tesla T4 GPU has compute capability 7.5. You can use float16 instead by "
            "explicitly setting the `dtype` flag in CLI, for example: --dtype=half.",
            "dtype",
            "use float16 or float32, vLLM says: Bfloat16 is only",
        ),
        ("Something that nobody has seen", "model", "vLLM says: Something that nobody has seen"),
    ],
)
def test_what_only_gpus_and_the_hub_say_names_the_field(text: str, field: str, words: str) -> None:
    failure = load_failure("a/b", RuntimeError(f"Traceback\n{text}"))
    assert str(failure).startswith(f"knowledge.llm.{field}: ")
    assert words in str(failure)
    assert "[type=" not in str(failure)
