"""Where sentences pay: evenly, or in rounds with more for the labels that look weak?

    python benchmarks/question_budget.py [--photos FOLDER] [--cache FOLDER] [--runs FOLDER]

No language model is asked: budgets are taken out of the sentences of `left_out.py` (the same sets
and settings, five seeds). A budget of k is k captions a label on average.

- `even`: the first k captions of each label.
- `rounds`: the first k/2 of each; then k more for the half of the labels that the forecast finds
  weak: those whose name is farthest from the mean of their captions (the best of forecast.py).
- `oracle`: the same with the labels that are weak on the very images that are then measured. It
  cannot be had, and shows how much rounds could gain at most.

The last line is one JSON object: mean fused mAP and number of captions by set, budget and way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ablations import Variation, run_shared_stages, tune_all
from forecast import ANCHOR_IN_LOCAL, WAY
from left_out import (
    all_scores,
    fused_map,
    global_scores,
    image_sets,
    kept,
    label_lists,
    local_scores,
    mean_of,
    plan_way,
)
from rich.console import Console

from orchestrator.plan.run import Plan
from orchestrator.stages.evaluation import read_caption_sets
from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.metrics import average_precisions
from prompt_tuning.tuning.caption_set import CaptionSet
from prompt_tuning.tuning.prompts import anchor_features

BUDGETS = (4, 8, 16)


def first_captions(captions: CaptionSet, counts: torch.Tensor) -> list[int]:
    """The rows of the first `counts` captions of each label, one after the other."""
    labels = captions.labels[captions.rows]
    chosen: set[int] = set()
    for c, count in enumerate(counts.tolist()):
        chosen.update(labels[:, c].nonzero().flatten()[:count].tolist())
    return captions.rows[sorted(chosen)].tolist()


def some_captions(plan: Plan, rows: list[int], seed: int) -> tuple[CaptionSet, CaptionSet]:
    train, held_out = read_caption_sets(plan)
    return CaptionSet(train.features, train.labels, torch.tensor(rows)), held_out


def closeness(plan: Plan, rows: list[int], anchor: torch.Tensor) -> np.ndarray:
    """How close each label's name is to the mean of its captions, `(classes,)`."""
    some, _ = some_captions(plan, rows, 0)
    means = some.labels[some.rows].float().T @ some.features.pooled[some.rows].float()
    return np.asarray((F.normalize(means, dim=-1) * anchor).sum(-1))


def scores_of(classes: ClassFeatures, items: Any, plan: Plan, vlm: VLM) -> np.ndarray:
    anchor = anchor_features(vlm, plan.categories)
    local = F.normalize(torch.lerp(classes.local, anchor, ANCHOR_IN_LOCAL), dim=-1)
    return all_scores(
        global_scores(items, classes.pooled, plan, vlm),
        local_scores(items, local, plan, vlm),
        plan.config.scoring.resolve(vlm.geometry).global_weight,
    )[-1]


def in_rounds(captions: CaptionSet, budget: int, quality: np.ndarray) -> list[int]:
    weak = torch.from_numpy(quality <= np.median(quality))
    return first_captions(captions, torch.where(weak, budget // 2 + budget, budget // 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, default=os.environ.get("DATAFREE_PHOTOS", ""))
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--runs", default="runs")
    parser.set_defaults(seeds=5, token_seeds=1, questions_seed=0, tiles=[], ways=[WAY])
    args = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    for name, of in label_lists(args.photos).items():
        plan = plan_way(of, WAY, args)
        run_shared_stages(plan, Console())
        vlm = load_vlm(plan.config.vlm, cache=plan.cache)
        anchor = F.normalize(anchor_features(vlm, plan.categories), dim=-1)
        train, _ = read_caption_sets(plan)
        sets = image_sets(of, name, plan, vlm, args)
        everyone = torch.ones(len(plan.categories), dtype=torch.long)
        for budget in BUDGETS:
            half = first_captions(train, everyone * (budget // 2))
            rows = {
                "half": half,
                "even": first_captions(train, everyone * budget),
                "rounds": in_rounds(train, budget, closeness(plan, half, anchor)),
            }
            variations = {
                way: Variation(plan, partial(some_captions, plan, chosen))
                for way, chosen in rows.items()
            }
            tuned = tune_all(variations, kept(args))
            for set_name, (items, images) in sets.items():
                half_scores = scores_of(mean_of(tuned["half"]), items, plan, vlm)
                truth = np.array(
                    average_precisions(half_scores, images.labels, images.ignored), dtype=float
                )
                oracle = in_rounds(train, budget, np.nan_to_num(truth, nan=1.0))
                known = {"oracle": Variation(plan, partial(some_captions, plan, oracle))}
                ways = {**tuned, **tune_all(known, kept(args))}
                counts = {**rows, "oracle": oracle}
                for way, seeds in ways.items():
                    maps = [
                        fused_map(scores_of(of_seed, items, plan, vlm), images) for of_seed in seeds
                    ]
                    entry = {"map": round(statistics.mean(maps), 2), "captions": len(counts[way])}
                    figures.setdefault(set_name, {})[f"{way} {budget}"] = entry
            for set_name in sets:
                print(set_name, budget, figures[set_name], flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
