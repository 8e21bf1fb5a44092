"""Pages about 5,000 classes stay short and quick: folds, and a field that finds a class."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from test_run_page import Page, fake, names

from orchestrator.pages.run_page import render

CLASSES = 5000
CHROMIUM = shutil.which("chromium")


class OpenItems(Page):
    """Counts the list items that no closed fold hides."""

    items = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.items += tag == "li" and "details" not in self.open
        super().handle_starttag(tag, attrs)


@pytest.fixture(scope="module")
def html() -> str:
    data = fake(CLASSES)
    counts = dict.fromkeys(names(CLASSES), 20)
    attributes = [f"attribute {number}" for number in range(CLASSES)]
    knowledge = {**data.knowledge, "captions_per_category": counts, "attributes": attributes}
    return render(replace(data, knowledge=knowledge))


def test_lists_of_all_classes_are_folded(html: str) -> None:
    page = OpenItems(html)
    assert page.items < 500
    assert len(page.tables[1]) == CLASSES + 1
    assert "4,900 more" in page.text  # of the captions per category, and of the attributes
    assert len(html) < 8e6


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH")
def test_a_class_is_found(html: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="dev.txt has playwright")
    playwright.expect.set_options(timeout=60_000)
    file = tmp_path / "report.html"
    file.write_text(html, "utf-8")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(file.as_uri())
        page.get_by_label("Find a class").fill(" Category 499")
        playwright.expect(page.locator(".find output")).to_have_text("11 of 5,000")
        rows = page.locator(".classes tbody tr:visible th")
        playwright.expect(rows).to_have_count(11)
        page.get_by_role("button", name="Class").click()  # sorting keeps what was found
        playwright.expect(rows.first).to_have_text("category 499")
        browser.close()
