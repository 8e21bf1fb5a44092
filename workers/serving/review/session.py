"""A review: the images of a folder, what the model says of them, and what a person answered.

Everything here is of one folder, held by the one process in front of the models. Answers are on
disk before they are counted, so another process that starts on the same folder goes on from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.folder import read_folder
from prompt_tuning.datasets.review_answers import Answer, append_answer, read_answers
from prompt_tuning.tagging.review_order import (
    closeness,
    image_values,
    question_values,
    questions,
)

_NONE, _NO, _YES, _UNKNOWN = range(4)
_CODES: dict[str, int] = {"no": _NO, "yes": _YES, "unknown": _UNKNOWN}
_ANSWERS: dict[int, Answer] = {_NO: "no", _YES: "yes", _UNKNOWN: "unknown"}


@dataclass(frozen=True)
class ReviewFolder:
    """What `serve --review` found before it started.

    `files`: names below `folder` (see `is_writable_name`). `original`: the artifact that is
    adapted; `improved`: the one that is served, where adapted ones are published.
    """

    folder: Path
    files: tuple[str, ...]
    original: Path
    improved: Path
    categories: CategoryList


class Row(NamedTuple):
    """A label of an image. `score`: None while the image is not scored."""

    label: str
    score: float | None
    is_tag: bool
    answer: Answer | None


class Item(NamedTuple):
    """An image with the labels to show: first those to ask about, then the other ones."""

    image: str
    file: str
    version: str | None
    problem: str | None
    questions: int
    rows: list[Row]


class Agreement(NamedTuple):
    """How many answers agreed with the tags of a version, which had not learned from them."""

    version: str
    answers: int
    agreed: int


def image_id(file: str) -> str:
    """An image's name for clients: it stays the same when the service starts again."""
    return hashlib.sha256(file.encode()).hexdigest()[:16]


