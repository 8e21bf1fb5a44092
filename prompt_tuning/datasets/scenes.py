"""Labelled scenes composed on the user's machine from photographic cut-outs.

The cut-outs are stamps of the drawing program Tux Paint (Debian's package
tuxpaint-stamps-default). They are fetched or found, never shipped.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from prompt_tuning.settings import Settings

PACKAGE = "tuxpaint-stamps-default"
INSTALLED = Path("/usr/share/tuxpaint/stamps")

LABELS_PER_SCENE = (0.35, 0.35, 0.20, 0.10)  # shares of scenes with 1, 2, 3 and 4 labels
LARGEST_STAMP = 640
LARGEST_ZOOM = 3.0
LARGEST_TURN = 12.0
PLACES_TRIED = 40

Box = tuple[int, int, int, int]


class StampsUnavailable(RuntimeError):
    """The cut-outs are not on this machine and cannot be fetched; the message says why."""


class SceneSettings(Settings):
    """How many scenes to compose, from which seed, and the side of their square in pixels."""

    images: Annotated[int, Field(ge=1)] = 400
    seed: Annotated[int, Field(ge=0)] = 0
    size: Annotated[int, Field(ge=64)] = 320


@dataclass(frozen=True)
class Backdrop:
    """Two colours (RGB), one above the other, and how coarse their mottling is (rows, columns)."""

    top: tuple[int, int, int]
    bottom: tuple[int, int, int]
    horizon: bool
    grain: tuple[int, int]


BACKDROPS = (
    Backdrop((140, 180, 225), (96, 132, 70), True, (40, 60)),  # sky over grass
    Backdrop((165, 190, 215), (200, 180, 140), True, (30, 30)),  # sky over sand
    Backdrop((185, 195, 205), (105, 108, 112), True, (60, 60)),  # haze over asphalt
    Backdrop((90, 125, 70), (120, 155, 85), False, (50, 50)),  # grass
    Backdrop((205, 200, 190), (180, 172, 160), False, (6, 6)),  # wall
    Backdrop((165, 180, 190), (135, 150, 165), False, (6, 6)),  # blue wall
    Backdrop((165, 120, 80), (135, 95, 60), False, (60, 3)),  # wood
    Backdrop((150, 150, 150), (125, 122, 118), False, (70, 70)),  # concrete
)


@functools.cache
def stamp_files() -> dict[str, tuple[str, ...]]:
    """Category name -> its cut-outs as paths below the folder of stamps, in the list's order."""
    text = (resources.files("prompt_tuning") / "data" / "scenes_stamps.yaml").read_text("utf-8")
    return {name: tuple(files) for name, files in yaml.safe_load(text).items()}


def stamps_source(cache: Path) -> Path | None:
    """The folder that already holds every cut-out: installed, or fetched before into `cache`."""
    for folder in (INSTALLED, cache / "stamps"):
        if not _missing(folder):
            return folder
    return None


def fetch_stamps(cache: Path) -> Path:
    """Gets the Debian package (161 MB) without root and keeps what is used in `cache/stamps`.

    Raises:
        StampsUnavailable: no apt-get or dpkg here, or one of them failed.
    """
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / "stamps"
    with tempfile.TemporaryDirectory(prefix=".stamps-", dir=cache) as name:
        # Absolute: apt resolves relative directories against its own root.
        work = Path(name).resolve()
        package = _download(work)
        unpacked = work / "unpacked"
        _call(["dpkg", "-x", str(package), str(unpacked)], work, timeout=300)
        source = unpacked / "usr/share/tuxpaint/stamps"
        _refuse_missing(source)
        kept = work / "stamps"
        for file in _all_files():
            (kept / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, kept / file)
        shutil.copyfile(unpacked / "usr/share/doc" / PACKAGE / "copyright", kept / "copyright")
        if target.exists() and _missing(target):
            target.rename(work / "incomplete")
        try:
            kept.rename(target)
        except OSError:
            # Another process may have fetched the same files meanwhile.
            if _missing(target):
                raise
    return target


