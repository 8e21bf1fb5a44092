"""The page of `datafree serve` in a real browser, against a real service.

The tests replace answers to get what a healthy service rarely sends (401, 429, 503, hostile names).
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from served import served
from watched_page import watched_page

pytest.importorskip("playwright", reason="requirements/dev.txt has playwright")
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH")

HOSTILE = '<img src=x onerror="document.title=`stolen`">'
TAGS = "#cards .card .tags button"


@pytest.fixture(scope="module")
def service(artifact: Path, lasting_cache: Path) -> Iterator[str]:
    """The URL of a service with one artifact."""
    with served([f"animals={artifact}"], lasting_cache) as running:
        yield f"{running.url}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, service: str) -> Iterator[Page]:
    """The page, opened (see `watched_page`)."""
    with watched_page(browser, service) as page:
        page.goto(service)
        yield page


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    files = [folder / f"{name}.png" for name in ("a", "b", "c", "d")]
    for number, file in enumerate(files):
        image = Image.new("RGB", (240, 160), (60 * number, 200 - 50 * number, 90))
        box = (20 * number, 10, 90 + 30 * number, 120)
        ImageDraw.Draw(image).ellipse(box, (250, 60 * number, 30))
        image.save(file)
    return files


def choose(page: Page, files: list[Path]) -> None:
    """Choose the files as a person does, and wait for their tags."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose images").click()
    chooser.value.set_files(files)
    tagged(page, len(files))


def tagged(page: Page, count: int) -> None:
    expect(page.locator("#progress")).to_have_text(
        f"{count} of {count} image{'s' if count > 1 else ''} tagged"
    )


def one_threshold(page: Page, value: float) -> None:
    page.get_by_label("Threshold of all labels").fill(str(value))
    expect(page.locator("output")).to_have_text(f"{value:.2f}")


def answers(page: Page, service: str, files: list[Path]) -> dict[str, dict[str, float]]:
    """What the service itself says: image -> label -> score."""
    found = {}
    for file in files:
        form = {"name": file.name, "mimeType": "image/png", "buffer": file.read_bytes()}
        url = f"{service.rstrip('/')}/tag?threshold=0"
        content = page.request.post(url, multipart={"images": form}).json()
        found[file.name] = {t["name"]: t["score"] for t in content["images"][0]["tags"]}
    return found


def shown(page: Page) -> dict[str, list[str]]:
    """Image -> the labels on its card, of the cards that are not filtered out."""
    cards = page.locator("#cards .card:visible").all()
    return {
        card.locator("h3").inner_text(): card.locator(".tags .name").all_inner_texts()
        for card in cards
    }


def test_chosen_images_get_the_tags_of_the_service_above_the_slider(
    page: Page, service: str, images: list[Path]
) -> None:
    choose(page, images)
    scores_by_image = answers(page, service, images)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for threshold in (0.0, 0.5, 1.0):
        one_threshold(page, threshold)
        for name, scores in scores_by_image.items():
            best_first = sorted(scores, key=lambda label: -scores[label])
            expected = [label for label in best_first if scores[label] >= threshold][:10]
            card = page.locator("#cards .card", has=page.get_by_role("heading", name=name))
            expect(card.locator(".tags .name")).to_have_text(expected)
    assert [url for url in asked if "/tag" in url] == []  # the service is not asked again


def test_each_label_has_its_own_threshold_first(
    page: Page, service: str, images: list[Path]
) -> None:
    choose(page, images[:2])
    first = page.request.get(f"{service.rstrip('/')}/labels").json()["artifacts"][0]
    least = {label["name"]: label["threshold"] for label in first["labels"]}
    for name, scores in answers(page, service, images[:2]).items():
        expected = {label for label, score in scores.items() if score >= least[label]}
        assert set(shown(page)[name]) <= expected
        assert len(shown(page)[name]) == min(10, len(expected))


