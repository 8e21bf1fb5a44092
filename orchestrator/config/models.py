"""The config of a run: the components' settings composed, and the checks that span them."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_json

from orchestrator.config.label_list import read_label_list
from orchestrator.config.renamed_fields import renamed
from orchestrator.config.yaml import parse_yaml, read_yaml
from orchestrator.errors import InputError
from orchestrator.paths import check_absolute
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.captions import CaptionSettings
from prompt_tuning.categories import BUILT_IN, CategoryList, built_in_text
from prompt_tuning.datasets.registry import DATASETS, DatasetSettings
from prompt_tuning.datasets.scenes import SceneSettings
from prompt_tuning.datasets.stamps import stamp_files
from prompt_tuning.hierarchy import Hierarchy, HierarchySettings, parse_groups
from prompt_tuning.knowledge.questions import QuestionSettings
from prompt_tuning.knowledge.templates import Template, built_in_templates
from prompt_tuning.settings import Settings, message_of
from prompt_tuning.tuning.losses import LossSettings
from prompt_tuning.tuning.prompts import PromptSettings
from prompt_tuning.tuning.scoring import ScoringSettings
from workers.knowledge.engine import EngineSettings, SamplingSettings
from workers.tuning.job import DistributedTuningSettings

Model = TypeVar("Model", bound=BaseModel)
Seed = Annotated[int, Field(ge=0, le=2**31)]


class Paths(Settings):
    """Where results of stages are kept and where runs are written (DATAFREE_CACHE, -_RUNS)."""

    cache: Annotated[str, Field(min_length=1)] = "cache"
    runs: Annotated[str, Field(min_length=1)] = "runs"


class KnowledgeSettings(Settings):
    """What the language model is asked, and how it answers."""

    llm: EngineSettings = EngineSettings()
    questions: QuestionSettings = QuestionSettings()
    sampling: SamplingSettings = SamplingSettings()

    @model_validator(mode="after")
    def _answers_fit(self) -> KnowledgeSettings:
        if self.sampling.max_tokens >= self.llm.max_model_len:
            raise ValueError(
                f"sampling.max_tokens {self.sampling.max_tokens} leaves no room for a question in "
                f"llm.max_model_len {self.llm.max_model_len}"
            )
        return self


class EvaluationSettings(DatasetSettings):
    """What the prompts are measured on, and how `scenes` are composed where it is these.

    `select_on`: what chooses the artifact's seed: held-out captions (`text`), or half of the
    labelled images, drawn with `split_seed` (`evaluation`); then only the others are reported.
    """

    scenes: SceneSettings = SceneSettings()
    select_on: Literal["text", "evaluation"] = "text"
    split_seed: Seed = 0


class RunConfig(Settings):
    """All settings of `datafree run`. Input files named here are relative to the config file."""

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
                "knowledge.questions: per_category and relationships are 0, captions.files names "
                "no file and captions.templates is false: there would be no captions"
            )
        return self

    @model_validator(mode="after")
    def _llm_groups_come_from_answers(self) -> RunConfig:
        if self.hierarchy.groups == "llm" and not self.knowledge.questions.asks_something:
            raise ValueError(
                "hierarchy.groups: llm needs a language model's answers, but knowledge.questions "
                "asks nothing; auto clusters the names instead"
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
            raise ValueError("lists a seed twice")
        return seeds


def load_config(path: Path, overrides: list[str], cache: str | None, runs: str | None) -> RunConfig:
    """Read a config file, put `--set` overrides, environment and options on top, and check it.

    What a file says of a sweep is not looked at.

    Raises:
        InputError: naming the field or file, what is wrong and what would be right.
    """
    raw = read_config(path, overrides, cache, runs)
    raw.pop("sweep", None)
    return build_config(raw, path)


def read_config(
    path: Path, overrides: list[str], cache: str | None, runs: str | None
) -> dict[str, Any]:
    """The plain values of a config file with `--set`, environment and options on top, unchecked.

    Raises:
        InputError: for a file that cannot be read, or an override without a field.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must be a mapping of settings, such as `name: my-run`")
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise InputError(f"--set {override!r}: must be FIELD=VALUE, such as tuning.epochs=5")
        set_field(raw, name, parse_yaml(text, f"--set {override!r}"), f"--set {override!r}")
    chosen_paths = {
        "cache": cache or os.environ.get("DATAFREE_CACHE"),
        "runs": runs or os.environ.get("DATAFREE_RUNS"),
    }
    if any(chosen_paths.values()) and isinstance(raw.setdefault("paths", {}), dict):
        raw["paths"].update({k: v for k, v in chosen_paths.items() if v})
    return raw


