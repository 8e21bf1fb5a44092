"""Rows per second and memory of writing tags in the formats of annotation tools.

    python benchmarks/label_formats.py [--rows 100000]

Rows have a file name of about 40 characters in one of 100 folders, and 0 to 6 of 80 labels (3 on
average), drawn from a seed. Each format is written in a process of its own, to a temporary folder,
as `datafree tag --format` writes it at its end: from rows that are made one by one, through
relative names, to the synced and renamed file. `rows_s` is that of `--rows` rows, the best of
`--rounds`, and counts the making of rows too (`making_rows_s` is that alone); `rows_cpu_s`: per
second of CPU time, where other programs keep the machine busy. `growth_mib`: peak
resident memory of the process with `--rows` rows minus that with a tenth of them. `convert_rows_s`
is the whole of `datafree convert` from JSON lines to COCO's JSON, which reads the rows twice. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.tagging.convert import convert_tags
from orchestrator.tagging.tags_file import tags_writer
from orchestrator.tagging.tool_formats import TOOLS, tool_writer
from prompt_tuning.categories import built_in
from prompt_tuning.label_formats.tag_row import Row

JSON_FORMATS = ("label_studio", "coco_json", "fiftyone", "datumaro")
NAMES = built_in("coco").names
MADE_WITH: dict[str, Any] = {"artifact": "0123456789abcdef" * 4, "labels": None}


def rows(count: int, folder: Path) -> Iterator[Row]:
    """Rows drawn from a seed."""
    draw = random.Random(0)
    for number in range(count):
        chosen = draw.sample(NAMES, draw.randrange(7))
        tags = [{"name": name, "score": round(draw.random(), 4)} for name in chosen]
        yield {
            "file": f"{folder}/photos/2026-{number % 100:02d}/IMG_{number:08d}.jpg",
            "tags": tags,
        }


def write(tool: str, count: int) -> dict[str, float]:
    """Seconds and peak memory, in MiB, of writing rows in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter(), time.process_time()
        if tool == "none":
            for _ in rows(count, folder):
                pass
        elif tool == "convert":
            with tags_writer(folder / "tags.jsonl", MADE_WITH, ".jsonl") as write_row:
                for row in rows(count, folder):
                    write_row(row)
            start = time.perf_counter(), time.process_time()
            with Path(os.devnull).open("w") as nowhere:
                console = Console(file=nowhere)
                convert_tags(folder / "tags.jsonl", folder / "tags.json", "coco_json", console)
        else:
            target = folder / f"tags{TOOLS[tool].suffix}"
            with tool_writer(target, tool, NAMES, MADE_WITH) as write_row:
                for row in rows(count, folder):
                    write_row(row)
        seconds, cpu_seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak}


def in_a_process(tool: str, count: int) -> dict[str, float]:
    """`write` in a process of its own."""
    command = [sys.executable, __file__, "--write", tool, "--rows", str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def cpu() -> str:
    """The model of the machine's CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        print(json.dumps(write(options.write, options.rows)))
        return
    rates, cpu_rates, growth = {}, {}, {}
    for tool in ("none", "convert", *JSON_FORMATS, "cvat"):
        small = in_a_process(tool, options.rows // 10)
        large = [in_a_process(tool, options.rows) for _ in range(options.rounds)]
        rates[tool] = round(options.rows / min(one["seconds"] for one in large))
        cpu_rates[tool] = round(options.rows / min(one["cpu_seconds"] for one in large))
        growth[tool] = round(max(one["peak_mib"] for one in large) - small["peak_mib"], 1)
        print(f"{tool}: {rates[tool]:,} rows/s, {small['peak_mib']:.0f} MiB", flush=True)
    result = {
        "slowest_json_rows_s": min(rates[tool] for tool in JSON_FORMATS),
        "most_growth_mib": max(growth.values()),
        "making_rows_s": rates.pop("none"),
        "convert_rows_s": rates.pop("convert"),
        "rows_s": rates,
        "rows_cpu_s": cpu_rates,
        "growth_mib": growth,
        "rows": options.rows,
        "rounds": options.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu(),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
