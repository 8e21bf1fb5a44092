"""What the tests' artifact is tuned on: sentences about four things."""

from __future__ import annotations

from prompt_tuning.tuning.trainer import TuningSettings

NAMES = ["strawberry", "elephant", "bicycle", "penguin"]
PLACES = ["on the grass", "near a wall", "in the sun", "by the road", "at the market"]
SENTENCES = [
    *(
        (f"A {look} {name} {place}.", [name])
        for name in NAMES
        for look in ("small", "old")
        for place in PLACES
    ),
    *(
        (f"A {one} and a {two} {place}.", [one, two])
        for one in NAMES
        for two in NAMES
        for place in PLACES[:2]
        if one < two
    ),
]
QUICK = TuningSettings(epochs=2, batch=32, captions_per_item=2)