def test_filter_shows_images_with_all_tags_and_the_csv_has_these(
    page: Page, service: str, images: list[Path]
) -> None:
    scores_by_image = answers(page, service, images)
    label, threshold = _dividing(scores_by_image)
    choose(page, images)
    one_threshold(page, threshold)
    have = [name for name, scores in scores_by_image.items() if scores[label] >= threshold]
    more = page.locator(".filter button.plain", has_text="all ")
    if more.count():
        more.click()
    chip = page.locator(
        ".filter button[aria-pressed]", has_text=re.compile(f"^{re.escape(label)} ")
    )
    expect(chip.locator("small")).to_have_text(str(len(have)))
    chip.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#cards .card:visible")).to_have_count(len(have))
    expect(chip).to_be_focused()
    expect(chip).to_have_attribute("aria-pressed", "true")

    with page.expect_download() as download:
        page.get_by_role("button", name="as CSV").click()
    made_with, *lines = Path(download.value.path()).read_text().splitlines()
    assert json.loads(made_with.removeprefix("# "))["made_with"]["threshold"] == threshold
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    assert [row["file"] for row in rows] == have
    for row in rows:
        scores = scores_by_image[row["file"]]
        names = row["tags"].split(";")
        assert set(names) == {name for name, score in scores.items() if score >= threshold}
        scored = [float(score) for score in row["scores"].split(";")]
        assert scored == pytest.approx([scores[name] for name in names], abs=1e-4)

    page.locator(".filter").get_by_role("button", name="clear").click()
    expect(page.locator("#cards .card:visible")).to_have_count(len(images))


def _dividing(scores_by_image: dict[str, dict[str, float]]) -> tuple[str, float]:
    """A label and a threshold, of the slider's steps, that some images reach and some do not."""
    for label in next(iter(scores_by_image.values())):
        scores = sorted(scores[label] for scores in scores_by_image.values())
        for step in range(101):
            if scores[0] < step / 100 - 1e-3 and scores[-1] > step / 100 + 1e-3:
                return label, step / 100
    pytest.fail("the service gives all images the same scores")


def test_heat_map_by_hover_by_focus_and_by_click(page: Page, images: list[Path]) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    choose(page, images[:1])
    one_threshold(page, 0)
    first, second = page.locator(TAGS).nth(0), page.locator(TAGS).nth(1)
    canvas, where = page.locator("#cards canvas"), page.locator("#cards .where")
    expect(first).to_be_visible()
    assert not any("/regions" in url for url in asked)

    first.hover()
    expect(canvas).to_be_visible()
    name = first.locator(".name").inner_text()
    expect(where).to_have_text(re.compile(f"^{re.escape(name)}: (mostly|spread)"))
    expect(canvas).to_have_attribute("aria-label", re.compile("^Heat map of "))
    page.mouse.move(0, 0)
    expect(canvas).to_be_hidden()

    page.locator("#cards .remove").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(second).to_be_focused()
    expect(canvas).to_be_visible()
    page.keyboard.press("Escape")
    expect(canvas).to_be_hidden()

    second.click()
    page.mouse.move(0, 0)
    expect(second).to_have_attribute("aria-pressed", "true")
    expect(canvas).to_be_visible()
    assert sum("/regions" in url for url in asked) == 1  # once for all tags of the image


DROP = """([files, folder, how]) => {
  const file = ([name, base64]) => new File(
    [Uint8Array.from(atob(base64), c => c.charCodeAt(0))], name, { type: "image/png" });
  const given = new DataTransfer();
  files.map(file).forEach(each => given.items.add(each));
  if (how === "paste")
    return document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: given }));
  const event = new DragEvent("drop", { dataTransfer: given, cancelable: true, bubbles: true });
  if (folder) {  // only a real hand can drop one: its entries are as a browser gives them
    const inside = files.map(each => ({ isFile: true, fullPath: `/${folder}/${each[0]}`,
      file: done => done(file(each)) }));
    const reader = () => { const parts = [inside.slice(0, 1), inside.slice(1), []];
      return { readEntries: done => done(parts.shift()) }; };
    const entry = { isFile: false, createReader: reader };
    Object.defineProperty(event, "dataTransfer", { value: {
      items: [{ webkitGetAsEntry: () => entry }], files: [] } });
  }
  document.body.dispatchEvent(event);
}"""


def hand_over(page: Page, files: list[Path], how: str, folder: str = "") -> None:
    given = [[file.name, b64encode(file.read_bytes()).decode()] for file in files]
    page.evaluate(DROP, [given, folder, how])


def test_dropping_and_pasting(page: Page, images: list[Path]) -> None:
    hand_over(page, images[:2], "drop")
    tagged(page, 2)
    hand_over(page, images[2:], "drop", folder="trip")
    tagged(page, 4)
    hand_over(page, images[:1], "paste")
    tagged(page, 5)
    names = page.locator("#cards h3").all_inner_texts()
    assert names == ["a.png", "b.png", "trip/c.png", "trip/d.png", "pasted-1-a.png"]


