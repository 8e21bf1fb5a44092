"""Calibration by photos: the fit against scores whose probabilities are known, and the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import Done, run_datafree
from test_calibration import OFFSETS, SLOPES, drawn, known
from tiny_artifact import NAMES

from prompt_tuning import Artifact, Tagger
from prompt_tuning.datasets.scenes import SceneSettings, compose_scenes
from prompt_tuning.tagging.calibration import calibration_quality
from prompt_tuning.tagging.photo_calibration import (
    cross_validated,
    fit_labelled,
    fit_unlabelled,
    unfitted,
)


def test_many_labelled_photos_decide_and_a_few_adjust_the_earlier_calibration() -> None:
    off = known(SLOPES * 0.6, OFFSETS * 0.6 - 1.5)
    raw, labels = drawn(20_000, seed=1)
    truth = calibration_quality(raw, labels, None, known())
    ece, f1 = [], []
    for photos in (20, 100, 5000):
        fitted = fit_labelled(off, *drawn(photos, seed=2))
        quality = calibration_quality(raw, labels, None, fitted)
        ece.append(quality["ece"])
        f1.append(quality["at_thresholds"]["micro"]["f1"])
    before = calibration_quality(raw, labels, None, off)
    assert before["ece"] > ece[0] > ece[1] > ece[2]
    assert ece[2] < 1
    assert before["at_thresholds"]["micro"]["f1"] < f1[0]
    assert f1[2] > truth["best_f1"]["micro"] - 1
    np.testing.assert_allclose(fitted.slopes, SLOPES, rtol=0.15)
    # Without a photo's label nothing moves but by what all categories share.
    raw, labels = drawn(20, seed=3)
    unknown = np.ones_like(labels)
    unknown[:, :3] = False
    fitted = fit_labelled(off, raw, labels, unknown)
    assert fitted.slopes[3] / off.slopes[3] == pytest.approx(fitted.shared[0])
    assert fitted.offsets[3] == pytest.approx(
        fitted.shared[0] * off.offsets[3] + fitted.shared[1] - fitted.shared[0]
    )


def test_ignored_labels_do_not_matter() -> None:
    raw, labels = drawn(60, seed=2)
    ignored = np.random.default_rng(0).random(labels.shape) < 0.3
    one, two = (fit_labelled(known(), raw, shown, ignored) for shown in (labels, labels ^ ignored))
    np.testing.assert_array_equal(one.slopes, two.slopes)
    np.testing.assert_array_equal(one.offsets, two.offsets)


def test_thresholds_without_labels_are_those_of_the_best_f1_to_expect() -> None:
    raw, labels = drawn(20_000, seed=1)
    calibration = replace(known(), thresholds=np.full(4, 0.6))
    fitted = fit_unlabelled(calibration, drawn(5000, seed=2)[0])
    np.testing.assert_array_equal(fitted.scores(raw), calibration.scores(raw))
    quality = calibration_quality(raw, labels, None, fitted)
    assert quality["at_thresholds"]["macro"]["f1"] > quality["best_f1"]["macro"] - 0.5


def test_a_rare_label_is_not_put_on_every_photo() -> None:
    # Of a label that all photos show next to nothing of, the best F1 to expect tags them all.
    rare = known(SLOPES, OFFSETS - [0, 0, 0, 9])
    raw, labels = drawn(60, seed=2)
    labels[:, 3] = False
    rare = replace(rare, thresholds=np.full(4, 0.4))
    assert rare.scores(raw)[:, 3].sum() < 1
    for fitted in (fit_unlabelled(rare, raw), fit_labelled(rare, raw, labels)):
        assert not (fitted.scores(raw)[:, 3] >= fitted.thresholds[3]).any()


def test_figures_of_a_fit_come_from_photos_that_it_did_not_see() -> None:
    raw, labels = drawn(4000, seed=2)
    noise = np.random.default_rng(0).random(labels.shape) < 0.3  # nothing to be learnt
    after = cross_validated(known(), raw[:40], noise[:40], None).quality(noise[:40], None)
    seen = calibration_quality(
        raw[:40], noise[:40], None, fit_labelled(known(), raw[:40], noise[:40])
    )
    assert after.micro_f1 < seen["at_thresholds"]["micro"]["f1"]
    off = known(SLOPES, OFFSETS - 2)
    before = unfitted(off, raw).quality(labels, None)
    after = cross_validated(off, raw, labels, None).quality(labels, None)
    assert after.ece < before.ece
    assert after.micro_f1 > before.micro_f1


@pytest.fixture
def calibrate(
    artifact: Path,
    tmp_path: Path,
    lasting_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Done]:
    """Calls `datafree calibrate` with the artifact, in this process and an empty folder."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("DATAFREE_CACHE", str(lasting_cache))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_datafree(monkeypatch, capsys, "calibrate", artifact, *arguments)


