"""Shards and their ledger: cut as they are taken, published whole, redone when damaged."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.storage import digest
from workers.knowledge.ledger import Ledger, Shard, cut_shards

IDENTITY = {"model": "tiny"}


def question(i: int) -> Question:
    return Question(
        kind="specific",
        categories=("dog",),
        words=("dog",),
        instruction="Write about a dog.",
        pattern="Sentences.\nA dog:",
        shown=(),
        seed=i,
    )


def one_shard(questions: int = 3) -> tuple[Shard, list[Answer]]:
    (shard,) = cut_shards([[question(i) for i in range(questions)]], questions, IDENTITY)
    answers = [Answer(f"A dog, {i} years old.", i % 2 == 0, 7 + i) for i in range(questions)]
    return shard, answers


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_shards_are_cut_inside_blocks_and_keyed_by_content() -> None:
    first, second = [question(i) for i in range(5)], [question(i) for i in range(5, 8)]
    shards = list(cut_shards([first, [], second], 3, IDENTITY))
    assert [len(shard.questions) for shard in shards] == [3, 2, 3]
    assert [q for shard in shards for q in shard.questions] == first + second
    assert shards[0].key == digest([IDENTITY, [asdict(q) for q in first[:3]]])

    keys = [shard.key for shard in shards]
    assert [s.key for s in cut_shards([[*first, question(9)], second], 3, IDENTITY)] == [
        keys[0],
        digest([IDENTITY, [asdict(q) for q in (*first[3:], question(9))]]),
        keys[2],
    ]
    assert not set(keys) & {s.key for s in cut_shards([first, second], 3, {"model": "other"})}
    other_seed = [replace(q, seed=q.seed + 100) for q in first]
    assert not set(keys) & {s.key for s in cut_shards([other_seed], 3, IDENTITY)}


def test_shards_are_cut_as_they_are_taken() -> None:
    made = 0

    def endless() -> Iterator[Question]:
        nonlocal made
        for made in count(1):
            yield question(made)

    shards = list(islice(cut_shards([endless()], 10, IDENTITY), 3))
    assert [len(shard.questions) for shard in shards] == [10, 10, 10]
    assert made == 30


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    shard, answers = one_shard()
    assert not ledger.has(shard)
    ledger.write(shard, answers)
    assert ledger.has(shard)
    assert ledger.read(shard) == answers

    failed = [replace(answers[0], text="", tokens=0, failure="ValueError: too long"), *answers[1:]]
    other = replace(shard, key="f" * 64)
    ledger.write(other, failed)
    assert ledger.read(other) == failed

    place = tmp_path / shard.key[:2] / shard.key / "answers.parquet"
    columns = [("text", pa.string()), ("finished", pa.bool_())]
    columns += [("tokens", pa.int32()), ("failure", pa.string())]
    assert pq.read_schema(place).equals(pa.schema(columns)), "also where every failure is null"


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_shard_counts_as_absent_and_is_redone(tmp_path: Path, damage: str) -> None:
    ledger = Ledger(tmp_path)
    shard, answers = one_shard()
    ledger.write(shard, answers)
    (file,) = tmp_path.rglob("answers.parquet")
    good = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        flipped = good[:40] + bytes([good[40] ^ 1]) + good[41:]
        file.write_bytes(flipped if damage == "flipped" else good[:-10])
    assert not ledger.has(shard)
    ledger.write(shard, answers)
    assert ledger.has(shard)
    assert file.read_bytes() == good


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_ledger import one_shard
from workers.knowledge import ledger

def write_half(table, path):
    path.write_bytes(b"PAR1 and no more")
    os.kill(os.getpid(), signal.SIGKILL)

ledger.pq.write_table = write_half
ledger.Ledger(Path({folder!r})).write(*one_shard())
"""


def test_what_a_killed_writer_left_is_no_obstacle(tmp_path: Path) -> None:
    script = KILLED_WRITER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", script], timeout=120)
    assert killed.returncode == -9
    shard, answers = one_shard()
    (left,) = files_in(tmp_path)
    assert ".tmp" in left
    ledger = Ledger(tmp_path)
    assert not ledger.has(shard)
    ledger.write(shard, answers)
    assert ledger.read(shard) == answers
    parent = f"{shard.key[:2]}/{shard.key}"
    assert files_in(tmp_path) == [f"{parent}/answers.parquet", f"{parent}/manifest.json"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small tmpfs is refused: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_reported_and_leaves_nothing_half_written(small_disk: Path) -> None:
    ledger = Ledger(small_disk / "answers")
    shard, _ = one_shard(2000)
    answers = [Answer(digest(i) * 2, True, 9) for i in range(2000)]  # does not compress
    place = small_disk / "answers" / shard.key[:2] / shard.key
    with pytest.raises(OSError, match="No space left on device") as raised:
        ledger.write(shard, answers)
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(place)
    assert not ledger.has(shard)
    assert files_in(small_disk) == []

    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    ledger.write(shard, answers)
    assert ledger.read(shard) == answers


def test_a_read_only_disk_is_reported(small_disk: Path) -> None:
    ledger = Ledger(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="Read-only file system") as raised:
        ledger.write(*one_shard())
    assert raised.value.errno == errno.EROFS
    assert str(raised.value.filename).startswith(str(small_disk))
