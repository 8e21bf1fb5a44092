"""Several processes that tune together with DDP: the numbers of one, and the same after a stop.

Through a small CLIP, whose prompts are shared out as a tree. How Ray starts the processes is in
test_tuning_worker.py, through the embedded model.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load, save
from tiny_clip import load_tiny_clip, write_tiny_clip
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from prompt_tuning.backbones.base import VLM
from prompt_tuning.captions import Caption
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.hierarchy import parse_groups
from prompt_tuning.tuning.losses import LossSettings
from prompt_tuning.tuning.prompts import BranchSettings, PromptSettings
from prompt_tuning.tuning.scoring import ScoringSettings
from prompt_tuning.tuning.trainer import (
    CaptionSet,
    ClassPrompts,
    NoiseSettings,
    TuningRun,
    TuningSettings,
    caption_labels,
)

NAMES = ("dog", "cat", "cow", "fire engine", "bus")
CATEGORIES = CategoryList(categories=tuple(Category(name=name) for name in NAMES))
HIERARCHY = parse_groups(
    {
        "things": {"small": ["bus"], "large": ["fire engine"]},
        "animals": {"pets": ["dog", "cat"], "farm": ["cow"]},
    },
    CATEGORIES,
    "test",
)
TRAIN = [
    ("A puppy chews a bone on the sofa.", (0,)),
    ("A kitten sleeps in a warm basket.", (1,)),
    ("A puppy and a kitten share a bowl of milk.", (0, 1)),
    ("A heifer grazes on a green meadow.", (2,)),
    ("A red engine waits at the crossing.", (3,)),
    ("A double-decker carries tourists through town.", (4,)),
    ("An engine overtakes a double-decker on the motorway.", (3, 4)),
]
HELD_OUT = [
    ("A hound runs after a stick.", (0,)),
    ("A tabby looks at a bull behind the fence.", (1, 2)),
    ("An engine follows a coach.", (3, 4)),
]
SETTINGS = TuningSettings(
    optimizer="adam", lr=0.01, epochs=3, batch=3, milestones=(2,), captions_per_item=2,
    noise=NoiseSettings(relative=0.5),
)  # fmt: skip
PLENTY, SCARCE = 1.0, 1e-6  # GiB


def caption_set(vlm: VLM, captions: list[tuple[str, tuple[int, ...]]]) -> CaptionSet:
    labels = caption_labels([Caption(*c, "test") for c in captions], len(NAMES))
    return CaptionSet.of_all(vlm.encode_captions([text for text, _ in captions]), labels)


def new_run(vlm: VLM, memory_gib: float, parallel: bool) -> TuningRun:
    tokens = BranchSettings(shared=2, coarse=1, fine=1, category=1)
    settings = PromptSettings(global_branch=tokens, local_branch=tokens, memory_gib=memory_gib)
    prompts = ClassPrompts(
        vlm, CATEGORIES, HIERARCHY, settings, ScoringSettings(), LossSettings(), seed=0
    )
    # As tuning_worker.py has it, for the same reason.
    model = DistributedDataParallel(prompts, find_unused_parameters=True) if parallel else prompts
    train, held_out = caption_set(vlm, TRAIN), caption_set(vlm, HELD_OUT)
    return TuningRun(prompts, model, train, held_out, SETTINGS, seed=0)


def finish(run: TuningRun) -> TuningRun:
    while run.epochs_done < SETTINGS.epochs:
        run.run_epoch()
    return run


def left_by(run: TuningRun) -> dict[str, Tensor]:
    """The best class features, the last prompts, the history."""
    history = torch.tensor([list(entry.values()) for entry in run.history], dtype=torch.float64)
    last = {name: tensor.detach() for name, tensor in run.prompts.state_dict().items()}
    return {**run.best_class_features(), **last, "history": history}


def _tune_as_one_of(rank: int, world: int, folder: Path, memory_gib: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        # In a frame of its own: a DistributedDataParallel that outlives the group ends it while it
        # holds the interpreter's lock, for which gloo's threads may wait: for ever.
        _tune_twice(rank, folder, memory_gib)
    finally:
        dist.destroy_process_group()


def _tune_twice(rank: int, folder: Path, memory_gib: float) -> None:
    """A run, and one that stops after an epoch and goes on."""
    vlm = load_tiny_clip(folder)
    whole = finish(new_run(vlm, memory_gib, parallel=True))
    (folder / f"undisturbed-{rank}").write_bytes(save(left_by(whole)))
    stopped = new_run(vlm, memory_gib, parallel=True)
    stopped.run_epoch()
    buffer = io.BytesIO()
    torch.save(stopped.state_dict(), buffer)
    buffer.seek(0)
    run = new_run(vlm, memory_gib, parallel=True)
    run.load_state_dict(torch.load(buffer, weights_only=True))
    (folder / f"gone-on-{rank}").write_bytes(save(left_by(finish(run))))


# Seven captions: batches of 3, 3 and 1, the last of which leaves some processes none; five classes,
# of which four processes have two, two, one and one that another has too. Of three or more, sums
# depend on the order in which they are taken.
@pytest.mark.parametrize(
    ("world", "memory_gib"),
    [(2, PLENTY), (2, SCARCE), pytest.param(4, SCARCE, marks=pytest.mark.slow)],
)
def test_several_processes_tune_as_one_and_go_on_to_the_same_bytes(
    tmp_path: Path, world: int, memory_gib: float
) -> None:
    write_tiny_clip(tmp_path)
    alone = left_by(finish(new_run(load_tiny_clip(tmp_path), PLENTY, parallel=False)))
    mp.spawn(_tune_as_one_of, args=(world, tmp_path, memory_gib), nprocs=world)
    left = [
        (tmp_path / f"{run}-{rank}").read_bytes()
        for run in ("undisturbed", "gone-on")
        for rank in range(world)
    ]
    assert len(set(left)) == 1
    torch.testing.assert_close(load(left[0]), alone, atol=1e-5, rtol=0)
