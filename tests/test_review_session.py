"""A review without models: its answers, its order, and what its requests refuse."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from command_line import run_datafree
from PIL import Image
from rich.console import Console
from starlette.testclient import TestClient

from orchestrator.errors import InputError
from orchestrator.tagging.review import IMPROVED, prepared_review
from prompt_tuning import Artifact
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.datasets.review_answers import FILE, append_answer
from prompt_tuning.storage import folder_digest
from workers.serving.app import build_app
from workers.serving.limits import Limits
from workers.serving.review.improvement import ScoredFiles
from workers.serving.review.progress import ReviewWork
from workers.serving.review.session import ReviewFolder, ReviewSession, image_id

NAMES = ("a.png", "b.png", "sub/c.png")
CATEGORIES = CategoryList(categories=tuple(Category(name=n) for n in ("dog", "sofa", "cat")))
OWN = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}
A, B, C = map(image_id, NAMES)


@pytest.fixture
def review(tmp_path: Path) -> ReviewFolder:
    (tmp_path / "sub").mkdir()
    for name in NAMES:
        Image.new("RGB", (3000, 1000), "red").save(tmp_path / name)
    return ReviewFolder(tmp_path, NAMES, tmp_path / "original", tmp_path / IMPROVED, CATEGORIES)


@pytest.fixture
def session(review: ReviewFolder) -> ReviewSession:
    session = ReviewSession(review)
    scores = [[0.9, 0.1, 0.0], [0.5, 0.6, 0.0], [0.99, 0.001, 0.0]]
    for place, row in enumerate(scores):
        session.set_scores(place, "v1", np.full(3, 0.5), np.array(row))
    return session


@pytest.fixture
def client(review: ReviewFolder) -> TestClient:
    nobody: Any = None  # the models, which are not asked
    pages = {"/": "", "/review": ""}
    hosts = ["testserver"]
    return TestClient(build_app(nobody, ["all"], pages, None, hosts, Limits(), review))


def test_the_most_valuable_image_comes_first_and_each_once(session: ReviewSession) -> None:
    seen: list[str] = []
    while image := session.next_image(seen):
        seen.append(image)
    assert seen == [B, A, C]
    rows = session.item(B).rows
    assert [(row.label, row.is_tag) for row in rows] == [("dog", True), ("sofa", True)]
    assert session.item(B).questions == 2
    session.answer(B, "dog", "no")
    session.answer(B, "sofa", "unknown")
    assert session.next_image([]) == A  # nothing is left to ask about b.png
    assert session.item(B).questions == 0
    assert [(row.label, row.answer) for row in session.item(B).rows] == [
        ("sofa", "unknown"),
        ("dog", "no"),
    ]


def test_answers_are_counted_and_compared_with_the_tags_of_their_version(
    session: ReviewSession, review: ReviewFolder
) -> None:
    assert session.answer(A, "dog", "yes") is None
    assert session.answer(A, "dog", "no") == "yes"
    assert session.answer(A, "sofa", "no") is None
    assert session.answer(B, "cat", "unknown") is None
    assert session.answers_by_label() == [("dog", 0, 1), ("sofa", 0, 1), ("cat", 0, 0)]
    assert session.images_answered() == 2
    assert session.agreements() == [("v1", 2, 1)]
    session.set_scores(0, "v2", np.full(3, 0.95), np.array([0.9, 0.1, 0.0]))
    session.answer(A, "cat", "no")
    assert session.agreements() == [("v1", 2, 1), ("v2", 1, 1)]
    with pytest.raises(KeyError):
        session.answer("0" * 16, "dog", "yes")
    with pytest.raises(KeyError):
        session.answer(A, "../dog", "yes")

    again = ReviewSession(review)  # as after a crash
    assert again.answers_by_label() == [("dog", 0, 1), ("sofa", 0, 1), ("cat", 0, 1)]
    assert again.images_answered() == 2
    answers = {row.label: row.answer for row in again.item(B).rows}
    assert answers == {"cat": "unknown"}


def test_an_undone_answer_is_asked_again(session: ReviewSession, review: ReviewFolder) -> None:
    session.answer(B, "dog", "no")
    assert session.answer(B, "dog", None) == "no"
    for each in (session, ReviewSession(review)):
        assert each.images_answered() == 0
        assert each.answers_by_label()[0] == ("dog", 0, 0)
    assert session.agreements() == []
    assert session.item(B).questions == 2
    assert [row.answer for row in session.item(B).rows] == [None, None]


def test_answers_that_were_learned_from_are_not_compared(
    session: ReviewSession, review: ReviewFolder
) -> None:
    session.answer(A, "dog", "yes")
    session.answer(A, "sofa", "unknown")
    session.learned()
    session.set_scores(0, "v2", np.full(3, 0.5), np.array([0.9, 0.1, 0.0]))
    session.answer(A, "dog", None)
    session.answer(A, "dog", "no")
    session.answer(A, "sofa", "no")  # said only now
    assert session.agreements() == [("v1", 1, 1), ("v2", 1, 1)]
    again = ReviewSession(review)  # whose artifact may be the improved one
    again.set_scores(0, "v2", np.full(3, 0.5), np.array([0.9, 0.1, 0.0]))
    again.answer(A, "dog", "yes")
    again.answer(A, "cat", "yes")
    assert again.agreements() == [("v2", 1, 0)]


def test_images_are_chosen_while_others_are_scored(tmp_path: Path) -> None:
    names = tuple(f"{number}.png" for number in range(2000))
    folder = ReviewFolder(tmp_path, names, tmp_path / "a", tmp_path / "b", CATEGORIES)
    session = ReviewSession(folder)
    for place in range(1000):
        session.set_scores(place, "v1", np.full(3, 0.5), "broken")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as pool:
            choosing = [pool.submit(session.next_image, []) for _ in range(500)]
            while not choosing[-1].done():
                session.set_scores(1999, "v1", np.full(3, 0.5), "broken")
                session.set_scores(1999, "v1", np.full(3, 0.5), np.zeros(3))
            assert all(one.result() for one in choosing)
    finally:
        sys.setswitchinterval(before)


def test_images_that_cannot_be_read_are_not_asked_about(session: ReviewSession) -> None:
    session.set_scores(1, "v1", np.full(3, 0.5), "not an image")
    assert session.next_image([]) == A
    assert session.unreadable() == 1
    assert session.item(B).problem == "not an image"


def test_labels_from_a_table_are_answers_too(review: ReviewFolder) -> None:
    (review.folder / "labels.csv").write_text("a.png,dog\n")
    append_answer(review.folder, "a.png", "dog", "no")
    session = ReviewSession(review)
    assert session.answers_by_label() == [("dog", 0, 1), ("sofa", 0, 1), ("cat", 0, 1)]
    assert session.next_image([]) == B


def error_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    error: str = answer.json()["error"]
    assert "\n" not in error
    return error


POSTS = (
    ("/review/answers", {"image": A, "label": "dog", "answer": "yes"}),
    ("/review/next", {"seen": []}),
    ("/review/improve", {}),
)


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},  # another port of this machine
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"},
        {"Origin": "http://elsewhere.example"},
        {"Origin": "http://testserver:81"},
        {"Origin": "http://testserver.elsewhere.example"},
        {"Origin": "null"},
        {},
    ],
)
def test_other_sites_cannot_answer(
    client: TestClient, review: ReviewFolder, headers: dict[str, str]
) -> None:
    for path, body in POSTS:
        answer = client.post(path, json=body, headers=headers)
        assert "own page" in error_of(answer, 403)
    assert not (review.folder / FILE).exists()


def test_other_sites_cannot_look(client: TestClient) -> None:
    for path in ("/review/state", f"/review/images/{A}", f"/review/items/{A}"):
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://elsewhere.example"}):
            error_of(client.get(path, headers=headers), 403)
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_taken(client: TestClient, review: ReviewFolder, kind: str) -> None:
    content = f'{{"image":"{A}","label":"dog","answer":"yes"}}'
    headers = {"Sec-Fetch-Site": "same-origin", "Content-Type": kind}
    answer = client.post("/review/answers", content=content, headers=headers)
    assert "application/json" in error_of(answer, 415)
    assert not (review.folder / FILE).exists()


def test_answers_are_saved_at_once_and_wrong_ones_are_refused(
    client: TestClient, review: ReviewFolder
) -> None:
    def post(content: Any) -> httpx.Response:
        return client.post("/review/answers", json=content, headers=OWN)

    right = {"image": C, "label": "dog", "answer": "yes"}
    assert post(right).json() == {"earlier": None, "answers": 1, "answered_images": 1}
    assert (review.folder / FILE).read_text() == "file,label,answer\nsub/c.png,dog,yes\n"
    unsure = post(right | {"answer": "unknown"}).json()
    assert unsure == {"earlier": "yes", "answers": 0, "answered_images": 1}
    undone = post(right | {"answer": None}).json()
    assert undone == {"earlier": "unknown", "answers": 0, "answered_images": 0}
    for change, status, message in (
        ({"image": "../a.png"}, 404, "../a.png is not an image of this review"),
        ({"image": "0" * 17}, 422, "image: "),
        ({"image": 3}, 422, "image: "),
        ({"label": "Dog"}, 422, "Dog is not a label"),
        ({"answer": "maybe"}, 422, "answer: "),
        ({"answer": ""}, 422, "answer: "),
        ({"file": "a.png"}, 422, "file: "),
    ):
        assert message in error_of(post(right | change), status)
    assert "the body" in error_of(post([]), 422)
    too_long = client.post("/review/next", json={"seen": ["x" * 16] * 300_000}, headers=OWN)
    assert "at most 4 MB" in error_of(too_long, 413)
    assert (review.folder / FILE).read_text().count("\n") == 4

    os.chmod(review.folder / FILE, 0o400)
    if not os.access(review.folder / FILE, os.W_OK):  # root may write anyway
        assert "Permission denied" in error_of(post(right), 507)


def test_images_are_small_jpegs_of_the_listing_only(
    client: TestClient, review: ReviewFolder
) -> None:
    answer = client.get(f"/review/images/{C}")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert len(answer.content) < 100_000
    (review.folder / "late.png").write_bytes((review.folder / "a.png").read_bytes())
    for image in (image_id("late.png"), "a.png", "..%2fa.png", "0"):
        assert client.get(f"/review/images/{image}").status_code == 404
    (review.folder / "sub" / "c.png").write_bytes(b"<svg onload=alert(1)>")
    error_of(client.get(f"/review/images/{C}"), 422)
    for path in ("/review/images", "/review/a.png", "/review/images/..%2f..%2fa.png"):
        assert client.get(path).status_code == 404


def test_a_token_guards_the_review(review: ReviewFolder) -> None:
    nobody: Any = None
    app = build_app(nobody, ["all"], {"/review": "<p>"}, "s3cret", ["*"], Limits(), review)
    client = TestClient(app)
    assert client.get("/review").status_code == 200
    for path in ("/review/state", f"/review/images/{A}", f"/review/items/{A}"):
        error_of(client.get(path), 401)
    for path, body in POSTS:
        error_of(client.post(path, json=body, headers=OWN), 401)
    headers = OWN | {"Authorization": "Bearer s3cret"}
    assert client.post("/review/next", json={}, headers=headers).status_code == 200


# ---- Before the service starts


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return folder


def test_the_own_artifact_stays_and_an_improved_one_is_found_again(
    artifact: Path, photos: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(artifact, mine)
    before = folder_digest(mine)
    console = Console(quiet=True)
    (photos / "bad\nname.png").write_bytes((photos / "a.png").read_bytes())
    with prepared_review(photos, mine, console) as review:
        assert review.files == ("a.png",)
        assert review.improved == photos / IMPROVED
        Artifact.load(review.improved)
        with pytest.raises(InputError, match="another process is working on"):
            prepared_review(photos, mine, console).__enter__()
    other = Artifact.load(mine)
    other.calibration.thresholds[:] = 0.123
    other.save(photos / IMPROVED)  # as an improvement does
    improved = folder_digest(photos / IMPROVED)
    with prepared_review(photos, mine, console):
        assert folder_digest(photos / IMPROVED) == improved
    assert folder_digest(mine) == before

    other.calibration.thresholds[:] = 0.3
    other.save(mine)  # a new run: its review must not go on from the old one
    with pytest.raises(InputError, match=r"was not made from .*; move it"):
        prepared_review(photos, mine, console).__enter__()
    shutil.rmtree(photos / IMPROVED)
    with prepared_review(photos, mine, console):
        pass
    other.calibration.thresholds[:] = 0.4
    other.save(mine)
    with prepared_review(photos, mine, console):  # nothing was improved, so nothing is lost
        assert Artifact.load(photos / IMPROVED).calibration.thresholds[0] == 0.4


def test_an_artifact_that_cannot_be_improved_is_refused(
    artifact: Path, photos: Path, tmp_path: Path
) -> None:
    console = Console(quiet=True)
    with prepared_review(photos, artifact, console):
        pass
    published = folder_digest(photos / IMPROVED)
    link = tmp_path / "link"
    link.symlink_to(photos / IMPROVED)
    for path in (photos / IMPROVED, link):
        with pytest.raises(InputError, match="name the artifact that it was made from"):
            prepared_review(photos, path, console).__enter__()
    taught = Artifact.load(artifact)
    calibration = replace(taught.calibration, labelled_photos=5)
    replace(taught, calibration=calibration).save(tmp_path / "taught")
    with pytest.raises(InputError, match="has learned from labelled photos"):
        prepared_review(photos, tmp_path / "taught", console).__enter__()
    assert folder_digest(photos / IMPROVED) == published


def images_scored(
    served: Callable[[int], str], session: ReviewSession, review: ReviewFolder
) -> Any:
    """The work of a review whose models serve the version `served(calls before)`."""
    calls = itertools.count()

    class Models:  # in place of Ray's processes
        async def call(self, method: str, name: str, files: list[Path]) -> ScoredFiles:
            thresholds, version = np.full(3, 0.5), served(next(calls))
            return ScoredFiles(version, thresholds, [np.zeros(3) for _ in files])

    async def scored() -> ReviewWork:
        work = ReviewWork(review, session, cast(Any, Models()), "animals")
        work._score_again("wanted", 0)
        while work.scoring:
            await asyncio.sleep(0.01)
        return work

    return asyncio.run(asyncio.wait_for(scored(), 60))


def test_images_are_scored_even_if_the_improved_artifact_is_replaced_by_hand(
    session: ReviewSession, review: ReviewFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.serving.review.progress._PATIENCE_S", 0.5)
    work = images_scored(lambda calls: "other", session, review)
    assert (work.version, session.scored("other")) == ("other", 3)
    assert "was it replaced?" in work.error
    work = images_scored(lambda calls: "wanted" if calls else "before", session, review)
    assert (work.version, session.scored("wanted"), work.error) == ("wanted", 3, None)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: (folder / "a.png").unlink(), "must have images (none found)"),
        (lambda folder: shutil.rmtree(folder), "must be a folder of images"),
        (lambda folder: (folder / FILE).write_text("a.png,dog,maybe\n"), "answer must be yes"),
        (lambda folder: (folder / FILE).mkdir(), FILE),
        (lambda folder: (folder / IMPROVED).mkdir(), "was not made from"),
        (lambda folder: (folder / IMPROVED).write_text(""), "was not made from"),
    ],
)
def test_folders_that_cannot_be_reviewed(
    artifact: Path,
    photos: Path,
    prepare: Any,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    prepare(photos)
    done = run_datafree(monkeypatch, capsys, "serve", artifact, "--review", photos, "--port", 18231)
    assert done.code == 2, done.err
    assert message in done.err
    assert done.err.count("\n") == 1


def test_one_artifact_at_a_time(
    artifact: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two = [artifact, f"other={artifact}"]
    done = run_datafree(monkeypatch, capsys, "serve", *two, "--review", photos)
    assert done.code == 2
    assert "--review: takes one artifact (got 2)" in done.err
