"""Adapters between questions and the tokens of each kind of checkpoint.

`chat` uses the model's chat template, `chatglm3` the token layout of ChatGLM3, and `base` lets the
model complete a pattern. `prompt_ids` gives the tokens that ask a question, `text` the answer in a
`vllm.CompletionOutput`. `engine_options` are for `vllm.LLM`, `sampling_options` for
`vllm.SamplingParams`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prompt_tuning.knowledge.dialogue import Question

if TYPE_CHECKING:
    from workers.knowledge.llm_settings import LLMSettings

AdapterName = Literal["base", "chat", "chatglm3"]


class BaseAdapter:
    """For base models: they complete the last line of the question's pattern."""

    engine_options: dict[str, Any] = {}
    sampling_options: dict[str, Any] = {"stop": ["\n"]}

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def prompt_ids(self, question: Question) -> list[int]:
        ids = self._tokenizer.encode(question.pattern, add_special_tokens=False)
        first = self._tokenizer.bos_token_id
        return list(ids if first is None else [first, *ids])

    def text(self, completion: Any) -> str:
        return str(completion.text).strip()


class ChatAdapter:
    """For chat models, by their own chat template and end-of-turn token."""

    engine_options: dict[str, Any] = {}
    sampling_options: dict[str, Any] = {}

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Models such as Qwen3 would spend all of `max_tokens` on thinking.
        switched = "enable_thinking" in str(tokenizer.chat_template)
        self._switches: dict[str, Any] = {"enable_thinking": False} if switched else {}

    def prompt_ids(self, question: Question) -> list[int]:
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
        # Without the thinking that some templates cannot switch off.
        return str(completion.text).rpartition("</think>")[2].strip()


class ChatGLM3Adapter:
    """For ChatGLM3, by token ids: its tokenizer class does not run with transformers 5.

    The layout follows `build_chat_input` in its tokenization_chatglm.py. The special tokens come
    after the SentencePiece vocabulary, in this order: [MASK] [gMASK] [sMASK] sop eop
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
        start = [self._words + 1, self._words + 3, self._user]  # [gMASK] sop <|user|>
        # Encoded separately, as in ChatGLM3's training: each begins with SentencePiece's space.
        role_end, message = self._pieces.encode(["\n", question.instruction])
        return [*start, *role_end, *message, self._assistant]

    def text(self, completion: Any) -> str:
        words = [token for token in completion.token_ids if token < self._words]
        return str(self._pieces.decode(words)).strip()


Adapter = BaseAdapter | ChatAdapter | ChatGLM3Adapter


def choose_adapter(settings: LLMSettings, model: Path | str) -> Adapter:
    """The adapter of the settings; `auto` chooses by the checkpoint's architecture and tokenizer.

    `model`: a folder or a hub name.

    Raises:
        ValueError: beginning with the field to change, if adapter and checkpoint do not match.
        OSError: if the checkpoint does not exist or the hub cannot be reached.
    """
    name, revision = settings.adapter, settings.revision
    if name == "chatglm3" or (name == "auto" and _is_chatglm(model, revision)):
        return ChatGLM3Adapter(_sentence_pieces(model, revision))
    from vllm.tokenizers import get_tokenizer

    tokenizer: Any = get_tokenizer(
        str(model), trust_remote_code=settings.trust_remote_code, revision=revision
    )
    chats = bool(getattr(tokenizer, "chat_template", None))
    if name == "chat" and not chats:
        raise ValueError(
            f"knowledge.llm.adapter: 'chat' needs a chat template, and {model} has no chat "
            "template; use 'base'"
        )
    return ChatAdapter(tokenizer) if chats and name != "base" else BaseAdapter(tokenizer)


def _is_chatglm(model: Path | str, revision: str | None) -> bool:
    config = _checkpoint_file(model, "config.json", revision)
    if config is None:
        return False  # vLLM explains better what is missing
    try:
        architectures = json.loads(config.read_text("utf-8")).get("architectures")
    except json.JSONDecodeError as error:
        raise ValueError(f"knowledge.llm.model: {config} cannot be read: {error}") from None
    return any(name.startswith("ChatGLM") for name in architectures or ())


def _sentence_pieces(model: Path | str, revision: str | None) -> Any:
    from sentencepiece import SentencePieceProcessor

    file = _checkpoint_file(model, "tokenizer.model", revision)
    if file is None:
        raise ValueError(
            f"knowledge.llm.adapter: 'chatglm3' needs tokenizer.model, which {model} does not have"
        )
    try:
        return SentencePieceProcessor(model_file=str(file))
    except RuntimeError:
        raise ValueError(
            f"knowledge.llm.model: {model} has the architecture of ChatGLM but a tokenizer.model "
            "that SentencePiece cannot read (GLM-4 uses tiktoken); use zai-org/glm-4-9b-chat-hf or "
            "zai-org/GLM-4-9B-0414"
        ) from None


def _checkpoint_file(model: Path | str, name: str, revision: str | None) -> Path | None:
    """A file of a checkpoint folder or, for other names, of the hub; None if it does not exist."""
    if Path(model).is_dir():
        file = Path(model) / name
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(str(model), name, revision=revision))
    except RemoteEntryNotFoundError:
        return None
