"""`datafree evaluate`: a finished run on labelled photos, through the command line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
import yaml
from command_line import run_datafree
from PIL import Image
from sklearn.metrics import average_precision_score

from orchestrator.config.models import EvaluationSettings
from orchestrator.evaluate.job import chosen_settings, evaluation_name
from prompt_tuning.backbones.base import VLM, Geometry, VLMIdentity, VLMSettings
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.datasets.scenes import SceneSettings
from prompt_tuning.evaluation.baselines import UNTUNED, ClassFeatures, MethodFeatures
from prompt_tuning.evaluation.method_scores import method_scores
from prompt_tuning.evaluation.selection import Selection, split_halves
from prompt_tuning.images import open_image
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.calibration import Calibration, calibration_quality
from prompt_tuning.tagging.new_labels import TunedTokens
from prompt_tuning.tagging.tagger import Tagger

NAMES = ["dog", "violin", "lemon", "car"]
SHOWN = (["dog"], ["dog", "car"], ["lemon"], ["car"], [], ["car", "lemon"])
PHOTOS = {f"{letter}.jpg": SHOWN[i % 6] for i, letter in enumerate("abcdefghijkl")}

Call = Callable[..., str]


@pytest.fixture
def datafree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Calls the command line in this process: what it printed, or, with `refused`, its error."""
    for name in ("DATAFREE_CACHE", "DATAFREE_RUNS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, refused: bool = False) -> str:
        code, out, err = run_datafree(monkeypatch, capsys, *arguments)
        assert code == (2 if refused else 0), (out, err)
        assert not ray.is_initialized()
        message = err.partition("error: ")[2]  # bars of libraries may stand before it
        assert not refused or message.count("\n") == 1, err
        return message if refused else " ".join(out.split())

    return call


def write_photos(folder: Path, photos: dict[str, list[str]] = PHOTOS) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name in photos:
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((90, 70), Image.Resampling.BICUBIC).save(folder / name)
    label(folder, photos)


def label(folder: Path, photos: dict[str, list[str]]) -> None:
    rows = (f"{name},{';'.join(labels)}\n" for name, labels in photos.items())
    (folder / "labels.csv").write_text("".join(rows), "utf-8")


def features_folders() -> set[Path]:
    return set(Path("cache/image_features").glob("*"))


def with_classes(run: Path, target: Path, names: list[str]) -> None:
    """A copy of a run that has only these of its classes, in this order."""
    shutil.copytree(run, target)
    artifact, methods = (
        Artifact.load(run / "artifact"),
        MethodFeatures.load(run / "class_features.safetensors"),
    )
    rows = [artifact.categories.index(name) for name in names]

    def some(of: ClassFeatures) -> ClassFeatures:
        return ClassFeatures(of.pooled[rows], of.local[rows])

    listed = tuple(artifact.categories.categories[row] for row in rows)
    replace(
        artifact,
        categories=CategoryList(categories=listed),
        tree={"all": {"all": names}},
        classes=some(artifact.classes),
        calibration=artifact.calibration.of(rows),
    ).save(target / "artifact")
    MethodFeatures(
        {method: some(of) for method, of in methods.untuned.items()},
        {seed: some(of) for seed, of in methods.tuned.items()},
    ).save(target / "class_features.safetensors")


def test_a_run_is_evaluated_on_photos_and_against_another(
    datafree: Call, tmp_path: Path, embedded_vlm: VLM, lasting_cache: Path
) -> None:
    settings = {
        "name": "tiny",
        "categories": NAMES,
        "knowledge": {"questions": {"per_category": 0, "relationships": 0}},
        "captions": {"templates": True},
        "hierarchy": {"coarse": 2, "fine": 2},
        "vlm": {"model": embedded_vlm.identity.model, "resolution": 224},
        "prompts": {"global_branch": {"learn": "tokens+residuals"}},
        # So wide that the captions, which are CLIP's templates, have something to move.
        "losses": {"margin": 4.0},
        "tuning": {"epochs": 1, "batch": 64, "cpus_per_worker": 0.5},
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    Path("cache").mkdir()
    Path("cache/imagenet_anchors").symlink_to(lasting_cache / "imagenet_anchors")
    run = Path("runs/tiny")

    # Both seeds that this test needs are tuned here, while Ray runs.
    datafree("run", "tiny.yaml", "--runs", "first", "--set=seeds=[0, 1]")
    datafree("run", "tiny.yaml")
    methods = MethodFeatures.load(run / "class_features.safetensors")
    assert list(methods.untuned) == list(UNTUNED)
    artifact = Artifact.load(run / "artifact")
    assert torch.equal(methods.tuned[0].pooled, artifact.classes.pooled)
    assert torch.equal(methods.tuned[0].local, artifact.classes.local)
    on_captions = json.loads((run / "metrics/held_out_captions.json").read_bytes())
    assert on_captions == json.loads((run / "metrics.json").read_bytes())
    page = (run / "report.html").read_text("utf-8")
    assert "Prompts tuned on 320 captions (all of them from CLIP" in page
    assert "The captions that moved each label most" in page
    explained = json.loads((run / "explanations.json").read_bytes())
    assert list(explained["labels"]) == NAMES
    strongest = explained["labels"][NAMES[0]][0]
    assert set(strongest) == {"text", "labels", "share", "pull"}
    out = datafree("explain", run / "artifact", f"{NAMES[0]}s".upper())
    assert f"captions that moved '{NAMES[0]}' most" in out
    assert f"{100 * strongest['share']:.1f} %" in out
    Image.new("RGB", (64, 48), "brown").save("brown.png")
    out = datafree("explain", run / "artifact", NAMES[0], "--image", "brown.png")
    assert f"captions that speak most for '{NAMES[0]}' in brown.png" in out
    err = datafree("explain", run / "artifact", "spoon", refused=True)
    assert f"'spoon' must be a label of {run}/artifact: {NAMES[0]}, " in err
    shutil.copytree(run / "artifact", "alone/artifact")
    err = datafree("explain", "alone/artifact", NAMES[0], refused=True)
    assert "explanations.json is missing: `datafree run` writes it" in err
    err = datafree("explain", run / "artifact", NAMES[0], "--image", "no.png", refused=True)
    assert "no.png" in err

    err = datafree("evaluate", run, refused=True)
    assert "--dataset: is missing" in err

    # What a run needs and an evaluation does not: nothing of it may be missed.
    for stage in ("knowledge", "caption_features", "tuning", "evaluation"):
        Path("cache", stage).rename(f"{stage}-of-the-run")
    write_photos(Path("photos"))
    Path("photos/broken.jpg").write_bytes(b"no image")
    label(Path("photos"), {**PHOTOS, "broken.jpg": ["dog"]})
    on_photos = ("evaluate", run, "--dataset", "folder", "--root", "photos")
    out = datafree(*on_photos)
    assert "image features: 12 to do" in out
    assert "cannot be read: 1 of the images" in out
    assert "which is not CLIP" in out
    (metrics_file,) = run.glob("metrics/folder-photos-*.json")
    (page_file,) = run.glob("evaluation-folder-photos-*.html")
    assert str(metrics_file) in out
    assert str(page_file) in out
    metrics = json.loads(metrics_file.read_bytes())
    assert metrics["images"] == 12
    assert metrics["notes"] == []
    assert metrics["protocol"]["selected_on"] == "text: held-out captions"
    assert metrics["protocol"]["images_left_out_as_unreadable"] == 1
    assert metrics["protocol"]["classes_without_positives"] == "violin"
    assert metrics["positives"] == {"dog": 4, "violin": 0, "lemon": 4, "car": 6}
    assert "against" not in metrics
    pixels = [embedded_vlm.preprocess(open_image(Path("photos", name))) for name in PHOTOS]
    of_photos = embedded_vlm.encode_image(torch.stack(pixels))

    def scores_by(classes: ClassFeatures) -> np.ndarray:
        return method_scores(of_photos, classes, artifact.geometry, "mean")["fused"]

    scores = scores_by(artifact.classes)
    shown_in = np.array([[name in labels for name in NAMES] for labels in PHOTOS.values()])
    quality = calibration_quality(scores, shown_in, None, artifact.calibration)
    assert metrics["calibration"]["ece"] == pytest.approx(quality["ece"], abs=0.01)
    assert metrics["calibration"]["best_f1"] == pytest.approx(quality["best_f1"])
    # What the run leaves is all that a tagger needs, for new labels too.
    assert sorted(artifact.tokens.tensors) == [
        *("global.residuals", "global.rows", "global.table", "local.residuals")
    ]
    tagger = Tagger.load(run / "artifact", device="cpu", cache=lasting_cache)
    photos = [Path("photos", name) for name in PHOTOS]
    expected = artifact.calibration.scores(scores)
    np.testing.assert_allclose(tagger.scores(photos), expected, atol=1e-4)
    assert tagger.with_labels(["cat", "dog"]).scores(photos[:1]).shape == (1, 2)
    for c, name in enumerate(NAMES):
        shown = [name in labels for labels in PHOTOS.values()]
        ap = 100 * average_precision_score(shown, scores[:, c]) if any(shown) else None
        assert metrics["ap"]["tuned"][name] == (ap if ap is None else pytest.approx(ap))
    assert f"{metrics['map']['tuned']['fused']:.1f} mAP" in out
    assert f"{metrics['map']['templates']['local']:.1f}" in out
    page = page_file.read_text("utf-8")
    # Of each class, violin too, the image that is most like it and does not show it.
    assert page.count("data:image/jpeg;base64,") == 4
    assert "tiny on folder" in page

    # Again, and with other labels: the images are the same.
    (encoded,) = features_folders()
    assert "image features" not in datafree(*on_photos)
    assert json.loads(metrics_file.read_bytes()) == metrics
    label(Path("photos"), {**PHOTOS, "a.jpg": ["violin"], "broken.jpg": ["dog"]})
    assert "image features" not in datafree(*on_photos)
    relabelled = json.loads(metrics_file.read_bytes())
    assert relabelled["positives"] == {"dog": 3, "violin": 1, "lemon": 4, "car": 6}
    label(Path("photos"), {**PHOTOS, "broken.jpg": ["dog"]})
    assert features_folders() == {encoded}

    # Against itself, and against a run that has other classes in another order.
    own = datafree(*on_photos, "--against", run)
    assert "a difference of 0.0 (95 % interval 0.0 to 0.0)" in own
    assert "a difference of 0.0" in page_file.read_text("utf-8")
    with_classes(run, Path("runs/some"), ["car", "violin", "dog"])
    datafree(*on_photos, "--against", "runs/some")
    against = json.loads(metrics_file.read_bytes())["against"]
    of_both = np.mean([metrics["ap"]["tuned"][name] for name in ("car", "dog")])
    assert against == {
        "run": "runs/some",
        "classes": 2,
        "map": {"this": pytest.approx(of_both), "other": pytest.approx(of_both)},
        "difference": {"mean": 0.0, "low": 0.0, "high": 0.0},
    }

    # An adapted artifact is measured on photos that did not teach it, whatever they are called.
    Path("mine").mkdir()
    for name in list(PHOTOS)[:8]:
        shutil.copy(Path("photos", name), Path("mine", f"my-{name}"))
    label(Path("mine"), {f"my-{name}": PHOTOS[name] for name in list(PHOTOS)[:8]})
    datafree("adapt", run / "artifact", "--root", "mine", "--out", "better")
    said = datafree(*on_photos, "--artifact", "better")
    assert "better, which learned from 8 labelled images (the 8 among these are left out)" in said
    [adapted_file] = run.glob("metrics/*-adapted-*.json")
    of_better = json.loads(adapted_file.read_bytes())
    assert (of_better["images"], of_better["adapted"]["learned_from_images"]) == (4, 8)
    assert of_better["protocol"]["images_left_out_as_they_taught"] == 8
    assert json.loads(metrics_file.read_bytes())["images"] == metrics["images"]
    err = datafree(
        *("evaluate", run, "--dataset", "folder", "--root", "mine", "--artifact", "better"),
        refused=True,
    )
    assert "every image that shows a category taught the artifact" in err
    err = datafree(*on_photos, "--artifact", "runs/some/artifact", refused=True)
    assert "--artifact: runs/some/artifact must be made by adapt or calibrate" in err

    # A run's own evaluation is the same thing: its features are those, and its figures too.
    for stage in ("knowledge", "caption_features", "tuning", "evaluation"):
        shutil.rmtree(Path("cache", stage), ignore_errors=True)
        Path(f"{stage}-of-the-run").rename(Path("cache", stage))
    folder = ("evaluation.dataset=folder", "evaluation.root=photos")
    of_run = datafree("run", "tiny.yaml", "--runs", "again", *(f"--set={o}" for o in folder))
    assert "image features" not in of_run
    own_metrics = json.loads(Path("again/tiny/metrics.json").read_bytes())
    assert own_metrics.pop("captions") == {
        "training": 286,
        "held_out": 34,
        "labels_without_training": [],
        "labels_without_held_out": [],
    }
    for page in (of_run, Path("again/tiny/report.html").read_text("utf-8")):
        assert "Only 34 captions were held out to choose the checkpoint" in page
    assert own_metrics == metrics
    datafree("evaluate", "again/tiny")
    assert json.loads(Path("again/tiny/metrics/folder.json").read_bytes()) == metrics

    # Half of the photos selects between two seeds, and only the other half is reported, here and
    # in whatever data set the photos turn up.
    two = (*folder, "evaluation.select_on=evaluation", "evaluation.split_seed=2", "seeds=[0, 1]")
    out = datafree("run", "tiny.yaml", "--runs", "halves", *(f"--set={option}" for option in two))
    assert "mAP on 6 images of folder (without the 6 used for selection)" in out
    assert "Intervals need at least 10 images (got 6)." in out
    halves = Path("halves/tiny")
    half = json.loads((halves / "metrics.json").read_bytes())
    assert half.pop("captions")["held_out"] > 0
    selecting, reported = split_halves(12, 2)
    assert half["images"] == 6
    assert half["protocol"]["images_left_out_as_they_selected"] == 6
    assert (
        "half of the images of folder (6 of 12, drawn with seed 2)"
        in (half["protocol"]["selected_on"])
    )
    labels = np.array([[name in shown for name in NAMES] for shown in PHOTOS.values()])
    assert list(half["positives"].values()) == labels[reported].sum(0).tolist()
    methods, artifact = (
        MethodFeatures.load(halves / "class_features.safetensors"),
        Artifact.load(halves / "artifact"),
    )
    by_seed = {seed: scores_by(of) for seed, of in methods.tuned.items()}

    def fused_map(seed: int, rows: np.ndarray) -> float:
        shown = labels[rows].any(0)
        return 100 * float(
            average_precision_score(labels[rows][:, shown], by_seed[seed][rows][:, shown])
        )

    chosen = max(methods.tuned, key=lambda seed: fused_map(seed, selecting))
    assert torch.equal(artifact.classes.pooled, methods.tuned[chosen].pooled)
    assert half["map_by_seed"]["tuned"]["fused"] == pytest.approx(
        [fused_map(seed, reported) for seed in methods.tuned]
    )
    (stage,) = (
        file.parent
        for file in Path("cache/evaluation").glob("*/selection.json")
        if json.loads(file.read_bytes())["selecting"]
    )
    shown_rows = [entry["image"] for entry in json.loads((stage / "examples.json").read_bytes())]
    assert shown_rows == reported.tolist()
    report = (halves / "report.html").read_text("utf-8")
    assert report.count("data:image/jpeg;base64,") == 6
    assert "without the 6 used for selection" in report
    assert "6 of 12, drawn with seed 2" in report
    assert "Intervals need at least 10 images (got 6)" in report
    out = datafree("evaluate", halves)
    assert "mAP on 6 images of folder (without the 6 used for selection)" in out
    assert "a difference of" in out and "interval " not in out
    assert json.loads((halves / "metrics/folder.json").read_bytes()) == half
    page = (halves / "evaluation-folder.html").read_text("utf-8")
    assert "6 of 12, drawn with seed 2" in page
    assert "Intervals need at least 10 images (got 6)" in page
    assert "95 % interval" not in page
    # Held-out captions are equally content with both seeds and would take the first; photos do not.
    other_order = (*two[:-1], "seeds=[1, 0]")
    datafree("run", "tiny.yaml", "--runs", "order", *(f"--set={option}" for option in other_order))
    again = Artifact.load(Path("order/tiny/artifact"))
    assert torch.equal(again.classes.pooled, artifact.classes.pooled)

    Path("copies").mkdir()
    Image.effect_noise((40, 30), 60).save("copies/new.png")
    for name in PHOTOS:
        shutil.copy(Path("photos", name), Path("copies", f"copy-{name}"))
    copied = {f"copy-{name}": shown for name, shown in PHOTOS.items()}
    label(Path("copies"), {"new.png": ["violin"], **copied})
    datafree("evaluate", halves, "--dataset", "folder", "--root", "copies")
    (of_copies,) = halves.glob("metrics/folder-copies-*.json")
    assert json.loads(of_copies.read_bytes())["images"] == 7
    assert json.loads((halves / "metrics/folder.json").read_bytes()) == half
    # The other run's half is as good as seen.
    own = metrics_file.read_bytes()
    datafree(*on_photos, "--against", halves)
    assert metrics_file.read_bytes() == own
    seen = json.loads(metrics_file.with_name(f"{metrics_file.stem}-against-tiny.json").read_bytes())
    assert seen["images"] == 6
    assert seen["against"]["difference"]["low"] is None
    assert seen["protocol"]["selected_on"] == "text: held-out captions"
    assert "6 of 12, drawn with seed 2" in seen["protocol"]["other_run_selected_on"]
    (halves / "selection.json").unlink()
    assert "selection.json is missing" in datafree("evaluate", halves, refused=True)

    # What cannot be measured.
    err = datafree(*on_photos, "--against", "photos", refused=True)
    assert "photos: not a run's folder" in err
    with_classes(run, Path("runs/violins"), ["violin", "lemon"])
    label(Path("photos"), {"d.jpg": ["car"]})
    err = datafree(*on_photos, "--against", "runs/violins", refused=True)
    assert "--against: runs/violins has none of the classes" in err
    err = datafree("evaluate", "runs/violins", *on_photos[2:], refused=True)
    assert "(got 'car' in row 1)" in err
    # What can be measured, but means nothing.
    out = datafree(*on_photos)
    said = "All images (1) show every measured class (car): any scores reach 100 mAP"
    assert said in out and "100.0 to 100.0" not in out
    alone = json.loads(metrics_file.read_bytes())
    assert alone["ci"] == {}
    assert [note[:16] for note in alone["notes"]] == [said[:16], "Intervals need a"]
    assert said in page_file.read_text("utf-8")
    config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    config["vlm"]["resolution"] = 192
    (run / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    err = datafree(*on_photos, refused=True)
    assert "another image–text model" in err
    assert "resolution (224, here 192)" in err
    (run / "class_features.safetensors").unlink()
    assert "class_features.safetensors is missing" in datafree(*on_photos, refused=True)


def write_run(folder: Path) -> None:
    """The folder of a run of two classes, whose own evaluation is of held-out captions."""
    classes = ClassFeatures(torch.eye(2), torch.eye(2) + 1)
    Artifact(
        categories=CategoryList(categories=(Category(name="cat"), Category(name="dog"))),
        tree={"all": {"all": ["cat", "dog"]}},
        classes=classes,
        geometry=Geometry(
            scale=4.0, aggregation="softmax", local_temperature=50.0, global_weight=0.65
        ),
        tokens=TunedTokens({}, {"global": 0.0, "local": 0.0}),
        fusion="mean",
        calibration=Calibration(np.ones(2), np.ones(2), np.ones(2), (1.0, 1.0, 1.0)),
        vlm_settings=VLMSettings(),
        vlm=VLMIdentity(
            kind="embedded", model="m", weights="w", preprocessing="p", resolution=224, dim=2
        ),
    ).save(folder / "artifact")
    untuned = {method: ClassFeatures(torch.eye(2), torch.eye(2)) for method in UNTUNED}
    MethodFeatures(untuned, {0: classes}).save(folder / "class_features.safetensors")
    selection = {"artifact_seed": 0, **asdict(Selection())}
    (folder / "selection.json").write_text(json.dumps(selection), "utf-8")
    (folder / "config.yaml").write_text("name: made\ncategories: [cat, dog]\n", "utf-8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--dataset: is missing", "voc2007, ", "scenes"]),
        (["--dataset", "voc"], ["dataset: must be 'voc2007', "]),
        (["--dataset", "voc2007"], ["--root: is missing; VOC 2007 is at http"]),
        (
            ["--dataset", "voc2007", "--root", "x"],
            ["--root: ", "/x is not a folder; VOC 2007 is at"],
        ),
        (["--dataset", "voc2007", "--root", "."], ["ImageSets/Main is missing; VOC 2007 is at"]),
        (["--dataset", "folder", "--root", ".", "--split", "val"], ["--split: only goes with"]),
        (["--dataset", "folder", "--root", ".", "--no-crowd"], ["--crowd: only goes with"]),
        (["--dataset", "voc2007", "--difficult", "x", "--root", "."], ["difficult: must be 'ign"]),
        (["--dataset", "folder", "--root", "."], ["labels.csv is missing"]),
        (["--dataset", "scenes", "--root", "."], ["--root: only goes with"]),
        (
            ["--dataset", "folder", "--root", ".", "--scenes-seed", "1"],
            ["--scenes-seed: only goes with dataset: scenes"],
        ),
        (
            ["--dataset", "voc2007", "--root", ".", "--scenes-images", "9"],
            ["--scenes-images: only goes with dataset: scenes"],
        ),
        (["--dataset", "scenes", "--scenes-images", "0"], ["scenes.images: must be at least"]),
    ],
)
def test_refused_data_set(datafree: Call, options: list[str], words: list[str]) -> None:
    write_run(Path("made"))
    err = datafree("evaluate", "made", *options, refused=True)
    assert all(word in err for word in words), err
    assert not Path("cache").exists()


