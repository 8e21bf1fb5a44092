"""The files that a config names: their absolute paths, categories, templates and groups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orchestrator.config.label_list import read_label_list
from orchestrator.config.messages import Model, validate
from orchestrator.config.models import RunConfig
from orchestrator.config.yaml import parse_yaml, read_yaml
from orchestrator.errors import InputError, as_input_error
from orchestrator.paths import check_absolute
from prompt_tuning.categories import BUILT_IN, CategoryList, built_in_text
from prompt_tuning.datasets.registry import DATASETS
from prompt_tuning.datasets.stamps import stamp_files
from prompt_tuning.hierarchy import Hierarchy, parse_groups
from prompt_tuning.knowledge.templates import Template, built_in_templates


def with_absolute_inputs(config: RunConfig, base: Path) -> RunConfig:
    """The config with absolute paths of its input files. Raises InputError if one is missing."""
    found = [(field, _existing(name, base, field)) for field, name in input_files(config)]
    updates: dict[str, Any] = dict(found)
    updates["captions.files"] = tuple(path for field, path in found if field == "captions.files")
    with as_input_error("evaluation."):
        dataset_options = config.evaluation.options()
    if config.evaluation.root is not None:
        if os.environ.get("RAY_ADDRESS"):
            check_absolute(config.evaluation.root, "evaluation.root")
        try:
            root = _existing(config.evaluation.root, base, "evaluation.root", folder=True)
        except InputError as error:
            where = DATASETS[config.evaluation.dataset].where_to_get
            raise InputError(f"{error}; {where}") from None
        updates["evaluation.root"] = root
        updates |= {f"evaluation.{name}": value for name, value in dataset_options.items()}
    llm_folder = base / os.path.expanduser(config.knowledge.llm.model)
    if config.knowledge.llm.source == "vllm" and llm_folder.is_dir():
        updates["knowledge.llm.model"] = str(llm_folder.resolve())
    vlm_file = base / os.path.expanduser(config.vlm.pretrained or "")
    if vlm_file.is_file():
        updates["vlm.pretrained"] = str(vlm_file.resolve())
    for field, value in updates.items():
        config = _updated(config, field, value)
    return config


def input_files(config: RunConfig) -> list[tuple[str, str]]:
    """The files that a config names, as (field, name)."""
    files = [("captions.files", file) for file in config.captions.files]
    if isinstance(config.categories, str) and config.categories not in BUILT_IN:
        files.append(("categories", config.categories))
    if config.hierarchy.groups not in ("auto", "builtin", "llm"):
        files.append(("hierarchy.groups", config.hierarchy.groups))
    if config.knowledge.questions.templates is not None:
        files.append(("knowledge.questions.templates", config.knowledge.questions.templates))
    return files


def _updated(settings: Model, field: str, value: Any) -> Model:
    """A copy with another value of a dotted field."""
    name, _, rest = field.partition(".")
    new = _updated(getattr(settings, name), rest, value) if rest else value
    return settings.model_copy(update={name: new})


def _existing(name: str, base: Path, field: str, folder: bool = False) -> str:
    try:
        path = (base / Path(name).expanduser()).resolve()
        exists = path.is_dir() if folder else path.is_file()
    except (OSError, RuntimeError) as error:  # name too long, unknown ~user
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{field}: {name[:80]!r}: {reason}") from None
    if not exists:
        known = f"; built-in lists: {', '.join(BUILT_IN)}" if field == "categories" else ""
        kind = "folder" if folder else "file"
        raise InputError(f"{field}: {name!r} is not a {kind} (looked at {path}){known}")
    return str(path)


def load_categories(config: RunConfig) -> CategoryList:
    """The categories of a config. Raises InputError, also if the scenes show none of them."""
    categories = _read_categories(config)
    shown = (categories.find(name) is not None for name in stamp_files())
    if config.evaluation.dataset == "scenes" and not any(shown):
        raise InputError(
            "evaluation.dataset: the scenes show none of the categories; "
            "use categories: scenes, or another dataset"
        )
    return categories


def _read_categories(config: RunConfig) -> CategoryList:
    source = "config" if isinstance(config.categories, tuple) else config.categories
    return validate(CategoryList, {"categories": listed_categories(config)}, source)


def listed_categories(config: RunConfig, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """The unchecked categories of a config, as mappings.

    Raises InputError; lines of a text file that cannot be labels go to `problems`, if it is given.
    """
    given = config.categories
    if isinstance(given, tuple):
        listed: Any = list(given)
    elif given in BUILT_IN:
        listed = parse_yaml(built_in_text(given), given)["categories"]
    elif Path(given).suffix in (".yaml", ".yml"):
        raw = read_yaml(Path(given))
        listed = raw.get("categories") if isinstance(raw, dict) else raw
    else:
        listed = read_label_list(Path(given), problems)
    if not isinstance(listed, list):
        raise InputError(f"{given}: must be a list of categories, or have one under `categories:`")
    return [{"name": c} if not isinstance(c, dict) else c for c in listed]


def load_templates(config: RunConfig) -> dict[str, Template]:
    """The built-in question templates and those of the config's file. Raises InputError."""
    templates = built_in_templates()
    file = config.knowledge.questions.templates
    if file is None:
        return templates
    own = read_yaml(Path(file))
    if not isinstance(own, dict):
        raise InputError(f"{file}: must map names to question templates")
    for name, raw in own.items():
        templates[name] = validate(Template, raw, f"{file}: {name}")
    return templates


def load_groups(config: RunConfig, categories: CategoryList) -> Hierarchy | None:
    """The hierarchy of a config, or None if it is made during the run. Raises InputError."""
    groups = config.hierarchy.groups
    if groups in ("auto", "llm"):
        return None
    with as_input_error():
        if groups != "builtin":
            return parse_groups(read_yaml(Path(groups)), categories, groups)
        if config.categories not in ("coco", "nus", "starter", "voc"):
            raise InputError(
                "hierarchy.groups: builtin only goes with categories coco, nus, starter or voc"
            )
        text = built_in_text(f"{config.categories}_groups")
        return parse_groups(parse_yaml(text, "builtin"), categories, "builtin groups")
