"""What fills the folder of the knowledge stage; without PyTorch, for a driver that only asks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from orchestrator.cluster.connect import connect
from orchestrator.console import StageProgress, status
from orchestrator.plan.knowledge import KnowledgePlan
from orchestrator.stages.given_captions import write_given_knowledge
from orchestrator.stages.knowledge import write_knowledge
from workers.knowledge import embedded_llm

Work = Callable[[Path], None]


def knowledge_work(plan: KnowledgePlan, console: Console) -> Work:
    """What fills the folder of the knowledge stage."""
    if not plan.config.knowledge.questions.asks_something:
        return partial(write_given_knowledge, plan)

    def knowledge(staging: Path) -> None:
        _prepare_model(plan, console)
        connect(plan.resources.cpus, plan.resources.gpus)
        write_knowledge(plan, partial(StageProgress, console), staging)

    return knowledge


def _prepare_model(plan: KnowledgePlan, console: Console) -> None:
    """Assemble the embedded model once, before engines need it, and show its terms of use."""
    if plan.config.knowledge.llm.model != embedded_llm.EMBEDDED_MODEL:
        return
    folder = Path(plan.llm_path)
    if folder.exists():  # a damaged one is assembled again by the engine
        return
    console.print(embedded_llm.TERMS)
    with status(console, "assembling the embedded language model (once, about half a minute) …"):
        embedded_llm.assemble(folder)
