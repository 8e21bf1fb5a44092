"""`datafree serve`: a real Ray Serve and artifact; replicas that die, artifacts that change."""

from __future__ import annotations

import base64
import io
import itertools
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from command_line import run_datafree
from losing_model import LOSE
from PIL import Image
from served import HalfSent, Service, served
from starlette.testclient import TestClient
from tiny_artifact import NAMES, QUICK, SENTENCES

from orchestrator.tagging.serve import named_folders
from prompt_tuning import Tagger, tune
from prompt_tuning.backbones.base import VLM
from prompt_tuning.storage import MANIFEST, publishing
from workers.serving.app import build_app
from workers.serving.limits import Limits
from workers.serving.model import ArtifactState

# Longer than the service may take, however slow this machine is.
get, post = (partial(method, timeout=200) for method in (httpx.get, httpx.post))


@pytest.fixture(scope="module")
def artifacts(
    artifact: Path, embedded_vlm: VLM, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Two, of other labels; the second one is named by the run that it is in."""
    folder = tmp_path_factory.mktemp("serve")
    all_of_it, half = folder / "all", folder / "half" / "artifact"
    shutil.copytree(artifact, all_of_it)
    sentences = [(text, labels) for text, labels in SENTENCES if set(labels) <= set(NAMES[:2])]
    tune(embedded_vlm, NAMES[:2], sentences, tuning=QUICK, held_out=0.3).save(half)
    return {"all": all_of_it, "half": half}


@pytest.fixture(scope="module")
def service(artifacts: dict[str, Path], lasting_cache: Path) -> Iterator[Service]:
    limits = {
        "request_bytes": 3_000_000,
        "image_bytes": 1_000_000,
        "pixels": 1_000_000,
        "images": 4,
        "waiting": 16,
        "seconds": 120,  # however slow this machine is
        "receive_seconds": 120,
        "all_bytes": 30_000_000,
    }
    with served([str(folder) for folder in artifacts.values()], lasting_cache, **limits) as running:
        yield running


def image(number: int, size: tuple[int, int] = (64, 48), kind: str = "png") -> bytes:
    draw = np.random.default_rng(number)
    pixels = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, kind)
    return stream.getvalue()


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{n}.png", content)) for n, content in enumerate(contents)]


def error_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    error: str = answer.json()["error"]
    assert "\n" not in error
    return error


def test_tags_are_the_taggers_for_forms_and_for_json(
    service: Service, artifacts: dict[str, Path], lasting_cache: Path
) -> None:
    contents = [image(number) for number in range(3)]
    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    for name, folder in artifacts.items():
        tagger = Tagger.load(folder, "cpu", lasting_cache)
        expected = tagger.tag(images, threshold=0.0, top=2)
        for body in (
            {"files": files(*contents)},
            {"json": {"images": [{"data": base64.b64encode(one).decode()} for one in contents]}},
        ):
            asked = {"artifact": name, "threshold": 0, "top": 2}
            answer = post(f"{service.url}/tag", params=asked, **body)  # type: ignore[arg-type]
            assert answer.status_code == 200, answer.text
            content = answer.json()
            assert content["artifact"] == name
            for tagged, tags in zip(content["images"], expected, strict=True):
                assert [tag["name"] for tag in tagged["tags"]] == [tag.name for tag in tags]
                scores = [tag["score"] for tag in tagged["tags"]]
                np.testing.assert_allclose(scores, [tag.score for tag in tags], atol=1e-4)
    # Without a threshold each label has its own.
    answer = post(f"{service.url}/tag?artifact=half", files=files(*contents))
    for tagged, tags in zip(answer.json()["images"], tagger.tag(images), strict=True):
        assert [tag["name"] for tag in tagged["tags"]] == [tag.name for tag in tags]


def test_labels_health_metrics_regions_and_description(
    service: Service, artifacts: dict[str, Path], lasting_cache: Path
) -> None:
    listed = _when_models_answer(f"{service.url}/labels")["artifacts"]
    assert [one["name"] for one in listed] == ["all", "half"]
    assert [label["name"] for label in listed[0]["labels"]] == NAMES
    tagger = Tagger.load(artifacts["all"], "cpu", lasting_cache)
    thresholds = [label["threshold"] for label in listed[0]["labels"]]
    np.testing.assert_allclose(thresholds, tagger.thresholds, rtol=1e-6)
    health = _health(service)
    assert health["status"] == "ok"
    assert health["artifacts"] == {one["name"]: one["version"] for one in listed}

    asked = {"artifact": "all", "label": ["penguin", "Bicycles"]}
    found = post(f"{service.url}/regions", params=asked, files=files(image(1)))
    expected = tagger.heat_maps(Image.open(io.BytesIO(image(1))).convert("RGB"))
    answered = found.json()["regions"]
    assert list(answered) == ["penguin", "Bicycles"]
    for label, regions in zip(("penguin", "bicycle"), answered.values(), strict=True):
        np.testing.assert_allclose(regions, expected[NAMES.index(label)], atol=1e-4)
        assert np.sum(regions) == pytest.approx(1, abs=1e-3)

    post(f"{service.url}/tag", params={"artifact": "all"}, files=files(b"no image"))
    metrics = get(f"{service.url}/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert 'datafree_requests_total{path="/tag",status="415"}' in metrics.text
    assert "datafree_request_seconds_bucket" in metrics.text

    paths = get(f"{service.url}/openapi.json").json()["paths"]
    body = paths["/tag"]["post"]["requestBody"]["content"]
    answer = post(
        f"{service.url}/tag?artifact=all&threshold=0", json=body["application/json"]["example"]
    )
    assert answer.status_code == 200, answer.text
    probes = {"/health", "/health/live", "/health/ready"}
    assert set(paths) == {"/tag", "/regions", "/labels", "/metrics"} | probes


@pytest.mark.parametrize(
    ("asked", "body", "status", "message"),
    [
        ({}, {"files": files(image(0))}, 422, "artifact must be one of all, half (got none)"),
        (
            {"artifact": "none"},
            {"files": files(image(0))},
            422,
            "artifact must be one of all, half (got none)",
        ),
        ({"threshold": 1.5}, {"files": files(image(0))}, 422, "threshold: "),
        ({"threshold": "nan"}, {"files": files(image(0))}, 422, "threshold: "),
        ({"top": 0}, {"files": files(image(0))}, 422, "top: "),
        (
            {"treshold": 0.5},
            {"files": files(image(0))},
            422,
            "unknown query parameter treshold; did you mean threshold",
        ),
        ({"size": 1}, {"files": files(image(0))}, 422, "unknown query parameter size"),
        (
            {},
            {"files": files(image(0)), "headers": {"Origin": "http://elsewhere.example"}},
            403,
            "the request must come from this service's own page",
        ),
        (
            {},
            {"files": files(image(0)), "headers": {"Sec-Fetch-Site": "cross-site"}},
            403,
            "the request must come from this service's own page",
        ),
        ({}, {"content": b"x"}, 415, "or application/json (got none)"),
        ({}, {"data": {"images": "x"}}, 415, "(got application/x-www-form-urlencoded)"),
        ({}, {"files": [("images", (None, b"text"))]}, 422, "images must be files (got text)"),
        (
            {},
            {"files": [("photos", ("a.png", image(0)))]},
            422,
            "images must hold at least one file",
        ),
        ({}, {"json": {}}, 422, "images: "),
        ({}, {"json": {"images": []}}, 422, "images: "),
        ({}, {"json": {"images": [{"data": "?"}]}}, 422, "images.0.data: "),
        ({}, {"json": {"images": [{"data": ""}] * 5}}, 413, "at most 4 images (got 5)"),
        ({}, {"json": {"images": [0] * 300_000}}, 422, "images.0: "),
        ({}, {"json": {"images": [{"data": ""}] * 5000}}, 422, "images: List should have at"),
        (
            {},
            {"content": b"{", "headers": {"content-type": "application/json"}},
            422,
            "the body: Invalid JSON",
        ),
        (
            {},
            {"content": b"--x", "headers": {"content-type": "multipart/form-data"}},
            422,
            "the form cannot be read",
        ),
        ({}, {"files": files(b"no image")}, 415, "0.png: cannot be read as an image (not of a"),
        ({}, {"files": files(b"")}, 415, "0.png: "),
        ({}, {"files": files(image(0, kind="jpeg")[:-300])}, 422, "0.png: cannot be read"),
        ({}, {"files": files(image(0, (1001, 1000), "gif"))}, 413, "1001 × 1000 pixels; 1,0"),
        ({}, {"files": files(*[image(0)] * 5)}, 413, "at most 4 images (got 5)"),
        ({}, {"files": files(*[b""] * 500)}, 413, "at most 4 images (got more than 40)"),
        ({}, {"files": files(bytes(1_000_001))}, 413, "0.png: the image must be at most 1 MB"),
        ({}, {"files": files(bytes(3_000_001))}, 413, "the request must be at most 3 MB"),
        (
            {},
            {
                "content": iter([bytes(1_000_000)] * 4),  # no declared length
                "headers": {"content-type": "application/json"},
            },
            413,
            "the request must be at most 3 MB",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_are_refused_with_one_sentence(
    service: Service, asked: dict[str, Any], body: dict[str, Any], status: int, message: str
) -> None:
    asked = {"artifact": "all", **asked} if "artifact must" not in message else asked
    answer = post(f"{service.url}/tag", params=asked, **body)
    assert message in error_of(answer, status)


def test_a_broken_image_does_not_take_the_others_with_it(service: Service) -> None:
    contents = [image(0), b"no image", image(1)]
    answer = post(f"{service.url}/tag?artifact=all&threshold=0", files=files(*contents))
    assert answer.status_code == 200
    first, broken, last = answer.json()["images"]
    assert len(first["tags"]) == len(last["tags"]) == len(NAMES)
    assert broken["tags"] == []
    assert broken["status"] == 415
    assert "not of a known format" in broken["error"]


def test_regions_refuse_other_labels_and_several_images(service: Service) -> None:
    url = f"{service.url}/regions?artifact=half&label="
    answer = post(url + "penguin", files=files(image(0)))
    assert error_of(answer, 422) == "0.png: penguin is not a label of half"
    answer = post(url + NAMES[0], files=files(image(0), image(1)))
    assert "must have one image (got 2)" in error_of(answer, 413)
    assert "label: " in error_of(post(f"{service.url}/regions?artifact=half"), 422)
    assert error_of(get(f"{service.url}/none"), 404)


def test_other_host_names_are_refused_and_the_page_loads_nothing_from_elsewhere(
    service: Service,
) -> None:
    elsewhere = get(f"{service.url}/labels", headers={"Host": "elsewhere.example"})
    assert elsewhere.status_code == 400
    page = get(service.url)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_too_many_images_at_once_are_refused_with_a_time_to_retry(service: Service) -> None:
    def ask(number: int) -> httpx.Response:
        contents = [image(number, (900, 900))] * 4
        return post(f"{service.url}/tag?artifact=all", files=files(*contents))

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(24)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < 24
    for answer in refused:
        assert "of at most 16 images are waiting" in error_of(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1
    assert ask(0).status_code == 200


def test_slow_senders_and_large_bodies_do_not_stop_others(service: Service) -> None:
    """300 senders whose bodies would fill the memory, then more bodies than there is room for."""
    ask = partial(post, f"{service.url}/tag?artifact=all")
    slow = [HalfSent(service.url, bytes(900_000), sent=1000) for _ in range(300)]
    try:
        deadline = time.monotonic() + 90  # below the time that senders have anyway
        while True:
            for sender in slow:
                with suppress(ConnectionError):  # of those that were refused
                    sender.send(1)
            answers = [ask(files=files(image(number))) for number in range(3)]
            if {answer.status_code for answer in answers} == {200}:
                break
            # Within the first second nobody is slow yet.
            assert {answer.status_code for answer in answers} <= {200, 429}
            assert time.monotonic() < deadline, answers[-1].text
            time.sleep(0.2)
        _health(service)
    finally:
        for sender in slow:
            sender.close()


def test_a_killed_replica_loses_no_request_and_a_new_artifact_is_loaded(
    service: Service, artifacts: dict[str, Path]
) -> None:
    ended = False
    answers: list[list[httpx.Response]] = [[], [], [], []]

    def ask_until_ended(number: int) -> None:
        while not ended:
            content = image(number, (600, 600))
            url = f"{service.url}/tag?artifact=all&threshold=0"
            answers[number].append(post(url, files=files(*[content] * 4)))

    def kill_one_that_owes_an_answer() -> None:
        for doomed in itertools.islice(itertools.cycle(service.loaded_replicas(2)), 6):
            doomed.suspend()
            before = list(map(len, answers))
            deadline = time.monotonic() + 20  # below the time after which Ray Serve ends it
            while time.monotonic() < deadline:
                time.sleep(0.1)
                new = [len(now) - then for now, then in zip(answers, before, strict=True)]
                # The other replica answers in order, so nobody waits there while one gets three.
                if min(new) == 0 and max(new) >= 3:
                    doomed.kill()
                    return
            doomed.resume()
        raise AssertionError("no replica owed an answer while it was suspended")

    before = _version(service)
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_until_ended, number) for number in range(4)]
        try:
            while min(map(len, answers)) < 2:  # one that has yet to ask is owed nothing
                time.sleep(0.1)
            kill_one_that_owes_an_answer()
            time.sleep(1)
            # Another artifact in its place, as `datafree run` leaves it.
            with publishing(artifacts["all"], replace=True) as staging:
                shutil.copytree(
                    artifacts["half"],
                    staging,
                    ignore=shutil.ignore_patterns("manifest.json"),
                    dirs_exist_ok=True,
                )
            deadline = time.monotonic() + 120
            # Any of the two may answer, so often enough for both.
            while before in {_version(service) for _ in range(10)} or len(service.replicas()) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        finally:
            ended = True
        for one in asking:
            one.result()
    whole = [answer for of_one in answers for answer in of_one]
    assert {answer.status_code for answer in whole} == {200}
    by_version = {answer.json()["version"]: answer.json()["images"][0] for answer in whole}
    assert len(by_version[before]["tags"]) == len(NAMES)
    assert len(by_version.pop(_version(service))["tags"]) == 2
    assert list(by_version) == [before]
    metrics = get(f"{service.url}/metrics").text
    [tries] = re.findall(r"^datafree_second_tries_total (.*)$", metrics, re.MULTILINE)
    assert float(tries) > 0


def test_a_replica_that_loses_its_device_is_replaced_and_its_request_repeated(
    service: Service, tmp_path: Path
) -> None:
    (trigger := tmp_path / "trigger").touch()
    before = {process.pid for process in service.loaded_replicas(2)}
    url = f"{service.url}/tag?artifact=all"
    answer = post(url, files=files(LOSE + bytes(trigger)))
    assert not trigger.exists()
    assert "not of a known format" in error_of(answer, 415)  # from the other replica
    deadline = time.monotonic() + 300
    while {process.pid for process in service.loaded_replicas(2)} == before:
        answer = post(url, files=files(image(0)))
        assert answer.status_code == 200, answer.text
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _version(service: Service) -> str:
    """Of the first artifact, as a model says that answers."""
    version: str = _health(service)["artifacts"]["all"]
    return version


def _health(service: Service) -> dict[str, Any]:
    return _when_models_answer(f"{service.url}/health")


def _when_models_answer(url: str) -> dict[str, Any]:
    """The content, once models answer. They have 5 s, which a busy machine may exceed."""
    deadline = time.monotonic() + 120
    while (answer := get(url)).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)
    content: dict[str, Any] = answer.json()
    return content


def test_a_copy_under_way_is_served_once_it_is_complete(
    service: Service, artifacts: dict[str, Path], artifact: Path
) -> None:
    served, aside = artifacts["half"], artifacts["half"].with_name("aside")
    before = _health(service)["artifacts"]["half"]
    served.rename(aside)
    served.mkdir()
    try:
        whole = sorted(artifact.iterdir(), key=lambda file: (file.name != MANIFEST, file.name))
        for file in whole[:-1]:
            shutil.copyfile(file, served / file.name)
        missing = f"half: the artifact is damaged: {whole[-1].name} cannot be read"
        health = _health_when(service, lambda health: missing in str(health["problems"]))
        assert health["status"] == "outdated"
        assert health["artifacts"]["half"] == before
        answer = post(f"{service.url}/tag?artifact=half", files=files(image(0)))
        assert answer.status_code == 200
        shutil.copyfile(whole[-1], served / whole[-1].name)
        health = _health_when(service, lambda health: health["artifacts"]["half"] != before)
        assert "half" not in health["problems"]
    finally:
        shutil.rmtree(served)
        aside.rename(served)
    _health_when(service, lambda health: health["artifacts"]["half"] == before)


def _health_when(service: Service, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What each of the two models says, once both have come to it."""
    deadline = time.monotonic() + 120
    while True:
        said = [_health(service) for _ in range(10)]
        if all(map(reached, said)):
            return said[0]
        assert time.monotonic() < deadline, said
        time.sleep(0.2)


def test_models_that_hang_are_unavailable_and_the_service_is_live(service: Service) -> None:
    replicas = service.loaded_replicas(2)
    for process in replicas:
        process.send_signal(signal.SIGSTOP)
    try:
        health = get(f"{service.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "unavailable")
        assert get(f"{service.url}/health/live").status_code == 200
    finally:
        for process in replicas:
            process.send_signal(signal.SIGCONT)
    assert post(f"{service.url}/tag?artifact=all", files=files(image(0))).status_code == 200


def test_stopping_cuts_no_request_that_is_under_way(service: Service) -> None:
    """The last of those that share a service."""
    under_way = [HalfSent(service.url, image(number, (900, 900))) for number in range(4)]
    try:
        _when_models_answer(f"{service.url}/labels")  # so they have arrived
        service.process.terminate()
        deadline = time.monotonic() + 60
        while (late := get(f"{service.url}/health/ready")).json()["status"] != "ending":
            assert time.monotonic() < deadline
        assert (late.status_code, late.headers["retry-after"]) == (503, "5")
        assert get(f"{service.url}/health/live").status_code == 200
        assert [half.finish() for half in under_way] == [200] * 4
    finally:
        for half in under_way:
            half.close()
    assert service.process.wait(timeout=120) == 143


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no artifact"),
        (["{all}", "{all}"], "another artifact is already named all; choose a name: NAME="),
        (["{all}", "--host", "0.0.0.0"], "--host: 0.0.0.0 can be reached from other machines"),
        (
            ["{all}", "--host", "no.such.host", "--token", "t"],
            "--port: cannot listen on no.such.host",
        ),
        (["{all}", "--port", "{taken}"], "--port: cannot listen on 127.0.0.1:"),
        (["{all}", "--port", "70000"], "--port: must be between 1 and 65535 (got 70000)"),
        (["{all}", "--replicas", "0"], "--replicas: must be at least 1 (got 0)"),
        (["{all}", "--replicas", "4000"], "--replicas: 4000 with 1 CPUs and"),
        (["{all}", "--token", "a b"], "--token: "),
    ],
)
def test_mistakes_are_reported_before_anything_starts(
    artifacts: dict[str, Path],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("DATAFREE_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        given = {"all": artifacts["all"], "taken": taken.getsockname()[1]}
        done = run_datafree(
            monkeypatch, capsys, "serve", *(argument.format(**given) for argument in arguments)
        )
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_token_is_required_for_all_but_the_page_and_health() -> None:
    nobody: Any = None  # the models, which are not asked
    app = build_app(nobody, ["all"], {"/": "<!doctype html>"}, "s3cret", ["*"], Limits())
    client = TestClient(app)
    assert client.get("/").status_code == 200
    for method, path in (
        ("GET", "/labels"),
        ("GET", "/metrics"),
        ("POST", "/tag?threshold=7"),
        ("POST", "/regions"),
    ):
        for given in (None, "s3cret", "Bearer", "Bearer s3cre", "Bearer s3cret1", "Bearer s3crét"):
            headers = {"Authorization": given.encode()} if given else {}
            answer = client.request(method, path, headers=headers)
            assert error_of(answer, 401) == "Missing or invalid bearer token"
            assert answer.headers["www-authenticate"] == "Bearer"
    right = {"Authorization": "Bearer s3cret"}
    assert client.get("/metrics", headers=right).status_code == 200
    assert client.get("/health/live").json()["status"] == "live"
    assert "threshold: " in error_of(client.post("/tag?threshold=7", headers=right), 422)


def test_the_names_and_problems_of_artifacts_are_for_those_who_have_the_token() -> None:
    class Models:
        """Ray Serve's handle of models that serve one artifact."""

        def options(self, **_: Any) -> Any:
            return SimpleNamespace(remote=self.remote)

        async def remote(self) -> dict[str, ArtifactState]:
            return {"all": ArtifactState("v1", [], "all: the artifact is damaged")}

    handle: Any = Models()
    client = TestClient(build_app(handle, ["all"], {}, "s3cret", ["*"], Limits()))
    whole = {
        "status": "outdated",
        "artifacts": {"all": "v1"},
        "problems": {"all": "all: the artifact is damaged"},
    }
    nothing = {"status": "outdated", "artifacts": {}, "problems": {}}
    right = {"Authorization": "Bearer s3cret"}
    assert client.get("/health", headers=right).json() == whole
    assert client.get("/health").json() == nothing
    assert client.get("/health", headers={"Authorization": "Bearer x"}).json() == nothing
    assert client.get("/health/ready", headers=right).json() == nothing
    assert client.get("/health/ready").status_code == 200


def test_artifacts_are_named_by_run_folder_or_person(tmp_path: Path) -> None:
    given = ["runs/quick/artifact", "old=runs/other/artifact", "exported"]
    names = named_folders(given)
    assert list(names) == ["quick", "old", "exported"]
    assert names["old"] == Path("runs/other/artifact").absolute()
