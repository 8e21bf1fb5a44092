"""What each part of the method is worth: the quickstart tuned in variations, several seeds each.

    python benchmarks/ablations.py [--seeds 5] [--detail-seeds 2] [--photos FOLDER]

Every variation is the quickstart's config with tokens in place of residuals (`TOKENS`) and a few
fields changed, so anyone can run one alone.
Captions, caption features and scenes come from the stage cache. Each seed of each variation is
tuned in a process with one thread. Finished ones are kept in `<runs>/ablations/`, so the benchmark
may be stopped and started again.

Figures are mAP on the composed scenes and, if there are photos (`--photos`, otherwise
DATAFREE_PHOTOS: a folder with `voc2012_sample` and `coco_sample` in their official layouts), on
VOC 2012 and COCO 2017 for the categories that they share with the scenes. Nothing is chosen on any
image. The last line is one JSON object: mean and sample deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from orchestrator.cluster.connect import disconnect
from orchestrator.cluster.resources import find_resources
from orchestrator.config.load import load_config
from orchestrator.plan.run import Plan, make_plan
from orchestrator.runs.stage_work import stage_work
from orchestrator.stages.evaluation import read_caption_sets
from orchestrator.stages.hierarchy import read_hierarchy
from orchestrator.stages.images import read_images
from orchestrator.stages.knowledge_summary import CAPTIONS
from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM
from prompt_tuning.captions import read_captions
from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.datasets.registry import DatasetSettings, read_photos
from prompt_tuning.datasets.stamps import fetch_stamps, stamps_source
from prompt_tuning.evaluation.baselines import ClassFeatures, untuned_baselines
from prompt_tuning.evaluation.method_scores import SCORE_KINDS, method_scores
from prompt_tuning.evaluation.metrics import mean_average_precision
from prompt_tuning.features import (
    FEATURES,
    Features,
    StoredFeatures,
    concatenate,
    load_features,
    save_features,
    shard_file,
)
from prompt_tuning.images import open_image
from prompt_tuning.storage import digest, is_published, publishing
from prompt_tuning.tuning.caption_set import CaptionSet, load_caption_sets
from prompt_tuning.tuning.class_prompts import ClassPrompts
from prompt_tuning.tuning.trainer import TuningRun
from workers.stage import run_stage
from workers.tuning.job import CLASSES, read_classes

PHOTO_FEATURES = "features.safetensors"
CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
# The paper's prompts, as the quickstart tuned them before it tuned residuals (docs/left-out.md).
_TOKENS = "learn: tokens, shared: 2, coarse: 1, fine: 1, category: 2"
TOKENS = [
    "prompts.depth=4",
    f"prompts.global_branch={{{_TOKENS}}}",
    f"prompts.local_branch={{{_TOKENS}, anchor_weight: 0.5}}",
]
BRANCH_FIELDS = ("prompts.global_branch", "prompts.local_branch")
RELEASED_ORDER = "[shared, fine, coarse, category]"
# As many shared tokens as the default has in all (2 shared, 1 coarse, 1 fine, 2 category).
EQUAL_TOKENS = ["prompts.depth=1", *(f"{branch}.shared=6" for branch in BRANCH_FIELDS)]
FREE_VECTORS = ["prompts.init_std=0", *(f"{branch}.learn=vectors" for branch in BRANCH_FIELDS)]
VARIATIONS: dict[str, list[str]] = {
    "depth 1": ["prompts.depth=1"],
    "depth 2": ["prompts.depth=2"],
    "depth 3": ["prompts.depth=3"],
    "depth 4": [],
    "equal tokens": EQUAL_TOKENS,
    "depth 1, no order loss": ["prompts.depth=1", "losses.order=0"],
    "depth 2, no order loss": ["prompts.depth=2", "losses.order=0"],
    "depth 3, no order loss": ["prompts.depth=3", "losses.order=0"],
    "depth 4, no order loss": ["losses.order=0"],
    "equal tokens, no order loss": [*EQUAL_TOKENS, "losses.order=0"],
    "hierarchy on global": [
        "prompts.local_branch.hierarchical=false",
        "prompts.local_branch.shared=6",
    ],
    "hierarchy on local": [
        "prompts.global_branch.hierarchical=false",
        "prompts.global_branch.shared=6",
    ],
    "order loss on global": ["losses.order_on=[global]"],
    "order loss on local": ["losses.order_on=[local]"],
}
# Each of what else our defaults have in another way than the released recipe, and two controls.
DETAILS: dict[str, list[str]] = {
    "released token order": [f"{branch}.order={RELEASED_ORDER}" for branch in BRANCH_FIELDS],
    "released tokens": [
        "prompts.global_branch={shared: 16, fine: 8, coarse: 4, category: 4, "
        f"order: {RELEASED_ORDER}}}",
        "prompts.local_branch.hierarchical=false",
        "prompts.local_branch.shared=32",
    ],
    "released optimiser": [
        "tuning.optimizer=sgd",
        "tuning.lr=0.002",
        "tuning.momentum=0.9",
        "tuning.weight_decay=0.0005",
        "tuning.epochs=20",
        "tuning.batch=512",
        "tuning.milestones=[5, 10, 15]",
        "tuning.gamma=0.1",
    ],
    "released margin": ["losses.margin=1", "losses.local_margin=1"],
    "the same margin on both branches": ["losses.local_margin=null"],
    "nothing of the hand-crafted prompts": ["prompts.local_branch.anchor_weight=0"],
    "items of one caption": ["tuning.captions_per_item=1"],
    "released noise": ["tuning.noise={std: 0.1}"],
    "released scores": [
        "scoring={scale: 4.0, local_temperature: 50.0, fusion: softmax, global_weight: 0.65}"
    ],
    # From their very start, for noise on 384 numbers is no small step; the rate is the tokens'.
    "free vectors": FREE_VECTORS,
    "templates, no sentences": [
        "captions.templates=true",
        "knowledge.questions={per_category: 0, relationships: 0}",
    ],
}
SINGLE_PRECISION = "depth 4, features in single precision"

# Of one set of class features: mAP by data set and branch.
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Variation:
    """What is tuned: a plan, on the training and held-out captions that it has for a seed."""

    plan: Plan
    caption_sets: Callable[[int], tuple[CaptionSet, CaptionSet]]

    def folder(self, seed: int, runs: Path) -> Path:
        """Where the seed's class features are kept, named by all that they depend on."""
        sets = self.caption_sets(seed)
        captions = [
            [
                str(of.features.pooled[of.rows[:1]].dtype),
                of.rows.tolist(),
                of.labels[of.rows].nonzero().tolist(),
            ]
            for of in sets
        ]
        return runs / digest([self.plan.tuning[seed].key, captions])[:20]


