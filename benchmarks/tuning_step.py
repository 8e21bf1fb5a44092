"""A tuning step of ours against the released way of doing it, on the same numbers.

    python benchmarks/tuning_step.py [--pairs 5]

RN50's text tower with random weights, float32; 80 classes in 20 fine and 9 coarse groups; the
released recipe's tokens and losses; batch 512, captions of 12 to 30 tokens. The released way
encodes the batch's captions anew in each step, and both sets of prompts class by class, everything
padded to 77 tokens; it is given its noise, where ours draws its own. Both tune the same prompts on
the same captions, so that equal losses after several steps mean equal gradients. They take turns;
figures are medians. The last line is one JSON object; its GFLOP leave out those of attention, which
PyTorch does not count on CPUs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from random_clip import (
    BATCH,
    LOSSES,
    TUNING,
    captions_of,
    class_prompts,
    even_groups,
    labels_of,
    named_classes,
    random_clip,
)
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from prompt_tuning.backbones.clip import CLIP
from prompt_tuning.categories import CategoryList
from prompt_tuning.tuning.caption_set import CaptionSet
from prompt_tuning.tuning.class_prompts import ClassPrompts
from prompt_tuning.tuning.prompts import PromptBranch
from prompt_tuning.tuning.trainer import TuningRun

CLASSES, FINE, COARSE = 80, 20, 9
MOST_DIFFERENT = 1e-4


class ReleasedWay:
    """The step as the released code does it: no cache, no tree, all padded to 77 tokens."""

    def __init__(
        self,
        vlm: CLIP,
        prompts: ClassPrompts,
        categories: CategoryList,
        captions: list[str],
        labels: Tensor,
    ) -> None:
        self.clip, self.prompts, self.labels = vlm.model, prompts, labels
        self.ids = vlm.tokenizer(captions)  # (captions, 77)
        self.name_ids = vlm.tokenizer([f"{name}." for name in categories.names])
        self.optimizer = torch.optim.SGD(
            prompts.parameters(),
            lr=TUNING.lr,
            momentum=TUNING.momentum,
            weight_decay=TUNING.weight_decay,
        )

    def tower(self, embeddings: Tensor) -> Tensor:
        """`(texts, 77, width)` through the transformer, not yet projected."""
        return self.clip.transformer(
            embeddings + self.clip.positional_embedding, attn_mask=self.clip.attn_mask
        )

    def project(self, hidden: Tensor) -> Tensor:
        return self.clip.ln_final(hidden) @ self.clip.text_projection

    def class_features(self, branch: nn.Module) -> Tensor:
        assert isinstance(branch, PromptBranch)
        context = branch.context()
        tokens = context.shape[1]
        words = self.clip.token_embedding(self.name_ids)
        embeddings = torch.cat([words[:, :1], context, words[:, 1 : words.shape[1] - tokens]], 1)
        ends = self.name_ids.argmax(-1) + tokens
        encoded = self.project(self.tower(embeddings)[torch.arange(len(ends)), ends])
        return F.normalize(encoded + self.prompts.anchor, dim=-1)

    def step(self, noise: tuple[Tensor, Tensor]) -> float:
        """`noise`: `(captions, dim)` and `(captions, 77, dim)`."""
        ends = self.ids.argmax(-1)
        with torch.no_grad():
            hidden = self.tower(self.clip.token_embedding(self.ids))
            tokens = F.normalize(self.project(hidden), dim=-1)
            pooled = tokens[torch.arange(len(ends)), ends] + noise[0]
            tokens = tokens + noise[1]
        class_global, class_local = map(self.class_features, self.prompts.branches.values())
        cosines = tokens @ class_local.T  # (captions, 77, classes)
        padding = torch.arange(tokens.shape[1]) > ends[:, None]
        weights = (50 * cosines).masked_fill(padding[:, :, None], -torch.inf).softmax(1)
        scores = (4 * pooled @ class_global.T, (4 * cosines * weights).sum(1))
        loss = LOSSES.order * self.order_loss(class_global)
        for of_branch in scores:
            gaps = 1 - of_branch[:, :, None] + of_branch[:, None, :]  # (captions, pos, neg)
            pairs = self.labels[:, :, None] & ~self.labels[:, None, :]
            loss = loss + (F.relu(gaps) * pairs).sum() / len(self.ids)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss)

    def order_loss(self, tuned: Tensor) -> Tensor:
        i, j = torch.triu_indices(CLASSES, CLASSES, offset=1)
        reference = F.normalize(self.prompts.anchor, dim=-1)
        log_p, log_q = ((100 * f @ f.T)[i, j].log_softmax(0) for f in (tuned, reference))
        return (log_q.exp() * (log_q - log_p)).sum()


def padded_noise(ours: TuningRun, epoch: int) -> tuple[Tensor, Tensor]:
    """The noise that ours draws in an epoch, laid out for padded captions."""
    features, _ = ours.train.take(torch.arange(len(ours.train)))
    noisy = ours._add_noise(features, torch.arange(len(ours.train)), epoch)
    pooled, regions = noisy.pooled - features.pooled, noisy.regions - features.regions
    padded = torch.zeros(len(pooled), 77, pooled.shape[1])
    padded[torch.arange(77) < features.counts[:, None]] = regions
    return pooled, padded


def timed(step: Callable[[], float]) -> tuple[float, float]:
    """The loss, and seconds."""
    start = time.perf_counter()
    loss = step()
    return loss, time.perf_counter() - start


def peak_flops() -> float:
    """FLOP/s of a large product of matrices, the best of several."""
    one, other = torch.randn(2, 2048, 2048)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    vlm, categories = random_clip(), named_classes(CLASSES)
    groups = even_groups(CLASSES, FINE, COARSE)
    captions, labels = captions_of(BATCH), labels_of(BATCH, CLASSES)
    prompts = class_prompts(vlm, categories, groups)
    # In single precision, as the other side has them, that the losses may be compared.
    train = CaptionSet.of_all(vlm.encode_captions(captions), labels)
    ours = TuningRun(prompts, prompts, train, train, TUNING, seed=0)
    released = ReleasedWay(
        vlm, class_prompts(vlm, categories, groups), categories, captions, labels
    )
    places = torch.arange(BATCH)
    seconds: dict[str, list[float]] = {"ours": [], "released": []}
    difference = 0.0
    for pair in range(pairs + 1):  # the first warms up
        noise = padded_noise(ours, pair)
        our_loss, our_time = timed(partial(ours._step, places, pair, 0))
        their_loss, their_time = timed(partial(released.step, noise))
        difference = max(difference, abs(our_loss - their_loss))
        print(f"{pair}: ours {our_loss:.6f} {our_time:.2f} s, released {their_loss:.6f} "
              f"{their_time:.2f} s", flush=True)  # fmt: skip
        if pair:
            seconds["ours"].append(our_time)
            seconds["released"].append(their_time)
    if difference > MOST_DIFFERENT:
        raise SystemExit(f"the two sides do not compute the same: losses differ by {difference}")
    medians = {side: statistics.median(of_side) for side, of_side in seconds.items()}
    with FlopCounterMode(display=False) as counter:
        ours._step(places, pairs + 1, 0)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        ours._step(places, pairs + 2, 0)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))
    peak = peak_flops()
    result = {
        "ratio": round(medians["released"] / medians["ours"], 2),
        "ours_s": round(medians["ours"], 3),
        "released_s": round(medians["released"], 3),
        "pairs": pairs,
        "largest_loss_difference": difference,
        "ours_gflop": round(counter.get_total_flops() / 1e9, 1),
        "peak_gflops": round(peak / 1e9, 1),
        "share_of_peak": round(counter.get_total_flops() / medians["ours"] / peak, 3),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
