"""The prompts of many classes as one tree, packed in one sequence.

Under a causal text tower a token's feature depends on the tokens before it alone. Prompts that
begin alike (with shared tokens, then with those of their groups) need what they have in common
only once: each token of the packed sequence sees its own prompt's tokens before it and stands at
its own prompt's position. The numbers are those of encoding prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PromptTree(NamedTuple):
    """Some classes' prompts in one sequence; a prompt is a list of rows of a table of tokens.

    `rows`: `(tokens,)`, each token's row of the table. `positions`: `(tokens,)`, its place in its
    prompt. `seen`: `(tokens, tokens)`, bool: what each token attends to, which is itself and what
    stands before it in its prompt. `ends`: `(classes,)`, where each class's last token is.
    """

    rows: Tensor
    positions: Tensor
    seen: Tensor
    ends: Tensor

    def to(self, device: torch.device) -> PromptTree:
        """The same tree on another device."""
        return PromptTree(*(part.to(device) for part in self))


def grow_tree(prompts: Sequence[Sequence[int]]) -> PromptTree:
    """The tree of prompts that are sorted, so that those which begin alike are neighbours."""
    rows: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    ends: list[int] = []
    path: list[int] = []  # the packed tokens of the prompt before
    previous: Sequence[int] = ()
    for prompt in prompts:
        path = path[: _common_start(previous, prompt)]
        for row in prompt[len(path) :]:
            parents.append(path[-1] if path else -1)
            positions.append(len(path))
            path.append(len(rows))
            rows.append(row)
        ends.append(path[-1])
        previous = prompt
    seen = torch.eye(len(rows), dtype=torch.bool)
    for token, parent in enumerate(parents):
        if parent >= 0:
            seen[token] |= seen[parent]
    return PromptTree(torch.tensor(rows), torch.tensor(positions), seen, torch.tensor(ends))


def cut_in_subtrees(prompts: Sequence[Sequence[int]], most_tokens: int) -> list[range]:
    """Consecutive ranges of sorted prompts, each of whose trees has at most `most_tokens` tokens
    (or is a single longer prompt)."""
    cuts, tokens = [0], 0
    for c, prompt in enumerate(prompts):
        new = len(prompt) - (_common_start(prompts[c - 1], prompt) if c > cuts[-1] else 0)
        if tokens + new > most_tokens and c > cuts[-1]:
            cuts.append(c)
            tokens, new = 0, len(prompt)
        tokens += new
    return [range(*ends) for ends in zip(cuts, [*cuts[1:], len(prompts)], strict=True)]


def _common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts begin with in common."""
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length
