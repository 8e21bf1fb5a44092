"""Which captions moved a label's class feature, by the gradients of the ranking loss.

To first order, tuning moves the global class feature of c along `Σ_i pull_ic · x_i`, where x_i is
caption i's feature and `pull_ic = −∂L/∂s_ic` is how hard its loss pulls (or, below 0, pushes) the
score of c. A caption's influence is its part of this sum along the way that the feature has gone:
`pull_ic · x_i·d_c`. Pulls are averaged over steps between the first and the tuned class features,
as integrated gradients are (Sundararajan et al., 2017, arXiv 1703.01365).

Where items are merged from several captions, each caption is merged with random others, as in
tuning, and is accountable for its share of the item.

It says what the loss asked for. It leaves out what groups share, the order loss, and the optimiser.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_tuning.tuning.caption_set import CaptionSet
from prompt_tuning.tuning.losses import ranking_loss

_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SCORES_AT_ONCE = 2_000_000
_ITEMS_OF_A_CAPTION = 8


class Influences(NamedTuple):
    """The captions of most influence on each class, strongest first, all `(classes, count)`.

    `rows`: of all captions. `shares`: of the influence of all captions that moved the class this
    way. `pulls`: how hard each caption pulls the class's score.
    """

    rows: Tensor
    shares: Tensor
    pulls: Tensor


def caption_influences(
    first: Tensor,
    tuned: Tensor,
    captions: CaptionSet,
    margin: float,
    scale: float,
    captions_per_item: int = 1,
    seed: int = 0,
    count: int = 20,
) -> Influences:
    """The captions that moved the global class features most.

    Args:
        first, tuned: unit class features before and after tuning, `(classes, dim)`.
        captions: those that were tuned on.
        margin, scale: of the ranking loss, and of scores (`scale · cos`).
        captions_per_item: how many captions were merged into one item.
        seed: of the draws of the other captions of an item.
        count: how many to return for each class; fewer, if there are fewer captions.
    """
    direction = F.normalize(tuned - first, dim=-1)
    steps = [F.normalize(torch.lerp(first, tuned, step), dim=-1) for step in _STEPS]
    generator = torch.Generator().manual_seed(seed)
    classes = len(tuned)
    strongest = [torch.empty(0, classes, dtype=torch.double) for _ in range(3)]
    total = torch.zeros(classes, dtype=torch.double)
    for positions in torch.arange(len(captions)).split(max(1, _SCORES_AT_ONCE // classes)):
        rows = captions.rows[positions]
        own = captions.features.pooled[rows].float()
        pulls = torch.zeros(len(rows), classes)
        rounds = 1 if captions_per_item == 1 else _ITEMS_OF_A_CAPTION
        for _ in range(rounds):
            shape = (len(rows), captions_per_item - 1)
            others = captions.rows[torch.randint(len(captions), shape, generator=generator)]
            merged = torch.cat([rows[:, None], others], dim=1)  # (items, captions_per_item)
            mean = captions.features.pooled[merged].float().mean(1)
            length = mean.norm(dim=-1, keepdim=True)
            items, labels = mean / length, captions.labels[merged].any(1)
            of_items = sum(_pulls(scale * items @ at.T, labels, margin) for at in steps)
            pulls += of_items / (len(steps) * rounds * captions_per_item * length)
        influence = (pulls * (own @ direction.T)).double()  # (captions, classes)
        total += influence.clamp(min=0).sum(0)
        ahead = [influence, pulls.double(), rows[:, None].expand(-1, classes).double()]
        joined = [torch.cat(pair) for pair in zip(strongest, ahead, strict=True)]
        best = joined[0].topk(min(count, len(joined[0])), dim=0).indices
        strongest = [values.gather(0, best) for values in joined]
    influence, pulls, chosen = (values.T for values in strongest)
    return Influences(chosen.long(), influence / total.clamp(min=1e-12)[:, None], pulls)


def _pulls(scores: Tensor, positives: Tensor, margin: float) -> Tensor:
    """`−∂L/∂scores` of the ranking loss, `(batch, classes)`."""
    with torch.enable_grad():
        scores = scores.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(ranking_loss(scores, positives, margin), scores)
    return -gradient
