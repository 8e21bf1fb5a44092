"""One driver a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import InputError
from orchestrator.run_lock import only_driver


def test_a_second_driver_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    with only_driver(tmp_path / "run"):
        with (
            pytest.raises(InputError, match="another process is working"),
            only_driver(tmp_path / "run"),
        ):
            pass
        with only_driver(tmp_path / "other"):
            pass
    with only_driver(tmp_path / "run"):
        pass


def test_a_file_of_somebody_else_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("mine")
    with only_driver(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == "mine"
