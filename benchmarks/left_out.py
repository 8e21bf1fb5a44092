"""Settings chosen on all sets of images but one, measured on the one that was left out.

    python benchmarks/left_out.py [--seeds 5] [--token-seeds 2] [--photos FOLDER] [--tiles 2]

The sets: composed scenes (44 labels, seeds 11 and 12; they only choose), and the photos below
`--photos` (otherwise DATAFREE_PHOTOS): VOC 2012 (20 labels), COCO 2017 (80) and ADE20K (70), each
pooled over its folders. Settings are the quickstart's, with groups clustered from text; sentences
come from the stage cache or are asked for now, which takes minutes a list.

1. Each way of tuning in `WAYS` is tuned on each label list, once a seed.
2. A candidate is a way of tuning, the weights of the anchor in both branches' class features, and
   whether the artifact is one seed's class features or the mean of all seeds'.
3. The gain of a candidate on a set is its fused mAP less that of the best untuned baseline there.
4. For each set of photos, the candidate with the highest mean gain on *the other* sets (scenes
   count as one) is measured on it.

With `--tiles`, all methods see the images' tiles too (`vlm.tiles`).

Finished tunings are kept in `<runs>/left_out/`, so the benchmark may be stopped and started again.
The last line is one JSON object with the gains of all candidates on all sets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ablations import (
    CONFIG,
    FREE_VECTORS,
    TOKENS,
    on_all_captions,
    photo_features,
    run_shared_stages,
    scenes_of,
    tune_all,
)
from rich.console import Console
from rich.table import Table

from orchestrator.cluster.resources import find_resources
from orchestrator.config.load import load_config
from orchestrator.plan.run import Plan, make_plan
from orchestrator.stages.evaluation import read_caption_sets
from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.datasets.registry import DatasetSettings, read_photos
from prompt_tuning.datasets.stamps import fetch_stamps, stamps_source
from prompt_tuning.evaluation.baselines import ClassFeatures, untuned_baselines
from prompt_tuning.evaluation.bootstrap import paired_difference
from prompt_tuning.evaluation.metrics import average_precisions, mean_average_precision
from prompt_tuning.features import Features
from prompt_tuning.storage import digest
from prompt_tuning.tuning import scoring
from prompt_tuning.tuning.prompts import anchor_features, interpolate_with_anchor
from prompt_tuning.tuning.scoring import region_scores

# The features of tuning are kept as they are; the anchor's weight is a candidate's.
NO_ANCHOR = [f"prompts.{branch}_branch.anchor_weight=0" for branch in ("global", "local")]


def learn(what: str) -> list[str]:
    return [f"prompts.{branch}_branch.learn={what}" for branch in ("global", "local")]


WAYS: dict[str, list[str]] = {
    "tokens": [],
    "tokens+residuals": learn("tokens+residuals"),
    "vectors": FREE_VECTORS,
    "vectors, order 0": [*FREE_VECTORS, "losses.order=0"],
    "residuals, depth 2": [*learn("residuals"), "prompts.depth=2"],
    "residuals, depth 3": [*learn("residuals"), "prompts.depth=3"],
    "residuals, depth 4": learn("residuals"),
    "residuals, depth 3, order 0": [*learn("residuals"), "prompts.depth=3", "losses.order=0"],
}
WEIGHTS = (0.0, 0.25, 0.5, 0.75)
# The default until 2026-11-28: each seed alone, and half of the anchor in the local class features.
BEFORE = ("tokens", 0.0, 0.5, "seed")
SCENE_SEEDS = (11, 12)
RESAMPLES = 1000

Candidate = tuple[str, float, float, str]
"""A way, the anchor's weight in the global and local class features, "seed" or "mean"."""


@dataclass(frozen=True)
class LabelList:
    """A label list, and the folders of photos that show its labels."""

    categories: str
    photos: tuple[DatasetSettings, ...] = ()


