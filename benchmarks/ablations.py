"""What each part of the method is worth: the quickstart tuned in variations, several seeds each.

    python benchmarks/ablations.py [--seeds 5] [--detail-seeds 2] [--photos ../shared/data]

Every variation is the quickstart's config with a few fields changed, so anyone can run one alone.
Captions, caption features and scenes come from the stage cache. Each seed of each variation is
tuned in a process with one thread; a finished one is kept in `<runs>/ablations/` and not tuned
again, so the benchmark may be stopped and started at will.

Figures are mAP of the composed scenes and, if the photos are present, of those of VOC 2012 and
COCO 2017 for the categories that they and the scenes have in common. Nothing is chosen on any
image. The last line is one JSON object: mean and sample deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from orchestrator.cluster import disconnect
from orchestrator.config import load_config
from orchestrator.evaluation_stages import read_images, write_image_features, write_images
from orchestrator.knowledge_stage import CAPTIONS, write_knowledge
from orchestrator.plan import Plan, make_plan
from orchestrator.preflight import find_resources
from orchestrator.stages import Stage, run_stage
from orchestrator.tuning_stages import (
    FEATURES,
    read_caption_sets,
    read_hierarchy,
    write_caption_features,
    write_hierarchy,
)
from prompt_tuning.captions import read_captions
from prompt_tuning.categories import Category, CategoryList, built_in
from prompt_tuning.datasets import LabelledImages, read_voc
from prompt_tuning.evaluation import BRANCHES, ClassFeatures, arm_scores, untuned_arms
from prompt_tuning.features import Features, concatenate, load_features, save_features
from prompt_tuning.image_files import open_image
from prompt_tuning.metrics import mean_average_precision
from prompt_tuning.scenes import fetch_stamps, stamps_source
from prompt_tuning.store import digest, is_published, publishing
from prompt_tuning.tuning import ClassPrompts, TuningRun, load_caption_sets
from prompt_tuning.vlm import VLM, load_vlm

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
# As many tokens as the default has at depth 4 (4 shared, 2 coarse, 2 fine, 4 category).
EQUAL_TOKENS = [
    "hierarchy.depth=1",
    *(f"prompts.{b}_branch.shared=12" for b in ("global", "local")),
]
PLAIN = "{hierarchical: false, shared: 12}"
RELEASED_ORDER = "{order: [shared, fine, coarse, category]}"
VARIATIONS: dict[str, list[str]] = {
    "depth 1": ["hierarchy.depth=1"],
    "depth 2": ["hierarchy.depth=2"],
    "depth 3": ["hierarchy.depth=3"],
    "depth 4": [],
    "equal tokens": EQUAL_TOKENS,
    "depth 1, no order loss": ["hierarchy.depth=1", "losses.order=0"],
    "depth 2, no order loss": ["hierarchy.depth=2", "losses.order=0"],
    "depth 3, no order loss": ["hierarchy.depth=3", "losses.order=0"],
    "depth 4, no order loss": ["losses.order=0"],
    "equal tokens, no order loss": [*EQUAL_TOKENS, "losses.order=0"],
    "hierarchy on global": [f"prompts.local_branch={PLAIN}"],
    "hierarchy on local": [f"prompts.global_branch={PLAIN}"],
    "order loss on global": ["losses.order_on=[global]"],
    "order loss on local": ["losses.order_on=[local]"],
}
# Each of what else our defaults have in another way than the released recipe, and two controls.
DETAILS: dict[str, list[str]] = {
    "released token order": [
        f"prompts.{branch}_branch={RELEASED_ORDER}" for branch in ("global", "local")
    ],
    "released tokens": [
        "prompts.global_branch={shared: 16, fine: 8, coarse: 4, category: 4, "
        "order: [shared, fine, coarse, category]}",
        "prompts.local_branch={hierarchical: false, shared: 32}",
    ],
    "released optimiser": [
        "tuning={optimizer: sgd, lr: 0.002, momentum: 0.9, weight_decay: 0.0005, epochs: 20, "
        "batch: 512, milestones: [5, 10, 15], gamma: 0.1, mix: 2}"
    ],
    "released margin": ["losses.margin=1"],
    "items of one caption": ["tuning.mix=1"],
    "released noise": ["tuning.noise={std: 0.1}"],
    "released scores": [
        "scoring={scale: 4.0, local_temperature: 50.0, fusion: softmax, global_weight: 0.65}"
    ],
    # From their very start, for noise on 384 numbers is no small step; the rate is the tokens'.
    "free vectors": [
        "prompts.init_std=0",
        "prompts.global_branch.learn=vectors",
        "prompts.local_branch.learn=vectors",
    ],
    "templates, no sentences": [
        "captions.templates=true",
        "knowledge.questions={per_category: 0, relationships: 0}",
    ],
}
SINGLE_PRECISION = "depth 4, features in single precision"
IMAGES_A_BATCH = 16


def plan_variation(overrides: list[str], seeds: int, args: argparse.Namespace) -> Plan:
    overrides = [*overrides, f"seeds={list(range(seeds))}"]
    config = load_config(CONFIG, overrides, args.cache, args.runs)
    cache = Path(config.paths.cache).resolve()
    return make_plan(config, find_resources(), stamps_source(cache) or fetch_stamps(cache))


def run_shared_stages(plan: Plan, console: Console) -> None:
    """All that comes before tuning, and the scenes' features, unless they are there."""
    assert plan.images and plan.image_features
    work: dict[Stage, Callable[[Path], None]] = {
        plan.knowledge.stage: partial(write_knowledge, plan.knowledge, console),
        plan.captions: partial(write_caption_features, plan, console),
        plan.hierarchy: partial(write_hierarchy, plan),
        plan.images: partial(write_images, plan, stamps_source(plan.cache)),
        plan.image_features: partial(write_image_features, plan, console),
    }
    for stage, fill in work.items():
        run_stage(stage, fill)
    disconnect()


