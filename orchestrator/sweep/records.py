"""What a sweep knows of its trials: finished ones are stages, of the others it keeps a record."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.sweep.space import Fields
from prompt_tuning.storage import canonical_json, write_atomic
from workers.stage import Stage
from workers.tuning.job import read_history
from workers.tuning.trials import Halving, Outcome


class TrialRecords:
    """The outcomes of trials by their tuning stage, kept in a folder, a JSON file each.

    A record says what the trial was measured on. Where that is something else by now, its figures
    and what they decided are not looked at.
    """

    def __init__(self, folder: Path, measured_on: str, halving: Halving | None) -> None:
        """`halving`: what stops trials now; those that another one has stopped are to go on."""
        self._folder = folder / measured_on
        self._halving = halving.model_dump() if halving else None
        files = sorted(self._folder.glob("*.json"))
        self._records: dict[str, dict[str, Any]] = {
            file.stem: json.loads(file.read_bytes()) for file in files
        }

    def add(self, stage: Stage, fields: Fields, outcome: Outcome) -> None:
        """Keep how a trial ended, and of what fields it was."""
        record = {
            **asdict(outcome),
            "fields": fields,
            "halving": self._halving,
            "number": 1 + max((kept["number"] for kept in self._records.values()), default=0),
        }
        self._records[stage.key] = record
        write_atomic(self._folder / f"{stage.key}.json", canonical_json(record).encode())

    def has(self, stage: Stage) -> bool:
        """Whether there is a record of a trial as it ended last."""
        found = self.find(stage)
        return found is not None and self._outcome(stage) == found

    def find(self, stage: Stage) -> Outcome | None:
        """How a trial ended, here or wherever its stage was run; None where it has to run."""
        outcome = self._outcome(stage)
        if stage.done():
            finished = outcome is not None and outcome.status == "finished"
            return outcome if finished else Outcome("finished", read_history(stage.folder))
        if outcome is None or outcome.status != "stopped":
            return None
        return outcome if self._records[stage.key]["halving"] == self._halving else None

    def failure(self, stage: Stage) -> Outcome | None:
        """The outcome of a trial that failed when it was last tried."""
        outcome = self._outcome(stage)
        return outcome if outcome and outcome.status == "failed" else None

    def place(self, stage: Stage) -> int:
        """Where in the order of ends a trial comes."""
        record = self._records.get(stage.key)
        return record["number"] if record else 0

    def fields(self) -> list[Fields]:
        """The points of which there are records, in the order in which their trials ended."""
        by_end = sorted(self._records.values(), key=lambda record: record["number"])
        return [record["fields"] for record in by_end]

    def _outcome(self, stage: Stage) -> Outcome | None:
        record = self._records.get(stage.key)
        if record is None:
            return None
        return Outcome(record["status"], record["entries"], record["reason"])
