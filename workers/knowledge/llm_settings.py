"""Settings of the language model, of its engines or server, and of how answers are sampled."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from prompt_tuning.settings import Settings
from workers.knowledge.adapters import AdapterName
from workers.knowledge.embedded_llm import EMBEDDED_MODEL
from workers.knowledge.engine_dtype import Dtype
from workers.placement import NodeSettings

Auto = Literal["auto"]

GPU_DEFAULT = "zai-org/GLM-4-9B-0414"


class LLMSettings(NodeSettings):
    """The language model, and who runs it.

    `source`: who answers. `vllm`: engines of this run. `server`: an OpenAI-compatible server at
    `url` (such as http://127.0.0.1:8000/v1), asked `concurrency` questions at once. `file`: answers
    from `datafree knowledge --import`.

    `model`: the embedded model, a folder, or a name that vLLM can load; `auto` is GLM-4-9B-0414 on
    GPUs, else the embedded model. For a server or a file: its name of the model. `revision`: the
    commit, tag or branch of a hub's model. `adapter`: `chat` uses the model's chat template,
    `chatglm3` the token layout of ChatGLM3, `base` lets the model complete a pattern; `auto`
    chooses by the checkpoint's architecture, then by whether its tokenizer has a chat template, and
    is `chat` for a server or a file. `key_variable`: the environment variable that holds the
    server's key.

    `engines: auto`: GPUs ÷ `tensor_parallel`, or one engine on a CPU. `cpus_per_engine: auto`: one
    with a GPU, all of a machine without GPUs. `gpu_memory_share`: the share of a GPU's memory that
    an engine takes; by default vLLM's. `dtype`: of weights and activations; `auto` is bfloat16 if
    the nodes for engines support it natively (CPUs with AVX512-BF16 or AMX, GPUs from compute
    capability 8.0), else float32 on CPUs and float16 on GPUs. `quantization`: a method of vLLM such
    as `fp8`, `awq` or `bitsandbytes`; by default the checkpoint's own. `deterministic`: the same
    answers whatever else is in a batch, which is slower on GPUs; on a CPU they always are.

    `timeout_minutes`: an engine that loads or answers for longer is replaced, and the run fails
    after this time without any engine that loads or answers, or without any answer of the server.
    """

    source: Literal["vllm", "server", "file"] = "vllm"
    url: Annotated[str, Field(min_length=1)] | None = None
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 32
    model: Annotated[str, Field(min_length=1)] = "auto"
    revision: Annotated[str, Field(min_length=1)] | None = None
    adapter: AdapterName | Auto = "auto"
    engines: Annotated[int, Field(ge=1, le=1000)] | Auto = "auto"
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    cpus_per_engine: Annotated[int, Field(ge=1)] | Auto = "auto"
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    dtype: Dtype | Auto = "auto"
    quantization: Annotated[str, Field(min_length=1)] | None = None
    deterministic: bool = False
    max_model_len: Annotated[int, Field(ge=256)] = 1024
    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] = 128
    trust_remote_code: bool = False
    timeout_minutes: Annotated[float, Field(gt=0)] = 120

    @field_validator("url")
    @classmethod
    def _is_a_plain_address(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in ("http", "https") and parts.port != 0
            parts.netloc.encode("idna")
        except ValueError:
            is_url = False
        if not is_url or not parts.hostname or re.search(r"[\s#]", url):
            raise ValueError("must be a URL such as http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query:
            # Not quoted: it may hold a secret.
            raise ValueError(
                "must have no user name, password or query; name the environment variable that "
                "holds the key in key_variable"
            )
        return url.rstrip("/")

    @model_validator(mode="after")
    def _source_is_complete(self) -> LLMSettings:
        if (self.url is None) == (self.source == "server"):
            raise ValueError("url must be given with source: server, and only with it")
        if self.source != "vllm" and self.model == "auto":
            raise ValueError(f"model must be named with source: {self.source} (got 'auto')")
        if self.source != "vllm" and self.adapter == "chatglm3":
            raise ValueError("adapter must be 'chat' or 'base' unless source is vllm")
        return self


def chosen_dtype(settings: LLMSettings, native: Dtype) -> Dtype:
    """The dtype of the engines, where `native` is the fast one of their nodes."""
    if settings.dtype != "auto":
        return settings.dtype
    # These models overflow in float16, and vLLM refuses them.
    if native == "float16" and settings.model in (EMBEDDED_MODEL, GPU_DEFAULT):
        return "float32"
    return native


class SamplingSettings(Settings):
    """How answers are sampled. Leave `top_p` out on a CPU: it sorts the whole vocabulary at each
    token, which takes longer than the model itself."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 40
