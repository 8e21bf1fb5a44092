"""Check CLIP's features: compare zero-shot mAP on VOC 2007 with the published figure.

Protocol, from the code of TaI-DPT (arXiv 2211.12739): cosine similarities with the global image
feature; the prompt "a photo of a {}." with the development kit's class names ("diningtable"); all
images of the test split, resized to 224 x 224; difficult objects count as absent; average precision
over all points. No paper states all of this, so a small difference may come from the protocol.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from rich.console import Console

from orchestrator.cluster.connect import disconnect
from orchestrator.cluster.resources import find_resources
from orchestrator.config.models import EvaluationSettings
from orchestrator.errors import InputError
from orchestrator.paths import check_folder
from orchestrator.plan.run import plan_images
from orchestrator.runs.stage_work import images_work
from orchestrator.stages.images import read_images
from prompt_tuning.backbones import fetch_weights, load_vlm
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.datasets.voc import CLASSES
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.method_scores import SCORE_KINDS, method_scores
from prompt_tuning.evaluation.metrics import mean_average_precision
from prompt_tuning.features import FEATURES, StoredFeatures
from prompt_tuning.tuning.prompts import anchor_features
from workers.stage import run_stage

RN50 = VLMSettings(kind="open_clip", model="RN50-quickgelu", pretrained="openai", resolution=224)
_PUBLISHED = 75.9
_NEAR = 0.5
_IMAGES = 4952


def verify_clip(vlm: VLMSettings, root: Path, cache: str, console: Console) -> bool:
    """Measure and print the figure; return whether it is near the published one, which is RN50's.

    Raises InputError if VOC 2007 is not below `root` or the weights cannot be loaded.
    """
    settings = EvaluationSettings(
        dataset="voc2007", root=str(root.resolve()), split="test", difficult="negative"
    )
    categories = CategoryList(categories=tuple(Category(name=name) for name in CLASSES))
    folder = check_folder(cache, "cache")
    try:
        plan = plan_images(settings, vlm, find_resources(), folder, categories, None)
    except InputError as error:
        raise InputError(f"--verify-clip: {str(error).removeprefix('evaluation.root: ')}") from None
    assert plan.images and plan.features
    try:
        fetch_weights(vlm)
        model = load_vlm(vlm, cache=plan.cache)
    except ValueError as error:
        raise InputError(f"--verify-clip: {error}") from None
    try:
        for stage, work in images_work(plan, None, console).items():
            run_stage(stage, work)
    finally:
        disconnect()
    texts = F.normalize(anchor_features(model, categories), dim=-1)
    labels = read_images(plan).labels
    items = StoredFeatures(plan.features.folder / FEATURES)
    scores = method_scores(items, ClassFeatures(texts, texts), model.geometry, "mean")
    maps = {branch: 100 * mean_average_precision(scores[branch], labels) for branch in SCORE_KINDS}
    return _report(vlm, maps, len(labels), console)


def _report(vlm: VLMSettings, maps: dict[str, float], images: int, console: Console) -> bool:
    ours = round(maps["global"], 1)
    difference = round(ours - _PUBLISHED, 1)
    near = abs(difference) <= _NEAR
    fewer = "" if images == _IMAGES else f", and the published figure is of {_IMAGES:,}"
    for name, figure in (
        ("ours", f"{ours:.1f} mAP, zero-shot, one prompt ({vlm.model}, {vlm.pretrained})"),
        ("published", f"{_PUBLISHED} (CLIP RN50, VOC 2007 test)"),
        ("difference", f"{difference:+.1f}".replace("-", "−")),
        ("others", f"{maps['local']:.1f} local, {maps['fused']:.1f} fused, by our geometry"),
        ("images", f"{images:,}{fewer}"),
        ("verdict", "these are CLIP's features" if near else f"off by more than {_NEAR}"),
    ):
        console.print(f"{name:<11} {figure}", soft_wrap=True, highlight=False, markup=False)
    return near