def test_a_folder_s_images_and_not_its_other_files(
    page: Page, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "trip" / "day 2").mkdir(parents=True)
    shutil.copy(images[0], tmp_path / "trip" / "x.png")
    shutil.copy(images[1], tmp_path / "trip" / "day 2" / "y.png")
    (tmp_path / "trip" / "notes.txt").write_text("no image")
    slow: list[Route] = []
    page.route("**/labels", lambda route: slow.append(route))
    page.reload()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a folder").click()
    chooser.value.set_files(tmp_path / "trip")
    expect(page.locator("#notice")).to_contain_text("1 file is not an image")
    slow[0].continue_()  # the labels come after the files: the notice stays
    tagged(page, 2)
    assert page.locator("#cards h3").all_inner_texts() == ["trip/day 2/y.png", "trip/x.png"]
    expect(page.locator("#notice")).to_contain_text("1 file is not an image")


def test_the_card_of_a_broken_image_says_why(
    page: Page, images: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:60])
    page.set_input_files("#files", [images[0], broken])
    expect(page.locator("#progress")).to_have_text("1 of 2 images tagged, 1 not")
    card = page.locator(".card.failed")
    expect(card.locator("h3")).to_have_text("broken.png")
    expect(card.locator(".state")).not_to_be_empty()
    expect(card.get_by_role("button", name="Try")).to_be_hidden()  # it would fail again


def test_a_service_that_is_away_can_be_tried_again(page: Page, images: list[Path]) -> None:
    gone = {"a.png": "network", "b.png": "503"}

    def fail(route: Route) -> None:
        sent = route.request.post_data_buffer or b""
        if b"a.png" in sent:
            route.abort("connectionrefused")
        else:
            route.fulfill(status=503, json={"error": "The model is being started."})

    page.route("**/tag?*", fail)
    page.set_input_files("#files", images[: len(gone)])
    expect(page.locator(".card.failed .state")).to_have_text(
        ["The service does not answer.", "The model is being started."]
    )
    page.unroute("**/tag?*")
    page.get_by_role("button", name="Try a.png again").click()
    expect(page.locator("#progress")).to_have_text("1 of 2 images tagged, 1 not")
    page.get_by_role("button", name="Try b.png again").click()
    tagged(page, 2)


def test_a_busy_service_is_waited_for(page: Page, images: list[Path]) -> None:
    refused: list[str] = []

    def busy(route: Route) -> None:
        if refused:
            return route.continue_()
        refused.append(route.request.url)
        return route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": "busy"})

    page.route("**/tag?*", busy)
    page.set_input_files("#files", images[:1])
    expect(page.locator("#notice")).to_contain_text("busy")
    tagged(page, 1)
    expect(page.locator("#notice")).to_be_hidden()


def test_the_token_is_asked_for_once_and_kept_in_memory(
    page: Page, service: str, images: list[Path]
) -> None:
    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer open sesame":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": "Missing or invalid bearer token"})

    for path in ("**/labels", "**/tag?*", "**/regions?*"):
        page.route(path, guard)
    page.goto(service)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(page.get_by_label("Token", exact=True)).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("rejected")
    page.keyboard.type("open sesame")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    choose(page, images)
    expect(dialog).to_be_hidden()
    assert page.evaluate("() => [localStorage.length, sessionStorage.length, document.cookie]") == [
        0,
        0,
        "",
    ]


def test_declining_the_token_ends_the_asking(page: Page, images: list[Path]) -> None:
    expect(page.locator("#settings")).to_be_visible()
    page.route("**/tag?*", lambda route: route.fulfill(status=401, json={"error": "no"}))
    page.set_input_files("#files", [*images, *images])
    page.get_by_role("button", name="Not now").click()
    expect(page.locator(".card.failed")).to_have_count(8)
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_names_are_text(page: Page, service: str, images: list[Path], tmp_path: Path) -> None:
    hostile = tmp_path / HOSTILE
    shutil.copy(images[0], hostile.with_suffix(".png"))
    label = {"name": HOSTILE, "threshold": 0.5}
    artifact = {"name": HOSTILE, "version": HOSTILE, "labels": [label]}

    def tag(route: Route) -> None:
        tags = [{"name": HOSTILE, "score": 0.9}]
        content = {"artifact": HOSTILE, "version": HOSTILE, "images": [{"name": "", "tags": tags}]}
        route.fulfill(json=content)

    page.route("**/labels", lambda route: route.fulfill(json={"artifacts": [artifact, artifact]}))
    page.route("**/tag?*", tag)
    page.route("**/regions?*", lambda route: route.fulfill(status=500, json={"error": HOSTILE}))
    page.goto(service)
    choose(page, [hostile.with_suffix(".png")])
    page.locator(TAGS).click()
    expect(page.locator(".where")).to_contain_text(HOSTILE)
    expect(page.locator(TAGS).locator(".name")).to_have_text(HOSTILE)
    assert page.locator("#results img").count() == 1  # the preview
    assert page.title() != "stolen"


