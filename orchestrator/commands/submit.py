"""`datafree submit`."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.errors import InputError
from orchestrator.interruption import say_if_stopped

if TYPE_CHECKING:
    from orchestrator.cluster.jobs import JobServer

_COMMANDS = ("run", "sweep", "knowledge")
_QUESTIONS = ("status", "logs", "stop")


def submit(
    first: str,
    second: str | None,
    address: str | None,
    overrides: list[str],
    cache: str | None,
    runs: str | None,
    wait: bool,
) -> None:
    """Submit a config as a Ray job, or look after a job that was submitted."""
    say_if_stopped("Stopped. A job that is submitted already goes on.")
    logging.disable(logging.WARNING)  # Ray tells of each package that it sends
    if first in _QUESTIONS:
        if second is None:
            raise InputError(f"submit {first}: must name a job: datafree submit {first} JOB")
        _look_after(first, second, address)
        return
    command = second or "run"
    if command not in _COMMANDS:
        raise InputError(f"submit {first} {command}: must be one of {', '.join(_COMMANDS)}")
    from orchestrator.cluster.jobs import JobServer, check_room, prepare_job

    job = prepare_job(Path(first), command, overrides, cache, runs)
    server = JobServer(address)
    check_room(job.config, command, server.resources())
    if job.parcel.is_large:
        typer.echo(f"sending {job.parcel}", err=True)
    name = server.submit(job)
    typer.echo(f"{name}: submitted to {server.address}: {shlex.join(['python', *job.arguments])}")
    typer.echo(f"look again: {_command('logs', name, address)}")
    if wait:
        _follow(server, name, address)


def _look_after(question: str, name: str, address: str | None) -> None:
    from orchestrator.cluster.jobs import JobServer, describe_job, outcome

    server = JobServer(address)
    if question == "status":
        typer.echo(describe_job(server.details(name)))
    elif question == "stop":
        typer.echo(outcome(server.stop(name))[0])
    else:
        _follow(server, name, address)


def _follow(server: JobServer, name: str, address: str | None) -> None:
    from orchestrator.cluster.jobs import outcome

    say_if_stopped(
        f"{name}: goes on without you; look again: {_command('logs', name, address)}; "
        f"end it: {_command('stop', name, address)}"
    )
    said, code = outcome(server.follow(name))
    typer.echo(said, err=code != 0)
    raise typer.Exit(code)


def _command(question: str, name: str, address: str | None) -> str:
    return f"datafree submit {question} {name}" + (f" --address {address}" if address else "")