def test_refused_folder(datafree: Call) -> None:
    assert "nowhere: not a run's folder" in datafree("evaluate", "nowhere", refused=True)
    write_run(Path("made"))
    Path("made/artifact/artifact.json").write_text("{}", "utf-8")
    assert "made/artifact: the artifact is damaged: artifact.json was altered" in datafree(
        "evaluate", "made", refused=True
    )


def test_options_without_a_data_set_change_the_runs_own() -> None:
    own = EvaluationSettings(dataset="voc2007", root="/", split="test", difficult="negative")
    assert chosen_settings(own, {"split": "val"}) == own.model_copy(update={"split": "val"})
    assert chosen_settings(own, {"dataset": "voc2012", "root": "/", "split": None}) == (
        EvaluationSettings(dataset="voc2012", root="/")
    )


def test_fresh_scenes_keep_what_is_not_asked_for() -> None:
    own = EvaluationSettings(dataset="scenes", scenes=SceneSettings(images=50, seed=3, size=96))
    fresh = chosen_settings(own, {"scenes_seed": 4, "scenes_images": None})
    assert fresh == own.model_copy(update={"scenes": SceneSettings(images=50, seed=4, size=96)})
    more = chosen_settings(EvaluationSettings(), {"dataset": "scenes", "scenes_images": 9})
    assert more.scenes == SceneSettings(images=9)


