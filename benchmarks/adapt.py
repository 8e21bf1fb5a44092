r"""What a few labelled photos add to an artifact that was tuned on text alone.

    python benchmarks/adapt.py --artifact VOC=runs/voc/artifact --artifact COCO=… \
        --artifact ADE20K=… --photos FOLDER [--cache FOLDER] [--draws 10] \
        [--unlabelled] [--partial]

The artifacts are those of `datafree run configs/quickstart.yaml` with `categories` set to the
photos' list, `hierarchy.groups=auto` and `evaluation={dataset: none}`. The sets of photos are those
of left_out.py. For each number of labelled photos there are ten draws. Figures are of the photos
that were not drawn: means over the draws, with 95 % intervals by Student's t:

- `text`: the artifact as it is; `calibrate`: its scores and thresholds fitted, which changes no
  ranking; `adapt`: `datafree adapt`.
- `probe`: logistic regressions on the image features alone; `text + probe`: their logits added to
  those of `calibrate`. Both get the strength that is best *on the photos they are measured on*.

`no example`: the change of the AP of labels that no drawn photo shows.

With `--partial`, also `adapt` on partly labelled photos, of three people who are always right:
`questions` answers what a review asks about the photos that it shows first, `added` also adds what
is missing on them, and `keywords` has any photos, adds what is missing and takes out wrong tags.
Other photos than the first 300 of the draw are measured on.

With `--unlabelled`, also `adapt` that sees the other photos without their labels, as its own soft
labels with a tenth of the weight. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from ablations import photo_features
from left_out import label_lists
from scipy.stats import sem, t
from sklearn.linear_model import LogisticRegression

from prompt_tuning.backbones import load_vlm
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.datasets.registry import read_photos
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.metrics import (
    average_precisions,
    mean_average_precision,
    tag_quality,
)
from prompt_tuning.features import Features
from prompt_tuning.storage import digest
from prompt_tuning.tagging.adaptation import (
    adapt_to_features,
    fitted_moves,
    raw_scores,
    score_gradients,
)
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.calibration import Calibration
from prompt_tuning.tagging.photo_calibration import fit_labelled
from prompt_tuning.tagging.review_order import (
    closeness,
    image_values,
    question_values,
    questions,
)

PHOTOS = (5, 20, 50, 100)
STRENGTHS = (0.1, 1.0, 10.0)  # of the probe: scikit-learn's C


def photos_of(name: str, root: Path, artifact: Artifact) -> LabelledImages:
    parts = [read_photos(one, artifact.categories) for one in label_lists(root)[name].photos]
    ignored = [
        np.zeros_like(part.labels) if part.ignored is None else part.ignored for part in parts
    ]
    return LabelledImages(
        tuple(file for part in parts for file in part.files),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(ignored),
    )


def quality(
    raw: np.ndarray, calibration: Calibration, labels: np.ndarray, ignored: np.ndarray
) -> dict[str, float]:
    tags = calibration.scores(raw) >= calibration.thresholds
    return {
        "map": 100 * mean_average_precision(raw, labels, ignored),
        "f1": 100 * tag_quality(tags, labels, ignored).micro.f1,
    }


def probe_logits(
    x: np.ndarray, labels: np.ndarray, known: np.ndarray, at: np.ndarray, strength: float
) -> np.ndarray:
    """Logits `(photos, classes)` at the features `at`; 0 for a class without contrast."""
    logits = np.zeros((len(at), labels.shape[1]))
    for c in range(labels.shape[1]):
        rows = known[:, c]
        if len(set(labels[rows, c])) == 2:
            fitted = LogisticRegression(C=strength, max_iter=300).fit(x[rows], labels[rows, c])
            logits[:, c] = fitted.decision_function(at)
    return logits


def self_taught(
    artifact: Artifact,
    features: Features,
    raw: np.ndarray,
    calibration: Calibration,
    labels: np.ndarray,
    ignored: np.ndarray,
    drawn: np.ndarray,
) -> ClassFeatures:
    """As `moved_classes` on the drawn photos, and on all others with their own scores as labels."""
    soft = np.where(np.isin(np.arange(len(raw)), drawn)[:, None], labels, calibration.scores(raw))
    weight = np.full(labels.shape, 0.1)
    weight[drawn] = ~ignored[drawn]
    shown = np.flatnonzero((labels & ~ignored)[drawn].any(0))
    gradients = score_gradients(
        features, artifact.classes, artifact.geometry, torch.from_numpy(shown)
    )
    own = calibration.of(shown.tolist())
    values = (own.slopes * raw[:, shown] + own.offsets, soft[:, shown], weight[:, shown])
    moves = fitted_moves(gradients, *(torch.from_numpy(v).float() for v in values))
    classes = ClassFeatures(artifact.classes.pooled.clone(), artifact.classes.local.clone())
    slopes = torch.from_numpy(own.slopes).float()[:, None]
    for of_branch, move in zip((classes.pooled, classes.local), moves, strict=True):
        of_branch[shown] += move / slopes
    return classes


def measured(
    artifact: Artifact, features: Features, images: LabelledImages, draws: int, unlabelled: bool
) -> Iterator[tuple[str, int, str, float]]:
    """(method, photos, figure, value) of each draw."""
    labels, ignored = images.labels, images.ignored
    assert ignored is not None
    raw = raw_scores(features, artifact.classes, artifact.geometry)
    regions = features.regions.unflatten(0, (len(raw), -1)).mean(1)
    x = np.asarray(torch.cat([features.pooled, regions], 1))
    x = (x - x.mean(0)) / x.std()
    for photos in PHOTOS:
        for draw in range(draws):
            order = np.random.default_rng([photos, draw]).permutation(len(raw))
            drawn, rest = order[:photos], order[photos:]
            truth, unknown = labels[rest], ignored[rest]
            calibrated = fit_labelled(
                artifact.calibration, raw[drawn], labels[drawn], ignored[drawn]
            )
            started = time.perf_counter()
            adapted = adapt_to_features(
                artifact, features.take(torch.from_numpy(drawn)), labels[drawn], ignored[drawn]
            )
            yield "adapt", photos, "seconds", time.perf_counter() - started
            yield "adapt", photos, "moved", float(adapted.moved)
            classes, geometry = adapted.artifact.classes, artifact.geometry
            after = raw_scores(features.take(torch.from_numpy(rest)), classes, geometry)
            methods = {
                "text": (raw[rest], artifact.calibration),
                "calibrate": (raw[rest], calibrated),
                "adapt": (after, adapted.artifact.calibration),
            }
            for method, (scores, calibration) in methods.items():
                for figure, value in quality(scores, calibration, truth, unknown).items():
                    yield method, photos, figure, value
            none = ~(labels[drawn] & ~ignored[drawn]).any(0)
            change = [
                100 * (a - b)
                for a, b, without in zip(
                    average_precisions(after, truth, unknown),
                    average_precisions(raw[rest], truth, unknown),
                    none,
                    strict=True,
                )
                if a is not None and b is not None and without
            ]
            if change:
                yield "adapt", photos, "no example", float(np.mean(change))
            text = calibrated.slopes * raw[rest] + calibrated.offsets
            probes = [
                probe_logits(x[drawn], labels[drawn], ~ignored[drawn], x[rest], strength)
                for strength in STRENGTHS
            ]
            for method, logits in (("probe", probes), ("text + probe", [text + p for p in probes])):
                maps = [100 * mean_average_precision(one, truth, unknown) for one in logits]
                yield method, photos, "map", max(maps)
            if unlabelled:
                taught = self_taught(artifact, features, raw, calibrated, labels, ignored, drawn)
                scores = raw_scores(features.take(torch.from_numpy(rest)), taught, geometry)
                value = 100 * mean_average_precision(scores, truth, unknown)
                yield "adapt, unlabelled", photos, "map", value


def partly_known(
    calibration: Calibration, raw: np.ndarray, truth: np.ndarray, photos: int, who: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the photos that somebody labels, and the labels that are then known."""
    scores = calibration.scores(raw)
    is_tag = scores >= calibration.thresholds
    if who == "keywords":
        return np.arange(photos), (truth != is_tag)[:photos]
    close = closeness(scores, calibration.thresholds)
    known = np.zeros_like(truth)
    rows: list[int] = []
    for _ in range(photos):
        values = question_values(close, is_tag, known, known.sum(0))
        order = image_values(values)
        order[rows] = -1
        rows.append(int(order.argmax()))
        known[rows[-1], questions(values[rows[-1]])] = True
        if who == "added":
            known[rows[-1]] |= truth[rows[-1]]
    return np.array(rows), known[rows]


