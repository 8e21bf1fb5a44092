"""How much of a sweep's time is spent tuning: 16 trials of 30 s each, start-up counted.

    python benchmarks/sweep_efficiency.py [--trials 16] [--seconds 30]

The stages that the trials share are computed first. Two trials at once then show how many epochs
take `--seconds` on this machine (one CPU per worker), and trials of so many epochs are tuned by the
sweep's own rounds. `ratio`: the time from the first step to the end of the last epoch, summed over
trials, divided by wall time × slots. `start_s`: the time from the moment at which a slot is freed
to the first step of the trial that takes it. `slowdown`: how many times longer an epoch takes than
in a trial that runs alone, because the processes of other trials tune and start beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.cluster.connect import connect, disconnect
from orchestrator.cluster.resources import find_resources
from orchestrator.console import quieten_libraries
from orchestrator.runs.stage_work import stage_work
from orchestrator.sweep.plan import SweepPlan, plan_sweep
from orchestrator.sweep.records import TrialRecords
from orchestrator.sweep.results import tuning_seconds
from orchestrator.sweep.rounds import run_rounds
from workers.stage import run_stage
from workers.tuning.trials import Outcome

CATEGORIES = ("dog", "bicycle", "violin", "lemon", "car", "tree", "lamp", "horse")
LOOKS = ("small", "large", "brown", "old", "bright", "strange", "new", "wet", "dry", "heavy")
PLACES = ("in the park", "near a wall", "on the grass", "by the road", "at home", "in the sun")


def sweep_config(folder: Path, values: list[float], epochs: int) -> dict[str, Any]:
    """A sweep over one loss weight, on sentences made here; `values` are its points."""
    draws = random.Random(0)
    sentences = []
    for name in CATEGORIES:
        for look in LOOKS:
            for place in PLACES:
                other = draws.choice([c for c in CATEGORIES if c != name])
                sentences.append(f"A {look} {name} and a {other} {place}.\t{name};{other}")
    (folder / "sentences.tsv").write_text("\n".join(sentences), "utf-8")
    return {
        "name": f"efficiency-{epochs}",
        "paths": {"cache": str(folder / "cache"), "runs": str(folder / "runs")},
        "categories": list(CATEGORIES),
        "knowledge": {"questions": {"per_category": 0, "relationships": 0}},
        "captions": {"files": ["sentences.tsv"], "held_out": 0.1},
        "hierarchy": {"groups": "auto", "coarse": 2, "fine": 4},
        "vlm": {"model": "efficientnet-lite0+minilm", "resolution": 224},
        "losses": {"order": values[0]},
        "tuning": {"epochs": epochs, "batch": 64, "workers": 1},
        "sweep": {"space": {"losses.order": {"grid": values}}},
    }


def tune_all(
    folder: Path, values: list[float], epochs: int
) -> tuple[SweepPlan, list[Outcome], float]:
    """Run the sweep of these points; returns its plan, its outcomes, and the seconds it took."""
    raw, console = sweep_config(folder, values, epochs), Console()
    plan = plan_sweep(raw, folder / "sweep.yaml", find_resources(), None)
    for stage, run_plan in plan.shared().items():
        run_stage(stage, stage_work(run_plan, None, console)[stage])
    records = TrialRecords(plan.run_folder / "trials", plan.measured_on, None)
    connect(plan.resources.cpus, plan.resources.gpus)
    began = time.time()
    run_rounds(plan, records, console)
    wall = time.time() - began
    found = [records.find(point.plan.tuning[0]) for point in plan.points]
    return plan, [outcome for outcome in found if outcome], wall


def slot_gaps(outcomes: list[Outcome], slots: int) -> list[float]:
    """Seconds from the moment a slot is freed to the first step of the trial that takes it."""
    spans = sorted((o.entries[0]["started"], o.entries[-1]["at"]) for o in outcomes)
    free = [end for _, end in spans[:slots]]
    gaps = []
    for start, end in spans[slots:]:
        taken = min(free)
        free.remove(taken)
        gaps.append(start - taken)
        free.append(end)
    return gaps


def main() -> None:
    """Run the benchmark and print its figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    quieten_libraries()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # One trial alone shows the slowdown, two at once show how many epochs take `--seconds`.
        _, alone, _ = tune_all(folder, [0.2], 20)
        _, pair, _ = tune_all(folder, [0.21, 0.22], 20)
        epoch = statistics.mean(tuning_seconds(outcome.entries) / 20 for outcome in pair)
        epochs = max(2, round(options.seconds / epoch))
        values = [round(0.01 * (n + 1), 2) for n in range(options.trials)]
        plan, outcomes, wall = tune_all(folder, values, epochs)
        disconnect()
    assert all(outcome.status == "finished" for outcome in outcomes), outcomes
    tuning = [tuning_seconds(outcome.entries) for outcome in outcomes]
    gaps = slot_gaps(outcomes, plan.slots)

    print(
        json.dumps(
            {
                "ratio": round(sum(tuning) / (wall * plan.slots), 3),
                "trials": len(outcomes),
                "slots": plan.slots,
                "epochs": epochs,
                "tuning_s": round(statistics.median(tuning), 1),
                "wall_s": round(wall, 1),
                "start_s": round(statistics.median(gaps), 2),
                "longest_start_s": round(max(gaps), 2),
                "idle_between_trials_s": round(sum(gaps), 1),
                "slowdown": round(
                    statistics.median(tuning) / epochs / (tuning_seconds(alone[0].entries) / 20),
                    2,
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