def write_photos(stamps: Path, count: int) -> list[Path]:
    """Composed scenes in `photos`."""
    compose_scenes(stamps, SceneSettings(images=count, size=160), Path("photos"))
    return sorted(Path("photos").rglob("*.[jp][pn]g"))


def test_labelled_photos_make_a_new_artifact(
    calibrate: Callable[..., Done],
    artifact: Path,
    lasting_cache: Path,
    stamps: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = write_photos(stamps, 24)
    tagger = Tagger.load(artifact, "cpu", lasting_cache)
    raw = tagger.raw_scores(files)
    labels = raw > np.quantile(raw, 0.7, axis=0)  # what a fit can find
    rows = []
    for file, row in zip(files, labels, strict=True):
        shown = ";".join(name for name, of in zip(NAMES, row, strict=True) if of)
        rows.append(f"{file.relative_to('photos')},{shown}")
    Path("photos/broken.jpg").write_bytes(b"no image")
    Path("photos/labels.csv").write_text("\n".join([*rows, f"broken.jpg,{NAMES[0]}"]) + "\n")
    done = calibrate("--root", "photos", "--out", "fitted")
    assert done.code == 0, done.err
    assert "broken.jpg: cannot be read" in done.err
    assert "five folds of 24" in done.err
    fitted = Artifact.load("fitted")
    expected = fit_labelled(Artifact.load(artifact).calibration, raw, labels)
    np.testing.assert_allclose(fitted.calibration.slopes, expected.slopes, rtol=1e-3)
    np.testing.assert_allclose(fitted.calibration.thresholds, expected.thresholds, atol=1e-3)
    assert fitted.calibration.labelled_photos == 24
    assert fitted.calibration.source == "held-out sentences and 24 labelled photos"
    tags = Tagger.load("fitted", "cpu", lasting_cache).tag(files)
    given = np.array([[name in {tag.name for tag in one} for name in NAMES] for one in tags])
    assert (given == labels).mean() > 0.9
    done = calibrate("--root", "photos", "--out", "fitted")
    assert (done.code, "exists already" in done.err) == (2, True)
    again = ("calibrate", "fitted", "--root", "photos", "--out", "twice")
    done = run_datafree(monkeypatch, capsys, *again)
    assert (done.code, "which would count twice" in done.err) == (2, True)


def test_what_all_photos_show_is_not_fitted(
    calibrate: Callable[..., Done], artifact: Path, stamps: Path
) -> None:
    files = [file.relative_to("photos") for file in write_photos(stamps, 12)]
    table = Path("photos/labels.csv")
    table.write_text("".join(f"{file},{NAMES[0]}\n" for file in files))
    done = calibrate("--root", "photos", "--out", "fitted")
    assert done.code == 2
    assert f"(on all photos: {NAMES[0]})" in done.err
    assert not Path("fitted").exists()
    # Rows of an image are merged: there are twelve photos.
    with table.open("a") as stream:
        stream.writelines(f"{file},{NAMES[1].upper()}\n" for file in files[:6])
    done = calibrate("--root", "photos", "--out", "fitted")
    assert done.code == 0, done.err
    assert f"All photos show {NAMES[0]}: the figures leave this out" in done.err
    assert "five folds of 12" in done.err
    before, after = (Artifact.load(folder).calibration for folder in (artifact, Path("fitted")))
    steeper = after.shared[0] / before.shared[0]
    np.testing.assert_allclose(after.slopes[0], before.slopes[0] * steeper)
    assert after.slopes[1] != pytest.approx(before.slopes[1] * steeper)


def test_photos_without_labels_move_thresholds_only(
    calibrate: Callable[..., Done], artifact: Path, stamps: Path
) -> None:
    write_photos(stamps, 12)
    done = calibrate("photos", "--out", "fitted")
    assert done.code == 0, done.err
    assert "12 photos are few; use 50 or more" in done.err
    before, after = (Artifact.load(folder).calibration for folder in (artifact, Path("fitted")))
    np.testing.assert_array_equal(before.slopes, after.slopes)
    np.testing.assert_array_equal(before.offsets, after.offsets)
    assert (before.thresholds != after.thresholds).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either unlabelled photos or --root with labelled ones"),
        (["photos", "--root", "photos"], "(got both)"),
        (["photos", "--dataset", "folder"], "--dataset: only goes with --root"),
        (["nowhere"], "nowhere"),
        (["--root", "nowhere"], "nowhere"),
        (["--root", "photos", "--dataset", "images"], "--dataset: Input should be"),
        (["--root", "photos", "--split", "val"], "split: only goes with dataset"),
        (["--root", "photos"], "at least 10 readable photos are required (got 1)"),
    ],
)
def test_mistakes_are_reported(
    calibrate: Callable[..., Done], stamps: Path, arguments: list[str], message: str
) -> None:
    [file] = write_photos(stamps, 1)
    Path("photos/labels.csv").write_text(f"{file.relative_to('photos')},{NAMES[0]}\n")
    done = calibrate(*arguments, "--out", "fitted")
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert not Path("fitted").exists()
