"""The processes that a test has started, of Ray too, and those of no other test."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil

# Whether it is time to stop a process.
When = Callable[[psutil.Process], bool]


def child_processes(title: str) -> Iterator[psutil.Process]:
    """Those below this process whose command line contains `title`."""
    for process in psutil.Process().children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                yield process
        except psutil.Error:  # it has just ended
            continue


def wait_until(when: When, process: subprocess.Popen[str]) -> psutil.Process:
    """Wait while the process runs; returns it."""
    running = psutil.Process(process.pid)
    deadline = time.monotonic() + 240
    while not when(running):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return running


def interrupt(process: subprocess.Popen[str], number: signal.Signals, when: When) -> str:
    """Send SIGINT or SIGTERM when it is time. Returns the output, after an orderly end."""
    below = wait_until(when, process).children(recursive=True)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    assert "SIGTERM received" not in output
    _, left = psutil.wait_procs(below, timeout=10)
    assert not left
    return output
