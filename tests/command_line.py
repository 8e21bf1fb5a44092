"""The command line, called in the test's own process."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest

from orchestrator.cli import main


class Done(NamedTuple):
    code: object
    out: str
    err: str


def run_datafree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> Done:
    monkeypatch.setattr(sys, "argv", ["datafree", *map(str, arguments)])
    capsys.readouterr()
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    return Done(code, *capsys.readouterr())
