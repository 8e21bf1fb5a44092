"""CLIP with random weights, classes in groups, made-up captions: what several benchmarks share."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.backbones.clip import CLIP
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.features import Features
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.tuning.class_prompts import ClassPrompts
from prompt_tuning.tuning.losses import LossSettings
from prompt_tuning.tuning.prompts import BranchSettings, PromptSettings
from prompt_tuning.tuning.scoring import ScoringSettings
from prompt_tuning.tuning.trainer import NoiseSettings, TuningSettings

MODEL = "RN50-quickgelu"
BATCH = 512
# The released recipe (configs/paper.yaml).
PROMPTS = PromptSettings(
    global_branch=BranchSettings(
        shared=16, fine=8, coarse=4, category=4, order=("shared", "fine", "coarse", "category")
    ),
    local_branch=BranchSettings(hierarchical=False, shared=32),
)
LOSSES = LossSettings(margin=1.0, order_on=("global",))
TUNING = TuningSettings(
    optimizer="sgd",
    lr=0.002,
    weight_decay=0.0005,
    batch=BATCH,
    noise=NoiseSettings(std=0.1),
    captions_per_item=1,
)

_WORDS = (
    "dog cat man tree car red blue old small big house road boat bird fish ball park snow rain sun "
    "hand head food cup door wall king star moon hill lake sand rock fire gold iron wood stone"
).split()


def random_clip() -> CLIP:
    """open_clip's RN50 in float32 with random weights, loaded as any local checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        vlm = load_vlm(write_random_clip(Path(folder), MODEL, 224))
    assert isinstance(vlm, CLIP)
    return vlm


def write_random_clip(folder: Path, model: str, resolution: int) -> VLMSettings:
    """Write random weights of one of open_clip's models; the settings load them."""
    torch.manual_seed(0)
    path = folder / "random.safetensors"
    save_file(open_clip.create_model(model).state_dict(), path)
    return VLMSettings(
        kind="open_clip",
        model=model,
        pretrained=str(path),
        quick_gelu=model.endswith("-quickgelu"),
        resolution=resolution,
    )


def named_classes(count: int) -> CategoryList:
    """Distinct names of one to four words."""
    draw = random.Random(0)
    names: dict[str, None] = {}
    while len(names) < count:
        names[" ".join(draw.choices(_WORDS, k=draw.randint(1, 4)))] = None
    return CategoryList(categories=tuple(Category(name=name) for name in names))


def even_groups(classes: int, fine: int, coarse: int) -> Hierarchy:
    """Nested groups of about equal size."""
    fine_of = [c * fine // classes for c in range(classes)]
    return Hierarchy(
        fine_names=tuple(f"fine {f}" for f in range(fine)),
        coarse_names=tuple(f"coarse {c}" for c in range(coarse)),
        fine_of=tuple(fine_of),
        coarse_of=tuple(f * coarse // fine for f in fine_of),
    )


def captions_of(count: int, shortest: int = 12, longest: int = 30) -> list[str]:
    """Captions of `shortest` to `longest` tokens, SOS and EOS included: each word is one token."""
    draw = random.Random(1)
    lengths = [draw.randint(shortest, longest) - 2 for _ in range(count)]
    return [" ".join(draw.choices(_WORDS, k=length)) for length in lengths]


def labels_of(captions: int, classes: int) -> torch.Tensor:
    """One to three labels a caption: `(captions, classes)`, bool."""
    draw = random.Random(2)
    labels = torch.zeros(captions, classes, dtype=torch.bool)
    for row in range(captions):
        labels[row, draw.sample(range(classes), draw.randint(1, 3))] = True
    return labels


def random_features(counts: torch.Tensor, dim: int) -> Features:
    """Unit features of captions with so many tokens."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(len(counts) + int(counts.sum()), dim, generator=generator)
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    return Features(vectors[: len(counts)], vectors[len(counts) :], counts)


def class_prompts(vlm: CLIP, categories: CategoryList, groups: Hierarchy) -> ClassPrompts:
    """The released recipe's prompts at depth 4."""
    return ClassPrompts(vlm, categories, groups, PROMPTS, ScoringSettings(), LOSSES, seed=0)