class ReviewSession:
    """The state of a review. Raises ValueError for answers in the folder that cannot be read."""

    def __init__(self, review: ReviewFolder) -> None:
        self._review = review
        self.labels = review.categories.names
        self.files = [review.folder / name for name in review.files]
        self._places = {image_id(name): i for i, name in enumerate(review.files)}
        shape = len(self.files), len(self.labels)
        self._answers = np.full(shape, _NONE, dtype=np.int8)
        self._scores = np.full(shape, np.nan, dtype=np.float32)
        self._close = np.zeros(shape, dtype=np.float32)
        self._is_tag = np.zeros(shape, dtype=bool)
        self._versions: list[str | None] = [None] * len(self.files)
        self._problems: dict[int, str] = {}
        self._judged: dict[str, dict[tuple[int, int], bool]] = {}
        self._read_answers()
        self._learned = self._known()

    def _read_answers(self) -> None:
        folder = self._review.folder
        answers = read_answers(folder)
        if not answers and not (folder / "labels.csv").is_file():
            return
        labelled = read_folder(self._review.categories, folder)
        rows = {file.resolve(): row for row, file in enumerate(labelled.files)}
        for i, file in enumerate(self.files):
            if (row := rows.get(file.resolve())) is not None:
                self._answers[i] = np.where(labelled.labels[row], _YES, _NO)
                if labelled.ignored is not None:
                    self._answers[i][labelled.ignored[row]] = _NONE
        for (name, label), answer in answers.items():
            category = self._review.categories.find(label)
            place = self._places.get(image_id(name))
            if answer == "unknown" and place is not None and category is not None:
                self._answers[place, category] = _UNKNOWN

    # ---- Scores

    def set_scores(
        self, place: int, version: str, thresholds: np.ndarray, scores: np.ndarray | str
    ) -> None:
        """Keep an image's calibrated scores `(classes,)`, or why it cannot be read."""
        self._problems.pop(place, None)
        if isinstance(scores, str):
            self._problems[place] = scores
            scores = np.full(len(self.labels), np.nan)
        # Kept with the scores, because a new version has other thresholds.
        self._close[place] = closeness(scores, thresholds)
        self._is_tag[place] = np.nan_to_num(scores, nan=-1) >= thresholds
        self._scores[place] = scores
        self._versions[place] = version

    # ---- Answers

    def answer(self, image: str, label: str, answer: Answer | None) -> Answer | None:
        """Save an answer; the earlier one is returned. Later ones of any tab win.

        `answer`: None for none, as before the first one.

        Raises:
            KeyError: for an unknown image or label.
            OSError: if it cannot be saved.
        """
        place, column = self._places[image], self._column(label)
        append_answer(self._review.folder, self._review.files[place], self.labels[column], answer)
        earlier = _ANSWERS.get(int(self._answers[place, column]))
        self._answers[place, column] = _CODES[answer] if answer else _NONE
        self._judge(place, column, answer)
        return earlier

    def _column(self, label: str) -> int:
        try:
            return self.labels.index(label)
        except ValueError:
            raise KeyError(label) from None

    def learned(self) -> None:
        """From now on, scores come from an artifact that may have learned from all answers."""
        self._learned |= self._known()

    def _judge(self, place: int, column: int, answer: Answer | None) -> None:
        version, score = self._versions[place], self._scores[place, column]
        if version is None or np.isnan(score) or self._learned[place, column]:
            return
        judged = self._judged.setdefault(version, {})
        judged.pop((place, column), None)
        if answer in ("yes", "no"):
            judged[place, column] = bool(self._is_tag[place, column]) == (answer == "yes")

    # ---- What to show

    def next_image(self, seen: Collection[str]) -> str | None:
        """The image where answers teach most, or None if nothing is left to ask.

        Images without answers come even if no question is worth asking: a label may be missing.
        """
        unanswered: np.ndarray = np.asarray(~self._answered().any(1))
        values = image_values(self._values())
        # A copy: this runs in a thread, and the event loop adds to the problems.
        for problem in list(self._problems):
            unanswered[problem], values[problem] = False, 0
        for image in seen:
            if (place := self._places.get(image)) is not None:
                unanswered[place], values[place] = False, 0
        left = np.flatnonzero(unanswered | (values > 0))
        if not len(left):
            return None
        place = int(left[np.argmax(values[left])])
        return image_id(self._review.files[place])

    def most_valuable_first(self) -> list[int]:
        """The places of all images, in the order in which they will be shown."""
        return [int(place) for place in np.argsort(-image_values(self._values()), kind="stable")]

    def item(self, image: str) -> Item:
        """An image with its labels. Raises KeyError for an unknown one."""
        place = self._places[image]
        asked = questions(self._values(place)[0])
        scores, is_tag = self._scores[place], self._is_tag[place]
        answered = self._answered()[place]
        # Of labels.csv, an image has an answer to each label: what it does not show, few ask for.
        told = answered & ((self._answers[place] != _NO) | is_tag) if answered.all() else answered
        rest = np.flatnonzero((is_tag | told) & ~np.isin(np.arange(len(scores)), asked))
        rest = rest[np.argsort(-np.nan_to_num(scores[rest]), kind="stable")]
        rows = [
            Row(
                self.labels[c],
                None if np.isnan(scores[c]) else float(scores[c]),
                bool(is_tag[c]),
                _ANSWERS.get(int(self._answers[place, c])),
            )
            for c in [*asked, *rest]
        ]
        name, problem = self._review.files[place], self._problems.get(place)
        return Item(image, name, self._versions[place], problem, len(asked), rows)

    def file(self, image: str) -> Path:
        """An image's file. Raises KeyError for an unknown one."""
        return self.files[self._places[image]]

    def _answered(self) -> np.ndarray:
        return self._answers != _NONE

    def _known(self) -> np.ndarray:
        return np.asarray((self._answers == _NO) | (self._answers == _YES))

    def _counts(self) -> np.ndarray:
        return np.asarray(self._known().sum(0))

    def _values(self, place: int | None = None) -> np.ndarray:
        rows = slice(None) if place is None else slice(place, place + 1)
        return question_values(
            self._close[rows], self._is_tag[rows], self._answers[rows] != _NONE, self._counts()
        )

    # ---- What has been gained

    def answers_by_label(self) -> list[tuple[str, int, int]]:
        """Each label with how many answers of yes and of no it has."""
        shown, hidden = (self._answers == code for code in (_YES, _NO))
        counts = zip(shown.sum(0).tolist(), hidden.sum(0).tolist(), strict=True)
        return [(label, *pair) for label, pair in zip(self.labels, counts, strict=True)]

    def images_answered(self) -> int:
        """How many images have an answer."""
        return int(self._answered().any(1).sum())

    def unreadable(self) -> int:
        """How many images cannot be read."""
        return len(self._problems)

    def scored(self, version: str | None) -> int:
        """How many images have the scores of this version, or cannot be read."""
        return sum(one == version for one in self._versions) if version else 0

    def agreements(self) -> list[Agreement]:
        """For each version, oldest first, how often answers agreed with its tags."""
        # Copies: a thread saves answers meanwhile.
        by_version = [(version, [*judged.values()]) for version, judged in [*self._judged.items()]]
        return [Agreement(version, len(each), sum(each)) for version, each in by_version if each]
