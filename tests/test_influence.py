"""Captions of most influence: checked against leaving them out and tuning again."""

from __future__ import annotations

import itertools
import random
import statistics

import torch
import torch.nn.functional as F
from tiny_artifact import NAMES

from prompt_tuning import tune
from prompt_tuning.backbones.base import VLM
from prompt_tuning.captions import Caption
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.evaluation.influence import caption_influences
from prompt_tuning.features import Features
from prompt_tuning.tuning.caption_set import CaptionSet, caption_labels
from prompt_tuning.tuning.losses import LossSettings, ranking_loss
from prompt_tuning.tuning.prompts import BranchSettings, PromptSettings, anchor_features
from prompt_tuning.tuning.trainer import TuningSettings


def test_influence_is_the_part_of_the_gradient_along_the_way_of_the_class_feature() -> None:
    draws = torch.Generator().manual_seed(0)
    items, first, tuned = (
        F.normalize(torch.randn(rows, 8, generator=draws), dim=-1) for rows in (5000, 6, 6)
    )
    labels = torch.rand(5000, 6, generator=draws) < 0.3
    features = Features(items, items, torch.ones(5000, dtype=torch.long))
    captions = CaptionSet(features, labels, torch.arange(3, 5000))
    found = caption_influences(first, tuned, captions, 0.5, 4.0, count=5)
    direction = F.normalize(tuned - first, dim=-1)
    naive = torch.zeros(5000, 6, dtype=torch.double)
    for step in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = F.normalize(torch.lerp(first, tuned, step), dim=-1).requires_grad_()
        for row in [*range(3, 40), *found.rows[2].tolist()]:
            loss = ranking_loss(4.0 * items[row : row + 1] @ at.T, labels[row : row + 1], 0.5)
            (moves,) = torch.autograd.grad(loss, at)
            naive[row] -= (moves * direction).sum(-1) / 5 / 4.0
    for c in range(6):
        assert set(found.rows[c].tolist()) <= set(range(3, 5000))
        assert (found.shares[c][:-1] >= found.shares[c][1:]).all()
        assert naive[3:40, c].max() <= naive[found.rows[2], c].max() or c != 2
    # The same numbers but for a factor, which makes shares.
    factors = naive[found.rows[2], 2] / found.shares[2]
    torch.testing.assert_close(factors.double(), factors[:1].expand(5), rtol=1e-4, atol=1e-4)


def test_without_the_captions_that_speak_for_an_image_its_score_falls(embedded_vlm: VLM) -> None:
    """More than without as many others of the same label: each probe tunes twice more."""
    places = {
        "A {} on a saucer in the kitchen.": ["on a plate", "in a bowl", "beside a cup"],
        "A {} on the pavement of a street.": ["by the road", "near a bus stop", "at a crossing"],
    }
    sentences = [
        (f"A {look} {name} {place}.", [name])
        for name in NAMES
        for look in ("small", "old", "bright", "strange", "wet")
        for place in itertools.chain(*places.values())
    ]
    random.Random(0).shuffle(sentences)
    categories = CategoryList(categories=tuple(Category(name=name) for name in NAMES))
    # A wide margin, so that the loss of such easy captions is not soon 0.
    losses = LossSettings(margin=4.0, order=0.0)
    prompts = PromptSettings(depth=2, global_branch=BranchSettings(learn="residuals"))
    tuning = TuningSettings(epochs=6, batch=32, captions_per_item=1)

    def tuned(left_out: set[int]) -> torch.Tensor:
        kept = [sentence for i, sentence in enumerate(sentences) if i not in left_out]
        artifact = tune(embedded_vlm, NAMES, kept, prompts=prompts, tuning=tuning, losses=losses)
        return artifact.classes.pooled

    captions = [Caption(text, (NAMES.index(name),), "") for text, [name] in sentences]
    items = CaptionSet.of_all(
        embedded_vlm.encode_captions([caption.text for caption in captions]),
        caption_labels(captions, len(NAMES)),
    )
    anchor = F.normalize(anchor_features(embedded_vlm, categories), dim=-1)
    found = caption_influences(
        anchor, tuned(set()), items, 4.0, embedded_vlm.geometry.scale, count=len(sentences)
    )
    falls = []
    for c, name in enumerate(NAMES[:3]):
        for probe in places:
            image = embedded_vlm.encode_captions([probe.format(name)]).pooled[0]
            speaks = found.pulls[c] * (items.features.pooled[found.rows[c]] @ image)
            ordered = [found.rows[c][i].item() for i in speaks.argsort(descending=True)]
            own = [int(row) for row in ordered if captions[int(row)].labels == (c,)]
            half = len(own) // 2
            strongest, weakest = (
                float(tuned(set(out))[c] @ image) for out in (own[:half], own[-half:])
            )
            falls.append(weakest - strongest)
    assert statistics.mean(falls) > 0.03, falls
    assert sum(fall > 0 for fall in falls) >= 5, falls
