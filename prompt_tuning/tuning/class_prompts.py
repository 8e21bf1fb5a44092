"""The module that is tuned: the prompts of both branches, their class features and their loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompt_tuning.backbones.base import VLM
from prompt_tuning.categories import CategoryList
from prompt_tuning.features import Features
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.tuning.losses import LossSettings, order_loss
from prompt_tuning.tuning.prompt_encoder import PromptEncoder, rank_and_world_size
from prompt_tuning.tuning.prompts import (
    FreeVectors,
    PromptBranch,
    PromptSettings,
    Residuals,
    anchor_features,
)
from prompt_tuning.tuning.scoring import ScoringSettings, branch_scores


class ClassPrompts(nn.Module):
    """The prompts of both branches, with what the losses need.

    `anchor`: features of the hand-crafted prompts, `(classes, dim)`. `branches`: "global" and
    "local", the trainable parameters.
    """

    anchor: Tensor

    def __init__(
        self,
        vlm: VLM,
        categories: CategoryList,
        hierarchy: Hierarchy,
        prompts: PromptSettings,
        scoring: ScoringSettings,
        losses: LossSettings,
        seed: int,
    ) -> None:
        super().__init__()
        self.geometry = scoring.resolve(vlm.geometry)
        self.fusion = scoring.fusion
        self.losses = losses
        self.prompt_settings = prompts
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("anchor", anchor_features(vlm, categories), persistent=False)
        self.branches = nn.ModuleDict()
        self.residuals = nn.ModuleDict()
        self._encoded: list[Callable[[], Tensor]] = []
        memory = prompts.memory_gib * 2**30 / 2
        for name, settings in prompts.branches.items():
            if settings.learn == "vectors":
                vectors = FreeVectors(self.anchor, prompts.init_std, generator).to(vlm.device)
                self.branches[name] = vectors
                self._encoded.append(vectors)
            elif settings.learn == "residuals":
                self._encoded.append(lambda: self.anchor)
            else:
                branch = PromptBranch(
                    vlm, hierarchy, prompts.depth, settings, prompts.init_std, generator
                ).to(vlm.device)
                self.branches[name] = branch
                # The encoder is not a module, so that checkpoints leave out the frozen tower.
                self._encoded.append(PromptEncoder(vlm, branch, list(categories.names), memory))
            if "residuals" in settings.learn:
                levels = settings.levels(prompts.depth)
                self.residuals[name] = Residuals(hierarchy, levels, vlm.dim).to(vlm.device)

    def class_features(self) -> tuple[Tensor, Tensor]:
        """Unit features of all classes, global and local, each `(classes, dim)`."""
        pooled, local = (
            F.normalize(self._prompt_feature(name, encoded) + self.anchor, dim=-1)
            for name, encoded in zip(self.prompt_settings.branches, self._encoded, strict=True)
        )
        return pooled, local

    def _prompt_feature(self, branch: str, encoded: Callable[[], Tensor]) -> Tensor:
        """The encoded prompts or what takes their place, with residuals added: `(classes, dim)`."""
        if branch in self.residuals:
            return encoded() + self.residuals[branch]()
        return encoded()

    def forward(self, features: Features, labels: Tensor, batch: int) -> Tensor:
        """This process's share of the loss: a mean over the global batch of `batch` captions.

        DDP averages the shares of all processes, so each is scaled by their number.
        """
        _, world = rank_and_world_size()
        class_global, class_local = self.class_features()
        scores = branch_scores(features, class_global, class_local, self.geometry)
        loss = world / batch * self.losses.ranking(*scores, labels)
        reference = F.normalize(self.anchor, dim=-1)
        for branch, tuned in (("global", class_global), ("local", class_local)):
            if self.losses.order and branch in self.losses.order_on:
                order = order_loss(tuned, reference, self.losses.order_temperature)
                loss = loss + self.losses.order * order
        return loss
