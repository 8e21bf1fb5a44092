"""Draws that stay when the list around them grows."""

from __future__ import annotations

from collections import Counter

import pytest

from prompt_tuning.knowledge.hashed_sampling import blocks, shuffled, unit_draw, weighted_choice

NAMES = [f"name {n}" for n in range(400)]


def test_draws_are_uniform_and_named() -> None:
    draws = [unit_draw("a", n) for n in range(4000)]
    assert sum(draws) / 4000 == pytest.approx(0.5, abs=0.02)
    assert 0 < min(draws) < max(draws) < 1
    assert unit_draw("a", 1) == draws[1] != unit_draw("b", 1)
    # Bytes of earlier runs rest on this.
    assert unit_draw("a", 1) == pytest.approx(0.6035, abs=1e-4)


def test_one_more_item_leaves_the_order_of_the_others() -> None:
    assert [n for n in shuffled([*NAMES, "new"], 7) if n != "new"] == shuffled(NAMES, 7)
    assert shuffled(NAMES, 7) != shuffled(NAMES, 8)


def test_choices_come_in_proportion_to_their_weights() -> None:
    drawn = Counter(weighted_choice({"a": 1, "b": 3, "c": 6}, n) for n in range(4000))
    assert [drawn[item] / 4000 for item in "abc"] == pytest.approx([0.1, 0.3, 0.6], abs=0.03)


def test_one_more_item_changes_only_the_choices_that_it_wins() -> None:
    few, more = {"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 3.0, "new": 2.0}
    pairs = [(weighted_choice(few, n), weighted_choice(more, n)) for n in range(600)]
    changed = [after for before, after in pairs if after != before]
    assert set(changed) == {"new"}
    assert len(changed) / 600 == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 40])
def test_blocks_hold_every_name_once_and_are_about_even(count: int) -> None:
    dealt = blocks(NAMES, count)
    assert sorted(name for block in dealt for name in block) == sorted(NAMES)
    assert len(dealt) == count
    assert max(map(len, dealt)) <= 4 * len(NAMES) / count


def test_one_more_name_changes_one_block_and_one_more_block_splits_one() -> None:
    for count in range(1, 40):
        before = blocks(NAMES, count)
        with_name = blocks([*NAMES, "new"], count)
        assert sum(block not in before for block in with_name) == 1
        split = blocks(NAMES, count + 1)
        assert sum(block not in split for block in before) <= 1