def stamps_hash(source: Path) -> str:
    """SHA-256 (hex) over the names and contents of the cut-outs used.

    Raises:
        StampsUnavailable: naming the files that `source` lacks.
    """
    _refuse_missing(source)
    total = hashlib.sha256()
    for file in _all_files():
        total.update(file.encode() + b"\0")
        total.update(hashlib.sha256((source / file).read_bytes()).digest())
    return total.hexdigest()


def plan_scenes(names: Sequence[str], settings: SceneSettings) -> list[tuple[str, ...]]:
    """The labels of each scene: 1 to 4 different names, each name about equally often.

    Which names meet is uniformly random. A plan of fewer images is a prefix of a longer one.

    Raises:
        ValueError: fewer names than a scene can have labels.
    """
    if len(names) < len(LABELS_PER_SCENE):
        raise ValueError(f"scenes need at least {len(LABELS_PER_SCENE)} categories")
    draw = np.random.default_rng([settings.seed, 0])
    waiting: list[str] = []
    plan = []
    for _ in range(settings.images):
        count = 1 + int(draw.choice(len(LABELS_PER_SCENE), p=LABELS_PER_SCENE))
        # Shuffled decks, one after the other, are what keeps the names balanced.
        while len(set(waiting)) < count:
            waiting += [names[i] for i in draw.permutation(len(names))]
        labels = tuple(dict.fromkeys(waiting))[:count]
        for label in labels:
            waiting.remove(label)
        plan.append(labels)
    return plan


def compose_scenes(source: Path, settings: SceneSettings, out: Path) -> None:
    """Writes `out/images/00000.jpg` … (`size` square, RGB) and, last, `out/labels.json`.

    The JSON holds `categories` and, for each of `images`, its `file`, its `labels` and its
    `objects`: category and box (x0, y0, x1, y1) in pixels, the right and lower edge excluded.
    The same settings and cut-outs give the same bytes on one machine, and each image depends
    on the seed and its own number only.

    Raises:
        StampsUnavailable: naming the files that `source` lacks.
    """
    _refuse_missing(source)
    names = tuple(stamp_files())
    stamps = {
        name: [_load_stamp(source / file) for file in files]
        for name, files in stamp_files().items()
    }
    (out / "images").mkdir(parents=True, exist_ok=True)
    images = []
    for number, labels in enumerate(plan_scenes(names, settings)):
        draw = np.random.default_rng([settings.seed, 1, number])
        canvas, boxes = _compose(draw, [stamps[label] for label in labels], settings.size)
        file = f"images/{number:05d}.jpg"
        canvas.save(out / file, quality=90)
        objects = [
            {"category": label, "box": box} for label, box in zip(labels, boxes, strict=True)
        ]
        images.append({"file": file, "labels": labels, "objects": objects})
    (out / "labels.json").write_text(json.dumps({"categories": names, "images": images}), "utf-8")


def _all_files() -> list[str]:
    return sorted(file for files in stamp_files().values() for file in files)


def _missing(folder: Path) -> list[str]:
    return [file for file in _all_files() if not (folder / file).is_file()]


def _refuse_missing(folder: Path) -> None:
    missing = _missing(folder)
    if missing:
        raise StampsUnavailable(f"{folder} lacks {len(missing)} stamps: {', '.join(missing)}")


def _download(work: Path) -> Path:
    """The package's file in `work`, by the system's package lists or, failing that, fresh ones."""
    try:
        _call(["apt-get", "download", PACKAGE], work, timeout=1200)
    except StampsUnavailable:
        private = _private_apt(work)
        _call(["apt-get", "update", *private], work, timeout=300)
        _call(["apt-get", "download", *private, PACKAGE], work, timeout=1200)
    packages = list(work.glob(f"{PACKAGE}_*.deb"))
    if not packages:
        raise StampsUnavailable(f"apt-get download left no file of {PACKAGE}")
    return packages[0]


def _private_apt(work: Path) -> list[str]:
    """Options that make apt keep package lists and cache in `work`, where no root is needed."""
    state, store = work / "apt/state", work / "apt/cache"
    (state / "lists/partial").mkdir(parents=True)
    (store / "archives/partial").mkdir(parents=True)
    return ["-o", f"Dir::State={state}", "-o", f"Dir::Cache={store}"]


