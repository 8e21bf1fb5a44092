"""Hierarchical prompts: learnable context tokens shared by all, by groups, and by none.

Prompt of class c: `SOS | shared | coarse group of c | fine group of c | category c | name . EOS`
(arXiv 2403.01209, §3.3; the order is a setting). Class feature:
`f_c = norm(Enc(prompt_c) + stopgrad Enc("a photo of a {c}."))`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from prompt_tuning.backbones.base import ANCHOR_TEMPLATE, VLM
from prompt_tuning.categories import CategoryList
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.settings import Settings

Level = Literal["shared", "fine", "coarse", "category"]

_LEVELS_BY_DEPTH: dict[int, tuple[Level, ...]] = {
    1: ("shared",),
    2: ("shared", "category"),
    3: ("shared", "fine", "category"),
    4: ("shared", "fine", "coarse", "category"),
}

TokenCount = Annotated[int, Field(ge=0, le=64)]


class BranchSettings(Settings):
    """The tokens of one branch: how many of each level, in which order.

    Without `hierarchical`, the branch has shared tokens only, whatever the depth. `learn`: what is
    tuned. `tokens`: the context tokens of the prompts. `vectors`: no prompt at all, a free vector
    a class takes the encoded prompt's place. `residuals`: the anchor takes the encoded prompt's
    place, and each level adds a vector of its own to the class feature (TaskRes, Yu et al., 2023,
    arXiv 2211.10277, has one a class). `tokens+residuals`: both tokens and these vectors.
    `anchor_weight`: the weight of the anchor, the hand-crafted prompt's feature, when the tuned
    class features are interpolated with it after tuning. It keeps features that were tuned on text
    alone close to what holds for images too (WiSE-FT interpolates weights in the same way: Wortsman
    et al., 2022, arXiv 2109.01903, §3).
    """

    learn: Literal["tokens", "vectors", "residuals", "tokens+residuals"] = "tokens"
    hierarchical: bool = True
    shared: Annotated[int, Field(ge=1, le=64)] = 4
    coarse: TokenCount = 2
    fine: TokenCount = 2
    category: TokenCount = 4
    anchor_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    order: tuple[Level, ...] = ("shared", "coarse", "fine", "category")

    @field_validator("order")
    @classmethod
    def _each_level_once(cls, order: tuple[Level, ...]) -> tuple[Level, ...]:
        if sorted(order) != sorted(get_args(Level)):
            raise ValueError(f"must list each of {', '.join(get_args(Level))} once")
        return order

    def levels(self, depth: int) -> list[Level]:
        """The levels that have tokens at a depth of the hierarchy, in their order."""
        wanted = _LEVELS_BY_DEPTH[depth if self.hierarchical else 1]
        return [level for level in self.order if level in wanted and getattr(self, level) > 0]

    def context_tokens(self, depth: int) -> int:
        """How many context tokens each prompt has."""
        if "tokens" not in self.learn:
            return 0
        return sum(getattr(self, level) for level in self.levels(depth))


class PromptSettings(Settings):
    """The tokens of the global and the local branch.

    `depth`: 1 shared tokens only, 2 with category tokens, 3 with fine groups too, 4 with coarse
    groups too.
    `init_std`: of the normal noise that tokens start with, around where the backbone says that
    they may start. `memory_gib`: what encoding both branches may keep for the backward pass in each
    process; above it, prompts are encoded part by part and computed anew there, for half as much
    again in time.
    """

    depth: Annotated[int, Field(ge=1, le=4)] = 4
    global_branch: BranchSettings = BranchSettings()
    local_branch: BranchSettings = BranchSettings()
    init_std: Annotated[float, Field(ge=0, le=10)] = 0.02
    memory_gib: Annotated[float, Field(gt=0, le=1024)] = 2.0

    @property
    def branches(self) -> dict[str, BranchSettings]:
        """The settings of each branch by its name, "global" and "local"."""
        return {"global": self.global_branch, "local": self.local_branch}

    @property
    def anchor_weights(self) -> dict[str, float]:
        """The anchor's weight in the class features of each branch."""
        return {name: branch.anchor_weight for name, branch in self.branches.items()}

    @property
    def context_tokens(self) -> int:
        """The number of context tokens in the longer branch's prompts."""
        return max(branch.context_tokens(self.depth) for branch in self.branches.values())


