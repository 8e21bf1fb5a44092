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
