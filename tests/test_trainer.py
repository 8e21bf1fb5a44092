"""Tuning, on a handful of captions through the real embedded model."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import save
from test_features import same
from torch.utils.flop_counter import FlopCounterMode

from prompt_tuning.backbones.base import VLM
from prompt_tuning.captions import Caption
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.hierarchy import parse_groups
from prompt_tuning.tuning.caption_set import CaptionSet, caption_labels
from prompt_tuning.tuning.class_prompts import ClassPrompts
from prompt_tuning.tuning.losses import LossSettings, order_loss, ranking_loss
from prompt_tuning.tuning.prompts import BranchSettings, PromptSettings
from prompt_tuning.tuning.scoring import ScoringSettings, branch_scores
from prompt_tuning.tuning.trainer import NoiseSettings, NotFiniteError, TuningRun, TuningSettings

NAMES = ("dog", "cat", "cow", "car", "bus")
CATEGORIES = CategoryList(categories=tuple(Category(name=name) for name in NAMES))
HIERARCHY = parse_groups(
    {
        "animals": {"pets": ["dog", "cat"], "farm": ["cow"]},
        "things": {"small": ["car"], "large": ["bus"]},
    },
    CATEGORIES,
    "test",
)
TRAIN = [
    ("A puppy chews a bone on the sofa.", (0,)),
    ("A kitten sleeps in a warm basket.", (1,)),
    ("A puppy and a kitten share a bowl of milk.", (0, 1)),
    ("A heifer grazes on a green meadow.", (2,)),
    ("A red sedan waits at the crossing.", (3,)),
    ("A double-decker carries tourists through town.", (4,)),
    ("A sedan overtakes a double-decker on the motorway.", (3, 4)),
]
HELD_OUT = [
    ("A hound runs after a stick.", (0,)),
    ("A tabby looks at a bull behind the fence.", (1, 2)),
    ("A taxi follows a coach.", (3, 4)),
]
TOKENS = BranchSettings(shared=2, coarse=1, fine=1, category=1)
PROMPTS = PromptSettings(global_branch=TOKENS, local_branch=TOKENS)
SETTINGS = TuningSettings(
    optimizer="sgd",
    lr=0.05,
    epochs=3,
    batch=3,
    milestones=(2,),
    noise=NoiseSettings(relative=0.5),
    captions_per_item=1,
)


@dataclass(frozen=True)
class Data:
    train: CaptionSet
    held_out: CaptionSet


def caption_set(vlm: VLM, captions: list[tuple[str, tuple[int, ...]]]) -> CaptionSet:
    labels = caption_labels([Caption(*c, "test") for c in captions], len(NAMES))
    return CaptionSet.of_all(vlm.encode_captions([text for text, _ in captions]), labels)


@pytest.fixture(scope="module")
def data(embedded_vlm: VLM) -> Data:
    return Data(caption_set(embedded_vlm, TRAIN), caption_set(embedded_vlm, HELD_OUT))


def class_prompts(vlm: VLM, seed: int = 0, losses: LossSettings | None = None) -> ClassPrompts:
    scoring = ScoringSettings()
    losses = losses or LossSettings()
    return ClassPrompts(vlm, CATEGORIES, HIERARCHY, PROMPTS, scoring, losses, seed)


def new_run(vlm: VLM, data: Data, settings: TuningSettings = SETTINGS, seed: int = 0) -> TuningRun:
    prompts = class_prompts(vlm, seed)
    return TuningRun(prompts, prompts, data.train, data.held_out, settings, seed)


def finish(run: TuningRun) -> TuningRun:
    while run.epochs_done < run.settings.epochs:
        run.run_epoch()
    return run


def result_bytes(run: TuningRun) -> bytes:
    """All that a run leaves: the best class features, the last prompts, the history."""
    history = torch.tensor([list(entry.values()) for entry in run.history], dtype=torch.float64)
    last = {name: tensor.detach() for name, tensor in run.prompts.state_dict().items()}
    return save({**run.best_class_features(), **last, "history": history})


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.fixture(scope="module")
def undisturbed(embedded_vlm: VLM, data: Data) -> TuningRun:
    return finish(new_run(embedded_vlm, data))


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adam", 0.005)])
def test_the_loss_falls(embedded_vlm: VLM, data: Data, optimizer: str, lr: float) -> None:
    settings = TuningSettings.model_validate(
        {
            "optimizer": optimizer,
            "lr": lr,
            "epochs": 6,
            "batch": 4,
            "milestones": (),
            "noise": NoiseSettings(relative=0.0),
        }
    )
    history = finish(new_run(embedded_vlm, data, settings)).history
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert min(entry["held_out_loss"] for entry in history[1:]) < history[0]["held_out_loss"]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    embedded_vlm: VLM, data: Data, undisturbed: TuningRun
) -> None:
    assert result_bytes(finish(new_run(embedded_vlm, data))) == result_bytes(undisturbed)
    assert result_bytes(finish(new_run(embedded_vlm, data, seed=1))) != result_bytes(undisturbed)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_resumed_after_any_epoch_gives_the_same_bytes(
    embedded_vlm: VLM, data: Data, optimizer: str
) -> None:
    settings = SETTINGS.model_copy(update={"optimizer": optimizer, "lr": 0.02})
    whole = new_run(embedded_vlm, data, settings)
    states = []
    for _ in range(settings.epochs):
        states.append(saved_and_loaded(whole.state_dict()))
        whole.run_epoch()
    for epochs_done, state in list(enumerate(states))[1:]:
        # Another start: what the state does not bring would show.
        resumed = new_run(embedded_vlm, data, settings)
        for parameter in resumed.prompts.parameters():
            torch.nn.init.zeros_(parameter)
        resumed.load_state_dict(state)
        assert resumed.epochs_done == epochs_done
        assert result_bytes(finish(resumed)) == result_bytes(whole)


def best_epoch(run: TuningRun) -> int:
    """Checks that the run chose the epoch with the lowest held-out loss, and tells which it is."""
    features = []
    while run.epochs_done < run.settings.epochs:
        run.run_epoch()
        with torch.no_grad():
            features.append(run.prompts.class_features())
    losses = [entry["held_out_loss"] for entry in run.history]
    best = losses.index(min(losses))
    chosen = run.best_class_features()
    assert torch.equal(chosen["global"], F.normalize(features[best][0], dim=-1))
    assert torch.equal(chosen["local"], F.normalize(features[best][1], dim=-1))
    # Asking for the best must not take the last prompts away.
    with torch.no_grad():
        assert torch.equal(run.prompts.class_features()[0], features[-1][0])
    return best


def test_tuned_features_are_interpolated_with_the_anchor_by_its_weight(
    embedded_vlm: VLM, data: Data
) -> None:
    run = new_run(embedded_vlm, data)
    branch = PROMPTS.local_branch.model_copy(update={"anchor_weight": 0.75})
    run.prompts.prompt_settings = PROMPTS.model_copy(update={"local_branch": branch})
    run.run_epoch()
    chosen = run.best_class_features()
    with torch.no_grad():
        tuned_global, tuned_local = run.prompts.class_features()
    anchor = embedded_vlm.encode_text([f"a photo of a {name}." for name in NAMES])
    torch.testing.assert_close(chosen["global"], tuned_global)
    expected = F.normalize(0.25 * tuned_local + 0.75 * anchor, dim=-1)
    torch.testing.assert_close(chosen["local"], expected)


def test_the_tokens_that_are_left_are_behind_the_class_features(
    embedded_vlm: VLM, data: Data
) -> None:
    # The first epoch is the best, so the last prompts are others.
    wrong_labels = replace(data.held_out, labels=~data.held_out.labels)
    run = finish(new_run(embedded_vlm, replace(data, held_out=wrong_labels)))
    chosen, tokens = run.best_class_features(), run.best_tokens()
    assert sorted(tokens) == ["global.rows", "global.table", "local.rows", "local.table"]
    anchor = embedded_vlm.encode_text([f"a photo of a {name}." for name in NAMES])
    for branch in ("global", "local"):
        context = tokens[f"{branch}.table"][tokens[f"{branch}.rows"]]
        prompted = embedded_vlm.encode_prompts(context, list(NAMES))
        expected = F.normalize(prompted + anchor, dim=-1)
        torch.testing.assert_close(chosen[branch], expected, atol=1e-5, rtol=0)
    # Shared by all, by pets, and by none.
    rows = tokens["global.rows"]
    assert (rows[:, :2] == rows[0, :2]).all()
    assert (rows[0] == rows[1]).tolist() == [True, True, True, True, False]


def test_the_best_epoch_is_the_one_with_the_lowest_held_out_loss(
    embedded_vlm: VLM, data: Data
) -> None:
    # The captions that are trained on, held out too, make each epoch better than the one before,
    # and held-out captions with all the wrong labels make each one worse.
    seen_in_training = replace(data, held_out=data.train)
    assert best_epoch(new_run(embedded_vlm, seen_in_training)) == SETTINGS.epochs - 1
    wrong_labels = replace(data.held_out, labels=~data.held_out.labels)
    assert best_epoch(new_run(embedded_vlm, replace(data, held_out=wrong_labels))) == 0


@pytest.mark.parametrize("part", ["pooled", "regions"])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(
    embedded_vlm: VLM, data: Data, part: str
) -> None:
    run = new_run(embedded_vlm, data)
    run.run_epoch()
    features = run.train.features
    poisoned = features._replace(**{part: torch.full_like(getattr(features, part), math.nan)})
    run.train = replace(run.train, features=poisoned)
    with pytest.raises(NotFiniteError, match="loss is nan at epoch 2, step 1") as raised:
        run.run_epoch()
    assert len(set(raised.value.rows)) == SETTINGS.batch


def test_held_out_captions_that_are_not_finite_stop_the_run_too(
    embedded_vlm: VLM, data: Data
) -> None:
    run = new_run(embedded_vlm, data)
    features = data.held_out.features
    spoilt = features._replace(pooled=torch.full_like(features.pooled, math.inf))
    run.held_out = replace(data.held_out, features=spoilt)
    with pytest.raises(NotFiniteError, match=r"on held-out captions is (inf|nan) at epoch 1"):
        run.run_epoch()
    assert run.history == []


def test_a_gradient_that_is_not_finite_does_not_spoil_the_prompts(
    embedded_vlm: VLM, data: Data
) -> None:
    run = new_run(embedded_vlm, data)
    tokens = run.prompts.branches["global"].tokens["category"]
    before = tokens.detach().clone()
    tokens.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NotFiniteError, match="a gradient is not finite at epoch 1, step 1"):
        run.run_epoch()
    assert torch.equal(tokens, before)


def test_the_loss_is_the_sum_of_its_weighted_parts(embedded_vlm: VLM, data: Data) -> None:
    losses = LossSettings(
        global_rank=2.0,
        local_rank=3.0,
        margin=0.5,
        local_margin=0.9,
        order=0.7,
        order_on=("local",),
    )
    prompts = class_prompts(embedded_vlm, losses=losses)
    class_global, class_local = prompts.class_features()
    items, labels = data.train.features.float(), data.train.labels
    of_global, of_local = branch_scores(items, class_global, class_local, embedded_vlm.geometry)
    anchor = embedded_vlm.encode_text([f"a photo of a {name}." for name in NAMES])
    expected = (
        2.0 * ranking_loss(of_global, labels, 0.5) / 7
        + 3.0 * ranking_loss(of_local, labels, 0.9) / 7
        + 0.7 * order_loss(class_local, anchor, 100.0)
    )
    torch.testing.assert_close(prompts(items, labels, 7), expected)


def test_an_order_loss_of_weight_0_costs_nothing(embedded_vlm: VLM, data: Data) -> None:
    def operations(**losses: Any) -> int:
        prompts = class_prompts(embedded_vlm, losses=LossSettings(**losses))
        with FlopCounterMode(display=False) as counter:
            prompts(data.train.features.float(), data.train.labels, 7).backward()
        return counter.get_total_flops()

    assert operations(order=0.0) == operations(order_on=()) < operations()


def test_class_features_are_prompt_plus_anchor_of_unit_length(embedded_vlm: VLM) -> None:
    prompts = class_prompts(embedded_vlm)
    anchor = embedded_vlm.encode_text([f"a photo of a {name}." for name in NAMES])
    for branch, features in zip(prompts.branches.values(), prompts.class_features(), strict=True):
        encoded = embedded_vlm.encode_prompts(branch.context(), list(NAMES))
        summed = encoded + anchor
        torch.testing.assert_close(features, summed / summed.norm(dim=-1, keepdim=True))


def test_the_checkpoint_holds_no_frozen_weights(undisturbed: TuningRun) -> None:
    names = set(undisturbed.prompts.state_dict())
    assert names == {
        f"branches.{branch}.tokens.{level}"
        for branch in ("global", "local")
        for level in ("shared", "coarse", "fine", "category")
    }


def test_noise_has_the_size_that_was_asked_for() -> None:
    assert NoiseSettings(std=0.1).component_std(1024) == 0.1
    component = NoiseSettings(relative=0.5).component_std(384)
    assert component * math.sqrt(384) == pytest.approx(0.5)
    for wrong in ({}, {"std": 0.1, "relative": 0.5}):
        with pytest.raises(ValidationError, match="exactly one of std and relative"):
            NoiseSettings.model_validate(wrong)


def test_noise_differs_between_captions_epochs_and_seeds(embedded_vlm: VLM, data: Data) -> None:
    run, other = new_run(embedded_vlm, data), new_run(embedded_vlm, data, seed=1)
    features, places = data.train.features, torch.arange(len(data.train))
    clean = features.float()
    draws = [
        run._add_noise(features, places, 0),
        run._add_noise(features, places, 1),
        run._add_noise(features, places.flip(0), 0),
        other._add_noise(features, places, 0),
    ]
    for i, one in enumerate(draws):
        lengths = torch.cat([one.pooled - clean.pooled, one.regions - clean.regions]).norm(dim=-1)
        assert float(lengths.mean()) == pytest.approx(0.5, rel=0.05)
        assert all(not torch.equal(one.pooled, another.pooled) for another in draws[:i])
    assert torch.equal(data.train.features.regions, clean.regions), "what is kept stays clean"


def test_a_captions_noise_does_not_depend_on_the_others(embedded_vlm: VLM, data: Data) -> None:
    run, places = new_run(embedded_vlm, data), torch.tensor([4, 2])
    together = run._add_noise(data.train.features, torch.arange(len(data.train)), 0)
    alone = run._add_noise(data.train.features.take(places), places, 0)
    assert same(alone, together.take(places))


def test_mixed_items_have_the_captions_that_they_are_made_of(embedded_vlm: VLM, data: Data) -> None:
    run = new_run(embedded_vlm, data, SETTINGS.model_copy(update={"captions_per_item": 3}))
    places = torch.tensor([5, 0, 3])
    drawn = run._draw_captions(places, epoch=1)
    assert drawn.shape == (3, 3)
    assert torch.equal(drawn[:, 0], places)
    (mixed, labels), features = run._training_items(places, epoch=1), data.train.features
    starts = features.counts.cumsum(0) - features.counts
    place = 0
    for item, captions in enumerate(drawn.tolist()):
        assert labels[item].tolist() == data.train.labels[captions].any(0).tolist()
        mean = features.pooled[captions].mean(0)
        torch.testing.assert_close(mixed.pooled[item], mean / mean.norm())
        regions = [
            features.regions[starts[c] + r] for c in captions for r in range(features.counts[c])
        ]
        assert int(mixed.counts[item]) == len(regions)
        actual = mixed.regions[place : place + len(regions)]
        assert torch.equal(actual, torch.stack(regions))
        place += len(regions)
    # Who draws does not matter, the epoch does.
    assert torch.equal(run._draw_captions(places[1:], epoch=1), drawn[1:])
    assert not torch.equal(run._draw_captions(places, epoch=2), drawn)


def test_splitting_keeps_each_caption_with_its_regions_and_labels(data: Data) -> None:
    held_out = [False, True, False, False, True, False, False]
    train, rest = data.train.split(held_out)
    assert (len(train), len(rest)) == (5, 2)
    assert rest.features is train.features is data.train.features, "nothing is copied"
    features, labels = rest.take(torch.arange(2))
    assert torch.equal(labels, data.train.labels[[1, 4]])
    assert same(features, data.train.features.take(torch.tensor([1, 4])))
    assert train.take(torch.tensor([1]))[1].tolist() == [[True, True, False, False, False]]
    assert train.rows.tolist() == [0, 2, 3, 5, 6]
