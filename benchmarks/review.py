"""Decisions per minute on the review page, and seconds from "Improve" to new tags.

    python benchmarks/review.py [--images 100] [--artifact FOLDER]

`datafree serve --review` runs as its own process on scenes composed from a seed. A scripted user
works through the real page in Chromium: it reads the question and the file's name, looks the right
answer up, presses Y or N, and waits until the next question and its image are there, until nothing
is left to ask. A person needs time to look; `decisions_per_minute` is what the page allows.
`wait_ms`: from a key to the next question, and `next_image_ms` of those where the image changes.

Then it clicks on "Improve". `improve_seconds` ends when all images have new scores and the page
shows the new tags of the image on it. Without `--artifact`, one is tuned here on made-up sentences.
The last line is one JSON object. Chromium must be on the PATH.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Page, sync_playwright

from prompt_tuning import load_vlm, tune
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.datasets.scenes import SceneSettings, compose_scenes
from prompt_tuning.datasets.stamps import fetch_stamps, stamp_files, stamps_source
from prompt_tuning.tuning.trainer import TuningSettings

PLACES = ("on the grass", "near a wall", "in the sun", "on a table")


def tuned(folder: Path, cache: Path) -> None:
    """An artifact of the scenes' labels."""
    names = list(stamp_files())
    sentences = [
        (f"A {one} and a {two} {place}.", [one, two])
        for place in PLACES
        for one, two in zip(names, names[7:] + names[:7], strict=True)
    ]
    vlm = load_vlm(VLMSettings(model="efficientnet-lite0+minilm", resolution=224), cache=cache)
    tune(vlm, names, sentences, tuning=TuningSettings(epochs=2), held_out=0.3).save(folder)


@contextmanager
def reviewing(artifact: Path, photos: Path, cache: Path) -> Iterator[str]:
    """The address of the page, once all images have scores."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "orchestrator", "serve", str(artifact), "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--review", str(photos), "--cache", str(cache)], stderr=log
        )
        try:
            said = ""
            while "Serving " not in said:
                assert process.poll() is None, said
                time.sleep(0.2)
                log.seek(0)
                said = log.read()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


SHOWN = """() => {
  if (document.querySelector("#end:not([hidden])")) return ["", ""];
  const file = document.getElementById("file").textContent;
  const label = document.querySelector("#question b")?.textContent ?? null;
  return file && !document.querySelector(".photo.loading") ? [file, label] : null; }"""
CHANGED = f"""before => {{ const now = ({SHOWN})();
  return now && now.join("|") !== before.join("|") ? now : null; }}"""


def review(page: Page, truth: dict[str, list[str]]) -> tuple[list[float], list[float]]:
    """Answer everything; seconds of each wait, with the same image and with another one."""
    same: list[float] = []
    other: list[float] = []
    at: list[Any] = page.wait_for_function(SHOWN).json_value()
    while at[0]:
        file, label = at
        # An image about which nothing is asked gets the missing label, or is skipped.
        key = "ArrowRight" if label is None else "y" if label in truth[file] else "n"
        begun = time.perf_counter()
        page.keyboard.press(key)
        at = page.wait_for_function(CHANGED, arg=at, polling=5).json_value()
        seconds = time.perf_counter() - begun
        if label is not None:
            (same if at[0] == file else other).append(seconds)
    return same, other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    given = parser.parse_args()
    chromium = shutil.which("chromium")
    assert chromium, "chromium must be on the PATH"
    with tempfile.TemporaryDirectory() as work:
        scenes = Path(work, "scenes")
        stamps = stamps_source(given.cache) or fetch_stamps(given.cache)
        compose_scenes(stamps, SceneSettings(images=given.images, seed=3, size=640), scenes)
        described = json.loads((scenes / "labels.json").read_text("utf-8"))["images"]
        truth = {Path(one["file"]).name: one["labels"] for one in described}
        artifact = given.artifact or Path(work, "artifact")
        if not given.artifact:
            tuned(artifact, given.cache)
        with (
            reviewing(artifact, scenes / "images", given.cache) as url,
            sync_playwright() as driver,
        ):
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.set_default_timeout(60_000)
            page.goto(f"{url}/review")
            while page.request.get(f"{url}/review/state").json()["scoring"]:
                time.sleep(0.2)
            page.reload()
            begun = time.perf_counter()
            same, other = review(page, truth)
            page.evaluate("queue")  # all answers are saved
            minutes = (time.perf_counter() - begun) / 60
            page.keyboard.press("ArrowLeft")
            before = page.evaluate("document.body.dataset.version")
            clicked = time.perf_counter()
            page.click("#improve")
            page.wait_for_function("v => document.body.dataset.version !== v", arg=before)
            improve = time.perf_counter() - clicked
            state = page.request.get(f"{url}/review/state").json()
            lines = page.locator("#improvement li").all_inner_texts()
            browser.close()
    waits = sorted(same + other)
    decisions = len(waits)
    print(f"{decisions} decisions about {given.images} images; {improve:.1f} s to new tags")
    print(
        json.dumps(
            {
                "decisions": decisions,
                "decisions_per_minute": round(decisions / minutes),
                "wait_ms": round(1000 * statistics.median(waits)),
                "wait_ms_p95": round(1000 * waits[int(0.95 * decisions)]),
                "next_image_ms": round(1000 * statistics.median(other)),
                "images": given.images,
                "answers": state["answers"],
                "improve_seconds": round(improve, 1),
                "adapted_and_scored_seconds": round(state["seconds"], 1),
                "agreement": [[one["agreed"], one["answers"]] for one in state["agreement"]],
                "lines": lines,
                "cpus": psutil.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
