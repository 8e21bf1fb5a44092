"""Hierarchical prompts, through the real embedded model."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from prompt_tuning.backbones.base import VLM
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.hierarchy import Hierarchy, parse_groups
from prompt_tuning.tuning.prompts import (
    BranchSettings,
    Level,
    PromptBranch,
    Residuals,
    anchor_features,
)

NAMES = ["dog", "cat", "cow", "hot air balloon", "bus"]
CATEGORIES = CategoryList(categories=tuple(Category(name=name) for name in NAMES))
GROUPS = {
    "animals": {"pets": ["dog", "cat"], "farm": ["cow"]},
    "things": {"sky": ["hot air balloon"], "road": ["bus"]},
}
HIERARCHY = parse_groups(GROUPS, CATEGORIES, "test")
LEVELS_BY_DEPTH: dict[int, set[Level]] = {
    1: {"shared"},
    2: {"shared", "category"},
    3: {"shared", "category", "fine"},
    4: {"shared", "category", "fine", "coarse"},
}
# Which classes a level's first row of tokens belongs to.
OF_THE_FIRST_GROUP: dict[Level, list[str]] = {
    "shared": NAMES,
    "coarse": ["dog", "cat", "cow"],
    "fine": ["dog", "cat"],
    "category": ["dog"],
}


def branch(
    vlm: VLM,
    depth: int = 4,
    settings: BranchSettings | None = None,
    seed: int = 0,
    std: float = 0.02,
    hierarchy: Hierarchy = HIERARCHY,
) -> PromptBranch:
    generator = torch.Generator().manual_seed(seed)
    return PromptBranch(vlm, hierarchy, depth, settings or BranchSettings(), std, generator)


def words(vlm: VLM, text: str) -> Tensor:
    """The input embeddings of the words of a text, without the tokenizer's frame around it."""
    return vlm.text_tower.embed_words(text)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_every_token_of_every_level_gets_gradient(embedded_vlm: VLM, depth: int) -> None:
    prompts = branch(embedded_vlm, depth)
    assert set(prompts.tokens) == LEVELS_BY_DEPTH[depth]
    encoded = embedded_vlm.encode_prompts(prompts.context(), NAMES)
    direction = torch.randn(encoded.shape, generator=torch.Generator().manual_seed(1))
    (encoded * direction).sum().backward()
    for tokens in prompts.tokens.values():
        assert tokens.grad is not None
        assert (tokens.grad.norm(dim=-1) > 1e-6).all()
    assert all(parameter.grad is None for parameter in embedded_vlm.parameters())


@pytest.mark.parametrize("level", ["shared", "coarse", "fine", "category"])
def test_a_groups_tokens_are_in_the_prompts_of_its_members_only(
    embedded_vlm: VLM, level: Level
) -> None:
    prompts = branch(embedded_vlm)
    before = prompts.context().detach().clone()
    with torch.no_grad():
        prompts.tokens[level][0] += 1
    changed = (prompts.context() != before).flatten(1).any(1)
    members = [name for name, hit in zip(NAMES, changed.tolist(), strict=True) if hit]
    assert members == OF_THE_FIRST_GROUP[level]


@pytest.mark.parametrize(
    "order",
    [("shared", "coarse", "fine", "category"), ("category", "fine", "shared", "coarse")],
)
def test_tokens_stand_in_the_given_order(embedded_vlm: VLM, order: tuple[Level, ...]) -> None:
    counts: dict[Level, int] = {"shared": 4, "coarse": 1, "fine": 2, "category": 3}
    settings = BranchSettings(order=order, **counts)
    prompts = branch(embedded_vlm, settings=settings)
    with torch.no_grad():
        for number, level in enumerate(order):
            prompts.tokens[level].fill_(number)
    expected = [number for number, level in enumerate(order) for _ in range(counts[level])]
    context = prompts.context()
    assert context.shape == (5, 10, embedded_vlm.context_width)
    assert context[3, :, 0].tolist() == expected


def test_levels_without_tokens_are_left_out(embedded_vlm: VLM) -> None:
    prompts = branch(embedded_vlm, settings=BranchSettings(fine=0, category=0))
    assert set(prompts.tokens) == {"shared", "coarse"}
    assert prompts.context().shape[1] == 6


@pytest.mark.parametrize("depth", [1, 4])
def test_a_branch_without_hierarchy_has_the_same_tokens_for_all(
    embedded_vlm: VLM, depth: int
) -> None:
    prompts = branch(embedded_vlm, depth, BranchSettings(hierarchical=False, shared=32))
    assert set(prompts.tokens) == {"shared"}
    context = prompts.context()
    assert context.shape == (5, 32, embedded_vlm.context_width)
    assert (context == context[:1]).all()


def test_an_order_that_misses_or_repeats_a_level_is_refused() -> None:
    for order in (("shared", "fine"), ("shared", "shared", "fine", "coarse")):
        with pytest.raises(ValidationError, match="must list each of"):
            BranchSettings(order=order)


def test_a_seed_decides_the_start_and_std_its_distance(embedded_vlm: VLM) -> None:
    first, same, other = (branch(embedded_vlm, seed=seed).context() for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not (first == other).any()
    start = embedded_vlm.initial_context(12)
    assert (first - start).std().item() == pytest.approx(0.02, rel=0.1)
    undisturbed = branch(embedded_vlm, std=0.0).context()
    torch.testing.assert_close(undisturbed, start.expand_as(undisturbed))


def test_context_of_real_words_encodes_as_the_sentence(embedded_vlm: VLM) -> None:
    context = words(embedded_vlm, "two old images of one").expand(5, -1, -1)
    encoded = embedded_vlm.encode_prompts(context, NAMES)
    sentences = embedded_vlm.encode_text([f"two old images of one {name}." for name in NAMES])
    torch.testing.assert_close(encoded, sentences, atol=1e-5, rtol=0)


def test_tokens_start_as_the_words_of_the_anchor_prompt(embedded_vlm: VLM) -> None:
    start = embedded_vlm.initial_context(4)
    assert torch.equal(start, words(embedded_vlm, "a photo of a"))
    assert torch.equal(embedded_vlm.initial_context(6), torch.cat([start, start[:2]]))
    encoded = embedded_vlm.encode_prompts(start.expand(5, -1, -1), NAMES)
    expected = anchor_features(embedded_vlm, CATEGORIES)
    torch.testing.assert_close(encoded, expected, atol=1e-5, rtol=0)


def test_names_of_different_length_in_one_batch_encode_as_one_by_one(embedded_vlm: VLM) -> None:
    context = branch(embedded_vlm).context()
    together = embedded_vlm.encode_prompts(context, NAMES)
    for c, name in enumerate(NAMES):
        alone = embedded_vlm.encode_prompts(context[c : c + 1], [name])
        torch.testing.assert_close(together[c], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_residuals_start_at_zero_and_are_summed_over_the_groups_of_each_class(depth: int) -> None:
    residuals = Residuals(HIERARCHY, BranchSettings().levels(depth), dim=8)
    assert not residuals().any()
    draw = torch.Generator().manual_seed(0)
    for vectors in residuals.vectors.values():
        vectors.data.normal_(generator=draw)
    expected = torch.zeros(len(NAMES), 8)
    for level in LEVELS_BY_DEPTH[depth] - ({"shared"} if depth > 1 else set()):
        groups = {"coarse": HIERARCHY.coarse_of, "fine": HIERARCHY.fine_of, "shared": [0] * 5}
        expected += residuals.vectors[level][list(groups.get(level, range(5)))]
    torch.testing.assert_close(residuals(), expected)
