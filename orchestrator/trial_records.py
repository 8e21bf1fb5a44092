"""What a sweep knows of its trials: finished ones are stages, of the others it keeps a record."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prompt_tuning.store import canonical_json, write_atomic
from workers.stages import Stage
from workers.sweep_trials import Halving, Outcome
from workers.tuning_worker import read_history


class TrialRecords:
    """The outcomes of trials by their tuning stage, kept in a folder, a JSON file each."""

    def __init__(self, folder: Path, halving: Halving | None) -> None:
        """`halving`: what stops trials now; those that another one has stopped are to go on."""
        self._folder = folder
        self._halving = halving.model_dump() if halving else None
        files = sorted(folder.glob("*.json"))
        self._records: dict[str, dict[str, Any]] = {
            file.stem: json.loads(file.read_bytes()) for file in files
        }

    def add(self, stage: Stage, seed: int, outcome: Outcome) -> None:
        """Keep how a trial ended."""
        record = {
            **asdict(outcome),
            "seed": seed,
            "halving": self._halving,
            "number": len(self._records),
        }
        self._records[stage.key] = record
        write_atomic(self._folder / f"{stage.key}.json", canonical_json(record).encode())

    def find(self, stage: Stage) -> Outcome | None:
        """How a trial ended, here or wherever its stage was run; None where it has to run."""
        record = self._records.get(stage.key)
        outcome = Outcome(record["status"], record["entries"], record["reason"]) if record else None
        if stage.done():
            finished = outcome is not None and outcome.status == "finished"
            return outcome if finished else Outcome("finished", read_history(stage.folder))
        if record and record["status"] == "stopped" and record["halving"] == self._halving:
            return outcome
        return None

    def failure(self, stage: Stage) -> Outcome | None:
        """The outcome of a trial that failed when it was last tried."""
        record = self._records.get(stage.key)
        if record is None or record["status"] != "failed":
            return None
        return Outcome("failed", record["entries"], record["reason"])

    def in_order(self, seed: int) -> list[Outcome]:
        """All that are kept of a seed, in the order in which they ended."""
        of_seed = [record for record in self._records.values() if record["seed"] == seed]
        by_end = sorted(of_seed, key=lambda record: record["number"])
        return [Outcome(record["status"], record["entries"], record["reason"]) for record in by_end]
