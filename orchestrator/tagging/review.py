"""What `datafree serve --review` needs of a folder before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from orchestrator.errors import InputError, as_input_error
from orchestrator.pages.html import quantity
from orchestrator.run_lock import only_driver
from orchestrator.tagging.listing import ImageListing
from prompt_tuning.datasets.folder import read_folder
from prompt_tuning.datasets.review_answers import FILE, is_writable_name
from prompt_tuning.storage import MANIFEST, file_digest, write_atomic
from prompt_tuning.tagging.artifact import Artifact
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
            written to, or that has wrong answers.
    """
    if not folder.is_dir():
        raise InputError(f"--review: {folder} must be a folder of images")
    folder = folder.resolve()
    with _locked(folder):
        with as_input_error():
            original = Artifact.load(artifact)
            if any((folder / table).is_file() for table in (FILE, "labels.csv")):
                read_folder(original.categories, folder)
        files = _files(folder, console)
        improved = folder / IMPROVED
        with _writing(folder):
            _publish(original, artifact, improved, console)
        yield ReviewFolder(folder, files, artifact, improved, original.categories)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = only_driver(folder, "--review")
    with _writing(folder):
        lock.__enter__()
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


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


def _publish(original: Artifact, source: Path, improved: Path, console: Console) -> None:
    """Publish a copy of the artifact, unless an improved one was made from the same."""
    version = file_digest(source / MANIFEST)
    origin = improved / _ORIGIN
    if origin.is_file() and origin.read_text() == version:
        with as_input_error():
            Artifact.load(improved)
        return
    if improved.exists():
        console.print(f"{improved}: was made from another artifact, and is replaced")
    try:
        original.save(improved)
    except FileExistsError as error:
        raise InputError(f"--review: {error}") from None
    write_atomic(origin, version.encode())
