"""What `datafree serve --review` needs of a folder before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from orchestrator.errors import InputError, as_input_error
from orchestrator.pages.html import quantity
from orchestrator.run_lock import only_driver
from orchestrator.tagging.listing import ImageListing
from prompt_tuning.datasets.folder import read_folder
from prompt_tuning.datasets.review_answers import FILE, is_writable_name
from prompt_tuning.storage import MANIFEST, remove_abandoned, write_atomic
from prompt_tuning.tagging.artifact import Artifact, version_of
from workers.serving.review.session import ReviewFolder

IMPROVED = "improved-artifact"
_ORIGIN = "made-from"  # beside the improved artifact's own files, which leave others alone


@contextmanager
def prepared_review(folder: Path, artifact: Path, console: Console) -> Iterator[ReviewFolder]:
    """Lock a folder of images for this process, and publish the artifact to serve in it.

    That is the one that an earlier review of the same artifact improved, or a copy of `artifact`,
    which itself is never changed.

    Raises:
        InputError: for a folder without images, that another process reviews, that cannot be
            written to, or that has wrong answers, and for an artifact that cannot be improved,
            because labelled photos taught it.
    """
    if not folder.is_dir():
        raise InputError(f"--review: {folder} must be a folder of images")
    folder = folder.resolve()
    with ExitStack() as held:
        with _writing(folder):
            held.enter_context(only_driver(folder, "--review"))
        answers = folder / FILE
        if answers.exists() and not (answers.is_file() and os.access(answers, os.R_OK | os.W_OK)):
            raise InputError(f"--review: {answers} must be a file that can be written to")
        with as_input_error():
            if artifact.resolve() == (folder / IMPROVED).resolve():
                raise InputError(
                    f"--review: {artifact} is what this review improves; "
                    "name the artifact that it was made from"
                )
            original = Artifact.load(artifact)
            if original.calibration.labelled_photos:
                raise InputError(
                    f"--review: {artifact} has learned from labelled photos, which would count "
                    "twice; name the artifact before that"
                )
            if any((folder / table).is_file() for table in (FILE, "labels.csv")):
                read_folder(original.categories, folder)
        files = _files(folder, console)
        improved = folder / IMPROVED
        with _writing(folder):
            _publish(original, artifact, improved)
        yield ReviewFolder(folder, files, artifact, improved, original.categories)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"--review: cannot write in {folder} ({error.strerror})") from None


def _files(folder: Path, console: Console) -> tuple[str, ...]:
    """The names of the images below the folder."""
    names = [str(file.relative_to(folder)) for file in ImageListing([str(folder)])]
    files = tuple(name for name in names if is_writable_name(name))
    if not files:
        raise InputError(f"--review: {folder} must have images (none found)")
    if left := len(names) - len(files):
        console.print(
            f"Left out: {quantity(left, 'image')} whose name has control characters or is not UTF-8"
        )
    return files


def _publish(original: Artifact, source: Path, improved: Path) -> None:
    """Publish a copy of the artifact, unless an improved one was made from the same."""
    remove_abandoned(improved)
    version = version_of(source)
    origin = improved / _ORIGIN
    made_from = origin.read_text("utf-8") if origin.is_file() else None
    if made_from == version:
        with as_input_error():
            Artifact.load(improved)
        return
    if improved.exists():
        # What was published and not improved since is no loss.
        published = version_of(improved) if (improved / MANIFEST).is_file() else None
        if published is None or published not in (version, made_from):
            raise InputError(
                f"--review: {improved} was not made from {source}; move it to another folder"
            )
    original.save(improved)
    write_atomic(origin, version.encode())