class PromptBranch(nn.Module):
    """One branch's context tokens: a `(groups, tokens, context_width)` parameter a level.

    `rows`: `(classes, tokens)`, the tokens of each class's prompt as rows of `table()`.
    """

    rows: Tensor

    def __init__(
        self,
        vlm: VLM,
        hierarchy: Hierarchy,
        depth: int,
        settings: BranchSettings,
        init_std: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        group_of = _group_of(hierarchy)
        self.levels = settings.levels(depth)
        counts = [getattr(settings, level) for level in self.levels]
        starts = vlm.initial_context(sum(counts)).split(counts)
        self.tokens = nn.ParameterDict()
        rows, first = [], 0
        for level, start in zip(self.levels, starts, strict=True):
            groups = max(group_of[level]) + 1
            noise = torch.randn(groups, *start.shape, generator=generator)
            self.tokens[level] = nn.Parameter(start.cpu() + init_std * noise)
            group = torch.tensor(group_of[level])[:, None]
            rows.append(first + group * len(start) + torch.arange(len(start)))
            first += groups * len(start)
        self.register_buffer("rows", torch.cat(rows, dim=1), persistent=False)

    def context(self) -> Tensor:
        """Context tokens of each class's prompt: `(classes, tokens, context_width)`."""
        return self.table()[self.rows]

    def table(self) -> Tensor:
        """All tokens of all groups, level after level: `(Σ groups · tokens, context_width)`."""
        return torch.cat([self.tokens[level].flatten(0, 1) for level in self.levels])


def _group_of(hierarchy: Hierarchy) -> dict[Level, list[int]]:
    """The group of each class at each level."""
    classes = len(hierarchy.fine_of)
    return {
        "shared": [0] * classes,
        "coarse": list(hierarchy.coarse_of),
        "fine": list(hierarchy.fine_of),
        "category": list(range(classes)),
    }


class Residuals(nn.Module):
    """One branch's residual vectors: a `(groups, dim)` parameter a level, which starts at zero.

    From depth 2 on none is shared by all classes: on scenes and on VOC's photos that was worse
    (docs/left-out.md).
    """

    def __init__(self, hierarchy: Hierarchy, levels: list[Level], dim: int) -> None:
        super().__init__()
        group_of = _group_of(hierarchy)
        own = [level for level in levels if level != "shared"] or levels
        self._group_of = {level: torch.tensor(group_of[level]) for level in own}
        self.vectors = nn.ParameterDict(
            {
                level: nn.Parameter(torch.zeros(int(groups.max()) + 1, dim))
                for level, groups in self._group_of.items()
            }
        )

    def forward(self) -> Tensor:
        """The sum of each class's vectors: `(classes, dim)`."""
        return self.sums(dict(self.vectors.items()))

    def sums(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """The same of given vectors, by level."""
        of_levels = [vectors[level][groups] for level, groups in self._group_of.items()]
        return torch.stack(of_levels).sum(0)


class FreeVectors(nn.Module):
    """The control without prompts: a vector a class, its hand-crafted feature to start with."""

    def __init__(self, start: Tensor, init_std: float, generator: torch.Generator) -> None:
        """`start`: `(classes, dim)`."""
        super().__init__()
        noise = torch.randn(start.shape, generator=generator)
        self.vectors = nn.Parameter(start.cpu() + init_std * noise)

    def forward(self) -> Tensor:
        """`(classes, dim)`, what encoded prompts are elsewhere."""
        return self.vectors


def interpolate_with_anchor(tuned: Tensor, anchor: Tensor, weight: float) -> Tensor:
    """Unit class features `(classes, dim)` on the line from `tuned` to `anchor`, by `weight`."""
    return F.normalize(tuned.lerp(F.normalize(anchor, dim=-1), weight), dim=-1)


def anchor_features(vlm: VLM, categories: CategoryList) -> Tensor:
    """The features of "a photo of a {name}.", as they are added up: `(classes, dim)`."""
    return vlm.encode_text([ANCHOR_TEMPLATE.format(name) for name in categories.names])