def write_single_precision(plan: Plan, folder: Path) -> Path:
    """The caption features as the backbone gives them, not rounded to half precision."""
    if is_published(folder):
        return folder / FEATURES
    texts = [c.text for c in read_captions(plan.knowledge.stage.folder / CAPTIONS, plan.categories)]
    features = load_vlm(plan.config.vlm, cache=plan.cache).encode_captions(texts)
    with publishing(folder) as staging:
        save_file(features._asdict(), staging / FEATURES)
    return folder / FEATURES


def tune(plan: Plan, seed: int, features: Path, folder: Path) -> None:
    """Tune one seed here, with one thread; what a Ray Train worker does, without Ray."""
    torch.set_num_threads(1)
    config = plan.config
    vlm = load_vlm(config.vlm, cache=plan.cache)
    prompts = ClassPrompts(
        vlm,
        plan.categories,
        read_hierarchy(plan),
        config.hierarchy.depth,
        config.prompts,
        config.scoring,
        config.losses,
        seed,
    )
    captions = plan.knowledge.stage.folder / CAPTIONS
    sets = load_caption_sets(captions, features, plan.categories, config.captions.held_out)
    run = TuningRun(prompts, prompts, *sets, config.tuning, seed)
    while run.epochs_done < config.tuning.epochs:
        run.run_epoch()
    with publishing(folder) as staging:
        save_file(run.best_class_features(), staging / "class_features.safetensors")


def tune_all(
    plans: dict[str, Plan], features: dict[str, Path], runs: Path
) -> dict[str, list[Path]]:
    """Tune the seeds of the variations that are not there; the folders of each variation."""
    folders = {
        name: [
            runs / f"{plan.tuning[seed].key}{'-single' if name == SINGLE_PRECISION else ''}"
            for seed in plan.tuning
        ]
        for name, plan in plans.items()
    }
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        # Seed by seed, so that an early stop leaves something of all.
        running = {
            pool.submit(tune, plan, seed, features[name], folder): f"{name}, seed {seed}"
            for seed, name, plan, folder in sorted(
                (
                    (seed, name, plan, folder)
                    for name, plan in plans.items()
                    for seed, folder in zip(plan.tuning, folders[name], strict=True)
                ),
                key=lambda job: job[0],
            )
            if not is_published(folder)
        }
        for done, future in enumerate(as_completed(running), start=1):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            future.result()
            print(f"{done}/{len(running)} {running[future]}", flush=True)
    return folders


def photos_of(root: Path) -> dict[str, tuple[LabelledImages, CategoryList]]:
    """The labelled photos that are there, by data set."""
    found = {}
    voc = built_in("voc")
    if (root / "voc2012_sample").is_dir():
        from zero_shot import VOC_CLASSES

        found["voc"] = (
            read_voc(root / "voc2012_sample", "2012", "train_sample", VOC_CLASSES),
            voc,
        )
    if (root / "coco_sample").is_dir():
        found["coco"] = read_coco(root / "coco_sample", "train2017_sample")
    return found


def read_coco(root: Path, split: str) -> tuple[LabelledImages, CategoryList]:
    """COCO's own layout; a class is positive when any annotation of it is there."""
    described = json.loads((root / "annotations" / f"instances_{split}.json").read_bytes())
    column = {category["id"]: i for i, category in enumerate(described["categories"])}
    row = {image["id"]: i for i, image in enumerate(described["images"])}
    labels = np.zeros((len(row), len(column)), dtype=bool)
    for annotation in described["annotations"]:
        labels[row[annotation["image_id"]], column[annotation["category_id"]]] = True
    files = tuple(root / split / image["file_name"] for image in described["images"])
    names = tuple(Category(name=category["name"]) for category in described["categories"])
    return LabelledImages(files, labels), CategoryList(categories=names)


