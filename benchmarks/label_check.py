"""Seconds and memory of `datafree check` on long label lists.

    python benchmarks/label_check.py [--labels 1000 5000] [--cache FOLDER]

Labels are nouns of WordNet, drawn with a seed. Each list is checked by the command itself, in a
process of its own, with the quickstart's image–text model. The last line is one JSON object: by
number of labels, seconds, the largest memory in MiB, and findings by kind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from prompt_tuning.knowledge.wordnet import wordnet
from prompt_tuning.label_names import name_key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--labels", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--cache", default="cache")
    args = parser.parse_args()
    nouns = list({name_key(noun): noun for noun in sorted(wordnet().nouns)}.values())
    figures = {}
    for count in args.labels:
        listed = random.Random(0).sample(nouns, count)
        with tempfile.TemporaryDirectory() as folder:
            labels, config = Path(folder, "labels.txt"), Path(folder, "long.yaml")
            labels.write_text("\n".join(listed), "utf-8")
            config.write_text("name: long\ncategories: labels.txt\n", "utf-8")
            command = [sys.executable, "-m", "orchestrator", "check", str(config), "--json"]
            started = time.perf_counter()
            process = subprocess.Popen(
                [*command, "--cache", args.cache], stdout=subprocess.PIPE, text=True
            )
            assert process.stdout
            found = json.loads(process.stdout.read())["findings"]
            _, _, used = os.wait4(process.pid, 0)
        figures[count] = {
            "seconds": round(time.perf_counter() - started, 1),
            "mib": used.ru_maxrss // 1024,
            "findings": Counter(finding["kind"] for finding in found),
        }
        print(count, figures[count], flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