def _call(command: list[str], work: Path, timeout: float) -> None:
    what = " ".join(word for word in command[:2] if not word.startswith("-"))
    try:
        subprocess.run(
            command,
            cwd=work,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=True,
        )
    except FileNotFoundError as error:
        raise StampsUnavailable(f"no {command[0]} on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise StampsUnavailable(f"{what} took more than {timeout:.0f} s") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        raise StampsUnavailable(f"{what} failed: {said[-1]}") from error


def _load_stamp(file: Path) -> Image.Image:
    with Image.open(file) as opened:
        stamp = opened.convert("RGBA")
    stamp = stamp.crop(stamp.getchannel("A").getbbox())
    stamp.thumbnail((LARGEST_STAMP, LARGEST_STAMP), Image.Resampling.LANCZOS)
    return stamp


def _compose(
    draw: np.random.Generator, choices: Sequence[Sequence[Image.Image]], size: int
) -> tuple[Image.Image, list[Box]]:
    """One scene: an object of each of `choices`, on a backdrop, and where each object is."""
    canvas = _paint_backdrop(draw, size)
    smallest, largest = (0.35, 0.60) if len(choices) <= 2 else (0.25, 0.45)
    boxes: list[Box] = []
    for stamps in choices:
        side = draw.uniform(smallest, largest) * size
        cutout = _vary(draw, stamps[int(draw.integers(len(stamps)))], side, size)
        box = _place(draw, cutout, boxes, size)
        canvas.paste(cutout, box[:2], cutout)
        boxes.append(box)
    return canvas, boxes


def _vary(draw: np.random.Generator, stamp: Image.Image, side: float, size: int) -> Image.Image:
    """The cut-out with its longer side near `side` pixels, perhaps mirrored, a little turned."""
    zoom = min(side / max(stamp.size), LARGEST_ZOOM)
    width, height = (max(1, round(length * zoom)) for length in stamp.size)
    cutout = stamp.resize((width, height), Image.Resampling.LANCZOS)
    if draw.random() < 0.5:
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turn = draw.uniform(-LARGEST_TURN, LARGEST_TURN)
    cutout = cutout.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    cutout = cutout.crop(cutout.getchannel("A").getbbox())
    cutout.thumbnail((size, size))
    return cutout


def _place(draw: np.random.Generator, cutout: Image.Image, taken: Sequence[Box], size: int) -> Box:
    """The box, of several random ones inside the image, that overlaps `taken` the least."""
    width, height = cutout.size
    tried: list[tuple[int, Box]] = []
    for _ in range(PLACES_TRIED):
        x, y = (int(draw.integers(size - length + 1)) for length in cutout.size)
        box = (x, y, x + width, y + height)
        tried.append((sum(_overlap(box, other) for other in taken), box))
    return min(tried, key=lambda place: place[0])[1]


def _overlap(one: Box, other: Box) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def _paint_backdrop(draw: np.random.Generator, size: int) -> Image.Image:
    """A gradient with mottling and sensor noise: no photo, but no flat colour either."""
    backdrop = BACKDROPS[int(draw.integers(len(BACKDROPS)))]
    tint = draw.normal(0, 12, 3)
    heights = np.linspace(0, 1, size, dtype=np.float32)
    if backdrop.horizon:
        share = 1 / (1 + np.exp(-40 * (heights - draw.uniform(0.35, 0.65))))
    else:
        share = heights
    top, bottom = (np.array(colour) + tint for colour in (backdrop.top, backdrop.bottom))
    rows = top + share[:, None] * (bottom - top)
    pixels = np.repeat(rows[:, None, :], size, axis=1)
    mottle = 14 * _mottle(draw, backdrop.grain, size)
    # A sky is smooth: the mottling belongs to the ground below the horizon.
    pixels += (mottle * share[:, None] if backdrop.horizon else mottle)[..., None]
    pixels += 10 * _mottle(draw, (4, 4), size)[..., None]
    pixels += draw.normal(0, 3, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _mottle(draw: np.random.Generator, grain: tuple[int, int], size: int) -> NDArray[np.float32]:
    """(size, size) smooth noise of about unit spread with `grain` (rows, columns) of patches."""
    patches = Image.fromarray(draw.normal(0, 1, grain).astype(np.float32))
    return np.asarray(patches.resize((size, size), Image.Resampling.BICUBIC))
