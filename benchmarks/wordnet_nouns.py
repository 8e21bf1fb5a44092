"""Write prompt_tuning/data/wordnet_nouns.txt.gz from the files of WordNet 3.0.

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet
    python benchmarks/wordnet_nouns.py wordnet/usr/share/wordnet

A line for each sense: its nouns, a bar, and the lines of the senses above it. Nouns with digits or
more than three words are left out. A noun has the first of its senses that an image can show: with
all of them a dog would be a person and a sausage too.
"""

from __future__ import annotations

import gzip
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
# WordNet's files of its top nouns, animals, artifacts, bodies, food, objects, persons, phenomena,
# plants and substances.
VISIBLE = {3, 5, 6, 8, 13, 17, 18, 19, 20, 27}
PERSON = 18


def main(folder: Path) -> None:
    synsets: dict[int, tuple[int, set[str], list[int], bool]] = {}
    for line in (folder / "data.noun").read_text("latin-1").splitlines():
        if line.startswith(" "):
            continue
        fields = line.split("|")[0].split()
        words = {fields[4 + 2 * i] for i in range(int(fields[3], 16))}
        pointers = fields[4 + 2 * len(fields[4 : 4 + 2 * int(fields[3], 16) : 2]) :]
        links = [pointers[1 + 4 * i : 5 + 4 * i] for i in range(int(pointers[0]))]
        above = [int(link[1]) for link in links if link[0] in ("@", "@i")]
        is_instance = any(link[0] == "@i" for link in links)
        synsets[int(fields[0])] = int(fields[1]), words, above, is_instance
    nouns: dict[int, list[str]] = defaultdict(list)
    for line in (folder / "index.noun").read_text("latin-1").splitlines():
        noun, *fields = line.split()
        if line.startswith(" ") or not re.fullmatch(r"[a-z'\-_]+", noun) or noun.count("_") > 2:
            continue
        senses = []
        for offset in map(int, fields[-int(fields[1]) :]):
            lexicographer, words, _, is_instance = synsets[offset]
            # Animals and plants with capitals are Latin names.
            written_so = noun in words or lexicographer not in (5, 20)
            if lexicographer in VISIBLE and written_so and not is_instance:
                senses.append(offset)
        # "Tiger" is a fierce person too.
        senses.sort(key=lambda offset: synsets[offset][0] == PERSON)
        if senses:
            nouns[senses[0]].append(noun.replace("_", " "))
    needed, ahead = set(nouns), list(nouns)
    while ahead:
        for higher in synsets[ahead.pop()][2]:
            if higher not in needed:
                needed.add(higher)
                ahead.append(higher)
    order = sorted(needed)
    number = {offset: i for i, offset in enumerate(order)}
    lines = [
        f"{','.join(nouns.get(o, []))}|{','.join(str(number[above]) for above in synsets[o][2])}\n"
        for o in order
    ]
    file = ROOT / "prompt_tuning" / "data" / "wordnet_nouns.txt.gz"
    file.write_bytes(gzip.compress("".join(lines).encode(), 9, mtime=0))
    print(f"{len(order)} senses, {sum(map(len, nouns.values()))} nouns: {file}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
