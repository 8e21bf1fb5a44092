"""`knowledge --preview`: a few answers of each template, and what the filters make of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.cluster.check import check_cluster
from orchestrator.cluster.connect import disconnect
from orchestrator.cluster.resources import find_resources, wait_for_nodes
from orchestrator.config.models import RunConfig
from orchestrator.console import status
from orchestrator.errors import InputError
from orchestrator.plan.knowledge import KnowledgePlan, plan_knowledge
from orchestrator.runs.knowledge_job import prepare_answers
from prompt_tuning.captions import Caption
from prompt_tuning.knowledge.dialogue import Answer, Question

# From the start, the middle and the end of the list.
_CATEGORIES = 3

Answered = list[tuple[Question, Answer]]
Kinds = Mapping[str, tuple[str, ...]]


def preview_knowledge(config: RunConfig, console: Console, count: int) -> None:
    """Ask `count` questions of each template for a few categories, and print what comes of them.

    The answers stay in the cache, but a run asks its own questions. Raises InputError.
    """
    if not config.knowledge.questions.asks_something or config.knowledge.llm.source == "file":
        raise InputError("--preview needs a language model that this config asks")
    resources = wait_for_nodes(find_resources(), config, tunes=False)
    plan = plan_knowledge(config, resources)
    check_cluster(config.paths)
    try:
        prepare_answers(plan, console)
        with status(console, "asking the language model …"):
            lists, sentences, kinds = _ask(plan, count)
    finally:
        disconnect()
    _print(plan, lists, sentences, kinds, console)


def _ask(plan: KnowledgePlan, count: int) -> tuple[Answered, Answered, Kinds]:
    """Questions with their answers, for lists, and for sentences that rest on these lists; and the
    kinds of each category that the lists name (a run lets the model confirm them first)."""
    from orchestrator.stages.knowledge import answer_ledger, answering, question_writer  # heavy
    from prompt_tuning.knowledge.category_facts import read_category_facts
    from workers.knowledge.ledger import cut_shards

    names, writer, ledger = plan.categories.names, question_writer(plan), answer_ledger(plan)
    chosen = {names[i * (len(names) - 1) // (_CATEGORIES - 1)] for i in range(_CATEGORIES)}
    with answering(plan, ledger) as pool:

        def answered(blocks: Iterable[Iterable[Question]]) -> Answered:
            few = list(_few(blocks, chosen, count))
            shards = list(cut_shards([few], max(1, len(few)), plan.llm_identity))
            pool.answer(shards, lambda *_: None)
            return [
                pair
                for shard in shards
                for pair in zip(shard.questions, ledger.read(shard), strict=True)
            ]

        lists = answered(writer.facts())
        attributes = plan.config.knowledge.questions.attributes
        facts = read_category_facts(plan.categories, lists, attributes)
        return lists, answered(writer.sentences(facts)), facts.kinds


def _few(blocks: Iterable[Iterable[Question]], chosen: set[str], count: int) -> Iterator[Question]:
    """The first `count` questions of each template about each of the chosen categories."""
    for block in blocks:  # of one template, with all questions about a category
        taken: Counter[str] = Counter()
        for question in block:
            about = next(iter(question.categories), "")
            if (not about or about in chosen) and taken[about] < count:
                taken[about] += 1
                yield question


def _print(
    plan: KnowledgePlan, lists: Answered, sentences: Answered, kinds: Kinds, console: Console
) -> None:
    from prompt_tuning.knowledge.caption_filter import CaptionFilter

    caption_filter = CaptionFilter(plan.categories, plan.config.captions, kinds)
    table = Table("kind", "question", "answer", "what becomes of it")
    kept = 0
    for is_list, question, answer in [
        *((True, *pair) for pair in lists),
        *((False, *pair) for pair in sentences),
    ]:
        if answer.failure:
            outcome = f"no answer: {answer.failure}"
        elif is_list:
            outcome = "a list"
        else:
            judged = caption_filter.judge(question, answer)
            kept += isinstance(judged, Caption)
            outcome = f"dropped: {judged}"
            if isinstance(judged, Caption):
                outcome = f"kept: {', '.join(plan.categories.names[i] for i in judged.labels)}"
        table.add_row(question.kind, Text(question.line), Text(answer.text), Text(outcome))
    console.print(table)
    console.print(f"{kept} of {len(sentences)} sentences are kept.", highlight=False)
