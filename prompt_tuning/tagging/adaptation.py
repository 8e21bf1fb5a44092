"""Adapting an artifact to a person's labelled images: class features, scores and thresholds.

The class features that text tuned are the prior, and images move them as far as they can justify.
Near the prior a raw score is linear in the class's features, so a category's moves `u` minimise

    Σ_images BCE(logit + z · u + b, label) + (|u|² + b²) / 2

over the images: a logistic regression on the gradients `z` of the raw score in the class features
of both branches, centred, and scaled to a mean square length of `_STD²` a branch; `logit` is the
calibrated score's. Where the label is unknown, the artifact's own score takes its place (see
`photo_calibration.evidence`). The problem is convex, and categories are independent.
These are residuals in feature space (TaskRes, arXiv 2211.10277). A category that no image shows
stays: moved by negatives alone it lost up to 0.8 AP (docs/adapt.md).

Five folds give each image scores that it did not teach. They show what adapting gains, and whether
the class features should move at all; and the calibration is fitted to them, since scores are too
sure of images that taught them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_tuning.backbones.base import VLM, Geometry
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.metrics import contrasted, mean_average_precision
from prompt_tuning.features import Features, concatenate
from prompt_tuning.tagging.artifact import Artifact, Learned
from prompt_tuning.tagging.photo_calibration import (
    FOLDS,
    Evidence,
    Quality,
    cross_validated,
    evidence,
    fit_labelled,
    folds,
    unfitted,
)
from prompt_tuning.tagging.tag_stream import encode_files
from prompt_tuning.tuning.scoring import raw_image_scores

# Of the change of a logit that the prior expects from each branch (trials: docs/adapt.md).
_STD = 1.5
_ITERATIONS = 100
_BLOCK = 2**26  # numbers of the gradients of a block of classes
_FEW_KNOWN = 0.5
_IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class Adaptation:
    """An adapted artifact, and its quality on labelled images that did not teach it.

    `moved`: whether class features moved, or only scores and thresholds. `before`, `after`: quality
    of scores and tags. `maps`: mAP (0-100) before and after, over the labels that at least five
    images show and others do not, or None if there is no such label. `problems`: of each image
    that cannot be read. `known`: share of the labels of the images that are known.
    """

    artifact: Artifact
    moved: bool
    before: Quality
    after: Quality
    maps: tuple[float, float] | None
    known: float
    problems: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """Sentences about the gain, for people."""
        before, after = self.before, self.after
        maps = "" if self.maps is None else "mAP {:.1f} → {:.1f}; ".format(*self.maps)
        lines = [
            f"On images that did not teach it (five folds), before → after: {maps}F1 of the tags "
            f"{before.micro_f1:.1f} → {after.micro_f1:.1f}, as a mean over labels "
            f"{before.macro_f1:.1f} → {after.macro_f1:.1f}; calibration error {before.ece:.1f} → "
            f"{after.ece:.1f}."
        ]
        if self.known < _FEW_KNOWN:
            lines.append(
                f"{100 * self.known:.0f} % of all pairs of image and label are known. The figures "
                "are of those, and people do not choose them at random."
            )
        if not self.moved:
            lines.append(
                "Moving the class features made other images worse, so they stay: only scores and "
                "thresholds change."
            )
        return lines


def adapt(
    artifact: Artifact,
    vlm: VLM,
    images: LabelledImages,
    *,
    seed: int = 0,
    threads: int = 1,
    on_image: Callable[[], None] = lambda: None,
    encoded: Sequence[Features | str] | None = None,
) -> Adaptation:
    """Adapt an artifact to labelled images; its field `learned` says what it learned from.

    `images`: over the artifact's categories; ignored entries are unknown. Images that cannot be
    read are left out. `seed`: of the folds. `threads`: how many batches are read and encoded at
    once. `on_image` is called after each image. `encoded`: what `encode_files` gave for the
    images, where the caller has it.

    Raises:
        ValueError: in one line, if fewer than five images can be read and have a known label, if
            none shows a label, and if labelled images taught the artifact before.
    """
    artifact.check_vlm(vlm)
    if artifact.calibration.labelled_photos:
        raise ValueError(
            "labelled photos taught this artifact before, and would count twice; start from the "
            "artifact before that, with all labelled photos"
        )
    if encoded is None:
        encoded = []
        for one in encode_files(vlm, images.files, threads):
            encoded.append(one)
            on_image()
    ignored = np.zeros_like(images.labels) if images.ignored is None else images.ignored
    rows = [
        row
        for row, features in enumerate(encoded)
        if isinstance(features, Features) and not ignored[row].all()
    ]
    if len(rows) < FOLDS:
        raise ValueError(
            f"at least {FOLDS} readable images with labels are required (got {len(rows)})"
        )
    features = concatenate(one for row in rows if isinstance(one := encoded[row], Features))
    adapted = adapt_to_features(artifact, features, images.labels[rows], ignored[rows], seed)
    learned = Learned(
        by="adapt",
        moved=adapted.moved,
        parent=artifact.version,
        images=tuple(sorted({str(images.contents[row]) for row in rows})),
        figures=tuple(adapted.lines),
    )
    problems = tuple(
        f"{file}: {one}"
        for file, one in zip(images.files, encoded, strict=True)
        if isinstance(one, str)
    )
    return replace(adapted, artifact=replace(adapted.artifact, learned=learned), problems=problems)


def adapt_to_features(
    artifact: Artifact, features: Features, labels: np.ndarray, ignored: np.ndarray, seed: int = 0
) -> Adaptation:
    """As `adapt`, from the features of the images; `labels`, `ignored`: `(images, classes)`."""
    if not (labels & ~ignored).any():
        raise ValueError("at least one image must show a label")
    calibration, every = artifact.calibration, np.arange(len(labels))
    raw = raw_scores(features, artifact.classes, artifact.geometry)
    splits = folds(len(labels), seed)
    *of_folds, of_all = moved_classes(
        artifact, features, raw, labels, ignored, [*(others for _, others in splits), every]
    )
    unseen = np.empty_like(raw)
    for (fold, others), classes in zip(splits, of_folds, strict=True):
        change = raw_scores(features, classes, artifact.geometry) - raw
        unseen[fold] = (raw + change - change[others].mean(0))[fold]
    kept = cross_validated(calibration, raw, labels, ignored, seed)
    moved = cross_validated(calibration, unseen, labels, ignored, seed)
    before = unfitted(calibration, raw).quality(labels, ignored)
    measured = contrasted(labels, ignored) & ((labels & ~ignored).sum(0) >= FOLDS)
    maps = [
        100 * mean_average_precision(scores[:, measured], labels[:, measured], ignored[:, measured])
        for scores in (raw, unseen)
    ]
    if clearly_worse(kept.scores, moved.scores, evidence(calibration, raw, labels, ignored)):
        return Adaptation(
            replace(artifact, calibration=fit_labelled(calibration, raw, labels, ignored)),
            False,
            before,
            kept.quality(labels, ignored),
            (maps[0], maps[0]) if measured.any() else None,
            float((~ignored).mean()),
        )
    fitted = fit_labelled(calibration, unseen, labels, ignored)
    shift = (raw_scores(features, of_all, artifact.geometry) - raw).mean(0)
    return Adaptation(
        replace(
            artifact,
            classes=of_all,
            calibration=replace(fitted, offsets=fitted.offsets - fitted.slopes * shift),
        ),
        True,
        before,
        moved.quality(labels, ignored),
        (maps[0], maps[1]) if measured.any() else None,
        float((~ignored).mean()),
    )


def clearly_worse(kept: np.ndarray, moved: np.ndarray, evidence: Evidence) -> bool:
    """Whether moving makes scores of images that did not teach clearly worse.

    Clearly: the mean over images of the rise of the log loss is more than two standard errors above
    0. Folds teach with fewer images than there are, and moving helped on all photos it was measured
    on, so doubt speaks for it.
    """
    rise = _log_losses(moved, evidence) - _log_losses(kept, evidence)
    return bool(rise.mean() > 2 * rise.std(ddof=1) / np.sqrt(len(rise)))


def _log_losses(scores: np.ndarray, evidence: Evidence) -> np.ndarray:
    """The log loss of each image, summed over its labels, `(images,)`."""
    yes, no = np.log(scores.clip(1e-9)), np.log((1 - scores).clip(1e-9))
    losses = -(evidence.values * yes + (1 - evidence.values) * no)
    return np.asarray((evidence.weights * losses).sum(1))


def moved_classes(
    artifact: Artifact,
    features: Features,
    raw: np.ndarray,
    labels: np.ndarray,
    ignored: np.ndarray,
    subsets: Sequence[np.ndarray],
) -> list[ClassFeatures]:
    """The class features after the images of each subset, given by their rows, have moved them.

    `raw`: the artifact's scores of all images, `(images, classes)`.
    """
    geometry, positives = artifact.geometry, labels & ~ignored
    calibrations = [
        fit_labelled(artifact.calibration, raw[rows], labels[rows], ignored[rows])
        for rows in subsets
    ]
    moved = [
        ClassFeatures(artifact.classes.pooled.clone(), artifact.classes.local.clone())
        for _ in subsets
    ]
    numbers = 2 * len(raw) * artifact.classes.pooled.shape[1]
    shown = np.flatnonzero(positives.any(0))
    for start in range(0, len(shown), size := max(1, _BLOCK // numbers)):
        block = shown[start : start + size]
        both_branches = score_gradients(
            features, artifact.classes, geometry, torch.from_numpy(block)
        )
        for rows, calibration, classes in zip(subsets, calibrations, moved, strict=True):
            has_example = positives[np.ix_(rows, block)].any(0)
            columns = block[has_example]
            if not len(columns):
                continue
            own, at = calibration.of(columns.tolist()), np.ix_(rows, columns)
            prior = artifact.calibration.of(columns.tolist())
            logits = own.slopes * raw[at] + own.offsets
            moves = fitted_moves(
                [branch[rows][:, has_example] for branch in both_branches],
                *(
                    torch.from_numpy(array).float()
                    for array in (logits, *evidence(prior, raw[at], labels[at], ignored[at]))
                ),
            )
            slopes = torch.from_numpy(own.slopes).float()[:, None]
            for of_branch, move in zip((classes.pooled, classes.local), moves, strict=True):
                of_branch[columns] += move / slopes
    return moved


def fitted_moves(
    gradients: Sequence[Tensor], logits: Tensor, values: Tensor, weights: Tensor
) -> list[Tensor]:
    """The moves `(classes, dim)` of each branch, in units of logits per raw score.

    Args:
        gradients: for each branch `(images, classes, dim)`.
        logits: `(images, classes)`, without moves.
        values: `(images, classes)`, from 0 to 1, what the images say about the labels.
        weights: `(images, classes)`, of each value.
    """
    centred = [gradient - gradient.mean(0) for gradient in gradients]
    stretches = [
        _STD / z.square().sum(-1).mean(0).sqrt().clamp_min(1e-12)[:, None] for z in centred
    ]
    directions = [stretch * z for stretch, z in zip(stretches, centred, strict=True)]
    moves = [z.new_zeros(z.shape[1:]).requires_grad_() for z in directions]
    offsets = logits.new_zeros(logits.shape[1]).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [*moves, offsets],
        max_iter=_ITERATIONS,
        tolerance_grad=1e-3,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        moved = logits + offsets
        for z, move in zip(directions, moves, strict=True):
            moved = moved + torch.einsum("ncd,cd->nc", z, move)
        losses = F.binary_cross_entropy_with_logits(moved, values, weights, reduction="sum")
        total = losses + sum(p.square().sum() for p in (*moves, offsets)) / 2
        total.backward()
        return total

    optimizer.step(loss)
    return [stretch * move.detach() for stretch, move in zip(stretches, moves, strict=True)]


def score_gradients(
    features: Features, classes: ClassFeatures, geometry: Geometry, block: Tensor
) -> tuple[Tensor, Tensor]:
    """Each image's gradient of the raw scores of a block of classes in their global and local class
    features, `(images, block, dim)` each."""

    def total(pooled: Tensor, local: Tensor, image: Features) -> Tensor:
        # A class's score depends on its own features only.
        return raw_image_scores(image, pooled, local, geometry).sum()

    of_classes = torch.func.grad(total, (0, 1))
    found = [
        of_classes(classes.pooled[block], classes.local[block], features.take(torch.tensor([row])))
        for row in range(len(features.pooled))
    ]
    of_pooled, of_local = zip(*found, strict=True)
    return torch.stack(of_pooled), torch.stack(of_local)


def raw_scores(features: Features, classes: ClassFeatures, geometry: Geometry) -> np.ndarray:
    """Raw scores `(images, classes)`, in double precision."""
    scores = [
        raw_image_scores(features.take(rows), classes.pooled, classes.local, geometry)
        for rows in torch.arange(len(features.pooled)).split(_IMAGES_AT_ONCE)
    ]
    return np.asarray(torch.cat(scores).double())
