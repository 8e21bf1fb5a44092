"""Can a label's average precision on images be forecast from text alone?

    python benchmarks/forecast.py [--photos FOLDER] [--cache FOLDER] [--runs FOLDER]

The sets, settings and kept tunings are those of `left_out.py` (way "residuals, depth 3", the
mean of five seeds). For each label, signals that need no image are compared with its true average
precision (fused scores) by Spearman's rank correlation, within each set. "combined" is a ridge
regression on the signals' ranks, fitted on the other sets and measured on the one left out.

The last line is one JSON object: correlations by signal and set, with 95 % bootstrap intervals over
labels.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ablations import on_all_captions, run_shared_stages, tune_all
from left_out import (
    all_scores,
    global_scores,
    image_sets,
    kept,
    label_lists,
    local_scores,
    mean_of,
    plan_way,
)
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata, spearmanr

from orchestrator.stages.evaluation import read_caption_sets
from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.metrics import average_precisions
from prompt_tuning.tuning.prompts import anchor_features

WAY = "residuals, depth 3"
ANCHOR_IN_LOCAL = 0.5
RESAMPLES = 2000
RIDGE = 1.0


def signals(plan: Any, seeds: list[ClassFeatures], vlm: VLM) -> dict[str, np.ndarray]:
    """What is known of each label without images, `(classes,)`; more should mean better."""
    train, held_out = (
        (of.features.pooled[of.rows].float(), of.labels[of.rows]) for of in read_caption_sets(plan)
    )
    anchor = F.normalize(anchor_features(vlm, plan.categories), dim=-1)
    tuned = F.normalize(mean_of(seeds).pooled, dim=-1)
    labels = train[1].float()
    pooled = F.normalize(train[0], dim=-1)
    averages = F.normalize(labels.T @ pooled + 1e-9, dim=-1)

    def precisions(classes: torch.Tensor) -> np.ndarray:
        items = F.normalize(held_out[0], dim=-1)
        found = average_precisions((items @ classes.T).numpy(), held_out[1].numpy())
        return np.nan_to_num(np.array(found, dtype=float))

    def nearest(classes: torch.Tensor) -> np.ndarray:
        cosines = (classes @ classes.T).fill_diagonal_(-1)
        return np.asarray(cosines.max(1).values)

    count = labels.sum(0)
    # The mean cosine of two captions of a label, from the length of their sum.
    together = ((labels.T @ pooled).norm(dim=-1) ** 2 - count) / (count * (count - 1)).clamp(min=1)
    own = torch.stack([(pooled[labels[:, c] > 0] @ tuned[c]).mean() for c in range(len(tuned))])
    all_seeds = torch.stack([F.normalize(of.pooled, dim=-1) for of in seeds])
    return {
        "captions": count.numpy(),
        "held-out AP, caption average": precisions(averages),
        "held-out AP, tuned": precisions(tuned),
        "distance from the nearest label": 1 - nearest(tuned),
        "distance from the nearest anchor": 1 - nearest(anchor),
        "diversity of its captions": np.asarray(1 - together),
        "agreement of seeds": np.asarray((all_seeds.mean(0) * tuned).sum(-1)),
        "closeness to its anchor": np.asarray((tuned * anchor).sum(-1)),
        "closeness to its captions": np.asarray(own),
        "anchor close to captions": np.asarray((averages * anchor).sum(-1)),
    }


def ranks(values: np.ndarray) -> np.ndarray:
    """From -1 to 1."""
    return np.asarray(2 * (rankdata(values) - 1) / max(1, len(values) - 1) - 1)


def fit(parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Ridge weights for `(labels, signals)` ranks; each part counts alike."""
    features = np.concatenate([x / np.sqrt(len(x)) for x, _ in parts])
    target = np.concatenate([y / np.sqrt(len(y)) for _, y in parts])
    gram = features.T @ features + RIDGE / len(parts) * np.eye(features.shape[1])
    return np.asarray(np.linalg.solve(gram, features.T @ target))


def correlation(values: np.ndarray, truth: np.ndarray) -> list[float]:
    """Spearman's correlation, with a 95 % bootstrap interval over labels."""
    draws = np.random.default_rng(0).integers(len(truth), size=(RESAMPLES, len(truth)))
    resampled = [spearmanr(values[rows], truth[rows]).statistic for rows in draws]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return [round(float(v), 2) for v in (spearmanr(values, truth).statistic, low, high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, default=os.environ.get("DATAFREE_PHOTOS", ""))
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--runs", default="runs")
    parser.set_defaults(seeds=5, token_seeds=1, questions_seed=0, tiles=[], ways=[WAY])
    args = parser.parse_args()
    known: dict[str, dict[str, np.ndarray]] = {}
    truth: dict[str, np.ndarray] = {}
    for name, of in label_lists(args.photos).items():
        plan = plan_way(of, WAY, args)
        run_shared_stages(plan, Console())
        seeds = tune_all({WAY: on_all_captions(plan)}, kept(args))[WAY]
        vlm = load_vlm(plan.config.vlm, cache=plan.cache)
        found = signals(plan, seeds, vlm)
        mean, anchor = mean_of(seeds), anchor_features(vlm, plan.categories)
        local = F.normalize(torch.lerp(mean.local, anchor, ANCHOR_IN_LOCAL), dim=-1)
        for set_name, (items, images) in image_sets(of, name, plan, vlm, args).items():
            scores = all_scores(
                global_scores(items, mean.pooled, plan, vlm),
                local_scores(items, local, plan, vlm),
                plan.config.scoring.resolve(vlm.geometry).global_weight,
            )[-1]
            precisions = np.array(
                average_precisions(scores, images.labels, images.ignored), dtype=float
            )
            shown = ~np.isnan(precisions)
            truth[set_name] = precisions[shown]
            known[set_name] = {signal: values[shown] for signal, values in found.items()}
    groups = {name: name.split(" ")[0] for name in truth}
    table: dict[str, dict[str, list[float]]] = {}
    for signal in next(iter(known.values())):
        table[signal] = {name: correlation(known[name][signal], truth[name]) for name in truth}
    ranked = {
        name: (np.stack([ranks(v) for v in known[name].values()], 1), ranks(truth[name]))
        for name in truth
    }
    table["combined"] = {}
    for name in truth:
        others = [part for other, part in ranked.items() if groups[other] != groups[name]]
        table["combined"][name] = correlation(ranked[name][0] @ fit(others), truth[name])
    shown_table = Table("signal", *truth)
    for signal, by_set in table.items():
        cells = ["{:+.2f} ({:+.2f} to {:+.2f})".format(*by_set[name]) for name in truth]
        shown_table.add_row(signal, *cells)
    Console(width=150).print(shown_table)
    print(json.dumps(table))


if __name__ == "__main__":
    main()
