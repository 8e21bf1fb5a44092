"""Which labels captions show: those to tune on, and those that are held out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prompt_tuning.captions import Caption, is_held_out
from prompt_tuning.categories import CategoryList

_NAMED = 10


@dataclass(frozen=True)
class CaptionCoverage:
    """How many captions are to tune on and how many are held out, and which labels each lack."""

    training: int
    held_out: int
    labels_without_training: tuple[str, ...]
    labels_without_held_out: tuple[str, ...]

    @classmethod
    def of(
        cls, captions: Iterable[Caption], categories: CategoryList, held_out: float
    ) -> CaptionCoverage:
        """That of these captions, of which the share `held_out` is held out."""
        counts, shown = [0, 0], (set[int](), set[int]())
        for caption in captions:
            part = is_held_out(caption, held_out)
            counts[part] += 1
            shown[part].update(caption.labels)
        training, validation = (
            tuple(name for c, name in enumerate(categories.names) if c not in of_part)
            for of_part in shown
        )
        return cls(counts[0], counts[1], training, validation)

    def check(self, allow_missing: bool, allowed_by: str = "allow_missing=True") -> None:
        """Refuse captions that cannot be tuned on, and labels without any unless these are allowed.

        Raises:
            ValueError: in one line; `allowed_by`: what it says would allow them.
        """
        check_split(self.training, self.held_out)
        if (missing := self.labels_without_training) and not allow_missing:
            raise ValueError(
                f"none to tune on for these labels: {named(missing)}; add captions, or synonyms "
                f"that captions use, or tune without any by {allowed_by}"
            )


def check_split(training: int, held_out: int) -> None:
    """Raises ValueError when there are no captions to tune on, or none that are held out."""
    if not training or not held_out:
        raise ValueError(
            f"of {training + held_out} captions {training} are to tune on and {held_out} held "
            "out; neither may be none: add captions, or change the share held out"
        )


def named(labels: tuple[str, ...]) -> str:
    """The labels with commas between them, the first ten of many."""
    more = len(labels) - _NAMED
    return ", ".join(labels[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