def measured_on_partial_labels(
    artifact: Artifact, features: Features, images: LabelledImages, draws: int
) -> Iterator[tuple[str, int, str, float]]:
    """(method, photos, figure, value) of each draw; adapt's gains are over `text, partial`."""
    assert images.ignored is not None
    raw = raw_scores(features, artifact.classes, artifact.geometry)
    for photos in (20, 50):
        for draw in range(draws):
            order = np.random.default_rng([photos, draw]).permutation(len(raw))
            pool, rest = order[:300], order[300:]
            truth, unknown = images.labels[rest], images.ignored[rest]
            before = quality(raw[rest], artifact.calibration, truth, unknown)
            for figure, value in before.items():
                yield "text, partial", photos, figure, value
            for who in ("questions", "added", "keywords"):
                rows, known = partly_known(
                    artifact.calibration, raw[pool], images.labels[pool], photos, who
                )
                drawn = pool[rows]
                adapted = adapt_to_features(
                    artifact,
                    features.take(torch.from_numpy(drawn)),
                    images.labels[drawn],
                    ~known | images.ignored[drawn],
                ).artifact
                after = raw_scores(
                    features.take(torch.from_numpy(rest)), adapted.classes, artifact.geometry
                )
                found = quality(after, adapted.calibration, truth, unknown)
                tags = adapted.calibration.scores(after) >= adapted.calibration.thresholds
                yield f"adapt, {who}", photos, "f1", found["f1"]
                yield f"adapt, {who}", photos, "gain", found["map"] - before["map"]
                yield f"adapt, {who}", photos, "tags a photo", float(tags.sum(1).mean())
                yield f"adapt, {who}", photos, "known labels a photo", float(known.sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--artifact", action="append", required=True, metavar="SET=FOLDER")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--unlabelled", action="store_true")
    parser.add_argument("--partial", action="store_true")
    args = parser.parse_args()
    figures: dict[str, dict[str, list[float]]] = {}
    for given in args.artifact:
        name, _, folder = given.partition("=")
        artifact = Artifact.load(folder)
        images = photos_of(name, args.photos, artifact)
        vlm = load_vlm(artifact.vlm_settings, cache=args.cache)
        key = digest([vlm.identity.model_dump(mode="json"), list(map(str, images.files))])[:20]
        kept = args.cache / "adapt" / f"photos-{key}"
        features = photo_features(vlm, images, kept).float()
        found: dict[str, list[float]] = {}
        of_draws = measured(artifact, features, images, args.draws, args.unlabelled)
        partial = measured_on_partial_labels(artifact, features, images, args.draws)
        for method, photos, figure, value in chain(of_draws, partial if args.partial else ()):
            found.setdefault(f"{method}, {photos}, {figure}", []).append(value)
            if figure == "map" and method not in ("text", "calibrate", "text, partial"):
                gain = value - found[f"text, {photos}, map"][-1]
                found.setdefault(f"{method}, {photos}, gain", []).append(gain)
        figures[name] = {
            key: [
                round(float(np.mean(values)), 2),
                round(float(t.ppf(0.975, len(values) - 1) * sem(values)), 2),
            ]
            for key, values in found.items()
            if len(values) > 1
        }
        for key, (mean, half) in figures[name].items():
            print(f"{name}, {key}: {mean} ± {half}", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
