"""Whether a sweep's driver grows with its trials: 500 whose tuning is a stub, and 20 real ones.

    python benchmarks/sweep_scale.py [--stubs 500] [--real 20]

A stub sleeps for a second and reports one epoch; everything else is the sweep's own: its plan, Ray
Tune, the records. `stub.last_to_first`: time per trial in the last fifth of the trials divided by
that in the second fifth (the first fifth also starts the processes). `driver_growth_mib`: growth of
the driver's memory after the first fifth. `real`: the same for trials of two epochs that Ray Train
tunes, in thirds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from sweep_efficiency import sweep_config

from orchestrator.cluster.connect import connect, disconnect
from orchestrator.cluster.resources import find_resources
from orchestrator.console import quieten_libraries
from orchestrator.runs.stage_work import stage_work
from orchestrator.sweep.plan import plan_sweep
from orchestrator.sweep.records import TrialRecords
from orchestrator.sweep.rounds import run_rounds
from workers.stage import run_stage
from workers.tuning.job import HISTORY
from workers.tuning.trials import OnEpoch, OnWaiting, Trial, Work, tune_prompts


def sleep_a_second(trial: Trial, on_epoch: OnEpoch, on_waiting: OnWaiting) -> None:
    """The stub. It fills its stage, so that no round runs it again."""
    entry = {"epoch": 1.0, "held_out_loss": 1.0, "held_out_map": 50.0}

    def sleep(staging: Path) -> None:
        time.sleep(1)
        (staging / HISTORY).write_text(json.dumps([entry]), "utf-8")

    run_stage(trial.stage, sleep)
    on_epoch(entry)


def run(folder: Path, count: int, parts: int, work: Work) -> dict[str, Any]:
    """Plan and run `count` trials; times and memory of the driver, in `parts` parts."""
    values = [round(0.001 * (n + 1), 3) for n in range(count)]
    raw, console = sweep_config(folder, values, epochs=2), Console()
    began = time.time()
    plan = plan_sweep(raw, folder / "sweep.yaml", find_resources(), None)
    planned = time.time() - began
    for stage, run_plan in plan.shared().items():
        run_stage(stage, stage_work(run_plan, None, console)[stage])
    connect(plan.resources.cpus, plan.resources.gpus)
    trials = plan.run_folder / "trials"
    records = TrialRecords(trials, plan.measured_on, None)
    started, memory, over = time.time(), [], threading.Event()

    def look() -> None:
        driver = psutil.Process()
        while not over.wait(0.5):
            memory.append((time.time(), driver.memory_info().rss / 2**20))

    watcher = threading.Thread(target=look)
    watcher.start()
    run_rounds(plan, records, console, work)
    over.set()
    watcher.join()
    ends = [started, *sorted(file.stat().st_mtime for file in trials.rglob("*.json"))]
    part = (len(ends) - 1) // parts
    first = (ends[2 * part] - ends[part]) / part
    last = (ends[-1] - ends[-1 - part]) / part
    settled = next(mib for at, mib in memory if at >= ends[part])
    return {
        "trials": len(ends) - 1,
        "plan_s": round(planned, 1),
        "wall_s": round(ends[-1] - ends[0], 1),
        "s_a_trial": round(last, 3),
        "last_to_first": round(last / first, 3),
        "driver_mib": round(memory[-1][1]),
        "driver_growth_mib": round(memory[-1][1] - settled, 1),
    }


def main() -> None:
    """Run the benchmark and print its figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stubs", type=int, default=500)
    parser.add_argument("--real", type=int, default=20)
    options = parser.parse_args()
    quieten_libraries()
    with tempfile.TemporaryDirectory() as temporary:
        figures = {
            name: run(Path(tempfile.mkdtemp(dir=temporary)), count, parts, work)
            for name, count, parts, work in (
                ("stub", options.stubs, 5, sleep_a_second),
                ("real", options.real, 3, tune_prompts),
            )
        }
        disconnect()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
