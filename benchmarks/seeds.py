"""What seeds cost besides their tuning: three seeds of a run, as `datafree run` tunes them.

    python benchmarks/seeds.py [--seeds 3] [--workers 2] [--epochs 8]

Sentences from templates about the quickstart's 44 labels, its model and its recipe; no language
model. The stages before tuning are computed first. `tuning_s`: the wall time of the tuning stages,
Ray's start included. `epochs_s`: the part in which epochs ran. `outside_s`: the rest, in all: Ray's
start and Ray Train's, the workers' processes, the model, checkpoints, the end. `first_step_s`: what
of it comes before the first step of the first seed. `between_s`: from the last epoch of each seed
to the first step of the next. `cpu_s`, `outside_cpu_s`: CPU seconds of the driver and all that it
started, in all and outside the epochs; other programs on the machine change them less. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
from rich.console import Console

from orchestrator.cluster.connect import connect, disconnect
from orchestrator.cluster.resources import find_resources
from orchestrator.config.load import build_config
from orchestrator.console import quieten_libraries
from orchestrator.plan.run import Plan, make_plan
from orchestrator.runs.stage_work import stage_work
from orchestrator.stages.tuning import RAY_STORAGE
from workers.stage import run_stage


def seeds_plan(folder: Path, seeds: int, workers: int, epochs: int) -> Plan:
    """The plan of a run whose captions all come from templates."""
    raw = {
        "name": "seeds",
        "seeds": list(range(seeds)),
        "paths": {"cache": str(folder / "cache"), "runs": str(folder / "runs")},
        "categories": "scenes",
        "knowledge": {"questions": {"per_category": 0, "relationships": 0}},
        "captions": {"templates": True},
        "vlm": {"kind": "embedded", "model": "efficientnet-lite2+minilm", "resolution": 320},
        "tuning": {"workers": workers, "epochs": epochs},
        "evaluation": {"dataset": "none"},
    }
    return make_plan(build_config(raw, folder / "seeds.yaml"), find_resources(), None)


def progress(plan: Plan, seed: int) -> list[dict[str, float]]:
    """The epochs of a seed, with the times at which they ended and the seed's tuning began."""
    file = plan.run_folder / RAY_STORAGE / f"{plan.tuning[seed].key}.progress.json"
    entries: list[dict[str, float]] = json.loads(file.read_bytes())
    return entries


class CPUTime:
    """The CPU seconds of this process and all that it started, by the time of the look."""

    def __init__(self) -> None:
        self.looks: list[tuple[float, float]] = []
        self._of_process: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        here = psutil.Process()
        while not self._ended.wait(0.25):
            for process in [here, *here.children(recursive=True)]:
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    self._of_process[process.pid] = times.user + times.system
            self.looks.append((time.time(), sum(self._of_process.values())))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def between(self, start: float, end: float) -> float:
        def at(moment: float) -> float:
            return min(self.looks, key=lambda look: abs(look[0] - moment))[1]

        return at(end) - at(start)


def main() -> None:
    """Run the benchmark and print its figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    quieten_libraries()
    with tempfile.TemporaryDirectory() as temporary:
        plan = seeds_plan(Path(temporary), options.seeds, options.workers, options.epochs)
        work = stage_work(plan, None, Console(stderr=True))
        for stage in plan.shared:
            run_stage(stage, work[stage])
        disconnect()  # of which a run needs not two, but this one is to pay for its start
        cpu, began = CPUTime(), time.time()
        connect(plan.resources.cpus, plan.resources.gpus)
        up = time.time()
        for stage in plan.tuning.values():
            run_stage(stage, work[stage])
        ended = time.time()
        cpu.end()
        disconnect()
        seeds = [progress(plan, seed) for seed in plan.tuning]
    spans = [(entries[0]["started"], entries[-1]["at"]) for entries in seeds]
    cpu_s = cpu.between(began, ended)
    epochs_s = sum(end - start for start, end in spans)
    print(
        json.dumps(
            {
                "seeds": options.seeds,
                "workers": options.workers,
                "tuning_s": round(ended - began, 1),
                "epochs_s": round(epochs_s, 1),
                "outside_s": round(ended - began - epochs_s, 1),
                "ray_s": round(up - began, 1),
                "first_step_s": round(spans[0][0] - began, 1),
                "between_s": [round(b[0] - a[1], 2) for a, b in pairwise(spans)],
                "end_s": round(ended - spans[-1][1], 2),
                "cpu_s": round(cpu_s, 1),
                "outside_cpu_s": round(cpu_s - sum(cpu.between(*span) for span in spans), 1),
            }
        )
    )


if __name__ == "__main__":
    main()
