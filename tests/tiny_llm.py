"""Tiny random language models that vLLM really loads: two layers each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# As Qwen3's: the switch adds the thoughts of somebody who has none.
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)

_SENTENCES = (
    "A dog runs across the green grass.",
    "Describe a bicycle that leans against a wall.",
    "Write one short sentence about the colour of a violin.",
    "The quick brown fox jumps over the lazy dog.",
)


def write_tiny_llm(folder: Path) -> Path:
    """Write a Llama checkpoint with its tokenizer; its answers are noise, the same each time."""
    return write_tiny_llama(folder)


def write_tiny_chat_llm(folder: Path) -> Path:
    """The same model, with a chat template."""
    return write_tiny_llama(folder, chat_template=CHAT_TEMPLATE)


def write_tiny_llama(folder: Path, chat_template: str | None = None, **config: Any) -> Path:
    """A Llama checkpoint of byte tokens; `config` changes its size."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(["<bos>", "<eos>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        **config,
    }
    LlamaForCausalLM(
        LlamaConfig(**sizes, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False)
    ).to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_tiny_chatglm(folder: Path) -> Path:
    """A checkpoint of ChatGLM3's architecture, its weights named as in chatglm3-6b, with a
    SentencePiece tokenizer trained on a few sentences."""
    import torch
    from safetensors.torch import save_file
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    folder.mkdir(parents=True, exist_ok=True)
    SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        byte_fallback=True,
        # As ChatGLM3's: a line's end is a token, no space.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    hidden, heads, inner, layers, rows = 64, 2, 128, 2, 320
    assert rows >= pieces.vocab_size() + 9, "nine special tokens follow the vocabulary"
    config = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
        "num_layers": layers,
        "padded_vocab_size": rows,
        "vocab_size": rows,
        "hidden_size": hidden,
        "ffn_hidden_size": inner,
        "kv_channels": hidden // heads,
        "num_attention_heads": heads,
        "multi_query_attention": True,
        "multi_query_group_num": 1,
        "seq_length": 1024,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "original_rope": True,
        "layernorm_epsilon": 1e-5,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    qkv = hidden + 2 * hidden // heads
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.word_embeddings.weight": (rows, hidden),
        "encoder.final_layernorm.weight": (hidden,),
        "output_layer.weight": (rows, hidden),
    }
    for layer in range(layers):
        shapes |= {
            f"encoder.layers.{layer}.{name}": shape
            for name, shape in {
                "input_layernorm.weight": (hidden,),
                "self_attention.query_key_value.weight": (qkv, hidden),
                "self_attention.query_key_value.bias": (qkv,),
                "self_attention.dense.weight": (hidden, hidden),
                "post_attention_layernorm.weight": (hidden,),
                "mlp.dense_h_to_4h.weight": (2 * inner, hidden),
                "mlp.dense_4h_to_h.weight": (hidden, inner),
            }.items()
        }
    draws = torch.Generator().manual_seed(0)
    weights = {
        f"transformer.{name}": (
            torch.ones(shape) if "layernorm" in name else torch.randn(shape, generator=draws) * 0.02
        ).to(torch.bfloat16)
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
