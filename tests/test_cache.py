"""What `datafree cache` lists, and what it removes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.errors import InputError
from orchestrator.run_lock import only_driver
from orchestrator.runs.cache import list_cache, note_planned, show_cache
from workers.stage import Stage

NEW, OLD = 60.0, 3 * 24 * 3600.0


def result(cache: Path, place: str, age: float) -> Path:
    """A result in the cache that was written `age` seconds ago."""
    folder = cache / place
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(b"1234")
    for path in (folder / "manifest.json", folder):
        os.utime(path, (time.time() - age,) * 2)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A cache, and a run and a sweep that refer to some of it."""
    for name, age in {
        "knowledge/of-run": OLD,
        "tuning/of-trial": OLD,
        "images/of-best": OLD,
        "tuning/nobodys": OLD,
        "tuning/nobodys-yet": NEW,
        "parts/image_features-abandoned": OLD,
        "answers/ab/abcd": OLD,
    }.items():
        result(tmp_path / "cache", name, age)
    for run, key in {"a": "of-run", "sweep/best-run": "of-best"}.items():
        (tmp_path / "runs" / run).mkdir(parents=True)
        stages = {"stage": {"key": key, "seconds": 1.0, "cached": False}}
        (tmp_path / "runs" / run / "run.json").write_text(json.dumps({"stages": stages}))
    trials = tmp_path / "runs" / "sweep" / "trials" / "text"
    trials.mkdir(parents=True)
    (trials / "of-trial.json").write_text("{}")
    return tmp_path


def left(place: Path) -> set[str]:
    return {str(f.parent.relative_to(place / "cache")) for f in place.rglob("manifest.json")}


def test_each_result_is_listed_with_the_runs_that_refer_to_it(place: Path) -> None:
    entries = {entry.key: entry for entry in list_cache(place / "cache", place / "runs")}
    assert {key: entry.runs for key, entry in entries.items()} == {
        "of-run": ("a",),
        "of-trial": ("sweep",),
        "of-best": ("sweep",),
        "nobodys": (),
        "nobodys-yet": (),
        "abandoned": (),
    }
    assert entries["abandoned"].stage == "image_features (parts)"
    assert 2.9 < entries["nobodys"].age / (24 * 3600) < 3.1
    assert entries["nobodys"].size > 4


def test_only_what_no_run_refers_to_for_a_day_is_removed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = left(place)
    for dry_run in (True, False):
        show_cache(place / "cache", place / "runs", Console(width=200), True, dry_run)
        gone = set() if dry_run else {"tuning/nobodys", "parts/image_features-abandoned"}
        assert before - left(place) == gone
    assert "removed: 2 results" in capsys.readouterr().out


def test_nothing_is_removed_while_a_run_is_at_work(place: Path) -> None:
    before = left(place)
    with only_driver(place / "runs" / "a"), pytest.raises(InputError, match="a is in use"):
        show_cache(place / "cache", place / "runs", Console(quiet=True), True, False)
    assert left(place) == before


def test_an_interrupted_run_still_refers_to_its_results(place: Path) -> None:
    note_planned(place / "runs" / "a", [Stage("tuning", "nobodys", place / "cache")])
    show_cache(place / "cache", place / "runs", Console(quiet=True), True, False)
    assert "tuning/nobodys" in left(place)


def test_without_a_folder_of_runs_nothing_is_removed(place: Path) -> None:
    with pytest.raises(InputError, match="--runs: must be an existing folder"):
        show_cache(place / "cache", place / "rusn", Console(quiet=True), True, False)


def test_a_damaged_run_protects_the_whole_cache(place: Path) -> None:
    (place / "runs" / "a" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json cannot be read"):
        show_cache(place / "cache", place / "runs", Console(quiet=True), True, False)
