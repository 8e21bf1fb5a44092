"""How a question is put to a language model, and how its answer is read: by the checkpoint's kind.

`chat` asks by the model's own chat template, `chatglm3` in ChatGLM3's token layout, `base` lets
the model complete a pattern.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Protocol

from prompt_tuning.knowledge.dialogue import Question

AdapterName = Literal["base", "chat", "chatglm3"]


class Adapter(Protocol):
    """Between questions and one model. `engine_options` are for `vllm.LLM`, `sampling_options`
    for `vllm.SamplingParams`."""

    engine_options: dict[str, Any]
    sampling_options: dict[str, Any]

    def prompt_ids(self, question: Question) -> list[int]:
        """The tokens that ask `question`."""

    def text(self, completion: Any) -> str:
        """The answer in a `vllm.CompletionOutput`."""


class BaseAdapter:
    """A model that completes: the question's pattern, up to the end of its line."""

    engine_options: dict[str, Any] = {}
    sampling_options: dict[str, Any] = {"stop": ["\n"]}

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def prompt_ids(self, question: Question) -> list[int]:
        """The tokens that ask `question`."""
        ids = self._tokenizer.encode(question.pattern, add_special_tokens=False)
        first = self._tokenizer.bos_token_id
        return list(ids if first is None else [first, *ids])

    def text(self, completion: Any) -> str:
        """The answer in a `vllm.CompletionOutput`."""
        return str(completion.text).strip()


class ChatAdapter:
    """A model that chats by its own template, and stops by its own end of turn."""

    engine_options: dict[str, Any] = {}
    sampling_options: dict[str, Any] = {}

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Qwen3 and its like would spend all of `max_tokens` on thoughts.
        switched = "enable_thinking" in str(tokenizer.chat_template)
        self._switches: dict[str, Any] = {"enable_thinking": False} if switched else {}

    def prompt_ids(self, question: Question) -> list[int]:
        """The tokens that ask `question`."""
        return list(
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": question.instruction}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **self._switches,
            )
        )

    def text(self, completion: Any) -> str:
        """The answer in a `vllm.CompletionOutput`, without the thoughts of a model whose template
        cannot switch them off."""
        return str(completion.text).rpartition("</think>")[2].strip()


class ChatGLM3Adapter:
    """ChatGLM3, by token ids both ways: its tokenizer class does not run under transformers 5.

    The layout is that of `build_chat_input` in its tokenization_chatglm.py. The special tokens
    follow the SentencePiece vocabulary, in this order: [MASK] [gMASK] [sMASK] sop eop
    <|system|> <|user|> <|assistant|> <|observation|>.
    """

    engine_options: dict[str, Any] = {"skip_tokenizer_init": True}

    def __init__(self, pieces: Any) -> None:
        self._pieces = pieces
        self._words: int = pieces.vocab_size()
        self._user, self._assistant = self._words + 6, self._words + 7
        self.sampling_options: dict[str, Any] = {
            "detokenize": False,
            "stop_token_ids": [pieces.eos_id(), self._user, self._words + 8],
        }

    def prompt_ids(self, question: Question) -> list[int]:
        """The tokens that ask `question`."""
        start = [self._words + 1, self._words + 3, self._user]  # [gMASK] sop <|user|>
        # Encoded apart, as ChatGLM3 was trained: each begins with SentencePiece's space.
        role_end, message = self._pieces.encode(["\n", question.instruction])
        return [*start, *role_end, *message, self._assistant]

    def text(self, completion: Any) -> str:
        """The answer in a `vllm.CompletionOutput`."""
        words = [token for token in completion.token_ids if token < self._words]
        return str(self._pieces.decode(words)).strip()


def choose_adapter(
    name: AdapterName | Literal["auto"], model: Path | str, trust_remote_code: bool
) -> Adapter:
    """The adapter called `name`, or for `auto` the one that the checkpoint's architecture and
    tokenizer ask for. `model`: a folder or a hub name.

    Raises:
        ValueError: beginning with the field to change, when adapter and checkpoint do not fit.
        OSError: when there is no such checkpoint, or the hub cannot be reached.
    """
    if name == "chatglm3" or (name == "auto" and _is_chatglm(model)):
        return ChatGLM3Adapter(_sentence_pieces(model))
    from vllm.tokenizers import get_tokenizer

    tokenizer: Any = get_tokenizer(str(model), trust_remote_code=trust_remote_code)
    chats = bool(getattr(tokenizer, "chat_template", None))
    if name == "chat" and not chats:
        raise ValueError(
            f"knowledge.llm.adapter: {model} has no chat template, so it cannot be asked by "
            "'chat'; 'base' lets it complete patterns"
        )
    return ChatAdapter(tokenizer) if chats and name != "base" else BaseAdapter(tokenizer)


def _is_chatglm(model: Path | str) -> bool:
    config = _checkpoint_file(model, "config.json")
    if config is None:
        return False  # vLLM has more to say of such a checkpoint
    try:
        architectures = json.loads(config.read_text("utf-8")).get("architectures")
    except json.JSONDecodeError as error:
        raise ValueError(f"knowledge.llm.model: {config} cannot be read: {error}") from None
    return any(name.startswith("ChatGLM") for name in architectures or ())


def _sentence_pieces(model: Path | str) -> Any:
    from sentencepiece import SentencePieceProcessor

    file = _checkpoint_file(model, "tokenizer.model")
    if file is None:
        raise ValueError(
            f"knowledge.llm.adapter: 'chatglm3' reads the checkpoint's tokenizer.model, and "
            f"{model} has none"
        )
    try:
        return SentencePieceProcessor(model_file=str(file))
    except RuntimeError:
        raise ValueError(
            f"knowledge.llm.model: {model} has ChatGLM's architecture but a tokenizer.model that "
            "SentencePiece cannot read (GLM-4's is tiktoken's); zai-org/glm-4-9b-chat-hf or "
            "zai-org/GLM-4-9B-0414 would be right"
        ) from None


def _checkpoint_file(model: Path | str, name: str) -> Path | None:
    """A file of the checkpoint, from the hub where `model` is no folder; None if it has none."""
    if Path(model).is_dir():
        file = Path(model) / name
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(str(model), name))
    except RemoteEntryNotFoundError:
        return None
