"""How `datafree tag` and the service handle hostile and broken images.

    python benchmarks/hostile_images.py [--images 500]

The files are generated from a seed: small images of every readable format, then truncated, with
bytes changed, removed or doubled, with forged sizes, with two formats concatenated; and files that
are not images. `crashes` counts a job without exit code 0, files without a row, answers of the
service other than 200, 413, 415 and 422 or without a sentence, and model replicas that died.
`differing` counts files that only one of the two tags. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from serving import body_of, serving
from tagging import CATEGORIES, SENTENCES

from prompt_tuning import load_vlm, tune
from prompt_tuning.tuning.trainer import TuningSettings

KINDS = ("jpeg", "png", "gif", "bmp", "webp", "tiff", "jpeg2000", "ppm", "tga", "avif")
NOT_IMAGES = (
    b"",
    b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch /tmp/owned) run\n",
    b"%PDF-1.7\n",
    b"PK\x03\x04" + bytes(64),
    b"\x7fELF" + bytes(64),
    b"cos\nsystem\n(S'true'\ntR.",  # a pickle
    b"GIF89a" + b"\xff" * 64,
    b"II*\x00" + struct.pack("<I", 8) + b"\xff\xff" * 40,
)


def hostile(draw: np.random.Generator, number: int) -> bytes:
    """A file's content."""
    whole = good(draw, KINDS[number % len(KINDS)])
    cut = int(draw.integers(1, len(whole)))
    match number // len(KINDS) % 8:
        case 0:
            return whole[:cut]
        case 1:  # changed bytes
            changed = bytearray(whole)
            for place in draw.integers(0, len(whole), 20):
                changed[place] = int(draw.integers(0, 256))
            return bytes(changed)
        case 2:  # in the header, where sizes are
            changed = bytearray(whole)
            for place in draw.integers(2, min(64, len(whole)), 4):
                changed[place] = 255
            return bytes(changed)
        case 3:  # bytes removed and doubled
            return whole[: cut // 2] + whole[cut:] + whole[cut:]
        case 4:  # two formats concatenated
            return whole[:cut] + good(draw, KINDS[int(draw.integers(len(KINDS)))])
        case 5:
            return bomb(int(draw.integers(8_000, 2**31)))
        case 6:
            return NOT_IMAGES[number % len(NOT_IMAGES)]
        case _:
            return draw.bytes(int(draw.integers(1, 4000)))


def good(draw: np.random.Generator, kind: str) -> bytes:
    """A small image."""
    pixels = draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((64, 48)).save(stream, kind)
    return stream.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that declares `side` × `side` pixels."""
    chunks = b""
    for name, body in (
        (b"IHDR", struct.pack(">II5B", side, side, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(4000))),
        (b"IEND", b""),
    ):
        check = struct.pack(">I", zlib.crc32(name + body))
        chunks += struct.pack(">I", len(body)) + name + body + check
    return b"\x89PNG\r\n\x1a\n" + chunks


def by_job(artifact: Path, folder: Path, cache: Path) -> tuple[dict[str, bool], int]:
    """Whether `datafree tag` tagged each file, and 1 when it crashed."""
    out = folder.with_name("tags.jsonl")
    command = [sys.executable, "-m", "orchestrator", "tag", str(artifact), str(folder)]
    done = subprocess.run([*command, "--out", str(out), "--cache", str(cache)], check=False)
    if done.returncode:
        return {}, 1
    _, *rows = map(json.loads, out.read_text("utf-8").splitlines())
    assert all(row.get("error", "a reason") for row in rows)
    return {Path(row["file"]).name: "error" not in row for row in rows}, 0


def by_service(artifact: Path, files: list[Path], cache: Path) -> tuple[dict[str, int], int]:
    """The status of each file's answer, and how many crashes there were."""
    statuses, crashes = {}, 0
    with serving(artifact, cache) as service:
        before = {process.pid for process in service.replicas()}
        for file in files:
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=120)
            connection.request("POST", "/tag", *body_of(file.read_bytes(), file.name))
            answer = connection.getresponse()
            content = json.loads(answer.read())
            statuses[file.name] = answer.status
            clear = answer.status == 200 or content["error"].startswith(file.name)
            crashes += answer.status not in (200, 413, 415, 422) or not clear
        crashes += len(before - {process.pid for process in service.replicas()})
    return statuses, crashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    options = parser.parse_args()
    vlm = load_vlm(cache=options.cache)
    with tempfile.TemporaryDirectory() as name:
        artifact, folder = Path(name, "artifact"), Path(name, "images")
        settings = TuningSettings(epochs=2, batch=32)
        tune(vlm, CATEGORIES, SENTENCES, tuning=settings).save(artifact)
        folder.mkdir()
        draw = np.random.default_rng(0)
        for number in range(options.images):
            (folder / f"{number:04d}.jpg").write_bytes(hostile(draw, number))
        tagged, crashes_of_job = by_job(artifact, folder, options.cache)
        statuses, crashes = by_service(artifact, sorted(folder.iterdir()), options.cache)
    missing = sum(name not in tagged for name in statuses)
    result = {
        "crashes": crashes_of_job + missing + crashes,
        "images": options.images,
        "tagged_by_job": sum(tagged.values()),
        "service": {str(status): n for status, n in sorted(Counter(statuses.values()).items())},
        "differing": sum(tagged.get(name) != (status == 200) for name, status in statuses.items()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