def in_common(
    ours: CategoryList, theirs: CategoryList, labels: np.ndarray
) -> tuple[list[int], np.ndarray]:
    """Our categories that have a name in common with theirs, and their labels `(images, those)`."""
    columns = {
        i: [j for j, other in enumerate(theirs.categories) if set(one.names) & set(other.names)]
        for i, one in enumerate(ours.categories)
    }
    shared = [i for i, of_category in columns.items() if of_category]
    return shared, np.stack([labels[:, columns[i]].any(1) for i in shared], axis=1)


def photo_features(vlm: VLM, photos: LabelledImages, folder: Path) -> Features:
    """Features of photos, kept in a folder of their own."""
    if not is_published(folder):
        batches = []
        for start in range(0, len(photos.files), IMAGES_A_BATCH):
            images = [open_image(file) for file in photos.files[start : start + IMAGES_A_BATCH]]
            batches.append(vlm.encode_image(torch.stack([vlm.preprocess(i) for i in images])))
        with publishing(folder) as staging:
            save_features(staging / FEATURES, concatenate(batches))
    return load_features(folder / FEATURES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--detail-seeds", type=int, default=2)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--runs", default="runs")
    args = parser.parse_args()
    console = Console()
    plans = {n: plan_variation(changes, args.seeds, args) for n, changes in VARIATIONS.items()}
    for name, changes in DETAILS.items():
        plans[name] = plan_variation(changes, args.detail_seeds, args)
    plans[SINGLE_PRECISION] = plan_variation([], args.detail_seeds, args)
    for plan in plans.values():
        run_shared_stages(plan, console)
    base = plans["depth 4"]
    runs = Path(args.runs).resolve() / "ablations"
    runs.mkdir(parents=True, exist_ok=True)
    features = {name: plan.captions.folder / FEATURES for name, plan in plans.items()}
    features[SINGLE_PRECISION] = write_single_precision(
        base, runs / f"{base.captions.key}-features-single"
    )
    folders = tune_all(plans, features, runs)

    vlm = load_vlm(base.config.vlm, cache=base.cache)
    assert base.image_features
    everything = list(range(len(base.categories)))
    datasets = {
        "scenes": (
            load_features(base.image_features.folder / FEATURES),
            read_images(base).labels,
            everything,
        )
    }
    for name, (photos, theirs) in photos_of(args.photos).items():
        columns, labels = in_common(base.categories, theirs, photos.labels)
        key = digest([vlm.identity.model_dump(mode="json"), list(map(str, photos.files))])[:20]
        datasets[f"{name} ({len(columns)} classes)"] = (
            photo_features(vlm, photos, runs / f"photos-{key}"),
            labels,
            columns,
        )

    def measure(classes: ClassFeatures, plan: Plan) -> dict[str, dict[str, float]]:
        """mAP by data set and branch, scored as the plan's config says."""
        geometry, fusion = plan.config.scoring.resolve(vlm.geometry), plan.config.scoring.fusion
        measured = {}
        for name, (items, labels, columns) in datasets.items():
            chosen = ClassFeatures(classes.pooled[columns], classes.local[columns])
            scores = arm_scores(items, chosen, geometry, fusion)
            measured[name] = {b: 100 * mean_average_precision(scores[b], labels) for b in BRANCHES}
        return measured

    train, _ = read_caption_sets(base)
    arms = {
        arm: [measure(classes, base)]
        for arm, classes in untuned_arms(vlm, base.categories, train).items()
    }
    for name, of_seeds in folders.items():
        tensors = [load_file(folder / "class_features.safetensors") for folder in of_seeds]
        arms[name] = [measure(ClassFeatures(t["global"], t["local"]), plans[name]) for t in tensors]
    report(arms, list(datasets), console)


def report(
    arms: dict[str, list[dict[str, dict[str, float]]]], datasets: list[str], console: Console
) -> None:
    """A table and the last line; an untuned arm has one figure and no deviation."""
    table = Table("mAP", *(f"{data} {b}" for data in datasets for b in BRANCHES))
    result: dict[str, dict[str, list[float]]] = {}
    for arm, of_seeds in arms.items():
        cells, result[arm] = [], {}
        for data in datasets:
            for branch in BRANCHES:
                values = [of_seed[data][branch] for of_seed in of_seeds]
                mean = statistics.mean(values)
                spread = statistics.stdev(values) if len(values) > 1 else None
                cells.append(f"{mean:.1f}" + (f" ± {spread:.1f}" if spread is not None else ""))
                figures = [mean] if spread is None else [mean, spread]
                result[arm][f"{data} {branch}"] = [round(figure, 2) for figure in figures]
        table.add_row(arm, *cells)
    Console(width=max(console.width, 40 + 14 * len(table.columns))).print(table)
    print(json.dumps({"seeds": {arm: len(of) for arm, of in arms.items()}, "map": result}))


if __name__ == "__main__":
    main()