def test_only_the_runs_own_set_has_the_plain_name() -> None:
    own = EvaluationSettings(dataset="voc2007", root="/data/VOC", select_on="evaluation")
    voc = {"dataset": "voc2007", "root": "/data/VOC"}
    assert evaluation_name(own, own) == "voc2007"
    assert evaluation_name(EvaluationSettings(**voc, split="test"), own) == "voc2007"
    names = [
        evaluation_name(EvaluationSettings.model_validate(settings), own)
        for settings in (
            {**voc, "split": "val"},
            {**voc, "difficult": "negative"},
            {**voc, "root": "/other/VOC"},
            {**voc, "split": "../etc/a b"},
            {"dataset": "coco2014", "root": "/data/coco"},
            {"dataset": "coco2014", "root": "/data/coco", "crowd": False},
            {"dataset": "folder", "root": "/data/my photos"},
            {"dataset": "folder", "root": "/more/my photos"},
            {"dataset": "scenes"},
            {"dataset": "scenes", "scenes": {"seed": 7}},
        )
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names), names
    assert names[0].startswith("voc2007-val-ignore-VOC-")
    assert names[5].startswith("coco2014-val-no-crowd-coco-")
    assert names[6].startswith("folder-my_photos-")
    assert names[8:] == ["scenes-seed-0-images-400", "scenes-seed-7-images-400"]