@dataclass(frozen=True)
class ImageSet:
    """Images of one list: features, labels, and the scores of the best untuned baseline."""

    features: Features
    images: LabelledImages
    baseline_scores: np.ndarray


def label_lists(root: Path) -> dict[str, LabelList]:
    def photos(dataset: str, folder: str, split: str | None) -> DatasetSettings:
        return DatasetSettings(dataset=dataset, root=str(root / folder), split=split)

    return {
        "scenes": LabelList("scenes"),
        "VOC": LabelList(
            "voc",
            (
                photos("voc2012", "voc2012_sample", "train_sample"),
                photos("voc2012", "voc2012_more", "dev_new"),
            ),
        ),
        "COCO": LabelList(
            "coco",
            (
                photos("coco2017", "coco_sample", "train2017_sample"),
                photos("coco2017", "coco_more", "dev2017_new"),
            ),
        ),
        "ADE20K": LabelList(
            str(root / "ade20k_sample" / "categories.txt"),
            (photos("coco_json", "ade20k_sample", None),),
        ),
    }


def plan_way(of: LabelList, way: str, args: argparse.Namespace, scenes: int = 11) -> Plan:
    seeds = args.token_seeds if "tokens" in way else args.seeds
    overrides = [
        f"categories={of.categories}",
        "hierarchy.groups=auto",
        *TOKENS,
        *NO_ANCHOR,
        *WAYS[way],
        f"seeds={list(range(seeds))}",
        f"knowledge.questions.seed={args.questions_seed}",
        f"vlm.tiles={args.tiles}",
        "evaluation={dataset: none}"
        if of.photos
        else f"evaluation={{dataset: scenes, scenes: {{images: 400, seed: {scenes}}}}}",
    ]
    config = load_config(CONFIG, overrides, args.cache, args.runs)
    cache = Path(config.paths.cache).resolve()
    return make_plan(config, find_resources(), stamps_source(cache) or fetch_stamps(cache))


def image_sets(of: LabelList, name: str, plan: Plan, vlm: VLM, args: argparse.Namespace) -> dict:
    """Features and labels of a list's sets of images, by the name of the set."""
    if not of.photos:
        plans = {seed: plan_way(of, "vectors", args, seed) for seed in SCENE_SEEDS}
        for scenes_plan in plans.values():
            run_shared_stages(scenes_plan, Console())
        return {f"scenes {seed}": scenes_of(plans[seed]) for seed in SCENE_SEEDS}
    parts = [read_photos(settings, plan.categories) for settings in of.photos]
    files = tuple(file for part in parts for file in part.files)
    ignored = [
        np.zeros_like(part.labels) if part.ignored is None else part.ignored for part in parts
    ]
    images = LabelledImages(
        files, np.concatenate([part.labels for part in parts]), np.concatenate(ignored)
    )
    key = digest([vlm.identity.model_dump(mode="json"), list(map(str, files))])[:20]
    return {name: (photo_features(vlm, images, kept(args) / f"photos-{key}"), images)}


def kept(args: argparse.Namespace) -> Path:
    folder = Path(args.runs).resolve() / "left_out"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def global_scores(items: Features, classes: torch.Tensor, plan: Plan, vlm: VLM) -> np.ndarray:
    geometry = plan.config.scoring.resolve(vlm.geometry)
    tiles = None if items.tiles is None else items.tiles.float()
    pooled = items._replace(pooled=items.pooled.float(), tiles=tiles)
    return scoring.global_scores(pooled, classes, geometry).numpy()


def local_scores(items: Features, classes: torch.Tensor, plan: Plan, vlm: VLM) -> np.ndarray:
    geometry = plan.config.scoring.resolve(vlm.geometry)
    batches = [
        region_scores(some.regions.float(), some.counts, classes, geometry)
        for rows in torch.arange(len(items.pooled)).split(128)
        for some in [items.take(rows)]
    ]
    return torch.cat(batches).numpy()


