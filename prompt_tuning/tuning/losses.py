"""The losses of the method: ranking of labels and order of class features."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from prompt_tuning.settings import Settings

Weight = Annotated[float, Field(ge=0, le=1000)]
Margin = Annotated[float, Field(gt=0, le=1000)]
Branch = Literal["global", "local"]


class LossSettings(Settings):
    """Weights of the losses (arXiv 2403.01209, §3.4).

    `margin`: of the ranking loss, in the units of the scores; `local_margin`: that of the local
    branch, where it is another. `order_on`: the branches whose class features keep the order of the
    hand-crafted ones. `order_temperature`: factor on cosines.
    """

    global_rank: Weight = 1.0
    local_rank: Weight = 1.0
    margin: Margin = 0.5
    local_margin: Margin | None = None
    order: Weight = 0.2
    order_on: tuple[Branch, ...] = ("global", "local")
    order_temperature: Annotated[float, Field(gt=0, le=1000)] = 100.0

    def ranking(self, global_scores: Tensor, local_scores: Tensor, positives: Tensor) -> Tensor:
        """The weighted ranking losses of both branches, summed over the batch.

        Scores and positives: `(batch, classes)`.
        """
        margins = (self.margin, self.local_margin or self.margin)
        pooled, local = (
            ranking_loss(scores, positives, margin)
            for scores, margin in zip((global_scores, local_scores), margins, strict=True)
        )
        return self.global_rank * pooled + self.local_rank * local


def ranking_loss(scores: Tensor, positives: Tensor, margin: float) -> Tensor:
    """`Σ_{p∈pos, n∈neg} max(0, margin − s_p + s_n)`, summed over the batch (TaI-DPT, eq. 6).

    Works on `(positives, classes)`, one row a positive label, never on classes × classes.

    Args:
        scores: `(batch, classes)`.
        positives: `(batch, classes)`, bool.
    """
    item, label = positives.nonzero(as_tuple=True)
    gaps = margin - scores[item, label][:, None] + scores[item]  # (Σ positives, classes)
    return (F.relu(gaps) * ~positives[item]).sum()


def order_loss(tuned: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    """`KL(q ‖ p)` over all pairs of classes i<j: keeps which classes are near to which.

    `p = softmax(temperature · t_i·t_j)` of the tuned class features, `q` the same of the
    hand-crafted ones; both `(classes, dim)`, of unit length (arXiv 2403.01209, §3.4).
    """
    log_p = _log_shares(temperature * (tuned @ tuned.T))
    log_q = _log_shares(temperature * (anchor @ anchor.T))
    return F.kl_div(log_p, log_q, reduction="sum", log_target=True)


def _log_shares(similarities: Tensor) -> Tensor:
    """Log of the softmax over all pairs i≠j of `(classes, classes)`.

    Each pair is there twice with half its share, which leaves the divergence as it is and needs no
    list of the pairs.
    """
    classes = len(similarities)
    # Past the first entry, each row of classes + 1 ends with an entry of the diagonal.
    pairs = similarities.flatten()[1:].view(classes - 1, classes + 1)[:, :-1]
    return F.log_softmax(pairs.flatten(), dim=0)