def test_by_keyboard_alone_and_focus_is_never_lost(page: Page, images: list[Path]) -> None:
    choose(page, images[:2])
    page.keyboard.press("Tab")  # from where the chooser was opened
    expect(page.get_by_role("button", name="Choose a folder")).to_be_focused()
    for _ in range(60):
        if page.evaluate("() => document.activeElement.ariaLabel") == "Remove a.png":
            break
        page.keyboard.press("Tab")
        outline = "() => getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) != "none"
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Remove b.png")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Choose images")).to_be_focused()
    expect(page.locator("#results")).to_be_hidden()


def test_another_artifact_tags_what_is_there(page: Page, service: str, images: list[Path]) -> None:
    listed = page.request.get(f"{service.rstrip('/')}/labels").json()
    known: dict[str, Any] = listed["artifacts"][0]
    both = {"artifacts": [known, {**known, "name": "other"}]}
    asked: list[str] = []

    def tag(route: Route) -> None:
        asked.append(route.request.url)
        first = known["labels"][0]["name"]
        tags = [{"name": first, "score": 1.0}]
        content = {"version": known["version"], "images": [{"name": "", "tags": tags}]}
        route.fulfill(json={"artifact": "other", **content})

    page.route("**/labels", lambda route: route.fulfill(json=both))
    page.goto(service)
    choose(page, images[:2])
    page.route("**/tag?artifact=other*", tag)
    page.get_by_label("Artifact").select_option("other")
    name = known["labels"][0]["name"]
    expect(page.locator("#cards .tags .name")).to_have_text([name, name])
    assert len(asked) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_both_schemes(
    browser: Browser, service: str, images: list[Path], scheme: Any
) -> None:
    size: Any = {"width": 390, "height": 844}
    context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=True)
    page = context.new_page()
    page.goto(service)
    choose(page, images[:2])
    one_threshold(page, 0)
    page.locator(TAGS).first.tap()
    expect(page.locator("#cards canvas").first).to_be_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    small = """() => [...document.querySelectorAll("button, input, select, summary")]
      .filter(each => each.checkVisibility()).map(each => [each, (each.closest("label") ?? each)
      .getBoundingClientRect()]).filter(([, box]) => box.height < 24 || box.width < 24)
      .map(([each]) => each.outerHTML)"""
    assert page.evaluate(small) == []
    ink = page.evaluate("() => getComputedStyle(document.body).color")
    assert ink == ("rgb(28, 34, 48)" if scheme == "light" else "rgb(231, 233, 237)")
    context.close()


def test_a_thousand_images_leave_the_page_awake(page: Page, images: list[Path]) -> None:
    under_way = {"now": 0, "most": 0}
    tags = [{"name": f"label {n}", "score": 1 - n / 200} for n in range(100)]
    image = {"name": "", "tags": tags}

    def tag(route: Route) -> None:
        route.fulfill(json={"artifact": "x", "version": "", "images": [image]})

    def count(by: int) -> None:
        under_way["now"] += by
        under_way["most"] = max(under_way.values())

    page.route("**/tag?*", tag)
    page.on("request", lambda request: count(1) if "/tag?" in request.url else None)
    page.on("requestfinished", lambda request: count(-1) if "/tag?" in request.url else None)
    expect(page.locator("#settings")).to_be_visible()
    many = """([base64]) => {
      const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0)), all = new DataTransfer();
      for (let n = 0; n < 1000; n++)
        all.items.add(new File([bytes], `${n}.png`, { type: "image/png" }));
      document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: all })); }"""
    page.evaluate(many, [b64encode(images[0].read_bytes()).decode()])
    expect(page.locator("#cards .card")).to_have_count(1000)
    one_threshold(page, 0)  # while they are being tagged
    drawn = page.locator("#cards .tags button").count()
    assert 0 < drawn < 1000  # only what is near the window
    assert 0 < under_way["most"] <= 4
    page.locator("#remove-all").click()
    expect(page.locator("#results")).to_be_hidden()