def build_config(raw: dict[str, Any], path: Path) -> RunConfig:
    """The checked config of plain values that were read from the file `path`.

    Raises:
        InputError: naming the field or file, what is wrong and what would be right.
    """
    return _with_absolute_inputs(validate(RunConfig, raw, str(path)), path.parent)


def set_field(raw: dict[str, Any], name: str, value: Any, source: str) -> None:
    """Put a value into nested mappings under its dotted name.

    Raises:
        InputError: naming `source`, where a part of the name has no fields.
    """
    *parents, last = name.split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise InputError(f"{source}: {parent!r} has no fields")
    place[last] = value


def validate(model: type[Model], raw: Any, source: str) -> Model:
    """A settings object from plain values. Raises InputError, a line a mistake, five at most."""
    try:
        # By way of JSON, whose strict mode takes a list for a tuple but no "1" for a 1.
        return model.model_validate_json(to_json(raw, inf_nan_mode="constants"))
    except ValidationError as error:
        lines = _explain(model, raw, error.errors(include_url=False))
        more = [f"… and {len(lines) - 5} more"] if len(lines) > 5 else []
        raise InputError("\n".join(f"{source}: {line}" for line in lines[:5] + more)) from None


# What pydantic calls by its Python or JSON names; in its other messages they do not occur.
_EXPECTED = {
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "a mapping of fields",
    "string_too_long": "a text of {max_length} or fewer characters",
    "string_too_short": "a text of {min_length} or more characters",
    "string_type": "a text",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
}


def _explain(model: type[BaseModel], raw: Any, problems: list[ErrorDetails]) -> list[str]:
    """A line for each field that is wrong: its name, what is wrong, what would be right."""
    by_place: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for problem in problems:
        by_place.setdefault(_place(raw, problem), []).append(problem)
    lines = []
    for place, of_place in by_place.items():
        # What is wrong with a part says more than that the whole fits no member of its union.
        if any(other[: len(place)] == place for other in by_place if len(other) > len(place)):
            continue
        name = ".".join(str(part) for part in place)
        if moved := renamed(name):
            lines.append(moved)
            continue
        message = _message(model, place, of_place)
        lines.append(f"{name}: {message}"[:300] if name else message[:300])
    return lines


def _place(raw: Any, problem: ErrorDetails) -> tuple[int | str, ...]:
    """Where in what a person wrote: the location without the names of a union's members."""
    place: list[int | str] = []
    for part in problem["loc"]:
        if isinstance(raw, list):
            inside = isinstance(part, int) and part < len(raw)
        else:
            inside = isinstance(raw, dict) and part in raw
        if inside:
            raw = raw[part]
            place.append(part)
    return (*place, problem["loc"][-1]) if problem["type"] == "missing" else tuple(place)


def _message(
    model: type[BaseModel], place: tuple[int | str, ...], problems: list[ErrorDetails]
) -> str:
    """What is wrong at a place; several problems there are the members of a union."""
    kind, given = problems[0]["type"], problems[0]["input"]
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return message_of(problems[0])
    if kind == "extra_forbidden":
        fields = list(_fields_at(model, place[:-1]))
        close = difflib.get_close_matches(str(place[-1]), fields, n=1)
        right = ".".join(str(part) for part in (*place[:-1], *close))
        hint = f"did you mean {right}?" if close else f"there are: {', '.join(fields)}"
        return f"unknown field; {hint}"
    expected = [
        _EXPECTED[problem["type"]].format(**problem.get("ctx", {}))
        if problem["type"] in _EXPECTED
        else problem["msg"].removeprefix("Input should be ")
        for problem in problems
    ]
    shown = to_json(given, inf_nan_mode="constants").decode()
    ending = f" (given: {shown})" if len(shown) <= 60 else ""
    return f"must be {' or '.join(dict.fromkeys(expected))}{ending}"


def _fields_at(model: type[BaseModel], place: tuple[int | str, ...]) -> dict[str, FieldInfo]:
    """The fields that there are at a place in a model, through lists of models."""
    for part in place:
        if isinstance(part, str):
            annotation: Any = model.model_fields[part].annotation
            model = next(iter(get_args(annotation)), annotation)
    return model.model_fields


