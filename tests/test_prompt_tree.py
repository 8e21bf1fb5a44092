"""Prompts packed as a tree and encoded in passes, against the same prompts one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny_clip import load_tiny_clip, write_tiny_clip
from torch import Tensor

from prompt_tuning.backbones.base import VLM
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.hierarchy import parse_groups
from prompt_tuning.tuning.prompt_encoder import PromptEncoder
from prompt_tuning.tuning.prompt_tree import cut_in_subtrees, grow_tree
from prompt_tuning.tuning.prompts import BranchSettings, Level, PromptBranch

NAMES = ["dog", "cat", "guinea pig", "cow", "hot air balloon", "bus", "fire engine", "hot dog"]
CATEGORIES = CategoryList(categories=tuple(Category(name=name) for name in NAMES))
# Uneven on purpose, and not in the order of the list.
GROUPS = {
    "things": {"sky": ["hot air balloon"], "road": ["bus", "fire engine"], "table": ["hot dog"]},
    "animals": {"pets": ["dog", "guinea pig", "cat"], "farm": ["cow"]},
}
HIERARCHY = parse_groups(GROUPS, CATEGORIES, "test")
ORDERS: list[tuple[Level, ...]] = [
    ("shared", "coarse", "fine", "category"),
    ("shared", "fine", "coarse", "category"),
    ("category", "fine", "shared", "coarse"),
]
PLENTY = 2.0**30


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    folder = tmp_path_factory.mktemp("clip")
    write_tiny_clip(folder)
    return load_tiny_clip(folder)


def new_branch(vlm: VLM, depth: int = 4, **settings: Any) -> PromptBranch:
    counts = {"shared": 5, "fine": 3, "coarse": 2, "category": 2}
    generator = torch.Generator().manual_seed(0)
    chosen = BranchSettings(**{**counts, **settings})
    return PromptBranch(vlm, HIERARCHY, depth, chosen, 0.5, generator)


def values_and_gradients(branch: PromptBranch, encoded: Tensor) -> dict[str, Tensor]:
    """Encoded prompts, and the gradient of each parameter for a loss that weighs all of them."""
    weights = torch.randn(encoded.shape, generator=torch.Generator().manual_seed(1))
    branch.zero_grad()
    (encoded * weights).sum().backward()
    gradients = {
        name: p.grad.clone() for name, p in branch.named_parameters() if p.grad is not None
    }
    assert len(gradients) == len(branch.levels)
    return {"encoded": encoded.detach(), **gradients}


def one_by_one(vlm: VLM, branch: PromptBranch) -> dict[str, Tensor]:
    context = branch.context()
    encoded = [vlm.encode_prompts(context[c : c + 1], [name]) for c, name in enumerate(NAMES)]
    return values_and_gradients(branch, torch.cat(encoded))


def kept_by(vlm: VLM, encode: Callable[[], Tensor]) -> int:
    """Bytes of all that is saved for the backward pass, without the frozen weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in vlm.parameters()}
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        encode()
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_tree_is_prompt_by_prompt_in_values_and_gradients(
    clip: VLM, depth: int, order: tuple[Level, ...]
) -> None:
    branch = new_branch(clip, depth, order=order)
    encoder = PromptEncoder(clip, branch, NAMES, PLENTY)
    assert not encoder.recomputes
    assert_same(values_and_gradients(branch, encoder()), one_by_one(clip, branch))


