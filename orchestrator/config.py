"""The config of a run: the components' settings composed, and the checks that span them."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator
from pydantic_core import to_json

from orchestrator.config_file import InputError, parse_yaml, read_text, read_yaml
from prompt_tuning.captions import CaptionSettings
from prompt_tuning.categories import BUILT_IN, CategoryList, built_in_text
from prompt_tuning.hierarchy import Hierarchy, HierarchySettings, parse_groups
from prompt_tuning.losses import LossSettings
from prompt_tuning.prompts import PromptSettings
from prompt_tuning.questions import QuestionSettings
from prompt_tuning.scenes import SceneSettings
from prompt_tuning.scoring import ScoringSettings
from prompt_tuning.settings import Settings
from prompt_tuning.vlm import VLMSettings
from workers.llm_engine import EngineSettings, SamplingSettings
from workers.tuning_worker import DistributedTuningSettings

Model = TypeVar("Model", bound=BaseModel)
Seed = Annotated[int, Field(ge=0, le=2**31)]


class Paths(Settings):
    """Where results of stages are kept and where runs are written (DATAFREE_CACHE, -_RUNS)."""

    cache: str = "cache"
    runs: str = "runs"


class KnowledgeSettings(Settings):
    """What the language model is asked, and how it answers."""

    llm: EngineSettings = EngineSettings()
    questions: QuestionSettings = QuestionSettings()
    sampling: SamplingSettings = SamplingSettings()


class EvaluationSettings(Settings):
    """What the prompts are measured on: composed `scenes`, photos of one's own in a `folder`
    with a `labels.csv`, or no image at all (`none`: held-out captions only)."""

    dataset: Literal["scenes", "folder", "none"] = "none"
    root: str | None = None
    scenes: SceneSettings = SceneSettings()


class RunConfig(Settings):
    """All settings of `datafree run`. Input files named here are relative to the config file."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
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

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("lists a seed twice")
        return seeds


def load_config(path: Path, overrides: list[str], cache: str | None, runs: str | None) -> RunConfig:
    """Read a config file, put `--set` overrides, environment and options on top, and check it.

    Raises:
        InputError: naming the field or file, what is wrong and what would be right.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must be a mapping of settings, such as `name: my-run`")
    for override in overrides:
        _apply_override(raw, override)
    chosen_paths = {
        "cache": cache or os.environ.get("DATAFREE_CACHE"),
        "runs": runs or os.environ.get("DATAFREE_RUNS"),
    }
    if any(chosen_paths.values()) and isinstance(raw.setdefault("paths", {}), dict):
        raw["paths"].update({k: v for k, v in chosen_paths.items() if v})
    config = validate(RunConfig, raw, str(path))
    return _with_absolute_inputs(config, path.parent)


def validate(model: type[Model], raw: Any, source: str) -> Model:
    """A settings object from plain values. Raises InputError with a line a mistake, five at most."""
    try:
        # By way of JSON, whose strict mode takes a list for a tuple but no "1" for a 1.
        return model.model_validate_json(to_json(raw, inf_nan_mode="constants"))
    except ValidationError as error:
        lines = [_explain(model, problem) for problem in error.errors(include_url=False)]
        lines = list(dict.fromkeys(lines))
        more = [f"… and {len(lines) - 5} more"] if len(lines) > 5 else []
        raise InputError("\n".join(f"{source}: {line}" for line in lines[:5] + more)) from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    """Put `a.b=value` into nested mappings; the value is read as YAML."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise InputError(f"--set {override!r}: must be FIELD=VALUE, such as tuning.epochs=5")
    *parents, last = name.split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise InputError(f"--set {override!r}: {parent!r} has no fields")
    place[last] = parse_yaml(text, f"--set {override!r}")


