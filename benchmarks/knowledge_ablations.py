"""What the knowledge is worth: the quickstart tuned on some of its captions, or on wrong labels.

    python benchmarks/knowledge_ablations.py [--seeds 5]

Captions, caption features, scenes and settings are the quickstart's, as in ablations.py, except
that free vectors are tuned instead of tokens, which takes seconds. Finished tunings are kept in
the same way. One table has three ablations:

By kind of question (arXiv 2403.01209, §3.2). Agnostic: a category's plain name with an attribute
that is asked of all categories. Specific: a synonym or a kind of the category. (The paper's
agnostic questions ask for the attributes themselves, and their answers are not captions.)
Relationship: a set of categories. Each kind in full, and each kind and all kinds cut to the
number of the smallest.

By number of captions: the first 4, 8, … of each category in an order drawn by the seed, so that
larger sets contain the smaller ones. A caption of several categories is kept if it is among the
first of any of them.

With a share of wrong labels, with and without the order loss: a wrong caption gets the labels of
another one drawn at random. The frequency of labels stays the same, and a label may happen to be
right.

Smaller sets are repeated to the length of the whole training set; steps, batches and epochs are
the default's. The checkpoint is chosen on all held-out captions, even where these outnumber the
captions of tuning. With wrong labels, the same share of the held-out labels is wrong. Nothing is
chosen on any image. The last line is one JSON object: mean and sample deviation over seeds.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from functools import partial

import pyarrow.parquet as pq
import torch
from ablations import (
    FREE_VECTORS,
    Variation,
    compare,
    on_all_captions,
    plan_variation,
    run_shared_stages,
    runs_folder,
    scenes_of,
)
from rich.console import Console
from torch import Tensor

from orchestrator.plan.run import Plan
from orchestrator.stages.evaluation import read_caption_sets
from orchestrator.stages.knowledge import question_writer
from prompt_tuning.backbones import load_vlm
from prompt_tuning.knowledge.category_facts import CategoryFacts
from prompt_tuning.tuning.caption_set import CaptionSet

KINDS = ("agnostic", "specific", "relationship")
A_CATEGORY = (4, 8, 16, 32)
WRONG = (0.1, 0.3, 0.5)
NO_ORDER = "losses.order=0"
STRONG_ORDER = "losses.order=1"

CaptionSets = tuple[CaptionSet, CaptionSet]


def question_kinds(plan: Plan) -> list[str]:
    """Of each caption, what kind of question it answers."""
    plain = {
        (question.line, question.seed)
        for block in question_writer(plan.knowledge).sentences(
            CategoryFacts.model_validate_json(plan.knowledge.facts_file.read_bytes())
        )
        for question in block
        if question.words == question.categories
    }
    captions = pq.read_table(plan.knowledge.captions_file, columns=["kind", "question", "seed"])
    return [
        "agnostic"
        if row["kind"] == "specific" and (row["question"], row["seed"]) in plain
        else row["kind"]
        for row in captions.to_pylist()
    ]


def repeated(train: CaptionSet, places: Tensor) -> CaptionSet:
    """The captions at these places, again and again until there are as many as in the set."""
    rows = train.rows[places]
    return replace(train, rows=rows.repeat(-(-len(train) // len(rows)))[: len(train)])


def drawn_captions(plan: Plan, rows: list[int], number: int | None, seed: int) -> CaptionSets:
    """Of the training captions that are among the rows, `number` drawn by the seed, or all."""
    train, held_out = read_caption_sets(plan)
    order = _order(train, seed)
    chosen = torch.isin(train.rows[order], torch.tensor(rows))
    return repeated(train, order[chosen][:number]), held_out


def captions_a_category(plan: Plan, number: int, seed: int) -> CaptionSets:
    """Of each category the first `number` training captions, in an order drawn by the seed."""
    train, held_out = read_caption_sets(plan)
    order = _order(train, seed)
    labels = train.labels[train.rows[order]]
    among_the_first = (labels & (labels.cumsum(0) <= number)).any(1)
    return repeated(train, order[among_the_first]), held_out


def wrong_labels(plan: Plan, share: float, seed: int) -> CaptionSets:
    """All captions, a share of the training and of the held-out ones with others' labels."""
    train, held_out = read_caption_sets(plan)
    return _with_wrong_labels(train, share, seed), _with_wrong_labels(held_out, share, seed)


def _with_wrong_labels(captions: CaptionSet, share: float, seed: int) -> CaptionSet:
    count = round(share * len(captions))
    # One after the other: two generators of one seed would give captions their own labels.
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(captions), generator=generator)[:count]
    others = torch.randint(len(captions), (count,), generator=generator)
    labels = captions.labels[torch.arange(len(captions.labels))]
    labels[captions.rows[wrong]] = captions.labels[captions.rows[others]]
    return replace(captions, labels=labels)


def _order(captions: CaptionSet, seed: int) -> Tensor:
    """The places of the set in an order drawn by the seed."""
    return torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed))


def by_kind(plan: Plan) -> dict[str, Variation]:
    """The kinds in full, and as many of each, and of all, as the smallest has."""
    kinds = question_kinds(plan)
    everything = list(range(len(kinds)))
    rows = {kind: [row for row in everything if kinds[row] == kind] for kind in KINDS}
    train, _ = read_caption_sets(plan)
    counts = Counter(kinds[row] for row in train.rows.tolist())
    smallest = min(KINDS, key=counts.__getitem__)
    few = counts[smallest]
    variations = {
        kind: Variation(plan, partial(drawn_captions, plan, rows[kind], None)) for kind in KINDS
    }
    for name, of_name in {**rows, "all": everything}.items():
        if name != smallest:
            variations[f"{name}, as many as {smallest}"] = Variation(
                plan, partial(drawn_captions, plan, of_name, few)
            )
    return variations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--runs", default="runs")
    args = parser.parse_args()
    console = Console()
    base = plan_variation(FREE_VECTORS, args.seeds, args)
    run_shared_stages(base, console)
    no_order = plan_variation([*FREE_VECTORS, NO_ORDER], args.seeds, args)
    strong_order = plan_variation([*FREE_VECTORS, STRONG_ORDER], args.seeds, args)
    variations = {
        "all": on_all_captions(base),
        "all, no order loss": on_all_captions(no_order),
        "all, order loss 1": on_all_captions(strong_order),
        **by_kind(base),
    }
    for number in A_CATEGORY:
        variations[f"{number} a category"] = Variation(
            base, partial(captions_a_category, base, number)
        )
    for share in WRONG:
        for note, plan in (("", base), (", no order loss", no_order)):
            variations[f"{share:.0%} wrong labels{note}"] = Variation(
                plan, partial(wrong_labels, plan, share)
            )
    variations[f"{max(WRONG):.0%} wrong labels, order loss 1"] = Variation(
        strong_order, partial(wrong_labels, strong_order, max(WRONG))
    )
    vlm = load_vlm(base.config.vlm, cache=base.cache)
    compare(variations, base, {"scenes": scenes_of(base)}, vlm, runs_folder(args), console)


if __name__ == "__main__":
    main()
