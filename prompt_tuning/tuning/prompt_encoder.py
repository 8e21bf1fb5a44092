"""Encoding one branch's prompts: packed as trees where the text tower is causal, in passes that fit
a memory budget, shared out among the processes that tune together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prompt_tuning.backbones.base import VLM, CausalVLM
from prompt_tuning.tuning.prompt_tree import PromptTree, cut_in_subtrees, grow_tree
from prompt_tuning.tuning.prompts import PromptBranch

# Attention inside a pass is dense: longer passes save few repeated group tokens and cost more.
_TOKENS_PER_PASS = 512
_PROMPTS_PER_PASS = 256

Pass = Callable[[Tensor], Tensor]


class PromptEncoder:
    """Encodes a branch's prompts `SOS | context | name . | EOS` of all classes.

    If this process's passes together would keep more than `memory` bytes for the backward pass,
    each is computed again there, and a single pass keeps no more (except a single long prompt).
    With several processes each encodes its share of the classes and gathers the others'.
    """

    def __init__(self, vlm: VLM, branch: PromptBranch, names: list[str], memory: float) -> None:
        """`names`: of all classes, in their order.

        Raises:
            ValueError: for a prompt longer than the text tower's context.
        """
        self._vlm, self._branch, self._names = vlm, branch, names
        rank, world = rank_and_world_size()
        classes = list(range(len(names)))
        self._words: Tensor | None = None
        if isinstance(vlm, CausalVLM):
            self._words, prompts = _packable_prompts(vlm, branch, names)
            classes.sort(key=prompts.__getitem__)
        self._back = torch.tensor(classes, device=vlm.device).argsort()
        share = -(-len(names) // world)
        # The last processes may repeat the last class, so that all gather equally many.
        mine = [classes[min(i, len(names) - 1)] for i in range(rank * share, (rank + 1) * share)]
        if self._words is not None:
            kept, self._passes = self._plan_trees([prompts[c] for c in mine], memory)
        else:
            kept, self._passes = self._plan_batches(mine, memory)
        self.recomputes = kept > memory

    def __call__(self) -> Tensor:
        """Encoded prompts of all classes, `(classes, dim)`."""
        if self._words is not None:
            tokens = torch.cat([self._branch.table(), self._words])
        else:
            tokens = self._branch.context()
        encoded = torch.cat([self._run(one, tokens) for one in self._passes])
        if rank_and_world_size()[1] > 1:
            encoded = _GatherClasses.apply(encoded)[: len(self._names)]
        return encoded[self._back]

    def _run(self, one: Pass, tokens: Tensor) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(one, tokens, use_reentrant=False)
            return recomputed
        return one(tokens)

    def _plan_trees(self, prompts: list[list[int]], memory: float) -> tuple[float, list[Pass]]:
        """Bytes that all passes would keep, and the passes over subtrees."""
        rows = max(map(max, prompts)) + 1
        table = torch.zeros(rows, self._vlm.context_width, device=self._vlm.device)
        longest = grow_tree([max(prompts, key=len)]).to(self._vlm.device)
        one = partial(self._encode_tree, longest)
        a_token = _bytes_kept(self._vlm, one, table.requires_grad_()) / len(longest.rows)
        trees = [
            grow_tree(prompts[subtree.start : subtree.stop]).to(self._vlm.device)
            for subtree in cut_in_subtrees(prompts, min(_TOKENS_PER_PASS, int(memory / a_token)))
        ]
        tokens = sum(len(tree.rows) for tree in trees)
        return a_token * tokens, [partial(self._encode_tree, tree) for tree in trees]

    def _encode_tree(self, tree: PromptTree, table: Tensor) -> Tensor:
        assert isinstance(self._vlm, CausalVLM)
        return self._vlm.encode_tree(table[tree.rows], tree)

    def _plan_batches(self, classes: list[int], memory: float) -> tuple[float, list[Pass]]:
        """Bytes that all passes would keep, and the passes over batches of whole prompts."""
        context = self._branch.context().detach()
        longest = max(classes, key=lambda c: len(self._names[c]))
        one = partial(self._encode_batch, [longest])
        a_prompt = _bytes_kept(self._vlm, one, context.requires_grad_())
        most = max(1, min(_PROMPTS_PER_PASS, int(memory / a_prompt)))
        batches = [classes[start : start + most] for start in range(0, len(classes), most)]
        return a_prompt * len(classes), [partial(self._encode_batch, batch) for batch in batches]

    def _encode_batch(self, classes: list[int], context: Tensor) -> Tensor:
        return self._vlm.encode_prompts(context[classes], [self._names[c] for c in classes])


def _packable_prompts(
    vlm: CausalVLM, branch: PromptBranch, names: list[str]
) -> tuple[Tensor, list[list[int]]]:
    """Embeddings of all words, which follow the branch's tokens in one table, and each class's
    prompt as rows of that table."""
    before, after = vlm.prompt_words(names)
    ids = sorted({*before, *(word for words in after for word in words)})
    row = {word: i for i, word in enumerate(ids, start=len(branch.table()))}
    prompts = [
        [row[word] for word in before] + context + [row[word] for word in words]
        for context, words in zip(branch.rows.tolist(), after, strict=True)
    ]
    longest = max(range(len(prompts)), key=lambda c: len(prompts[c]))
    vlm.check_length(len(prompts[longest]), names[longest])
    return vlm.embed_words(torch.tensor(ids, device=vlm.device)), prompts


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of processes that tune together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _bytes_kept(vlm: VLM, one: Pass, tokens: Tensor) -> int:
    """Bytes that a pass keeps for its backward pass, without the frozen weights."""
    kept = {}
    weights = {tensor.untyped_storage().data_ptr() for tensor in (tokens, *vlm.parameters())}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        encoded = one(tokens)  # held, so that no memory is counted twice
    assert encoded.requires_grad
    return sum(kept.values())


class _GatherClasses(torch.autograd.Function):
    """Rows of all processes, `(world · rows, dim)`; each row's gradient comes back summed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
