"""What the documentation names exists: commands, options, configs, imports, files, links."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from PIL import Image

from orchestrator.cli import app
from orchestrator.config.inputs import load_categories
from orchestrator.config.load import load_config
from orchestrator.config.messages import validate
from orchestrator.sweep.space import SweepSettings
from prompt_tuning.captions import read_caption_file

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
COMMAND_NAMES = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks in one language, without the indent that they have in a list."""
    found: list[str] = []
    opened: str | None = None
    for line in page.read_text("utf-8").splitlines(keepends=True):
        if line.lstrip().startswith("```"):
            opened = line.strip().removeprefix("```") if opened is None else None
            found += [""] if opened == language else []
        elif opened == language:
            found[-1] += line
    return [textwrap.dedent(block) for block in found]


def without_blocks(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def in_line(page: Path) -> list[str]:
    """Code within a sentence or a table."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_blocks(page))]


def shell_lines(page: Path) -> list[str]:
    return "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()


def datafree_commands(page: Path) -> list[list[str]]:
    """The arguments of each `datafree` command on a page, as a shell would split them."""
    found = []
    for line in [*shell_lines(page), *in_line(page)]:
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words[:1] and Path(words[0]).name == "datafree":
            found.append(words[1:])
        elif "orchestrator" in words:
            found.append(words[words.index("orchestrator") + 1 :])
    return found


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the real command line makes of a command. Raises click's error for a wrong one."""
    group: Any = typer.main.get_command(app)
    with group.make_context("datafree", list(arguments)) as context:
        name, command, rest = group.resolve_command(context, arguments)
        with command.make_context(name, rest, parent=context) as inner:
            return dict(inner.params)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)]+)\)", without_blocks(page))
    return [link for link in found if not link.startswith("http")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    reached = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert {*DOCS, ROOT / "CONTRIBUTING.md"} - {index} <= reached


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_each_page_begins_with_what_its_reader_can_do_afterwards(page: Path) -> None:
    title, _, first, *_ = page.read_text("utf-8").splitlines()
    assert title.startswith("# ")
    assert first.startswith("After reading this page you ")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_options(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole commands are parsed; of one without arguments, as in "`datafree tag`", the name is."""
    monkeypatch.chdir(ROOT)
    for arguments in datafree_commands(page):
        if not arguments or "…" in arguments:
            continue
        if arguments[0] == "--version":
            continue
        assert arguments[0] in COMMAND_NAMES, arguments
        if len(arguments) == 1 or all(word.startswith("--") for word in arguments[1:]):
            options = " ".join(
                option
                for parameter in typer.main.get_command(app).commands[arguments[0]].params  # type: ignore[attr-defined]
                for option in parameter.opts
            ).split()
            assert set(arguments[1:]) <= set(options), arguments
        else:
            parsed(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configs_and_overrides_of_commands_are_accepted(page: Path, tmp_path: Path) -> None:
    for arguments in datafree_commands(page):
        configs = [word for word in arguments if word.startswith("configs/")]
        if "--set" not in arguments and not configs:
            continue
        path = ROOT / (configs[0] if configs else "configs/quickstart.yaml")
        overrides = [
            re.sub(r"\$\w+[\w/]*", str(tmp_path), value)
            for word, value in itertools.pairwise(arguments)
            if word == "--set" and not value.startswith("sweep.")
        ]
        if "sweep" in path.name:
            raw = yaml.safe_load(path.read_text("utf-8"))
            validate(SweepSettings, raw["sweep"], "sweep")
        else:
            assert load_config(path, overrides, None, None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_have_the_options_that_are_named(page: Path) -> None:
    for line in [*shell_lines(page), *in_line(page)]:
        if found := re.match(r"(?:\S*python )(benchmarks/\w+\.py)(.*)", line):
            source = (ROOT / found[1]).read_text("utf-8")
            for option in re.findall(r"--[\w-]+", found[2]):
                assert f'"{option}"' in source, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Modules, tests, configs and scripts, named by their path from the root."""
    rooms = "prompt_tuning|workers|orchestrator|tests|benchmarks|configs|requirements|docs"
    for code in in_line(page):
        if re.fullmatch(rf"(?:{rooms})/[\w./-]*", code):
            assert (ROOT / code).exists(), code
    for name in re.findall(r"configs/[\w./-]+\.yaml", page.read_text("utf-8")):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_is_a_config_or_a_part_of_one(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "yaml")):
        raw = yaml.safe_load(block)
        if isinstance(raw.get("categories"), list) and "name" not in raw:
            raw = {"categories": [category["name"] for category in raw["categories"]]}
        for name in re.findall(r"[\w-]+\.(?:yaml|tsv)", str(raw)):
            (tmp_path / name).write_text("{}")
        (tmp_path / "photos").mkdir(exist_ok=True)
        if sweep := raw.pop("sweep", None):
            validate(SweepSettings, sweep, "sweep")
        config = tmp_path / f"{number}.yaml"
        config.write_text(yaml.safe_dump({"name": "x", "categories": ["dog", "cat"], **raw}))
        load_config(config, [], None, None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles_and_its_imports_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert importlib.util.find_spec(alias.name), alias.name
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), block


def test_the_config_for_own_labels_is_one(tmp_path: Path) -> None:
    page = ROOT / "docs" / "own-labels.md"
    config, tools, more = blocks(page, "yaml")
    (tmp_path / "mine.yaml").write_text(config + more, "utf-8")
    (tmp_path / "tools.yaml").write_text(tools, "utf-8")
    (sentences,) = [block for block in blocks(page, "") if "\t" in block]
    (tmp_path / "mine.tsv").write_text(sentences, "utf-8")
    loaded = load_config(tmp_path / "mine.yaml", [], None, None)
    categories = load_categories(loaded)
    assert categories.names == ("drill", "saw", "vise", "workbench")
    found = list(read_caption_file(tmp_path / "mine.tsv", categories))
    assert [caption.labels for caption in found] == [(0, 1), (2, 3)]


def test_the_config_in_the_readme_is_one(tmp_path: Path) -> None:
    (config,) = blocks(ROOT / "README.md", "yaml")
    (tmp_path / "workshop.yaml").write_text(config, "utf-8")
    assert load_config(tmp_path / "workshop.yaml", [], None, None).name == "workshop"


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (320, 240), "grey").save("photo.jpg")
    (example,) = blocks(ROOT / "README.md", "python")
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[[")