def with_baseline(
    name: str, items: Features, images: LabelledImages, plan: Plan, vlm: VLM
) -> ImageSet:
    """The set with its best untuned baseline by fused mAP."""
    train, _ = read_caption_sets(plan)
    weight = plan.config.scoring.resolve(vlm.geometry).global_weight
    scores = {
        method: all_scores(
            global_scores(items, classes.pooled, plan, vlm),
            local_scores(items, classes.local, plan, vlm),
            weight,
        )
        for method, classes in untuned_baselines(vlm, plan.categories, train).items()
    }
    maps = {method: branch_maps(s, images) for method, s in scores.items()}
    best = max(maps, key=lambda method: maps[method]["fused"])
    print(name, maps, flush=True)
    return ImageSet(items, images, scores[best][-1])


def all_scores(pooled: np.ndarray, local: np.ndarray, weight: float) -> np.ndarray:
    """Global, local and fused scores: `(3, images, classes)`."""
    return np.stack([pooled, local, weight * pooled + (1 - weight) * local])


def branch_maps(scores: np.ndarray, images: LabelledImages) -> dict[str, float]:
    """The mAP of `all_scores`, by branch."""
    return {
        branch: round(fused_map(of_branch, images), 2)
        for branch, of_branch in zip(("global", "local", "fused"), scores, strict=True)
    }


def fused_map(scores: np.ndarray, images: LabelledImages) -> float:
    return 100 * mean_average_precision(scores, images.labels, images.ignored)


def mean_of(seeds: list[ClassFeatures]) -> ClassFeatures:
    """The unit mean of the seeds' class features."""
    return ClassFeatures(
        F.normalize(torch.stack([of.pooled for of in seeds]).mean(0), dim=-1),
        F.normalize(torch.stack([of.local for of in seeds]).mean(0), dim=-1),
    )


def candidate_scores(
    on: ImageSet, way: str, seeds: list[ClassFeatures], plan: Plan, vlm: VLM, anchor: torch.Tensor
) -> dict[Candidate, list[np.ndarray]]:
    """`all_scores` of each candidate of a way, for each seed or for the mean of the seeds."""
    weight = plan.config.scoring.resolve(vlm.geometry).global_weight
    found: dict[Candidate, list[np.ndarray]] = {}
    for kind, members in (("seed", seeds), ("mean", [mean_of(seeds)])):
        for classes in members:
            pooled, local = (
                {
                    w: score(on.features, interpolate_with_anchor(of, anchor, w), plan, vlm)
                    for w in WEIGHTS
                }
                for score, of in ((global_scores, classes.pooled), (local_scores, classes.local))
            )
            for in_global, in_local in itertools.product(WEIGHTS, WEIGHTS):
                scores = all_scores(pooled[in_global], local[in_local], weight)
                found.setdefault((way, in_global, in_local, kind), []).append(scores)
    return found


