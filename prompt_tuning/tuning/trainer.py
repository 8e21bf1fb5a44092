"""Tuning prompts on captions that stand in for images: one process of possibly several.

Every number that is drawn comes from the seed and the place in the global batch, never from the
rank, and every loss is a mean over the global batch: however many processes there are, they tune
the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from prompt_tuning.backbones.base import VLM
from prompt_tuning.captions import Caption, is_held_out, read_captions
from prompt_tuning.categories import CategoryList
from prompt_tuning.evaluation.metrics import mean_average_precision
from prompt_tuning.features import Features, load_features
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.knowledge.caption_coverage import check_split
from prompt_tuning.settings import Settings
from prompt_tuning.storage import digest
from prompt_tuning.tuning.losses import LossSettings, order_loss
from prompt_tuning.tuning.prompt_encoder import PromptEncoder, rank_and_world_size
from prompt_tuning.tuning.prompts import (
    FreeVectors,
    PromptBranch,
    PromptSettings,
    anchor_features,
    interpolate_with_anchor,
)
from prompt_tuning.tuning.scoring import ScoringSettings, branch_scores, fuse

Factor = Annotated[float, Field(ge=0, le=1)]


class NoiseSettings(Settings):
    """Gaussian noise on training features: by `std` per component (the released code) or by its
    expected length `relative` to the unit length of a feature."""

    std: Annotated[float, Field(ge=0, le=10)] | None = None
    relative: Annotated[float, Field(ge=0, le=10)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> NoiseSettings:
        if (self.std is None) == (self.relative is None):
            raise ValueError("needs exactly one of std and relative")
        return self

    def component_std(self, dim: int) -> float:
        """Standard deviation of each of `dim` components."""
        if self.std is not None:
            return self.std
        assert self.relative is not None
        return self.relative / math.sqrt(dim)


class TuningSettings(Settings):
    """The optimisation, with defaults for the embedded model; `momentum` goes with `sgd`.

    `captions_per_item`: how many captions make up one training item, as an image shows several
    things.
    """

    optimizer: Literal["sgd", "adam"] = "adam"
    lr: Annotated[float, Field(gt=0, le=10)] = 0.01
    momentum: Factor = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    epochs: Annotated[int, Field(ge=1, le=1000)] = 10
    batch: Annotated[int, Field(ge=1, le=100_000)] = 256
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = (7,)
    gamma: Factor = 0.1
    noise: NoiseSettings = NoiseSettings(relative=0.5)
    captions_per_item: Annotated[int, Field(ge=1, le=8)] = 2


@dataclass(frozen=True)
class CaptionSet:
    """Captions as tuning sees them: those `rows` of features, which may stay on disk
    (memory-mapped), and of labels `(all captions, classes)`, bool."""

    features: Features
    labels: Tensor
    rows: Tensor

    @classmethod
    def of_all(cls, features: Features, labels: Tensor) -> CaptionSet:
        """The set of all captions."""
        return cls(features, labels, torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Tensor) -> CaptionSet:
        """The captions at these places of the set, in memory, with their regions."""
        rows = self.rows[places]
        return CaptionSet.of_all(self.features.take(rows), self.labels[rows])

    def load(self) -> CaptionSet:
        """All captions of the set, in memory."""
        return self.take(torch.arange(len(self)))

    def split(self, held_out: Sequence[bool]) -> tuple[CaptionSet, CaptionSet]:
        """Training captions and those that are held out.

        Raises:
            ValueError: when one of the two would be empty.
        """
        chosen = torch.tensor(held_out, dtype=torch.bool)
        train, validation = (
            CaptionSet(self.features, self.labels, self.rows[of_set])
            for of_set in (~chosen, chosen)
        )
        check_split(len(train), len(validation))
        return train, validation


def caption_labels(captions: Sequence[Caption], classes: int) -> Tensor:
    """Labels of captions as `(captions, classes)`, bool."""
    labels = torch.zeros(len(captions), classes, dtype=torch.bool)
    for row, caption in enumerate(captions):
        labels[row, list(caption.labels)] = True
    return labels


def load_caption_sets(
    captions: Path, features: Path, categories: CategoryList, held_out: float
) -> tuple[CaptionSet, CaptionSet]:
    """Training and held-out captions with their features, from the files of earlier stages.

    Raises:
        ValueError: as `CaptionSet.split` does.
    """
    listed = read_captions(captions, categories)
    whole = CaptionSet.of_all(load_features(features), caption_labels(listed, len(categories)))
    return whole.split([is_held_out(caption, held_out) for caption in listed])


class ClassPrompts(nn.Module):
    """The prompts of both branches and what the losses need; `forward` gives a batch's loss."""

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
        anchor = anchor_features(vlm, categories)
        self.register_buffer("anchor", anchor, persistent=False)
        self.branches = nn.ModuleDict()
        self._encoded: list[Callable[[], Tensor]] = []
        memory = prompts.memory_gib * 2**30 / 2
        for name, settings in prompts.branches.items():
            if settings.learn == "vectors":
                vectors = FreeVectors(anchor, prompts.init_std, generator).to(vlm.device)
                self.branches[name] = vectors
                self._encoded.append(vectors)
            else:
                branch = PromptBranch(
                    vlm, hierarchy, prompts.depth, settings, prompts.init_std, generator
                ).to(vlm.device)
                self.branches[name] = branch
                # No module: the frozen tower is no part of the checkpoint.
                self._encoded.append(PromptEncoder(vlm, branch, list(categories.names), memory))

    def class_features(self) -> tuple[Tensor, Tensor]:
        """Unit features of all classes, global and local, each `(classes, dim)`."""
        pooled, local = (F.normalize(encoded() + self.anchor, dim=-1) for encoded in self._encoded)
        return pooled, local

    def forward(self, features: Features, labels: Tensor, batch: int) -> Tensor:
        """This process's share of the loss over a global batch of `batch` captions.

        DDP averages over processes, so the share is scaled for the average to be the whole.
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


class NotFiniteError(FloatingPointError):
    """A loss or gradient that is no number any more; `rows` of the captions that made it so."""

    def __init__(self, what: str, epoch: int, step: int, rows: list[int]) -> None:
        super().__init__(f"{what} at epoch {epoch + 1}, step {step + 1}")
        self.rows = rows


class TuningRun:
    """One seed's tuning: epochs over the captions, the state to resume from, the best prompts."""

    def __init__(
        self,
        prompts: ClassPrompts,
        model: nn.Module,
        train: CaptionSet,
        held_out: CaptionSet,
        settings: TuningSettings,
        seed: int,
    ) -> None:
        """`model` is `prompts`, or DDP around it."""
        self.prompts, self.model = prompts, model
        self.train, self.held_out = train, held_out
        self.settings, self.seed = settings, seed
        parameters = list(prompts.parameters())
        if settings.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                parameters,
                lr=settings.lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
            )
        else:
            self.optimizer = torch.optim.Adam(
                parameters, lr=settings.lr, weight_decay=settings.weight_decay
            )
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(
            self.optimizer, list(settings.milestones), settings.gamma
        )
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    def run_epoch(self) -> dict[str, float]:
        """One pass over the training captions, then the held-out figures.

        Returns:
            epoch, loss, held_out_loss, held_out_map (0-100, captions in place of images).

        Raises:
            NotFiniteError: for a loss or a gradient that is not finite.
        """
        epoch = self.epochs_done
        order = torch.randperm(len(self.train), generator=_generator(self.seed, epoch, -1))
        batches = order.split(self.settings.batch)
        losses = [self._step(places, epoch, step) for step, places in enumerate(batches)]
        self.scheduler.step()
        held_out_loss, held_out_map = self._validate()
        if not math.isfinite(held_out_loss):
            what = f"the loss on held-out captions is {held_out_loss}"
            raise NotFiniteError(what, epoch, len(batches) - 1, self.held_out.rows.tolist())
        entry = {
            "epoch": epoch + 1,
            "loss": sum(losses) / len(losses),
            "held_out_loss": held_out_loss,
            "held_out_map": held_out_map,
        }
        if all(held_out_loss < earlier["held_out_loss"] for earlier in self.history):
            self.best = {k: v.detach().cpu().clone() for k, v in self.prompts.state_dict().items()}
        self.history.append(entry)
        return entry

    def _step(self, places: Tensor, epoch: int, step: int) -> float:
        rank, world = rank_and_world_size()
        device = self.prompts.anchor.device
        share = places[rank::world]
        captions = self._mixed(share, epoch)
        noisy = self._add_noise(captions.features, share, epoch)
        loss = self.model(noisy.to(device), captions.labels.to(device), len(places))
        self.optimizer.zero_grad()
        loss.backward()
        total = loss.detach().clone()
        if world > 1:
            dist.all_reduce(total)
        mean = float(total) / world
        # Before the step, which would spoil the prompts. DDP has made gradients equal everywhere.
        gradients = [p.grad for p in self.prompts.parameters() if p.grad is not None]
        if not math.isfinite(mean) or not all(g.isfinite().all() for g in gradients):
            what = f"the loss is {mean}" if not math.isfinite(mean) else "a gradient is not finite"
            rows = self.train.rows[self._drawn(places, epoch).flatten()]
            raise NotFiniteError(what, epoch, step, rows.tolist())
        self.optimizer.step()
        return mean

    def _drawn(self, places: Tensor, epoch: int) -> Tensor:
        """The captions of each item, its own first: `(items, captions_per_item)`."""
        drawn = torch.empty(len(places), self.settings.captions_per_item, dtype=torch.long)
        for item, place in zip(drawn, places.tolist(), strict=True):
            generator = _generator(self.seed, epoch, place, self.settings.captions_per_item)
            item.random_(len(self.train), generator=generator)
            item[0] = place
        return drawn

    def _mixed(self, places: Tensor, epoch: int) -> CaptionSet:
        """Training items, with the labels of all captions that are in them."""
        if self.settings.captions_per_item == 1 or not len(places):
            return self.train.take(places)
        captions = self.train.take(self._drawn(places, epoch).flatten())
        labels = captions.labels.unflatten(0, (-1, self.settings.captions_per_item)).any(1)
        return CaptionSet.of_all(captions.features.merge(self.settings.captions_per_item), labels)

    def _add_noise(self, features: Features, places: Tensor, epoch: int) -> Features:
        """Noise that depends on the caption and the epoch alone, not on who draws it."""
        dim = features.pooled.shape[1]
        std = self.settings.noise.component_std(dim)
        noise = [
            std * torch.randn(1 + count, dim, generator=_generator(self.seed, epoch, place))
            for place, count in zip(places.tolist(), features.counts.tolist(), strict=True)
        ]
        if not noise:  # the last batch may leave a process no caption
            return features.float()
        return Features(
            features.pooled + torch.stack([of_caption[0] for of_caption in noise]),
            features.regions + torch.cat([of_caption[1:] for of_caption in noise]),
            features.counts,
        )

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """Ranking loss and fused mAP on the held-out captions."""
        class_global, class_local = self.prompts.class_features()
        device = class_global.device
        geometry, losses = self.prompts.geometry, self.prompts.losses
        total, fused, labels = 0.0, [], []
        for places in torch.arange(len(self.held_out)).split(self.settings.batch):
            part = self.held_out.take(places)
            features, positives = part.features.float().to(device), part.labels.to(device)
            scores = branch_scores(features, class_global, class_local, geometry)
            total += float(losses.ranking(*scores, positives))
            fused.append(fuse(*scores, geometry, self.prompts.fusion).cpu())
            labels.append(part.labels)
        held_out_map = mean_average_precision(torch.cat(fused).numpy(), torch.cat(labels).numpy())
        figures = torch.tensor(
            [total / len(self.held_out), 100 * held_out_map], dtype=torch.float64, device=device
        )
        if (
            rank_and_world_size()[1] > 1
        ):  # processors may differ in the last bits, and so in the best
            dist.broadcast(figures, src=0)
        loss, percent = figures.tolist()
        return loss, percent

    @torch.no_grad()
    def best_class_features(self) -> dict[str, Tensor]:
        """Class features of the epoch with the lowest held-out loss: "global" and "local".

        Each branch's hand-crafted prompts have their share in them; the held-out figures are of
        the prompts without it.
        """
        # Copies, because loading writes into the very tensors that `state_dict` gives.
        last = {k: v.clone() for k, v in self.prompts.state_dict().items()}
        self.prompts.load_state_dict(self.best)
        class_global, class_local = self.prompts.class_features()
        self.prompts.load_state_dict(last)
        tuned = {"global": class_global, "local": class_local}
        return {
            name: interpolate_with_anchor(tuned[name], self.prompts.anchor, weight).cpu()
            for name, weight in self.prompts.prompt_settings.anchor_weights.items()
        }

    def best_tokens(self) -> dict[str, Tensor]:
        """The tokens behind `best_class_features`; a branch of free vectors has none.

        Of a branch that has: "global.table", `(Σ groups · tokens, context_width)`, and
        "global.rows", `(classes, tokens)`, the rows of the table that each class's prompt is of.
        """
        tokens = {}
        for name, branch in self.prompts.branches.items():
            if isinstance(branch, PromptBranch):
                kept = [self.best[f"branches.{name}.tokens.{level}"] for level in branch.levels]
                tokens[f"{name}.table"] = torch.cat([of_level.flatten(0, 1) for of_level in kept])
                tokens[f"{name}.rows"] = branch.rows.cpu()
        return tokens

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        return {
            "prompts": self.prompts.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.prompts.load_state_dict(state["prompts"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history, self.best = state["history"], state["best"]


def _generator(*place: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(digest(place)[:15], 16))