def plan_variation(overrides: list[str], seeds: int, args: argparse.Namespace) -> Plan:
    overrides = [*TOKENS, *overrides, f"seeds={list(range(seeds))}"]
    config = load_config(CONFIG, overrides, args.cache, args.runs)
    cache = Path(config.paths.cache).resolve()
    return make_plan(config, find_resources(), stamps_source(cache) or fetch_stamps(cache))


def run_shared_stages(plan: Plan, console: Console) -> None:
    """All that comes before tuning, and the scenes' features, unless they are there."""
    work = stage_work(plan, stamps_source(plan.cache), console)
    for stage in plan.shared:
        run_stage(stage, work[stage])
    disconnect()


def write_single_precision(plan: Plan, folder: Path) -> Path:
    """The caption features as the backbone gives them, not rounded to half precision."""
    if is_published(folder):
        return folder / FEATURES
    texts = [c.text for c in read_captions(plan.knowledge.stage.folder / CAPTIONS, plan.categories)]
    features = load_vlm(plan.config.vlm, cache=plan.cache).encode_captions(texts)
    with publishing(folder) as staging:
        parts = {name: part for name, part in features._asdict().items() if part is not None}
        (staging / FEATURES).mkdir()
        save_file(parts, shard_file(staging / FEATURES, 0))
    return folder / FEATURES


def all_captions(plan: Plan, features: Path, seed: int) -> tuple[CaptionSet, CaptionSet]:
    """The captions of the knowledge stage, whatever the seed."""
    captions = plan.knowledge.stage.folder / CAPTIONS
    return load_caption_sets(captions, features, plan.categories, plan.config.captions.held_out)


def on_all_captions(plan: Plan) -> Variation:
    return Variation(plan, partial(all_captions, plan, plan.captions.folder / FEATURES))


