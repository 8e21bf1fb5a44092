"""The records of a sweep: how each of its trials ended."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.sweep.space import Fields
from prompt_tuning.storage import canonical_json, write_atomic
from workers.stage import Stage
from workers.tuning.job import read_history
from workers.tuning.trial_settings import ASHA
from workers.tuning.trials import Outcome


class TrialRecords:
    """The outcomes of trials by their tuning stage, a JSON file each.

    There is a folder for each `measured_on`, because figures on other images do not count.
    """

    def __init__(self, folder: Path, measured_on: str, asha: ASHA | None) -> None:
        """`asha`: the present rule; a trial that another rule stopped continues."""
        self._folder = folder / measured_on
        self._asha = asha.model_dump() if asha else None
        files = sorted(self._folder.glob("*.json"))
        self._records: dict[str, dict[str, Any]] = {
            file.stem: json.loads(file.read_bytes()) for file in files
        }

    def add(self, stage: Stage, fields: Fields, outcome: Outcome) -> None:
        """Keep how a trial with these swept fields ended."""
        record = {
            **asdict(outcome),
            "fields": fields,
            "asha": self._asha,
            "number": 1 + max((kept["number"] for kept in self._records.values()), default=0),
        }
        self._records[stage.key] = record
        write_atomic(self._folder / f"{stage.key}.json", canonical_json(record).encode())

    def has(self, stage: Stage) -> bool:
        """Whether the record of a trial is up to date with its stage."""
        found = self.find(stage)
        return found is not None and self._outcome(stage) == found

    def find(self, stage: Stage) -> Outcome | None:
        """How a trial ended, in this sweep or in a run with the same stage; None if it must run."""
        outcome = self._outcome(stage)
        if stage.done():
            finished = outcome is not None and outcome.status == "finished"
            return outcome if finished else Outcome("finished", read_history(stage.folder))
        if outcome is None or outcome.status != "stopped":
            return None
        return outcome if self._records[stage.key]["asha"] == self._asha else None

    def failure(self, stage: Stage) -> Outcome | None:
        """The outcome of a trial whose last attempt failed."""
        outcome = self._outcome(stage)
        return outcome if outcome and outcome.status == "failed" else None

    def place(self, stage: Stage) -> int:
        """The position of a trial in the order in which trials ended."""
        record = self._records.get(stage.key)
        return record["number"] if record else 0

    def fields(self) -> list[Fields]:
        """The swept fields of the recorded trials, in the order in which they ended."""
        in_order = sorted(self._records.values(), key=lambda record: record["number"])
        return [record["fields"] for record in in_order]

    def _outcome(self, stage: Stage) -> Outcome | None:
        record = self._records.get(stage.key)
        if record is None:
            return None
        return Outcome(record["status"], record["entries"], record["reason"])
