"""Checkpoints of open_clip: a model's config by its name, its weights and its tokenizer."""

from __future__ import annotations

import hashlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor

from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.storage import file_digest


def model_config(name: str) -> dict[str, Any]:
    """open_clip's config of a model.

    Raises:
        ValueError: in one line with the field's name, for a model that is unknown.
    """
    import open_clip

    # open_clip reads configs from places that some other names stand for.
    known = {model.lower(): model for model in open_clip.list_models()}
    if name not in known.values():
        close = get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {known[close[0]]!r}?" if close else ""
        raise ValueError(f"vlm.model {name!r} is not a model of open_clip{hint}")
    return open_clip.get_model_config(name)


def check_checkpoint(settings: VLMSettings, config: dict[str, Any]) -> None:
    """Refuse weights that are missing or were trained with another activation, without loading.

    Raises:
        ValueError: in one line with the field's name, if `pretrained` is missing or is neither a
            tag of the model nor a file, or if `quick_gelu` is missing or does not fit `config`.
    """
    import open_clip

    name, pretrained = settings.model, settings.pretrained
    if not pretrained:
        raise ValueError(f"vlm.pretrained is missing: {_choices(name)}")
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag and not Path(pretrained).is_file():
        raise ValueError(
            f"vlm.pretrained {pretrained!r} is neither a file nor a tag: {_choices(name)}"
        )
    _check_quick_gelu(settings, tag, bool(config.get("quick_gelu", False)))


def fetch(settings: VLMSettings) -> None:
    """Download a tag's weights and a tokenizer of the hub, unless they are on this machine.

    Raises:
        ValueError: if a download fails.
    """
    import open_clip

    tag = open_clip.get_pretrained_cfg(settings.model, settings.pretrained)
    if tag:
        try:
            open_clip.download_pretrained(tag)
        except Exception as error:  # whatever the hub's client and the network raise
            raise ValueError(
                f"vlm.pretrained: {settings.pretrained!r} of {settings.model} cannot be "
                f"downloaded ({_reason(error)}); give the path of a local checkpoint"
            ) from None
    load_tokenizer(settings.model)


def load_tokenizer(name: str) -> Any:
    """open_clip's tokenizer of a model; SigLIP's come from Hugging Face's hub or its cache.

    Raises:
        ValueError: if it cannot be downloaded.
    """
    import open_clip

    try:
        return open_clip.get_tokenizer(name)
    except Exception as error:  # whatever the hub's client and the network raise
        source = open_clip.get_model_config(name)["text_cfg"]["hf_tokenizer_name"]
        raise ValueError(
            f"vlm.model: the tokenizer {source!r} of {name} cannot be downloaded "
            f"({_reason(error)}); it may also lie in the cache of Hugging Face's hub (HF_HOME)"
        ) from None


def load_model(settings: VLMSettings) -> tuple[Any, str]:
    """open_clip's model on the CPU and the digest of its weights.

    Raises:
        ValueError: if a local checkpoint is unsafe or belongs to another model.
    """
    import open_clip

    is_tag = bool(open_clip.get_pretrained_cfg(settings.model, settings.pretrained))
    try:
        model = open_clip.create_model(
            settings.model,
            pretrained=settings.pretrained,
            precision="fp32",
            require_pretrained=True,
            weights_only=True,
        )
    except Exception as error:  # loaders raise anything for a file that is not a checkpoint
        if is_tag:
            raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"vlm.pretrained {settings.pretrained!r} is not a safe checkpoint of {settings.model} "
            f"(a plain state dict in .safetensors or .pt): {reason}"
        ) from error
    if is_tag:
        return model, _state_digest(model.state_dict())
    return model, file_digest(Path(settings.pretrained or ""))


def _state_digest(state: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over the names and values of a state dict, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].cpu()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()


def _choices(name: str) -> str:
    import open_clip

    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
    return f"give the path of a checkpoint or a tag of {name}: {tags or 'there is none'}"


def _check_quick_gelu(settings: VLMSettings, tag: dict[str, Any], models: bool) -> None:
    """Compare the activation in training with the model's: the wrong one makes features worse, and
    open_clip warns at most."""
    import open_clip

    name = settings.model
    if tag:
        trained = bool(tag.get("quick_gelu", False))
        if settings.quick_gelu not in (None, trained):
            raise ValueError(
                f"vlm.quick_gelu {settings.quick_gelu} is wrong: the weights "
                f"{settings.pretrained!r} of {name} were trained {_with(trained)} QuickGELU"
            )
    elif settings.quick_gelu is None:
        raise ValueError(
            "vlm.quick_gelu is missing: a local checkpoint does not say whether it was trained "
            "with QuickGELU (OpenAI's were: true; SigLIP's: false)"
        )
    else:
        trained = settings.quick_gelu
    if trained != models:
        right = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
        hint = f"; use vlm.model: {right}" if right in open_clip.list_models() else ""
        raise ValueError(
            f"vlm.quick_gelu: the weights {settings.pretrained!r} were trained {_with(trained)} "
            f"QuickGELU, but vlm.model {name!r} computes {_with(models)} it{hint}"
        )


def _with(quick_gelu: bool) -> str:
    return "with" if quick_gelu else "without"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