def describe(on: ImageSet, scores: list[np.ndarray]) -> dict[str, Any]:
    """A candidate on a set: mAP, gain with its interval, spread over seeds, labels that lose."""
    images = on.images
    by_branch = [branch_maps(of_seed, images) for of_seed in scores]
    maps = [of_seed["fused"] for of_seed in by_branch]
    fused = [of_seed[-1] for of_seed in scores]
    gain = paired_difference(fused, on.baseline_scores, images.labels, RESAMPLES, 0, images.ignored)

    def by_label(of: np.ndarray) -> np.ndarray:
        """AP of each label, NaN where no image shows it."""
        return np.array(average_precisions(of, images.labels, images.ignored), dtype=float)

    lost = 100 * (np.mean([by_label(s) for s in fused], axis=0) - by_label(on.baseline_scores))
    return {
        "map": round(statistics.mean(maps), 2),
        "global": round(statistics.mean(of_seed["global"] for of_seed in by_branch), 2),
        "local": round(statistics.mean(of_seed["local"] for of_seed in by_branch), 2),
        "spread": round(statistics.stdev(maps), 2) if len(maps) > 1 else None,
        "gain": [round(100 * v, 2) for v in (gain.mean, gain.low, gain.high)],
        "worst label": round(float(np.nanmin(lost)), 1),
        "labels 3 below": int((lost < -3).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--token-seeds", type=int, default=2)
    parser.add_argument("--questions-seed", type=int, default=0)
    parser.add_argument("--tiles", type=int, nargs="*", default=[])
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--photos", type=Path, default=os.environ.get("DATAFREE_PHOTOS", ""))
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--runs", default="runs")
    args = parser.parse_args()
    gains: dict[str, dict[Candidate, float]] = {}
    described: dict[str, dict[Candidate, dict[str, Any]]] = {}
    for name, of in label_lists(args.photos).items():
        plans = {way: plan_way(of, way, args) for way in args.ways}
        run_shared_stages(plans[args.ways[0]], Console())
        started = time.perf_counter()
        tuned = tune_all({way: on_all_captions(plan) for way, plan in plans.items()}, kept(args))
        print(f"{name}: tuned in {time.perf_counter() - started:.0f} s", flush=True)
        plan = plans[args.ways[0]]
        vlm = load_vlm(plan.config.vlm, cache=plan.cache)
        anchor = anchor_features(vlm, plan.categories)
        for set_name, (items, images) in image_sets(of, name, plan, vlm, args).items():
            on = with_baseline(set_name, items, images, plan, vlm)
            base = fused_map(on.baseline_scores, images)
            gains[set_name] = {}
            for way, seeds in tuned.items():
                for candidate, scores in candidate_scores(
                    on, way, seeds, plan, vlm, anchor
                ).items():
                    maps = [fused_map(of_seed[-1], images) for of_seed in scores]
                    value = statistics.mean(maps) - base
                    gains[set_name][candidate] = value
                    if of.photos:
                        described.setdefault(set_name, {})[candidate] = {"scores": scores, "on": on}
    report(gains, described)


def report(gains: dict[str, dict[Candidate, float]], described: dict[str, Any]) -> None:
    scenes = [name for name in gains if name.startswith("scenes")]
    candidates = list(next(iter(gains.values())))
    by_group = {
        candidate: {
            "scenes": statistics.mean(gains[name][candidate] for name in scenes),
            **{name: gains[name][candidate] for name in gains if name not in scenes},
        }
        for candidate in candidates
    }
    table = Table("left out", "candidate", "gain there", "mAP", "worst label", "3 below", "spread")
    left_out: dict[str, Any] = {}
    for name in described:
        chosen = max(
            candidates,
            key=lambda c: statistics.mean(v for group, v in by_group[c].items() if group != name),
        )
        for label, candidate in (("before", BEFORE), ("chosen", chosen)):
            if candidate not in by_group:
                continue
            kept_scores = described[name][candidate]
            figures = describe(kept_scores["on"], kept_scores["scores"])
            left_out.setdefault(label, {})[name] = {"candidate": candidate, **figures}
            table.add_row(
                f"{name}, {label}",
                str(candidate),
                "{:+.2f} ({:+.2f} to {:+.2f})".format(*figures["gain"]),
                str(figures["map"]),
                str(figures["worst label"]),
                str(figures["labels 3 below"]),
                str(figures["spread"]),
            )
    console = Console(width=150)
    console.print(table)
    best = sorted(candidates, key=lambda c: -statistics.mean(by_group[c].values()))
    shown = Table("candidate", *next(iter(by_group.values())), "mean")
    first_of_way = {candidate[0]: candidate for candidate in reversed(best)}
    for candidate in dict.fromkeys([*best[:15], *first_of_way.values(), BEFORE]):
        if candidate in by_group:
            values = by_group[candidate].values()
            shown.add_row(
                str(candidate), *(f"{v:+.2f}" for v in values), f"{statistics.mean(values):+.2f}"
            )
    console.print(shown)
    listed = [
        [*candidate, {k: round(v, 2) for k, v in by_group[candidate].items()}] for candidate in best
    ]
    print(json.dumps({"left_out": left_out, "gains": listed}))


if __name__ == "__main__":
    main()
