"""`knowledge`: ask the language model the questions without an answer, and count the captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.cluster.check import check_cluster
from orchestrator.cluster.connect import connect, disconnect
from orchestrator.cluster.resources import find_resources, wait_for_nodes
from orchestrator.config.label_list import show_labels
from orchestrator.config.models import RunConfig
from orchestrator.console import StageProgress, status
from orchestrator.errors import InputError
from orchestrator.pages.metrics_summary import caption_notes
from orchestrator.plan.knowledge import KnowledgePlan, describe_engines, plan_knowledge
from orchestrator.run_lock import only_driver
from orchestrator.runs.cache import note_planned
from orchestrator.runs.label_report import warn_of_labels
from orchestrator.stages.given_captions import write_given_knowledge
from orchestrator.stages.imported_answers import OpenQuestions, write_requests
from orchestrator.stages.knowledge_summary import RESULTS, read_summary
from prompt_tuning.storage import copy_atomic
from workers.knowledge import embedded_llm
from workers.stage import run_stage

# Fills the folder of a stage.
Work = Callable[[Path], None]

_CATEGORIES_LISTED = 5


def run_knowledge(
    config: RunConfig,
    console: Console,
    dry_run: bool,
    strict: bool,
    imported: Path | None = None,
    exported: Path | None = None,
) -> None:
    """Write captions, answers and a summary to `runs/<name>/knowledge/`; `dry_run`: print the plan.

    `imported`: a file of answers. `exported`: the file for the questions that are then still open.

    Raises:
        InputError: before anything starts, or if the answers are to come from files and some are
            missing.
        RuntimeError: with `strict`, if a question could not be answered; the results are kept.
    """
    _check_files(config, imported, exported)
    resources = find_resources()
    if not dry_run:
        resources = wait_for_nodes(resources, config, tunes=False)
    plan = plan_knowledge(config, resources)
    if dry_run:
        _print_plan(plan, console)
        return
    check_cluster(config.paths)
    with only_driver(plan.run_folder):
        note_planned(plan.run_folder, [plan.stage])
        show_labels(plan.categories, console)
        warn_of_labels(plan.categories, console)
        try:
            ran = run_stage(plan.stage, knowledge_work(plan, console, imported=imported))
        except OpenQuestions as open_:
            if exported is None:
                raise
            write_requests(plan, open_.questions, exported)
            console.print(f"{len(open_.questions)} questions: {exported}", soft_wrap=True)
            return
        finally:
            disconnect()
        results = plan.run_folder / "knowledge"
        for name in RESULTS:
            copy_atomic(plan.stage.folder / name, results / name)
    summary = read_summary(plan)
    if not ran:
        console.print("Nothing to do: every question is already answered.")
    _print_summary(summary, results, console)
    coverage = asdict(plan.coverage())
    for note in caption_notes({"captions": coverage, "positives": plan.categories.names}):
        console.print(f"warning: {note}", style="yellow", markup=False, soft_wrap=True)
    warn_of_unanswered(summary, console)
    if strict and summary["not_answered"]:
        raise RuntimeError(_not_answered(summary))


def _check_files(config: RunConfig, imported: Path | None, exported: Path | None) -> None:
    """Raise InputError for files that cannot be read or written, before anything starts."""
    source = config.knowledge.llm.source
    if (imported or exported) and source != "file":
        raise InputError(f"--import and --export need knowledge.llm.source: file (got {source!r})")
    if imported and not imported.is_file():
        raise InputError(f"--import: {imported} must be a file of answers")
    if exported and (exported.is_dir() or not exported.parent.is_dir()):
        raise InputError(f"--export: {exported} must be a file in an existing folder")
    if imported and exported and imported.resolve() == exported.resolve():
        raise InputError(f"--export: {exported} must be another file than that of --import")


def knowledge_work(
    plan: KnowledgePlan, console: Console, dashboard: bool = False, imported: Path | None = None
) -> Work:
    """The function that fills the folder of the knowledge stage.

    `dashboard`: see `connect`. `imported`: a file of answers.
    """
    if not plan.config.knowledge.questions.asks_something:
        return partial(write_given_knowledge, plan)

    def knowledge(staging: Path) -> None:
        from orchestrator.stages.knowledge import write_knowledge  # heavy

        prepare_answers(plan, console, dashboard)
        write_knowledge(plan, partial(StageProgress, console), staging, imported)

    return knowledge


def prepare_answers(plan: KnowledgePlan, console: Console, dashboard: bool = False) -> None:
    """Make the language model ready, or see that its server answers, and connect to Ray.

    Raises InputError if the server refuses the key, the model or the URL.
    """
    llm = plan.config.knowledge.llm
    if llm.source == "file":
        return
    if llm.source == "server":
        from workers.knowledge.server import ServerFailure, check_server, server_model  # heavy

        try:
            check_server(llm, server_model(llm), plan.config.knowledge.sampling)
        except ServerFailure as error:
            raise InputError(str(error)) from None
    elif llm.model == embedded_llm.EMBEDDED_MODEL and not Path(plan.llm_path).exists():
        console.print(embedded_llm.TERMS)
        with status(console, "assembling the embedded language model (about half a minute) …"):
            embedded_llm.assemble(Path(plan.llm_path))  # an engine mends a damaged one
    connect(plan.resources.cpus, plan.resources.gpus, dashboard=dashboard)


def warn_of_unanswered(summary: dict[str, Any], console: Console) -> None:
    """Print how many questions no engine could answer, if any, and the first of them."""
    if summary["not_answered"]:
        console.print(f"warning: {_not_answered(summary)}", style="yellow", markup=False)


def _not_answered(summary: dict[str, Any]) -> str:
    first = summary["quarantined"][0]
    return (
        f"knowledge: {summary['not_answered']} questions are in quarantine, because no engine "
        f"could answer them; the first: {first['question']!r} ({first['reason']})"
    )


def _print_plan(plan: KnowledgePlan, console: Console) -> None:
    from orchestrator.stages.knowledge import question_writer
    from prompt_tuning.knowledge.templates import FACTS, SENTENCES

    writer = question_writer(plan)
    show_labels(plan.categories, console)
    warn_of_labels(plan.categories, console)
    table = Table("stage", "key", "state", title=f"plan of {plan.config.name}")
    table.add_row(plan.stage.name, plan.stage.key, "done" if plan.stage.done() else "to do")
    console.print(table)
    console.print(
        f"questions: {writer.count(FACTS)} for category facts, "
        f"{writer.count(SENTENCES)} for captions\n"
        f"{describe_engines(plan)}"
    )


def _print_summary(summary: dict[str, Any], results: Path, console: Console) -> None:
    kept, dropped = sum(summary["kept"].values()), sum(summary["dropped"].values())
    title = "own captions"
    if summary["model"]:
        in_dtype = f" in {summary['dtype']}" if summary["dtype"] else ""
        title = f"knowledge of {summary['model']}{in_dtype}"
    table = Table("", "captions", title=title)
    table.add_row("kept", str(kept))
    for reason, count in sorted(summary["dropped"].items(), key=lambda item: -item[1]):
        table.add_row(f"dropped: {reason}", str(count))
    console.print(table)
    by_count = sorted(summary["captions_per_category"].items(), key=lambda item: item[1])
    fewest = ", ".join(f"{name} {count}" for name, count in by_count[:_CATEGORIES_LISTED])
    given = {"file", "template"}  # not from the language model
    answers = sum(count for kind, count in summary["kept"].items() if kind not in given)
    share = f"{100 * answers / (answers + dropped):.0f} % kept; " if dropped else ""
    console.print(f"{share}fewest: {fewest}; {summary['tokens']} tokens", highlight=False)
    if not summary["repeats"]:
        console.print("Asked again, this language model may answer in other words.")
    for file in sorted(results.iterdir()):
        console.print(f"{file.name:<18} {file}", soft_wrap=True, highlight=False)
