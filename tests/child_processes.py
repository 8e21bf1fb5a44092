"""The processes that a test has started, of Ray too, and those of no other test."""

from __future__ import annotations

from collections.abc import Iterator

import psutil


def child_processes(title: str) -> Iterator[psutil.Process]:
    """Those below this process whose command line contains `title`."""
    for process in psutil.Process().children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                yield process
        except psutil.Error:  # it has just ended
            continue
