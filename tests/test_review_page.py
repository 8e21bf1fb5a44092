"""A review with a real service and artifact: requests, and the page in a real browser."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw
from rich.console import Console
from served import Service, served
from tiny_artifact import NAMES
from watched_page import watched_page

from orchestrator.tagging.review import IMPROVED, prepared_review
from prompt_tuning import Artifact, Tagger
from prompt_tuning.datasets.folder import read_folder
from prompt_tuning.datasets.review_answers import append_answer, read_answers
from prompt_tuning.storage import folder_digest
from workers.serving.review.session import ReviewSession, image_id

CHROMIUM = shutil.which("chromium")
OWN = {"Sec-Fetch-Site": "same-origin"}
HOSTILE = '<img src=x onerror="document.title=`stolen`">.png'
ROWS = "#rows button"


def photo(number: int) -> Image.Image:
    image = Image.new("RGB", (240, 160), (25 * number % 256, 200 - 17 * number, 90))
    box = (8 * number, 10, 90 + 9 * number, 120)
    ImageDraw.Draw(image).ellipse(box, (250, 60 * number % 256, 30))
    return image


def folder_of_photos(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    for number in range(10):
        photo(number).save(folder / f"{number}.png")
    photo(11).save(folder / HOSTILE)
    photo(12).save(folder / "sub" / "ü, 1.png")
    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:60])
    return folder


IMAGES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_photos(tmp_path_factory.mktemp("review") / "photos")


@pytest.fixture(scope="module")
def service(artifact: Path, folder: Path, lasting_cache: Path) -> Iterator[Service]:
    with served([f"animals={artifact}"], lasting_cache, folder) as running:
        wait_for_scores(running)
        yield running


def state_of(service: Service) -> dict[str, Any]:
    state: dict[str, Any] = httpx.get(f"{service.url}/review/state").json()
    return state


def wait_for_scores(service: Service) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        state = state_of(service)
        if not state["scoring"] and not state["improving"]:
            return state
        time.sleep(0.1)
    raise AssertionError(state)


def post(service: Service, path: str, **content: Any) -> dict[str, Any]:
    answer = httpx.post(f"{service.url}/review/{path}", json=content, headers=OWN)
    assert answer.is_success, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_scores_are_those_of_the_tagger(
    service: Service, folder: Path, artifact: Path, lasting_cache: Path
) -> None:
    state = state_of(service)
    assert (state["images"], state["scored"], state["unreadable_images"]) == (13, 13, 1)
    tagger = Tagger.load(artifact, "cpu", lasting_cache)
    for name in ("3.png", HOSTILE):
        [scores] = tagger.scores([folder / name])
        item = httpx.get(f"{service.url}/review/items/{image_id(name)}").json()
        assert item["file"] == name
        for row in item["rows"]:
            column = NAMES.index(row["label"])
            np.testing.assert_allclose(row["score"], scores[column], atol=1e-4)
            assert row["is_tag"] == bool(scores[column] >= tagger.thresholds[column])
    shown = httpx.get(f"{service.url}/review/images/{image_id(HOSTILE)}")
    assert Image.open(io.BytesIO(shown.content)).size == (240, 160)
    seen: list[str] = []
    while item := post(service, "next", seen=seen)["item"]:
        seen.append(item["image"])
    assert len(set(seen)) == IMAGES  # all but the broken one


# ---- In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="requirements/dev.txt has it")
    if CHROMIUM is None:
        pytest.skip("chromium is not on the PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, service: Service, **options: Any) -> Iterator[Any]:
    """The page, opened (see `watched_page`)."""
    with watched_page(browser, service.url, **options) as page:
        page.goto(f"{service.url}/review")
        page.locator(ROWS).first.wait_for()
        ready(page)
        yield page


def saved(page: Any) -> None:
    page.evaluate("queue")
    page.wait_for_function("() => !moving")


def ready(page: Any) -> None:
    """The image is there: until then, keys and buttons do not answer."""
    there = "document.querySelector('.photo:not(.loading) img[src]')"
    page.wait_for_function(f"() => !moving && {there}")


def press(page: Any, key: str) -> None:
    ready(page)
    page.keyboard.press(key)


def current(page: Any) -> str:
    label: str = page.locator(f"{ROWS}[aria-current=true] .name").inner_text()
    return label


def add(page: Any, label: str) -> None:
    """A label that is not shown, so that each image has something to answer."""
    page.keyboard.press("a")
    page.keyboard.type(label)
    page.keyboard.press("Enter")


def test_by_keyboard_alone_with_undo(browser: Any, service: Service, folder: Path) -> None:
    with opened(browser, service) as page:
        image = page.locator("#file").inner_text()
        label = current(page)
        question = page.locator("#question")
        assert question.inner_text() == f"Does it show {label}?"
        press(page, "y")
        saved(page)
        assert read_answers(folder)[image, label] == "yes"
        press(page, "u")
        saved(page)
        assert (image, label) not in read_answers(folder)
        assert (page.locator("#file").inner_text(), current(page)) == (image, label)
        assert page.locator(f"{ROWS}[aria-current=true] .said").inner_text() == ""
        press(page, "n")
        press(page, "ArrowLeft")  # nothing is before the first image
        if page.locator("#file").inner_text() != image:
            press(page, "ArrowLeft")
        add(page, NAMES[0].upper())
        page.locator(f"{ROWS}.yes", has_text=NAMES[0]).wait_for()
        assert page.evaluate("document.activeElement.id") == "question"
        page.keyboard.press("ArrowUp")
        press(page, "ArrowRight")
        page.wait_for_function(
            "image => document.getElementById('file').textContent !== image", arg=image
        )
        press(page, " ")
        saved(page)
        answers = read_answers(folder)
        assert answers[image, NAMES[0]] == "yes"
        if label != NAMES[0]:
            assert answers[image, label] == "no"
        page.keyboard.press("a")
        page.keyboard.type("giraffe")
        page.keyboard.press("Enter")
        assert "not a label" in page.locator("#add-problem").inner_text()
        page.keyboard.press("Escape")
        before = read_answers(folder)
        page.get_by_label("use these keys").uncheck()
        press(page, "y")
        saved(page)
        assert read_answers(folder) == before
        assert page.evaluate("() => [localStorage.length, document.cookie]") == [0, ""]


def test_two_tabs_and_names_are_text(browser: Any, service: Service, folder: Path) -> None:
    with opened(browser, service) as one, opened(browser, service) as two:
        for page in (one, two):
            for _ in range(IMAGES):
                if page.locator("#file").inner_text() == HOSTILE:
                    break
                file = page.locator("#file").inner_text()
                press(page, "ArrowRight")
                page.wait_for_function(
                    "f => document.getElementById('file').textContent !== f", arg=file
                )
            assert page.locator("#file").inner_text() == HOSTILE
            add(page, NAMES[1])
            saved(page)
        two.locator(ROWS, has_text=NAMES[1]).click()
        press(two, "n")
        saved(two)
        assert read_answers(folder)[HOSTILE, NAMES[1]] == "no"
        one.reload()
        one.locator(ROWS).first.wait_for()
        item = httpx.get(f"{service.url}/review/items/{image_id(HOSTILE)}").json()
        assert {row["label"]: row["answer"] for row in item["rows"]}[NAMES[1]] == "no"
        counts = f"{state_of(service)['answers']} answers"
        one.locator("#counts", has_text=counts).wait_for()
        assert one.title() == two.title() == "Review tags – datafree"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_both_schemes(browser: Any, service: Service, folder: Path, scheme: str) -> None:
    size = {"width": 390, "height": 844}
    touch = {"has_touch": True, "is_mobile": True}
    with opened(browser, service, viewport=size, color_scheme=scheme, **touch) as page:
        for button, answer in (("Yes", "yes"), ("No", "no"), ("Can’t tell", "unknown")):
            ready(page)
            page.locator(ROWS).last.tap()
            file, label = page.locator("#file").inner_text(), current(page)
            said = page.locator(f"{ROWS}[aria-current=true] .said").inner_text()
            before_it = read_answers(folder).get((file, label))
            decision = page.get_by_role("button", name=button, exact=True)
            box = decision.bounding_box()
            assert box["height"] >= 44
            assert box["y"] + box["height"] <= 844  # without scrolling
            decision.tap()
            saved(page)
            assert read_answers(folder)[file, label] == answer
            page.get_by_role("button", name="Undo", exact=True).tap()
            saved(page)
            assert (page.locator("#file").inner_text(), current(page)) == (file, label)
            assert page.locator(f"{ROWS}[aria-current=true] .said").inner_text() == said
            assert read_answers(folder).get((file, label)) == before_it
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        small = """() => [...document.querySelectorAll("button, input:not(label *), summary")]
          .filter(each => each.checkVisibility()).filter(each => {
            const box = each.getBoundingClientRect(); return box.height < 24 || box.width < 24; })
          .map(each => each.outerHTML)"""
        assert page.evaluate(small) == []
        ink = page.evaluate("() => getComputedStyle(document.body).color")
        assert ink == ("rgb(28, 34, 48)" if scheme == "light" else "rgb(231, 233, 237)")


def test_a_service_that_is_away_loses_no_answer(
    browser: Any, service: Service, folder: Path
) -> None:
    with opened(browser, service) as page:
        image, label = page.locator("#file").inner_text(), current(page)
        away = "**/review/*"
        page.route(away, lambda route: route.abort("connectionrefused"))
        page.evaluate("() => { coming = null; }")  # so that the next image is asked for as well
        press(page, "n")
        page.locator("#unsaved", has_text="1 answer is not saved yet").wait_for()
        page.keyboard.press("ArrowRight")
        page.locator("#notice", has_text="does not answer").wait_for()
        page.unroute(away)
        saved(page)  # by itself
        assert read_answers(folder)[image, label] == "no"
        page.locator("#unsaved").wait_for(state="hidden")


def test_an_answer_that_is_refused_does_not_hold_up_the_next(
    browser: Any, service: Service, folder: Path
) -> None:
    def refuse(route: Any) -> None:
        route.fulfill(status=404, json={"error": "not an image of this review; reload the page"})

    with opened(browser, service) as page:
        image, label = page.locator("#file").inner_text(), NAMES[2]
        add(page, label)
        saved(page)
        before = read_answers(folder)
        page.route("**/review/answers", refuse, times=1)
        page.locator(ROWS, has_text=label).click()
        press(page, "n")
        page.locator("#unsaved", has_text=f"{label} in {image}: not an image").wait_for()
        assert read_answers(folder) == before
        there = "image => [...shown].find(one => one.file === image).rows"
        rows = page.evaluate(there, image)
        assert {row["label"]: row["answer"] for row in rows}[label] == "yes"  # as it is saved
        page.get_by_role("button", name="Close").click()
        page.locator("#unsaved").wait_for(state="hidden")
        ready(page)
        image = page.locator("#file").inner_text()
        add(page, label)
        saved(page)
        assert read_answers(folder)[image, label] == "yes"


def test_undo_brings_back_what_another_tab_said(
    browser: Any, service: Service, folder: Path
) -> None:
    with opened(browser, service) as page:
        image = page.locator("#file").inner_text()
        answers = {
            row["label"]: row["answer"]
            for row in httpx.get(f"{service.url}/review/items/{image_id(image)}").json()["rows"]
        }
        label = next(name for name in NAMES if answers.get(name) != "no")
        post(service, "answers", image=image_id(image), label=label, answer="no")
        add(page, label)  # this tab does not know of the other one's answer
        page.get_by_role("button", name="Undo", exact=True).click()  # maybe before it is saved
        saved(page)
        assert read_answers(folder)[image, label] == "no"
        page.locator(f"{ROWS}.no", has_text=label).wait_for()


def test_the_token_is_asked_for_once(browser: Any, service: Service) -> None:
    def guard(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer open sesame":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": "Missing or invalid bearer token"})

    context = browser.new_context()
    page = context.new_page()
    page.route("**/labels", guard)
    page.route("**/review/**", guard)
    page.goto(f"{service.url}/review")
    page.get_by_label("Token", exact=True).fill("open sesame")
    page.keyboard.press("Enter")
    page.locator(ROWS).first.wait_for()
    page.locator("#photo[src]").wait_for()
    assert page.get_by_role("dialog").is_hidden()
    context.close()


# ---- Improvement. It comes last, because it changes the scores.


def answer_all(service: Service, folder: Path) -> None:
    for number in range(10):
        for column, label in enumerate(NAMES):
            answer = "yes" if (number + column) % 2 else "no"
            post(service, "answers", image=image_id(f"{number}.png"), label=label, answer=answer)


def test_improve_changes_the_version_and_no_request_fails(
    request: pytest.FixtureRequest, service: Service, folder: Path, artifact: Path
) -> None:
    answer_all(service, folder)
    append_answer(folder, "moved.png", NAMES[0], "yes")
    append_answer(folder, "1.png", "giraffe", "yes")  # a label of another artifact
    mine, before = folder_digest(artifact), state_of(service)
    ended = threading.Event()
    statuses: list[int] = []
    stream = io.BytesIO()
    photo(3).save(stream, "png")

    def ask_until_ended() -> None:
        while not ended.is_set():
            files = {"images": ("a.png", stream.getvalue())}
            statuses.append(httpx.post(f"{service.url}/tag", files=files, timeout=60).status_code)

    asking = threading.Thread(target=ask_until_ended)
    asking.start()
    try:
        if CHROMIUM:
            browser = request.getfixturevalue("browser")
            with opened(browser, service) as page:
                page.get_by_role("button", name="Improve").click()
                page.locator("#h-improvement", has_text="The model has learned from").wait_for(
                    timeout=90_000
                )
                assert page.locator("#improvement li").count() >= 1
                version = state_of(service)["version"]
                page.wait_for_selector(f'body[data-version="{version}"]')
                page.keyboard.press("y")  # the next answer makes room for the question
                page.locator("#improvement").wait_for(state="hidden")
        else:
            post(service, "improve")
        after = wait_for_scores(service)
    finally:
        ended.set()
        asking.join()
    assert after["error"] is None
    assert after["lines"] and after["seconds"] > 0
    left_out = "\n".join(after["lines"][1:])
    assert "does not have them: giraffe." in left_out
    assert "cannot be read: moved.png: " in left_out
    assert after["version"] != before["version"]
    assert after["scored"] == 13
    assert set(statuses) == {200}
    assert folder_digest(artifact) == mine
    improved = Artifact.load(folder / IMPROVED)
    assert improved.categories == Artifact.load(artifact).categories
    listed = httpx.get(f"{service.url}/labels").json()["artifacts"][0]
    thresholds = [label["threshold"] for label in listed["labels"]]
    np.testing.assert_allclose(thresholds, improved.calibration.thresholds)


def test_after_a_kill_the_answers_are_there(service: Service, folder: Path, artifact: Path) -> None:
    state = state_of(service)
    post(service, "answers", image=image_id("5.png"), label=NAMES[0], answer="no")
    service.process.kill()
    service.process.wait()
    # What the service does when it starts again; the lock is gone with the process.
    with prepared_review(folder, artifact, Console(quiet=True)) as review:
        again = ReviewSession(review)
    labels = [tuple(one.values()) for one in state["labels"]]
    label, yes, no = labels[0]
    labels[0] = label, yes - 1, no + 1  # the answer about 5.png was yes
    assert again.answers_by_label() == labels
    assert again.images_answered() == state["answered_images"]
    images = read_folder(Artifact.load(artifact).categories, folder)
    row = [file.name for file in images.files].index("5.png")
    assert images.labels[row].tolist() == [False, False, True, False]


@pytest.mark.slow
def test_a_service_goes_on_from_the_answers_and_the_artifact_of_one_that_was_killed(
    artifact: Path, lasting_cache: Path, tmp_path: Path
) -> None:
    folder = folder_of_photos(tmp_path / "photos")
    with served([str(artifact)], lasting_cache, folder) as service:
        wait_for_scores(service)
        answer_all(service, folder)
        post(service, "improve")
        before = wait_for_scores(service)
        assert before["lines"]
        service.process.kill()
        service.process.wait()
    with served([str(artifact)], lasting_cache, folder) as service:
        after = wait_for_scores(service)
        for name in ("version", "labels", "answers", "answered_images", "scored"):
            assert after[name] == before[name]
        assert after["answers"] == 40