def tune(variation: Variation, seed: int, folder: Path) -> None:
    """Tune one seed here, with one thread; what a Ray Train worker does, without Ray."""
    torch.set_num_threads(1)
    plan, config = variation.plan, variation.plan.config
    vlm = load_vlm(config.vlm, cache=plan.cache)
    prompts = ClassPrompts(
        vlm,
        plan.categories,
        read_hierarchy(plan),
        config.prompts,
        config.scoring,
        config.losses,
        seed,
    )
    run = TuningRun(prompts, prompts, *variation.caption_sets(seed), config.tuning, seed)
    while run.epochs_done < config.tuning.epochs:
        run.run_epoch()
    with publishing(folder) as staging:
        save_file(run.best_class_features(), staging / CLASSES)


def tune_all(variations: dict[str, Variation], runs: Path) -> dict[str, list[ClassFeatures]]:
    """Tune the seeds of the variations that are not there; the class features of all."""
    folders = {
        name: {seed: variation.folder(seed, runs) for seed in variation.plan.tuning}
        for name, variation in variations.items()
    }
    jobs = {
        folder: (seed, name)
        for name, of_seeds in folders.items()
        for seed, folder in of_seeds.items()
    }
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        # Seed by seed, so that an early stop leaves something of all.
        running = {
            pool.submit(tune, variations[name], seed, folder): f"{name}, seed {seed}"
            for folder, (seed, name) in sorted(jobs.items(), key=lambda job: job[1][0])
            if not is_published(folder)
        }
        for done, future in enumerate(as_completed(running), start=1):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            future.result()
            print(f"{done}/{len(running)} {running[future]}", flush=True)
    return {
        name: [read_classes(folder) for folder in of_seeds.values()]
        for name, of_seeds in folders.items()
    }


def scenes_of(plan: Plan) -> tuple[Features, LabelledImages]:
    """The composed scenes with their features."""
    assert plan.labelled.features
    stored = StoredFeatures(plan.labelled.features.folder / FEATURES)
    return stored.take(torch.arange(len(stored))), read_images(plan.labelled)


def photos_of(root: Path, categories: CategoryList) -> dict[str, LabelledImages]:
    """The labelled photos that are there, by data set, over our categories."""
    samples = {
        "voc": DatasetSettings(
            dataset="voc2012", root=str(root / "voc2012_sample"), split="train_sample"
        ),
        "coco": DatasetSettings(
            dataset="coco2017", root=str(root / "coco_sample"), split="train2017_sample"
        ),
    }
    return {
        name: read_photos(settings, categories)
        for name, settings in samples.items()
        if settings.root and Path(settings.root).is_dir()
    }


def labelled(images: LabelledImages) -> list[int]:
    """The classes that the data set labels."""
    if images.ignored is None:
        return list(range(images.labels.shape[1]))
    return [int(c) for c in np.flatnonzero(~images.ignored.all(0))]


def photo_features(vlm: VLM, photos: LabelledImages, folder: Path) -> Features:
    """Features of photos, kept in a folder of their own."""
    if not is_published(folder):
        batches = []
        started, size = time.perf_counter(), vlm.images_per_batch
        for start in range(0, len(photos.files), size):
            images = [open_image(file) for file in photos.files[start : start + size]]
            batches.append(vlm.encode_image(torch.stack([vlm.preprocess(i) for i in images])))
        seconds = (time.perf_counter() - started) / len(photos.files)
        print(f"{len(photos.files)} photos encoded, {seconds:.3f} s each", flush=True)
        with publishing(folder) as staging:
            save_features(staging / PHOTO_FEATURES, concatenate(batches))
    return load_features(folder / PHOTO_FEATURES)


def measure(
    classes: ClassFeatures,
    plan: Plan,
    vlm: VLM,
    datasets: dict[str, tuple[Features, LabelledImages]],
) -> Figures:
    """mAP over the classes that a data set labels, scored as the plan's config says."""
    geometry, fusion = plan.config.scoring.resolve(vlm.geometry), plan.config.scoring.fusion
    figures = {}
    for name, (features, images) in datasets.items():
        columns = labelled(images)
        chosen = ClassFeatures(classes.pooled[columns], classes.local[columns])
        scores = method_scores(features, chosen, geometry, fusion)
        labels = images.labels[:, columns]
        ignored = None if images.ignored is None else images.ignored[:, columns]
        figures[name] = {
            b: 100 * mean_average_precision(scores[b], labels, ignored) for b in SCORE_KINDS
        }
    return figures


