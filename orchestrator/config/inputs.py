"""The files that a config names: their absolute paths, categories, templates and groups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orchestrator.config.label_list import read_label_list
from orchestrator.config.messages import validate
from orchestrator.config.models import RunConfig
from orchestrator.config.yaml import parse_yaml, read_yaml
from orchestrator.errors import InputError
from orchestrator.paths import check_absolute
from prompt_tuning.categories import BUILT_IN, CategoryList, built_in_text
from prompt_tuning.datasets.registry import DATASETS
from prompt_tuning.datasets.stamps import stamp_files
from prompt_tuning.hierarchy import Hierarchy, parse_groups
from prompt_tuning.knowledge.templates import Template, built_in_templates


def with_absolute_inputs(config: RunConfig, base: Path) -> RunConfig:
    """The config with absolute paths of its input files. Raises InputError if one is missing."""
    updates: dict[str, Any] = {}
    if isinstance(config.categories, str) and config.categories not in BUILT_IN:
        updates["categories"] = _existing(config.categories, base, "categories")
    if config.hierarchy.groups not in ("auto", "builtin", "llm"):
        groups = _existing(config.hierarchy.groups, base, "hierarchy.groups")
        updates["hierarchy"] = config.hierarchy.model_copy(update={"groups": groups})
    files = tuple(_existing(file, base, "captions.files") for file in config.captions.files)
    updates["captions"] = config.captions.model_copy(update={"files": files})
    try:
        dataset_options: dict[str, Any] = config.evaluation.options()
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
        updates["evaluation"] = config.evaluation.model_copy(
            update={"root": root, **dataset_options}
        )
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
    except (OSError, RuntimeError) as error:  # name too long, unknown ~user
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{field}: {name[:80]!r}: {reason}") from None
    if not exists:
        known = f"; built-in lists: {', '.join(BUILT_IN)}" if field == "categories" else ""
        kind = "folder" if folder else "file"
        raise InputError(f"{field}: {name!r} is not a {kind} (looked at {path}){known}")
    return str(path)


def load_categories(config: RunConfig) -> CategoryList:
    """The categories: a built-in list, a YAML or text file, or the list in the config.

    Raises:
        InputError: naming the file or field and the category, or when the evaluation uses scenes
            and these show none of the categories.
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
    """The built-in question templates, replaced and extended by those of the config's file.

    Raises:
        InputError: naming the file, the template and what is wrong with it.
    """
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
    """The hierarchy from a file or built-in list, or None if it is made during the run.

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
            raise InputError("hierarchy.groups: builtin only goes with categories coco, nus or voc")
        text = built_in_text(f"{config.categories}_groups")
        return parse_groups(parse_yaml(text, "builtin"), categories, "builtin groups")
    except ValueError as error:
        raise InputError(str(error)) from None
