"""End a command on Ctrl-C, or on SIGTERM as sent by `timeout`, Kubernetes and `ray job stop`.

The first signal raises KeyboardInterrupt in the main thread, so that work in progress can clean up.
Then child processes are killed, a line says how to resume, and the exit code is 130 or 143. After a
second signal or 25 s the process ends at once; files are written atomically, so none is partial.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import psutil
from rich.console import Console

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Kubernetes kills 30 s after its SIGTERM; `serve` needs most of that to let requests end.
_LONGEST_END_S = 25.0
# `timeout` sends its signal to the process and to the process's group.
_SAME_SIGNAL_S = 0.5

_last_words = ""


def say_if_stopped(text: str) -> None:
    """Set the line to print when a signal ends the command."""
    global _last_words
    _last_words = text


@contextmanager
def interruptible() -> Iterator[None]:
    """End the process cleanly if SIGINT or SIGTERM arrives in the block, whatever errors follow."""
    say_if_stopped("Stopped. The same command resumes from what is finished.")
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    interruption = _Interruption(reader)
    handlers = [signal.signal(number, interruption.handle) for number in _SIGNALS]
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=interruption.watch, daemon=True).start()
    try:
        yield
    finally:
        if interruption.number is not None:
            from orchestrator.cluster.connect import disconnect

            try:
                disconnect()
            finally:
                interruption.end()
        signal.set_wakeup_fd(wakeup)
        for number, handler in zip(_SIGNALS, handlers, strict=True):
            signal.signal(number, handler)
        writer.close()


def _leave_to_child() -> None:
    """In a forked child, restore the default handlers."""
    for number in _SIGNALS:
        if isinstance(getattr(signal.getsignal(number), "__self__", None), _Interruption):
            default = signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler
            signal.signal(number, default)
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_leave_to_child)


class _Interruption:
    """`number`: the first signal, or None. `wakeup`: the socket to which Python writes signals."""

    def __init__(self, wakeup: socket.socket) -> None:
        self._wakeup = wakeup
        self.number: int | None = None
        self._raised = False
        self._below: list[psutil.Process] = []
        self._ending = threading.Lock()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. Python calls this in the main thread, between two instructions."""
        self.number = self.number or number
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def watch(self) -> None:
        """Wait for signals in another thread, to end the process even if the main thread hangs."""
        first = 0.0
        with self._wakeup, suppress(TimeoutError):
            while received := self._wakeup.recv(1):
                if received[0] not in _SIGNALS:
                    continue
                if not first:
                    self.number = received[0]
                    # Listed now, because a process whose parent has ended is not listed any more.
                    self._below = psutil.Process().children(recursive=True)
                    first = time.monotonic()
                    self._wakeup.settimeout(_LONGEST_END_S)
                elif time.monotonic() - first > _SAME_SIGNAL_S:
                    break
            else:
                return  # the command has ended
        self.end()

    def end(self) -> NoReturn:
        """Kill all child processes, print how to resume, and exit."""
        assert self.number is not None
        with self._ending:  # by one thread only
            for process in [*self._below, *psutil.Process().children(recursive=True)]:
                with suppress(psutil.Error):
                    process.kill()
            with suppress(OSError):
                Console().show_cursor()  # a progress bar may have hidden it
                sys.stdout.flush()
                print(f"\n{_last_words}", file=sys.stderr, flush=True)
            # A normal exit would abort ("terminate called without an active exception") in
            # threads of libraries that still run.
            os._exit(128 + self.number)