def compare(
    variations: dict[str, Variation],
    base: Plan,
    datasets: dict[str, tuple[Features, LabelledImages]],
    vlm: VLM,
    runs: Path,
    console: Console,
) -> None:
    """Tune what is not there and measure all, beside the baselines of the base plan."""
    tuned = tune_all(variations, runs)
    train, _ = read_caption_sets(base)
    methods = {
        method: [measure(classes, base, vlm, datasets)]
        for method, classes in untuned_baselines(vlm, base.categories, train).items()
    }
    for name, of_seeds in tuned.items():
        plan = variations[name].plan
        methods[name] = [measure(classes, plan, vlm, datasets) for classes in of_seeds]
    report(methods, list(datasets), {n: captions_of(v) for n, v in variations.items()}, console)


def captions_of(variation: Variation) -> int:
    """How many different captions a seed is tuned on, on average."""
    trains = [variation.caption_sets(seed)[0] for seed in variation.plan.tuning]
    return round(statistics.mean(len(train.rows.unique()) for train in trains))


def report(
    methods: dict[str, list[Figures]],
    datasets: Sequence[str],
    captions: dict[str, int],
    console: Console,
) -> None:
    """A table and the last line; an baseline has one figure and no deviation."""
    table = Table("mAP", "captions", *(f"{data} {b}" for data in datasets for b in SCORE_KINDS))
    result: dict[str, dict[str, list[float]]] = {}
    for method, of_seeds in methods.items():
        cells, result[method] = [str(captions.get(method, ""))], {}
        for data in datasets:
            for branch in SCORE_KINDS:
                values = [of_seed[data][branch] for of_seed in of_seeds]
                mean = statistics.mean(values)
                spread = statistics.stdev(values) if len(values) > 1 else None
                cells.append(f"{mean:.1f}" + (f" ± {spread:.1f}" if spread is not None else ""))
                figures = [mean] if spread is None else [mean, spread]
                result[method][f"{data} {branch}"] = [round(figure, 2) for figure in figures]
        table.add_row(method, *cells)
    Console(width=max(console.width, 40 + 14 * len(table.columns))).print(table)
    seeds = {method: len(of_seeds) for method, of_seeds in methods.items()}
    print(json.dumps({"seeds": seeds, "captions": captions, "map": result}))


def runs_folder(args: argparse.Namespace) -> Path:
    """Where finished tunings are kept."""
    runs = Path(args.runs).resolve() / "ablations"
    runs.mkdir(parents=True, exist_ok=True)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--detail-seeds", type=int, default=2)
    parser.add_argument("--photos", type=Path, default=os.environ.get("DATAFREE_PHOTOS", ""))
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--runs", default="runs")
    args = parser.parse_args()
    console, runs = Console(), runs_folder(args)
    plans = {n: plan_variation(changes, args.seeds, args) for n, changes in VARIATIONS.items()}
    for name, changes in DETAILS.items():
        plans[name] = plan_variation(changes, args.detail_seeds, args)
    for plan in plans.values():
        run_shared_stages(plan, console)
    variations = {name: on_all_captions(plan) for name, plan in plans.items()}
    base = plans["depth 4"]
    single = write_single_precision(base, runs / f"{base.captions.key}-features-single")
    few_seeds = plan_variation([], args.detail_seeds, args)
    variations[SINGLE_PRECISION] = Variation(few_seeds, partial(all_captions, few_seeds, single))

    vlm = load_vlm(base.config.vlm, cache=base.cache)
    datasets = {"scenes": scenes_of(base)}
    for name, photos in photos_of(args.photos, base.categories).items():
        key = digest([vlm.identity.model_dump(mode="json"), list(map(str, photos.files))])[:20]
        features = photo_features(vlm, photos, runs / f"photos-{key}")
        datasets[f"{name} ({len(labelled(photos))} classes)"] = features, photos
    compare(variations, base, datasets, vlm, runs, console)


if __name__ == "__main__":
    main()
