"""The pages: links lead somewhere, and configs in them are ones that we would run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.config.inputs import load_categories
from orchestrator.config.load import load_config
from prompt_tuning.captions import read_caption_file

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configs_that_are_named_are_there(page: Path) -> None:
    for name in re.findall(r"configs/[\w./-]+\.yaml", page.read_text("utf-8")):
        assert (ROOT / name).is_file(), name


def test_the_config_for_own_labels_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "own-labels.md").read_text("utf-8")
    config, tools, more = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(config + more, "utf-8")
    (tmp_path / "tools.yaml").write_text(tools, "utf-8")
    (sentences,) = re.findall(r"```\n([^`]*\t[^`]*)```", page)
    (tmp_path / "mine.tsv").write_text(sentences, "utf-8")
    loaded = load_config(tmp_path / "mine.yaml", [], None, None)
    categories = load_categories(loaded)
    assert categories.names == ("drill", "saw", "vise", "workbench")
    found = read_caption_file(tmp_path / "mine.tsv", categories)
    assert [caption.labels for caption in found] == [(0, 1), (2, 3)]


def test_the_config_in_the_readme_is_one(tmp_path: Path) -> None:
    page = (ROOT / "README.md").read_text("utf-8")
    (config,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my.yaml").write_text(config, "utf-8")
    assert load_config(tmp_path / "my.yaml", [], None, None).name == "workshop"
