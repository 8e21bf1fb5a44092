"""The config of a run: the settings of all components, and the checks across them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.captions import CaptionSettings
from prompt_tuning.datasets.registry import DatasetSettings
from prompt_tuning.datasets.scenes import SceneSettings
from prompt_tuning.hierarchy import HierarchySettings
from prompt_tuning.knowledge.questions import QuestionSettings
from prompt_tuning.settings import Settings
from prompt_tuning.tuning.losses import LossSettings
from prompt_tuning.tuning.prompts import PromptSettings
from prompt_tuning.tuning.scoring import ScoringSettings
from workers.knowledge.llm_settings import LLMSettings, SamplingSettings
from workers.tuning.job import DistributedTuningSettings

Seed = Annotated[int, Field(ge=0, le=2**31)]


class Paths(Settings):
    """Folders for the cache and for runs. DATAFREE_CACHE and DATAFREE_RUNS override them."""

    cache: Annotated[str, Field(min_length=1)] = "cache"
    runs: Annotated[str, Field(min_length=1)] = "runs"


class KnowledgeSettings(Settings):
    """The language model, its questions, and how it samples answers."""

    llm: LLMSettings = LLMSettings()
    questions: QuestionSettings = QuestionSettings()
    sampling: SamplingSettings = SamplingSettings()

    @model_validator(mode="after")
    def _answers_fit(self) -> KnowledgeSettings:
        if self.sampling.max_tokens >= self.llm.max_model_len:
            raise ValueError(
                f"sampling.max_tokens must be below llm.max_model_len {self.llm.max_model_len}, "
                f"which also holds the question (got {self.sampling.max_tokens})"
            )
        return self


class EvaluationSettings(DatasetSettings):
    """`scenes`: how the demo's images are composed.

    `select_on`: chooses the artifact's seed by held-out captions (`text`), or by half of the
    labelled images, drawn with `split_seed` (`evaluation`); the report then uses the other half.
    """

    scenes: SceneSettings = SceneSettings()
    select_on: Literal["text", "evaluation"] = "text"
    split_seed: Seed = 0


class RunConfig(Settings):
    """All settings of `datafree run`. Input files named here are relative to the config file.

    Fields of `prompts`, `scoring`, `losses` and `tuning` that are not given have the recipe of
    `vlm.kind`, if it has them, and else the defaults below.
    """

    name: str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=100)] = (0,)
    paths: Paths = Paths()
    categories: str | tuple[str, ...]
    knowledge: KnowledgeSettings = KnowledgeSettings()
    captions: CaptionSettings = CaptionSettings()
    hierarchy: HierarchySettings = HierarchySettings()
    vlm: VLMSettings = VLMSettings()
    prompts: PromptSettings = PromptSettings()
    scoring: ScoringSettings = ScoringSettings()
    losses: LossSettings = LossSettings()
    tuning: DistributedTuningSettings = DistributedTuningSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ValueError(
                f"{name[:80]!r} must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a "
                "letter or digit"
            )
        return name

    @model_validator(mode="after")
    def _captions_come_from_somewhere(self) -> RunConfig:
        given = self.captions.files or self.captions.templates
        if not self.knowledge.questions.asks_something and not given:
            raise ValueError(
                "knowledge.questions: there would be no captions, because per_category and "
                "relationships are 0, captions.files is empty and captions.templates is false"
            )
        return self

    @model_validator(mode="after")
    def _llm_groups_come_from_answers(self) -> RunConfig:
        if self.hierarchy.groups == "llm" and not self.knowledge.questions.asks_something:
            raise ValueError(
                "hierarchy.groups: llm needs a language model's answers, but knowledge.questions "
                "asks none; auto clusters the names instead"
            )
        return self

    @model_validator(mode="after")
    def _labelled_images_select(self) -> RunConfig:
        if self.evaluation.select_on == "evaluation" and self.evaluation.dataset == "none":
            raise ValueError(
                "evaluation.select_on: evaluation needs labelled images, but evaluation.dataset is "
                "none; name a data set, or select on text"
            )
        return self

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("must not repeat a seed")
        return seeds
