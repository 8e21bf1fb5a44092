"""The artifact that comes with the package, under the name `starter`."""

from __future__ import annotations

from pathlib import Path

NAME = "starter"
# A run's folder without its cache and report, so that the commands that look beside an artifact
# find what it was made of.
RUN = Path(__file__).parents[1] / "data" / NAME


def artifact_folder(given: Path | str) -> Path:
    """The folder of an artifact that a person names: a path, or `starter` for the packaged one.

    A folder `starter` in the working directory comes first if it holds an artifact.
    """
    folder = Path(given)
    if folder == Path(NAME) and not (folder / "artifact.json").is_file():
        return RUN / "artifact"
    return folder
