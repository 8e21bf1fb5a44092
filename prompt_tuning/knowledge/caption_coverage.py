"""Which labels have captions, among those to tune on and among those held out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prompt_tuning.captions import Caption, is_held_out
from prompt_tuning.categories import CategoryList

_MAX_LISTED = 10


@dataclass(frozen=True)
class CaptionCoverage:
    """The numbers of captions to tune on and held out, and the labels that each part lacks."""

    training: int
    held_out: int
    labels_without_training: tuple[str, ...]
    labels_without_held_out: tuple[str, ...]

    @classmethod
    def of(
        cls, captions: Iterable[Caption], categories: CategoryList, held_out: float
    ) -> CaptionCoverage:
        """The coverage of these captions, where `held_out` is the share that is held out."""
        counts, shown = [0, 0], (set[int](), set[int]())
        for caption in captions:
            part = is_held_out(caption, held_out)
            counts[part] += 1
            shown[part].update(caption.labels)
        training, validation = (
            tuple(name for c, name in enumerate(categories.names) if c not in labels)
            for labels in shown
        )
        return cls(counts[0], counts[1], training, validation)

    def check(self, allow_missing: bool, allowed_by: str = "allow_missing=True") -> None:
        """Check that there are enough captions and, unless `allow_missing`, some of every label.

        Raises:
            ValueError: in one line. `allowed_by`: how to allow missing labels, for the message.
        """
        check_split(self.training, self.held_out)
        if (missing := self.labels_without_training) and not allow_missing:
            raise ValueError(
                f"these labels have no caption to tune on: {named(missing)}; add captions, or "
                f"synonyms that captions use, or allow this with {allowed_by}"
            )


def check_split(training: int, held_out: int) -> None:
    """Raise ValueError if there is no caption to tune on, or none held out."""
    if not training or not held_out:
        raise ValueError(
            f"{training} captions to tune on and {held_out} held out: both must be at least 1; "
            "add captions, or change the share that is held out"
        )


def named(labels: tuple[str, ...]) -> str:
    """The labels as a comma-separated list, shortened after ten."""
    more = len(labels) - _MAX_LISTED
    return ", ".join(labels[:_MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")
