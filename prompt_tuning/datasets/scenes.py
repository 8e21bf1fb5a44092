"""Labelled scenes, composed on the user's machine from photographic cut-outs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.datasets.stamps import check_stamps, stamp_files
from prompt_tuning.settings import Settings

LABELS_PER_SCENE = (0.35, 0.35, 0.20, 0.10)  # shares of scenes with 1, 2, 3 and 4 labels
LARGEST_STAMP = 640  # pixels
LARGEST_ZOOM = 3.0
LARGEST_TURN = 12.0  # degrees, either way
PLACES_TRIED = 40

Box = tuple[int, int, int, int]


class SceneSettings(Settings):
    """How many scenes to compose, their random seed, and the side of a square image in pixels."""

    images: Annotated[int, Field(ge=1)] = 400
    seed: Annotated[int, Field(ge=0)] = 0
    size: Annotated[int, Field(ge=64)] = 320


@dataclass(frozen=True)
class Backdrop:
    """Two RGB colours, one above the other; `grain`: rows and columns of its smooth noise."""

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


def plan_scenes(names: Sequence[str], settings: SceneSettings) -> list[tuple[str, ...]]:
    """Draw the labels of each scene: 1 to 4 different names, each name about equally often.

    Combinations of names are uniformly random. A plan for fewer images is a prefix of a longer
    one.

    Raises:
        ValueError: if there are fewer names than a scene can have labels.
    """
    if len(names) < len(LABELS_PER_SCENE):
        raise ValueError(f"scenes need at least {len(LABELS_PER_SCENE)} categories")
    draw = np.random.default_rng([settings.seed, 0])
    waiting: list[str] = []
    plan = []
    for _ in range(settings.images):
        count = 1 + int(draw.choice(len(LABELS_PER_SCENE), p=LABELS_PER_SCENE))
        # Dealing from one shuffled deck after the other keeps the names balanced.
        while len(set(waiting)) < count:
            waiting += [names[i] for i in draw.permutation(len(names))]
        labels = tuple(dict.fromkeys(waiting))[:count]
        for label in labels:
            waiting.remove(label)
        plan.append(labels)
    return plan


def compose_scenes(source: Path, settings: SceneSettings, out: Path) -> None:
    """Write `out/images/00000.jpg` … (`size` x `size`, RGB) and, last, `out/labels.json`.

    The JSON holds `categories` and, for each of `images`, its `file`, its `labels` and its
    `objects`: category and box (x0, y0, x1, y1) in pixels, the right and lower edge excluded.
    The same settings and cut-outs give the same bytes on one machine. Each image depends only on
    the seed and its own number.

    Raises:
        StampsUnavailable: with the names of the files that `source` lacks.
    """
    check_stamps(source)
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


def read_scenes(folder: Path, categories: CategoryList) -> LabelledImages:
    """Read scenes that `compose_scenes` wrote, without labels that are not in `categories`."""
    scenes = json.loads((folder / "labels.json").read_text("utf-8"))["images"]
    labels = np.zeros((len(scenes), len(categories)), dtype=bool)
    for row, scene in enumerate(scenes):
        found = map(categories.find, scene["labels"])
        labels[row, [c for c in found if c is not None]] = True
    return LabelledImages(tuple(folder / scene["file"] for scene in scenes), labels)


def _load_stamp(file: Path) -> Image.Image:
    with Image.open(file) as opened:
        stamp = opened.convert("RGBA")
    stamp = stamp.crop(stamp.getchannel("A").getbbox())
    stamp.thumbnail((LARGEST_STAMP, LARGEST_STAMP), Image.Resampling.LANCZOS)
    return stamp


def _compose(
    draw: np.random.Generator, choices: Sequence[Sequence[Image.Image]], size: int
) -> tuple[Image.Image, list[Box]]:
    """One scene with an object from each of `choices` on a backdrop, and the objects' boxes."""
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
    """Resize a stamp to about `side` pixels (its longer side), mirror it or not, and turn it."""
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
    """Of several random boxes inside the image, the one that overlaps `taken` least."""
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
    """A gradient with smooth noise and sensor noise, so that the backdrop is not a flat colour."""
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
    coarse = 14 * _smooth_noise(draw, backdrop.grain, size)
    # Coarse noise belongs to the ground below the horizon; skies are smooth.
    pixels += (coarse * share[:, None] if backdrop.horizon else coarse)[..., None]
    pixels += 10 * _smooth_noise(draw, (4, 4), size)[..., None]
    pixels += draw.normal(0, 3, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _smooth_noise(
    draw: np.random.Generator, grain: tuple[int, int], size: int
) -> NDArray[np.float32]:
    """Smooth noise `(size, size)` of about unit spread, scaled up from `grain` random values."""
    patches = Image.fromarray(draw.normal(0, 1, grain).astype(np.float32))
    return np.asarray(patches.resize((size, size), Image.Resampling.BICUBIC))
