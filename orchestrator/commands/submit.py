"""`datafree submit`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.options import Overrides
from orchestrator.errors import InputError
from orchestrator.interruption import say_if_stopped

if TYPE_CHECKING:
    from orchestrator.cluster.job_server import JobServer

_COMMANDS = ("run", "sweep", "knowledge")
_ACTIONS = ("status", "logs", "stop")
_SharedFolder = Annotated[str | None, typer.Option(help="Folder that every node can see")]


def submit(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|status|logs|stop", help="Config file to run, or what to do with a job"
        ),
    ],
    command: Annotated[
        str | None,
        typer.Argument(
            metavar="run|sweep|knowledge|JOB", help="Command for the config (default: run), or job"
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Address of the job server (default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS or "
            "http://127.0.0.1:8265)",
        ),
    ] = None,
    set_: Overrides = None,
    cache: _SharedFolder = None,
    runs: _SharedFolder = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the log until the job ends")
    ] = True,
) -> None:
    """Run a config as a job on a Ray cluster, or show, follow or stop a job."""
    import logging

    say_if_stopped("Stopped. A job that was already submitted continues.")
    logging.disable(logging.WARNING)  # Ray logs each package that it uploads
    if config in _ACTIONS:
        if command is None:
            raise InputError(f"submit {config}: must name a job: datafree submit {config} JOB")
        _act_on_job(config, command, address)
        return
    command = command or "run"
    if command not in _COMMANDS:
        raise InputError(f"submit {config} {command}: must be one of {', '.join(_COMMANDS)}")
    from orchestrator.cluster.job import check_room, prepare_job
    from orchestrator.cluster.job_server import JobServer

    job = prepare_job(Path(config), command, set_ or [], cache, runs)
    server = JobServer(address)
    check_room(job.config, command, server.resources())
    if job.parcel.is_large:
        typer.echo(f"uploading {job.parcel}", err=True)
    name = server.submit(job)
    typer.echo(f"{name}: submitted to {server.address}: {shlex.join(['python', *job.arguments])}")
    typer.echo(f"follow it: {_command('logs', name, address)}")
    if wait:
        _follow(server, name, address)


def _act_on_job(action: str, name: str, address: str | None) -> None:
    from orchestrator.cluster.job_server import JobServer, describe_job, outcome

    server = JobServer(address)
    if action == "status":
        typer.echo(describe_job(server.details(name)))
    elif action == "stop":
        typer.echo(outcome(server.stop(name))[0])
    else:
        _follow(server, name, address)


def _follow(server: JobServer, name: str, address: str | None) -> None:
    from orchestrator.cluster.job_server import outcome

    say_if_stopped(
        f"{name}: continues on the cluster; follow it: {_command('logs', name, address)}; "
        f"stop it: {_command('stop', name, address)}"
    )
    line, code = outcome(server.follow(name))
    typer.echo(line, err=code != 0)
    raise typer.Exit(code)


def _command(action: str, name: str, address: str | None) -> str:
    return f"datafree submit {action} {name}" + (f" --address {address}" if address else "")
