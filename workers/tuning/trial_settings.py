"""What a person can set for the trials of a sweep, without the import of Ray Tune."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from prompt_tuning.settings import Settings

Tracker = Literal["mlflow", "wandb"]


class ASHA(Settings):
    """Asynchronous successive halving (Li et al., 2020, arXiv 1810.05934): after `grace` epochs,
    and each `reduction` times as many, a trial continues only if it is in the best 1/`reduction` of
    the trials that have come so far."""

    grace: Annotated[int, Field(ge=1, le=1000)] = 1
    reduction: Annotated[float, Field(gt=1, le=100)] = 3
