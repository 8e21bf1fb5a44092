"""The tuning loop: prompts are tuned on captions in place of images, by one process or several.

Every random number depends on the seed and on the caption's position in the training set, never on
the rank, and every loss is a mean over the global batch. So any number of processes tunes the same
prompts.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn

from prompt_tuning.evaluation.metrics import mean_average_precision
from prompt_tuning.evaluation.score_matrix import empty_scores
from prompt_tuning.features import Features
from prompt_tuning.settings import Settings
from prompt_tuning.storage import digest
from prompt_tuning.tuning.caption_set import CaptionSet
from prompt_tuning.tuning.class_prompts import ClassPrompts
from prompt_tuning.tuning.prompt_encoder import rank_and_world_size
from prompt_tuning.tuning.prompts import PromptBranch, Residuals, interpolate_with_anchor
from prompt_tuning.tuning.scoring import branch_scores, fuse

Factor = Annotated[float, Field(ge=0, le=1)]


class NoiseSettings(Settings):
    """Gaussian noise on training features, whose length is 1.

    `std`: standard deviation of each component (as in the released code). `relative`: expected
    length of the noise vector.
    """

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
    """The optimiser and its schedule.

    `momentum`: for `sgd` only. `captions_per_item`: the number of captions that are merged into one
    training item, as an image shows several things.
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


class NotFiniteError(FloatingPointError):
    """A loss or gradient that is NaN or infinite; `rows`: the captions of the batch."""

    def __init__(self, what: str, epoch: int, step: int, rows: list[int]) -> None:
        super().__init__(f"{what} at epoch {epoch + 1}, step {step + 1}")
        self.rows = rows


class TuningRun:
    """The tuning of one seed: its epochs, the state to resume from, and the best prompts."""

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
        """Tune on all training captions once, then measure on the held-out captions.

        Returns:
            `epoch`, `loss`, `held_out_loss` and `held_out_map` (0-100, of captions).

        Raises:
            NotFiniteError: if a loss or a gradient is not finite.
        """
        epoch = self.epochs_done
        order = torch.randperm(len(self.train), generator=_generator(self.seed, epoch, -1))
        batches = order.split(self.settings.batch)
        losses = [self._step(positions, epoch, step) for step, positions in enumerate(batches)]
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

    def _step(self, positions: Tensor, epoch: int, step: int) -> float:
        rank, world = rank_and_world_size()
        device = self.prompts.anchor.device
        share = positions[rank::world]
        features, labels = self._training_items(share, epoch)
        noisy = self._add_noise(features, share, epoch)
        loss = self.model(noisy.to(device), labels.to(device), len(positions))
        self.optimizer.zero_grad()
        loss.backward()
        total = loss.detach().clone()
        if world > 1:
            dist.all_reduce(total)
        mean = float(total) / world
        # Before the step, which would spoil the prompts. DDP made gradients equal on all ranks.
        gradients = [p.grad for p in self.prompts.parameters() if p.grad is not None]
        if not math.isfinite(mean) or not all(g.isfinite().all() for g in gradients):
            what = f"the loss is {mean}" if not math.isfinite(mean) else "a gradient is not finite"
            rows = self.train.rows[self._draw_captions(positions, epoch).flatten()]
            raise NotFiniteError(what, epoch, step, rows.tolist())
        self.optimizer.step()
        return mean

    def _draw_captions(self, positions: Tensor, epoch: int) -> Tensor:
        """The captions of each item, its own first: `(items, captions_per_item)`."""
        drawn = torch.empty(len(positions), self.settings.captions_per_item, dtype=torch.long)
        for item, position in zip(drawn, positions.tolist(), strict=True):
            generator = _generator(self.seed, epoch, position, self.settings.captions_per_item)
            item.random_(len(self.train), generator=generator)
            item[0] = position
        return drawn

    def _training_items(self, positions: Tensor, epoch: int) -> tuple[Features, Tensor]:
        """The items at these positions, each merged from its captions, and the labels of all."""
        if self.settings.captions_per_item == 1 or not len(positions):
            return self.train.take(positions)
        captions, labels = self.train.take(self._draw_captions(positions, epoch).flatten())
        group = self.settings.captions_per_item
        return captions.merge(group), labels.unflatten(0, (-1, group)).any(1)

    def _add_noise(self, features: Features, positions: Tensor, epoch: int) -> Features:
        """Add noise that depends on the caption and the epoch only, not on the rank."""
        dim = features.pooled.shape[1]
        std = self.settings.noise.component_std(dim)
        noise = [
            std * torch.randn(1 + count, dim, generator=_generator(self.seed, epoch, position))
            for position, count in zip(positions.tolist(), features.counts.tolist(), strict=True)
        ]
        if not noise:  # this process has no caption of a small last batch
            return features.float()
        return Features(
            features.pooled + torch.stack([one[0] for one in noise]),
            features.regions + torch.cat([one[1:] for one in noise]),
            features.counts,
        )

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """Ranking loss and fused mAP on the held-out captions."""
        class_global, class_local = self.prompts.class_features()
        device = class_global.device
        geometry, losses = self.prompts.geometry, self.prompts.losses
        total = 0.0
        fused = empty_scores(len(self.held_out), len(class_global))
        for positions in torch.arange(len(self.held_out)).split(self.settings.batch):
            part, positives = self.held_out.take(positions)
            features = part.float().to(device)
            scores = branch_scores(features, class_global, class_local, geometry)
            total += float(losses.ranking(*scores, positives.to(device)))
            fused[positions.numpy()] = fuse(*scores, geometry, self.prompts.fusion).cpu().numpy()
        labels = self.held_out.labels[self.held_out.rows]
        held_out_map = mean_average_precision(fused, labels.numpy())
        figures = torch.tensor(
            [total / len(self.held_out), 100 * held_out_map], dtype=torch.float64, device=device
        )
        # Processors may differ in the last bits, and then in which epoch is best.
        if rank_and_world_size()[1] > 1:
            dist.broadcast(figures, src=0)
        loss, percent = figures.tolist()
        return loss, percent

    @torch.no_grad()
    def best_class_features(self) -> dict[str, Tensor]:
        """Class features of the epoch with the lowest held-out loss: "global" and "local".

        They are interpolated with the anchor; the held-out figures are measured without it.
        """
        # Copies, because loading writes into the tensors that `state_dict` returned.
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
        """What new labels can share of `best_class_features`; a branch of free vectors has nothing.

        For each branch with tokens: "global.table", `(Σ groups · tokens, context_width)`, and
        "global.rows", `(classes, tokens)`, the rows of the table that make up each class's prompt.
        For each branch with residuals: "global.residuals", `(classes, dim)`, their sums.
        """
        tokens = {}
        for name, branch in self.prompts.branches.items():
            if isinstance(branch, PromptBranch):
                kept = [self.best[f"branches.{name}.tokens.{level}"] for level in branch.levels]
                tokens[f"{name}.table"] = torch.cat([level.flatten(0, 1) for level in kept])
                tokens[f"{name}.rows"] = branch.rows.cpu()
        for name, residuals in self.prompts.residuals.items():
            assert isinstance(residuals, Residuals)
            best = {
                level: self.best[f"residuals.{name}.vectors.{level}"] for level in residuals.vectors
            }
            tokens[f"{name}.residuals"] = residuals.sums(best)
        return tokens

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on."""
        return {
            "prompts": self.prompts.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.prompts.load_state_dict(state["prompts"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history, self.best = state["history"], state["best"]


def _generator(*key: int) -> torch.Generator:
    """A generator whose seed is a hash of the key."""
    return torch.Generator().manual_seed(int(digest(key)[:15], 16))