def _with_absolute_inputs(config: RunConfig, base: Path) -> RunConfig:
    """The config with input files absolute, checked to be there."""
    updates: dict[str, Any] = {}
    if isinstance(config.categories, str) and config.categories not in BUILT_IN:
        updates["categories"] = _existing(config.categories, base, "categories")
    if config.hierarchy.groups not in ("auto", "builtin", "llm"):
        groups = _existing(config.hierarchy.groups, base, "hierarchy.groups")
        updates["hierarchy"] = config.hierarchy.model_copy(update={"groups": groups})
    files = tuple(_existing(file, base, "captions.files") for file in config.captions.files)
    updates["captions"] = config.captions.model_copy(update={"files": files})
    try:
        photos: dict[str, Any] = config.evaluation.options()
    except ValueError as error:
        raise InputError(f"evaluation.{error}") from None
    if config.evaluation.root is not None:
        if os.environ.get("RAY_ADDRESS"):
            check_absolute(config.evaluation.root, "evaluation.root")
        try:
            root = _existing(config.evaluation.root, base, "evaluation.root", folder=True)
        except InputError as error:
            where = DATASETS[config.evaluation.dataset].where_to_get
            raise InputError(f"{error}; {where}") from None
        updates["evaluation"] = config.evaluation.model_copy(update={"root": root, **photos})
    llm, questions = config.knowledge.llm, config.knowledge.questions
    llm_folder = base / os.path.expanduser(llm.model)
    if llm_folder.is_dir():
        llm = llm.model_copy(update={"model": str(llm_folder.resolve())})
    if questions.templates is not None:
        file = _existing(questions.templates, base, "knowledge.questions.templates")
        questions = questions.model_copy(update={"templates": file})
    updates["knowledge"] = config.knowledge.model_copy(update={"llm": llm, "questions": questions})
    vlm_file = base / os.path.expanduser(config.vlm.pretrained or "")
    if vlm_file.is_file():
        updates["vlm"] = config.vlm.model_copy(update={"pretrained": str(vlm_file.resolve())})
    return config.model_copy(update=updates)


def _existing(name: str, base: Path, field: str, folder: bool = False) -> str:
    try:
        path = (base / Path(name).expanduser()).resolve()
        exists = path.is_dir() if folder else path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, a ~user who is unknown
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{field}: {name[:80]!r}: {reason}") from None
    if not exists:
        known = f"; built-in lists: {', '.join(BUILT_IN)}" if field == "categories" else ""
        kind = "folder" if folder else "file"
        raise InputError(f"{field}: {name!r} is no {kind} (looked at {path}){known}")
    return str(path)


def load_categories(config: RunConfig) -> CategoryList:
    """The category list: built in, from a YAML or text file (label_list.py), or as written.

    Raises:
        InputError: naming the file or field and the category; also where none of them could be
            seen in the scenes that are to be evaluated on.
    """
    categories = _read_categories(config)
    shown = (categories.find(name) is not None for name in stamp_files())
    if config.evaluation.dataset == "scenes" and not any(shown):
        raise InputError(
            "evaluation.dataset: the scenes show none of the categories; "
            "use categories: scenes, or another dataset"
        )
    return categories


def _read_categories(config: RunConfig) -> CategoryList:
    given = config.categories
    if isinstance(given, tuple):
        return validate(CategoryList, _as_categories(list(given)), "config")
    if given in BUILT_IN:
        return validate(CategoryList, parse_yaml(built_in_text(given), given), given)
    path = Path(given)
    if path.suffix in (".yaml", ".yml"):
        raw = read_yaml(path)
        listed = raw.get("categories") if isinstance(raw, dict) else raw
    else:
        listed = read_label_list(path)
    if not isinstance(listed, list):
        raise InputError(f"{path}: must be a list of categories, or have one under `categories:`")
    return validate(CategoryList, _as_categories(listed), str(path))


def _as_categories(listed: list[Any]) -> dict[str, Any]:
    return {"categories": [{"name": c} if not isinstance(c, dict) else c for c in listed]}


def load_templates(config: RunConfig) -> dict[str, Template]:
    """The built-in templates of questions, with those of the config's own file over and after them.

    Raises:
        InputError: naming the file, the template and what is wrong with it.
    """
    templates = built_in_templates()
    file = config.knowledge.questions.templates
    if file is None:
        return templates
    own = read_yaml(Path(file))
    if not isinstance(own, dict):
        raise InputError(f"{file}: must map names to templates of questions")
    for name, raw in own.items():
        templates[name] = validate(Template, raw, f"{file}: {name}")
    return templates


def load_groups(config: RunConfig, categories: CategoryList) -> Hierarchy | None:
    """The hierarchy that the config names, or None where it is to be clustered.

    Raises:
        InputError: naming the file and the group.
    """
    groups = config.hierarchy.groups
    if groups in ("auto", "llm"):
        return None
    try:
        if groups != "builtin":
            return parse_groups(read_yaml(Path(groups)), categories, groups)
        if config.categories not in ("coco", "nus", "voc"):
            raise InputError("hierarchy.groups: builtin goes with categories coco, nus or voc")
        text = built_in_text(f"{config.categories}_groups")
        return parse_groups(parse_yaml(text, "builtin"), categories, "builtin groups")
    except ValueError as error:
        raise InputError(str(error)) from None
