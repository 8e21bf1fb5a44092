"""A whole run with many labels: seconds of each stage, and memory of each kind of process.

    python benchmarks/many_labels.py [--labels 5000] [--sentences 3] [--cache FOLDER]

Sentences are given, so no language model is asked: some for each label, each with its name. Labels
are pairs of an adjective and a noun. The embedded model tunes one seed for two epochs, and held-out
sentences are measured. The run's own time is in `seconds`, with what its tags of one image take.
Peaks are of anonymous memory, sampled every 0.2 s, of the driver and of the largest process under
each of Ray's names (`_call` is the clustering or the evaluation). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil
import yaml
from PIL import Image

ADJECTIVES = """
red blue green yellow black white brown grey pink purple old new small large tall short round
square long thin thick heavy light wooden metal plastic glass paper leather cotton wet dry clean
dirty shiny broken folded open closed empty full striped dotted plain painted rusty dusty soft
hard warm cold
""".split()
NOUNS = """
chair table lamp sofa desk shelf bed door window clock mirror carpet curtain pillow blanket
bottle cup plate bowl fork spoon knife pan pot kettle basket bucket box bag suitcase umbrella
hat coat shirt shoe boot glove scarf belt watch ring necklace book pen pencil ruler scissors
envelope stamp map camera radio telephone keyboard monitor printer candle flute drum guitar
violin piano ball racket bicycle car bus truck train boat canoe helicopter tractor trailer
bridge tower fence gate bench tent ladder hammer saw drill wrench shovel rake broom hose barrel
crate rope chain anchor flag kite doll puzzle balloon whistle medal trophy
""".split()
PLACES = ("stands in a room", "is seen from the side", "was left outside", "lies on the floor")


def write_inputs(folder: Path, labels: int, sentences: int) -> Path:
    names = [f"{a} {n}" for n, a in itertools.product(NOUNS, ADJECTIVES)][:labels]
    assert len(names) == labels, f"there are {len(NOUNS) * len(ADJECTIVES)} names"
    (folder / "labels.txt").write_text("\n".join(names), "utf-8")
    lines = (
        f"A {name} {PLACES[number % len(PLACES)]}, picture {number}.\t{name}"
        for name in names
        for number in range(sentences)
    )
    (folder / "sentences.tsv").write_text("\n".join(lines), "utf-8")
    config = {
        "name": "many",
        "seeds": [0],
        "categories": "labels.txt",
        "knowledge": {"questions": {"per_category": 0, "relationships": 0}},
        "captions": {"files": ["sentences.tsv"], "allow_missing": True},
        "hierarchy": {"groups": "auto", "coarse": max(2, labels // 40), "fine": labels // 10},
        "vlm": {"model": "efficientnet-lite0+minilm", "resolution": 224},
        "tuning": {"epochs": 2},
    }
    (folder / "many.yaml").write_text(yaml.safe_dump(config), "utf-8")
    return folder / "many.yaml"


def watch(process: subprocess.Popen[bytes], peaks: dict[str, float]) -> None:
    """The peak of anonymous memory of each kind of process, in MB."""
    while process.poll() is None:
        try:
            everyone = [psutil.Process(process.pid)]
            everyone += everyone[0].children(recursive=True)
            for one in everyone:
                title = " ".join(one.cmdline())
                name = "driver" if one.pid == process.pid else title.partition("ray::")[2]
                status = Path(f"/proc/{one.pid}/status").read_text()
                found = re.search(r"RssAnon:\s+(\d+)", status)
                if name and found:
                    kind = name.partition("(")[0].strip()
                    peaks[kind] = max(peaks[kind], int(found[1]) / 1000)
        except (psutil.NoSuchProcess, OSError):
            pass
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--labels", type=int, default=5000)
    parser.add_argument("--sentences", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="by default a new one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_inputs(folder, args.labels, args.sentences)
        datafree = [sys.executable, "-m", "orchestrator"]
        places = ["--cache", str(args.cache or folder / "cache"), "--runs", str(folder / "runs")]
        peaks: dict[str, float] = defaultdict(float)
        began = time.perf_counter()
        process = subprocess.Popen([*datafree, "run", str(config), *places], stdout=sys.stderr)
        watcher = threading.Thread(target=watch, args=(process, peaks))
        watcher.start()
        if process.wait():
            sys.exit("the run failed")
        watcher.join()
        seconds = {"all": round(time.perf_counter() - began, 1)}
        run = folder / "runs" / "many"
        stages = json.loads((run / "run.json").read_bytes())["stages"]
        seconds |= {stage: of["seconds"] for stage, of in stages.items()}
        Image.new("RGB", (320, 240), "teal").save(folder / "image.png")
        began = time.perf_counter()
        tagging = ["tag", str(run / "artifact"), str(folder / "image.png")]
        subprocess.run(
            [*datafree, *tagging, "--out", str(folder / "tags.jsonl"), "--cache", places[1]],
            stdout=sys.stderr,
            check=True,
        )
        seconds["tag"] = round(time.perf_counter() - began, 1)
        sizes = {
            str(file.relative_to(run)): round(file.stat().st_size / 1e6, 1)
            for file in sorted(run.rglob("*"))
            if file.is_file() and file.stat().st_size > 1e5
        }
    for table in (seconds, peaks, sizes):
        print("\n".join(f"{name:<40} {value:>10,.1f}" for name, value in table.items()), "\n")
    rounded = {name: round(peak) for name, peak in peaks.items()}
    print(
        json.dumps(
            {"labels": args.labels, "seconds": seconds, "peak_mb": rounded, "file_mb": sizes}
        )
    )


if __name__ == "__main__":
    main()
