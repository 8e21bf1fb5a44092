"""Sidecars per second, and memory, of writing, checking, replacing and removing tags.

    python benchmarks/sidecars.py [--files 2000 20000] [--folder /somewhere/on/the/disk]

For each number of photos: half of them have no sidecar, the others one as darktable writes it, with
a history of `--steps` edits. `write`: an artifact's tags go in. `check`: the same again, nothing
changes. `replace`: another artifact. `read`: as labels. `remove`: untag; afterwards the folder is
as it was, byte for byte. Every file is synced to the disk (`write_nosync`: the same without), so
the figures depend on it. `growth_mib`: growth of memory in `write` after its first tenth. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
from rich.console import Console

from orchestrator.tagging.sidecars import SidecarSettings, SidecarWriter, untag_images
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.datasets.xmp import read_xmp

LABELS = [f"label {number}" for number in range(150)]
TREE = {f"coarse {c}": {f"fine {c}": LABELS[c::10]} for c in range(10)}
STEP = (
    '     <rdf:li\n      darktable:num="{0}"\n      darktable:operation="exposure"\n'
    '      darktable:enabled="1"\n      darktable:params="{0:0180x}"/>\n'
)
SIDECAR = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:darktable="http://darktable.sf.net/"
   xmp:Rating="4">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>label 3</rdf:li>
     <rdf:li>Tom</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <darktable:history>
    <rdf:Seq>
{steps}    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""


def write_library(folder: Path, files: int, steps: int) -> None:
    text = SIDECAR.format(steps="".join(STEP.format(step) for step in range(steps)))
    for number in range(files):
        inside = folder / f"{number // 1000:03d}"
        inside.mkdir(exist_ok=True)
        (inside / f"{number:06d}.jpg").touch()
        if number % 2:
            (inside / f"{number:06d}.jpg.xmp").write_text(text, "utf-8")


def content_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        digest.update(str(file).encode() + (file.read_bytes() if file.is_file() else b""))
    return digest.hexdigest()


def tag(folder: Path, version: str, console: Console) -> SidecarWriter:
    draw = np.random.default_rng(len(version))
    writer = SidecarWriter(version, TREE, SidecarSettings(), console)
    for image in images(folder):
        chosen = draw.choice(len(LABELS), 4, replace=False)
        tags = [{"name": LABELS[c], "score": round(draw.random(), 4)} for c in chosen]
        writer.add({"file": str(image), "tags": tags})
    return writer


def images(folder: Path) -> Iterator[Path]:
    for inside in sorted(folder.iterdir()):
        yield from (inside / name for name in sorted(os.listdir(inside)) if name[-3:] == "jpg")


def timed(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth_mib(job: Callable[[], object]) -> float:
    """Growth of the peak of resident memory after the first tenth of the job's time, in MiB."""
    seen: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    job()
    done.set()
    watcher.join()
    tenths = [max(tenth) for tenth in np.array_split(seen, 10)]
    return max(tenths[1:]) - tenths[0]


def measure(folder: Path, files: int, steps: int, console: Console) -> dict[str, float]:
    write_library(folder, files, steps)
    before = content_of(folder)
    categories = CategoryList(categories=tuple(Category(name=label) for label in LABELS))
    seconds: dict[str, float] = {}
    with patch("os.fsync"):
        seconds["write_nosync"] = timed(lambda: tag(folder, "1", console))
        untag_images([str(folder)], False, console)
    assert content_of(folder) == before
    growth: list[float] = []
    seconds["write"] = timed(lambda: growth.append(growth_mib(lambda: tag(folder, "1", console))))
    assert tag(folder, "1", console).written == 0
    seconds["check"] = timed(lambda: tag(folder, "1", console))
    seconds["replace"] = timed(lambda: tag(folder, "22", console))
    seconds["read"] = timed(lambda: read_xmp(categories, folder))
    seconds["remove"] = timed(lambda: untag_images([str(folder)], False, console))
    assert content_of(folder) == before
    return {
        **{f"{name}_per_s": round(files / spent) for name, spent in seconds.items()},
        "growth_mib": round(growth[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, nargs="+", default=[2000, 20_000])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {}
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        console = Console(file=nowhere)
        for files in options.files:
            with tempfile.TemporaryDirectory(dir=options.folder) as name:
                result[str(files)] = measure(Path(name), files, options.steps, console)
    result |= {
        "steps": options.steps,
        "resident_mib": round(resident_mib()),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
