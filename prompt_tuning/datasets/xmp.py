"""Photos with keywords in XMP sidecars, as photo managers write them, as labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.sidecars.editing import read
from prompt_tuning.sidecars.keywords import keyword_key
from prompt_tuning.sidecars.merge import rejected, users
from prompt_tuning.sidecars.packet import Packet
from prompt_tuning.sidecars.places import Places, sidecars_below

LAYOUT = "a folder with photos and their XMP sidecars (IMG_1.jpg.xmp or IMG_1.xmp)"


def read_xmp(categories: CategoryList, root: Path) -> LabelledImages:
    """Read what people said in sidecars below `root`, labels `(images, categories)`.

    A keyword of the user's is a "yes" for the category with that name or synonym, and so is the
    last level of a path in the user's hierarchy. A tag that `datafree tag` wrote and the user took
    out is a "no". All else is unknown, also tags of ours that nobody touched: it is in `ignored`.
    Images of which nothing is known are left out. Two sidecars of one image are read together.

    Raises:
        ValueError: with the file, if a sidecar is not XMP; if there is no sidecar, or none that
            says anything about the categories.
    """
    places = Places()
    # Names with `|`, which keywords cannot have, and `/`, are found by the key too.
    index = {keyword_key(n): c for c, each in enumerate(categories.categories) for n in each.names}

    def find(name: str) -> int | None:
        found = categories.find(name)
        return index.get(keyword_key(name)) if found is None else found

    said: dict[Path, tuple[set[int], set[int]]] = {}
    others: dict[str, None] = {}
    count = 0
    for sidecar in sidecars_below(root):
        count += 1
        try:
            found = Packet(read(sidecar) or b"").keywords
        except ValueError as error:
            raise ValueError(f"{sidecar}: {error}") from None
        except OSError as error:
            raise ValueError(f"{sidecar}: cannot be read ({error.strerror})") from None
        yes = {name: find(name) for name in users(found)}
        no = {find(name) for name in rejected(found)}
        others.update(dict.fromkeys(name for name, category in yes.items() if category is None))
        shown = {category for category in yes.values() if category is not None}
        absent = {category for category in no if category is not None}
        if shown or absent:
            before = said.setdefault(places.image(sidecar), (set(), set()))
            before[0].update(shown)
            before[1].update(absent)
    if not count:
        raise ValueError(f"{root}: an XMP sidecar is missing; it must be {LAYOUT}")
    if not said:
        listed = ", ".join(sorted(others)[:10])
        raise ValueError(
            f"{root}: no keyword of its sidecars is in the category list; "
            + (f"there are: {listed}" if listed else "nobody has added or removed any")
        )
    labels = np.zeros((len(said), len(categories)), dtype=bool)
    known = np.zeros_like(labels)
    for row, (shown, absent) in enumerate(said.values()):
        labels[row, list(shown)] = True
        known[row, list(shown | absent)] = True
    ignored = None if known.all() else ~known
    return LabelledImages(tuple(said), labels, ignored, tuple(sorted(others)))