@pytest.mark.parametrize("counts", [{"coarse": 0}, {"category": 0}, {"fine": 0, "coarse": 0}])
def test_levels_may_have_no_tokens(clip: VLM, counts: dict[str, int]) -> None:
    branch = new_branch(clip, **counts)
    encoder = PromptEncoder(clip, branch, NAMES, PLENTY)
    assert_same(values_and_gradients(branch, encoder()), one_by_one(clip, branch))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each pass that is computed."""
    lengths: list[int] = []
    encode = PromptEncoder._encode_tree

    def counted(encoder: PromptEncoder, tree: Any, table: Tensor) -> Tensor:
        lengths.append(len(tree.rows))
        return encode(encoder, tree, table)

    monkeypatch.setattr(PromptEncoder, "_encode_tree", counted)
    return lengths


def test_what_exceeds_the_budget_is_encoded_by_subtrees_and_again(
    clip: VLM, passes: list[int]
) -> None:
    branch = new_branch(clip)
    roomy = PromptEncoder(clip, branch, NAMES, PLENTY)
    tight = PromptEncoder(clip, branch, NAMES, kept_by(clip, roomy) / 3)
    passes.clear()
    expected = values_and_gradients(branch, roomy())
    whole = passes.copy()
    assert len(whole) == 1, "once, for all"
    passes.clear()
    actual = values_and_gradients(branch, tight())
    assert tight.recomputes
    assert len(passes) >= 6, "several subtrees, each again in backward"
    assert sorted(passes) == sorted(passes[: len(passes) // 2] * 2)
    assert max(passes) < whole[0] / 2
    assert_same(actual, expected)
    passes.clear()
    with torch.no_grad():
        tight()
    assert len(passes) == len(tight._passes), "once where nothing is learned"


def test_a_budget_below_a_single_prompt_takes_them_singly(clip: VLM, passes: list[int]) -> None:
    branch = new_branch(clip)
    encoder = PromptEncoder(clip, branch, NAMES, 1.0)
    assert len(encoder._passes) == len(NAMES)
    assert_same(values_and_gradients(branch, encoder()), one_by_one(clip, branch))


def test_memory_that_is_kept_stays_in_the_budget(clip: VLM) -> None:
    branch = new_branch(clip)

    roomy = PromptEncoder(clip, branch, NAMES, PLENTY)
    budget = kept_by(clip, roomy) / 3
    tight = PromptEncoder(clip, branch, NAMES, budget)
    table = torch.cat([branch.table(), tight._words])  # type: ignore[list-item]
    of_passes = [kept_by(clip, partial(one, table)) for one in tight._passes]
    # The tree's mask and what is fixed a pass come on top of what each token keeps.
    assert max(of_passes) <= 1.25 * budget, "of a pass while it is computed anew"
    assert kept_by(clip, tight) < budget / 2, "of all, between their two computations"


def test_a_bidirectional_tower_takes_whole_prompts_within_the_budget(embedded_vlm: VLM) -> None:
    # In single precision, padding alone changes gradients of tokens so unlike words by 3e-5.
    vlm = copy.deepcopy(embedded_vlm).double()
    branch = new_branch(vlm).double()
    expected = one_by_one(vlm, branch)
    roomy = PromptEncoder(vlm, branch, NAMES, PLENTY)
    assert len(roomy._passes) == 1
    assert not roomy.recomputes
    tight = PromptEncoder(vlm, branch, NAMES, PLENTY / 100)
    assert len(tight._passes) > 1
    assert tight.recomputes
    for encoder in (roomy, tight):
        actual = values_and_gradients(branch, encoder())
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_a_prompt_that_is_too_long_names_its_category(clip: VLM) -> None:
    message = r"prompts: 42 tokens with the category 'hot air balloon' exceed the 40 that tiny-CLIP"
    with pytest.raises(ValueError, match=message):
        PromptEncoder(clip, new_branch(clip, shared=29), NAMES, PLENTY)


# --- the packing itself


def test_a_tree_worked_out_by_hand() -> None:
    tree = grow_tree([[0, 1, 5, 9], [0, 1, 6, 9], [0, 2, 5, 7, 9]])
    assert tree.rows.tolist() == [0, 1, 5, 9, 6, 9, 2, 5, 7, 9]
    assert tree.positions.tolist() == [0, 1, 2, 3, 2, 3, 1, 2, 3, 4]
    assert tree.ends.tolist() == [3, 5, 9]
    seen = [row.nonzero()[:, 0].tolist() for row in tree.seen]
    assert seen[3] == [0, 1, 2, 3]
    assert seen[5] == [0, 1, 4, 5]
    assert seen[9] == [0, 6, 7, 8, 9]


def test_prompts_that_are_the_same_share_their_end() -> None:
    assert grow_tree([[0, 1], [0, 1], [0, 2]]).ends.tolist() == [1, 1, 2]


@pytest.mark.parametrize("most", [1, 5, 6, 7, 9, 10, 100])
def test_subtrees_are_as_large_as_they_may_be(most: int) -> None:
    prompts = [[0, 1, 5, 9], [0, 1, 6, 9], [0, 2, 5, 7, 9], [0, 2, 6, 9]]
    cuts = cut_in_subtrees(prompts, most)
    assert [c for cut in cuts for c in cut] == [0, 1, 2, 3]
    for cut, following in zip(cuts, [*cuts[1:], None], strict=True):
        size = len(grow_tree(prompts[cut.start : cut.stop]).rows)
        assert size <= most or len(cut) == 1
        if following:
            assert len(grow_tree(prompts[cut.start : cut.stop + 1]).rows) > most
