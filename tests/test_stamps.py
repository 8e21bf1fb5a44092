"""The cut-outs of composed scenes: which there are, and how they are fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from prompt_tuning.categories import built_in
from prompt_tuning.datasets import stamps
from prompt_tuning.datasets.stamps import StampsUnavailable, fetch_stamps, stamp_files, stamps_hash


def test_every_category_has_its_own_stamps() -> None:
    assert tuple(stamp_files()) == built_in("scenes").names
    files = [file for some in stamp_files().values() for file in some]
    assert all(stamp_files().values())
    assert len(set(files)) == len(files)


def test_changed_stamps_hash_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "stamp_files", lambda: {"dog": ("dog.png",)})
    with pytest.raises(StampsUnavailable, match=r"dog\.png"):
        stamps_hash(tmp_path)
    (tmp_path / "dog.png").write_bytes(b"one")
    first = stamps_hash(tmp_path)
    (tmp_path / "dog.png").write_bytes(b"two")
    assert len(first) == 64
    assert stamps_hash(tmp_path) != first


def test_fetching_without_apt_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StampsUnavailable, match=r"^apt-get is not installed on this machine$"):
        fetch_stamps(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failing_apt_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "apt-get"
    fake.write_text("#!/bin/sh\necho 'W: first' >&2\necho 'E: no network' >&2\nexit 100\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StampsUnavailable, match=r"^apt-get update failed: E: no network$"):
        fetch_stamps(tmp_path / "cache")
