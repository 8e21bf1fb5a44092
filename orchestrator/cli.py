"""The command line. Each command has a module, which imports Ray and torch only when it runs."""

from __future__ import annotations

import gc
import os
import re
import sys
from typing import Annotated

import typer

from orchestrator.commands.adapt import adapt
from orchestrator.commands.cache import cache
from orchestrator.commands.calibrate import calibrate
from orchestrator.commands.check import check
from orchestrator.commands.doctor import doctor
from orchestrator.commands.evaluate import evaluate
from orchestrator.commands.explain import explain
from orchestrator.commands.export import export
from orchestrator.commands.knowledge import knowledge
from orchestrator.commands.run import run
from orchestrator.commands.serve import serve
from orchestrator.commands.submit import submit
from orchestrator.commands.sweep import sweep
from orchestrator.commands.tag import tag
from orchestrator.console import quieten_libraries
from orchestrator.errors import InputError
from orchestrator.interruption import interruptible

_LONGEST_MESSAGE = 1400

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Tag images with your own labels, with prompts tuned on text alone.",
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"datafree {version('datafree')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None: ...


for _command in (
    run,
    check,
    knowledge,
    sweep,
    evaluate,
    tag,
    calibrate,
    adapt,
    serve,
    export,
    explain,
    submit,
    cache,
    doctor,
):
    app.command()(_command)


def _home_expanded(arguments: list[str]) -> list[str]:
    """Expand `~` where a shell does not, as in --out=~/tags.csv and "~/a*.jpg".

    Not for `submit`: there `~` is the home folder on the cluster.
    """
    if arguments[:1] == ["submit"]:
        return arguments
    home = os.path.expanduser("~")
    return [
        re.sub(r"^((?:[\w.-]+=)?)~(?=/|$)", lambda found: found[1] + home, argument)
        for argument in arguments
    ]


def main() -> None:
    """Run the command line. Exit codes: 1 the system failed, 2 the input was wrong."""
    # Imports of PyTorch and Ray make very many objects that last. To look for garbage among them
    # took a sixth of the time that a command needs to start. Afterwards there is little garbage.
    gc.set_threshold(100_000)
    quieten_libraries()
    with interruptible():
        try:
            app(_home_expanded(sys.argv[1:]))
        except InputError as error:
            typer.echo(f"error: {str(error)[:_LONGEST_MESSAGE]}", err=True)
            sys.exit(2)
        except Exception as error:
            from workers.failure import describe

            typer.echo(describe(error), err=True)
            sys.exit(1)