def _explain(model: type[BaseModel], problem: Any) -> str:
    """One line about one of pydantic's errors: field, what is wrong, what would be right."""
    # A union's members appear in the location as type names; fields are what a person wrote.
    location = [str(part) for part in problem["loc"]]
    fields = _known_fields(model)
    named = [part for part in location if part in fields or part.isdigit() or part == location[-1]]
    name = ".".join(part for part in named if not part.startswith(("literal[", "constrained")))
    if problem["type"] == "extra_forbidden":
        parent = _model_at(model, location[:-1])
        close = difflib.get_close_matches(location[-1], parent.model_fields if parent else (), n=1)
        prefix = ".".join([*location[:-1], close[0]]) if close else ""
        known = ", ".join(parent.model_fields) if parent else ""
        return f"{name}: unknown field; " + (
            f"did you mean {prefix}?" if close else f"there are: {known}"
        )
    if problem["type"] == "missing":
        return f"{name}: is missing"
    given = str(problem["input"])
    shown = "" if len(given) > 60 or problem["type"] == "value_error" else f" (given: {given})"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name or 'config'}: {message[:1].lower()}{message[1:]}{shown}"[:300]


def _known_fields(model: type[BaseModel]) -> set[str]:
    fields: set[str] = set()
    for name, field in model.model_fields.items():
        fields.add(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            fields |= _known_fields(field.annotation)
    return fields


def _model_at(model: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        model = annotation
    return model


def _with_absolute_inputs(config: RunConfig, base: Path) -> RunConfig:
    """The config with input files absolute, checked to be there."""
    updates: dict[str, Any] = {}
    if isinstance(config.categories, str) and config.categories not in BUILT_IN:
        updates["categories"] = _existing(config.categories, base, "categories")
    if config.hierarchy.groups not in ("auto", "builtin"):
        groups = _existing(config.hierarchy.groups, base, "hierarchy.groups")
        updates["hierarchy"] = config.hierarchy.model_copy(update={"groups": groups})
    files = tuple(_existing(file, base, "captions.files") for file in config.captions.files)
    updates["captions"] = config.captions.model_copy(update={"files": files})
    if config.evaluation.dataset == "folder":
        if config.evaluation.root is None:
            raise InputError("evaluation.root: is missing; the folder of photos and labels.csv")
        root = _existing(config.evaluation.root, base, "evaluation.root")
        updates["evaluation"] = config.evaluation.model_copy(update={"root": root})
    elif config.evaluation.root is not None:
        raise InputError("evaluation.root: only goes with evaluation.dataset: folder")
    return config.model_copy(update=updates)


def _existing(name: str, base: Path, field: str) -> str:
    path = (base / Path(name).expanduser()).resolve()
    if not path.exists():
        known = f"; built-in lists: {', '.join(BUILT_IN)}" if field == "categories" else ""
        raise InputError(f"{field}: {name!r} is no file or folder (looked at {path}){known}")
    return str(path)


def load_categories(config: RunConfig) -> CategoryList:
    """The category list: built in, from a YAML or text file (a name a line), or as written.

    Raises:
        InputError: naming the file or field and the category.
    """
    given = config.categories
    if isinstance(given, tuple):
        return validate(CategoryList, _as_categories(list(given)), "categories")
    if given in BUILT_IN:
        return validate(CategoryList, parse_yaml(built_in_text(given), given), given)
    path = Path(given)
    if path.suffix in (".yaml", ".yml"):
        raw = read_yaml(path)
        listed = raw.get("categories") if isinstance(raw, dict) else raw
    else:
        listed = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not isinstance(listed, list):
        raise InputError(f"{path}: must be a list of categories, or have one under `categories:`")
    return validate(CategoryList, _as_categories(listed), str(path))


def _as_categories(listed: list[Any]) -> dict[str, Any]:
    return {"categories": [{"name": c} if not isinstance(c, dict) else c for c in listed]}


def load_groups(config: RunConfig, categories: CategoryList) -> Hierarchy | None:
    """The hierarchy that the config names, or None where it is to be clustered.

    Raises:
        InputError: naming the file and the group.
    """
    groups = config.hierarchy.groups
    if groups == "auto":
        return None
    try:
        if groups != "builtin":
            return parse_groups(read_yaml(Path(groups)), categories, groups)
        if config.categories not in ("coco", "voc"):
            raise InputError("hierarchy.groups: builtin goes with categories coco or voc")
        text = built_in_text(f"{config.categories}_groups")
        return parse_groups(parse_yaml(text, "builtin"), categories, "builtin groups")
    except ValueError as error:
        raise InputError(str(error)) from None
