"""MiniLM: the packaged text tower, in plain PyTorch.

Its layers are PyTorch's own. transformers has the same model, but takes 3 s of CPU to import, in
each process that encodes texts.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

_MOST_TOKENS = 128  # what the model was trained for


class MiniLM(nn.Module):
    """BERT's encoder (Devlin et al., 2018, arXiv 1810.04805) and the mean of its tokens."""

    def __init__(self, folder: Path) -> None:
        """`folder` has `model.safetensors`, `config.json` and `tokenizer.json`."""
        super().__init__()
        config = json.loads((folder / "config.json").read_text("utf-8"))
        self.width: int = config["hidden_size"]
        self.words = nn.Embedding(config["vocab_size"], self.width)
        self.positions = nn.Embedding(config["max_position_embeddings"], self.width)
        self.norm = nn.LayerNorm(self.width, eps=config["layer_norm_eps"])
        layer = nn.TransformerEncoderLayer(
            self.width,
            config["num_attention_heads"],
            config["intermediate_size"],
            activation=config["hidden_act"],
            layer_norm_eps=config["layer_norm_eps"],
            dropout=0,
            batch_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, config["num_hidden_layers"], enable_nested_tensor=False
        )
        self.load_state_dict(_renamed(load_file(folder / "model.safetensors")))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(_MOST_TOKENS)
        self.tokenizer.enable_padding()

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids `(texts, tokens)`, with those that begin and end a text, and False for padding."""
        encoded = self.tokenizer.encode_batch(texts)
        device = self.words.weight.device
        ids = torch.tensor([text.ids for text in encoded], device=device)
        mask = torch.tensor([text.attention_mask for text in encoded], device=device)
        return ids, mask.bool()

    def embed_words(self, text: str) -> Tensor:
        """Embeddings `(tokens, width)` of a text, without the tokens that begin and end it."""
        return self.words.weight[self.tokenizer.encode(text, add_special_tokens=False).ids]

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Unit sentence embeddings `(texts, width)` of word embeddings `(texts, tokens, width)`.

        `mask`: `(texts, tokens)`, False for padding.
        """
        embeddings = self.norm(words + self.positions.weight[: words.shape[1]])
        hidden = self.encoder(embeddings, src_key_padding_mask=~mask)
        return F.normalize((hidden * mask.unsqueeze(-1)).sum(1), dim=-1)


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names of the weights -> those of the modules here."""
    # Each text is one segment: its embedding is a part of each position's.
    segment = weights["embeddings.token_type_embeddings.weight"][0]
    named = {
        "words.weight": weights["embeddings.word_embeddings.weight"],
        "positions.weight": weights["embeddings.position_embeddings.weight"] + segment,
    }
    for kind in ("weight", "bias"):
        named[f"norm.{kind}"] = weights[f"embeddings.LayerNorm.{kind}"]
    layers = sum(name.endswith("attention.self.query.bias") for name in weights)
    for i in range(layers):
        theirs, ours = f"encoder.layer.{i}", f"encoder.layers.{i}"
        for kind in ("weight", "bias"):
            parts = [
                weights[f"{theirs}.attention.self.{p}.{kind}"] for p in ("query", "key", "value")
            ]
            named[f"{ours}.self_attn.in_proj_{kind}"] = torch.cat(parts)
            for there, here in (
                ("attention.output.dense", "self_attn.out_proj"),
                ("attention.output.LayerNorm", "norm1"),
                ("intermediate.dense", "linear1"),
                ("output.dense", "linear2"),
                ("output.LayerNorm", "norm2"),
            ):
                named[f"{ours}.{here}.{kind}"] = weights[f"{theirs}.{there}.{kind}"]
    return named
