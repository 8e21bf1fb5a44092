"""Publishing whole results, and noticing those that are not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prompt_tuning.storage import (
    MANIFEST,
    canonical_json,
    digest,
    folder_digest,
    is_published,
    publishing,
    remove_abandoned,
    write_atomic,
)


def publish(target: Path, text: str = "result", replace: bool = False) -> None:
    with publishing(target, replace) as staging:
        (staging / "inner").mkdir()
        (staging / "data.txt").write_text(text)
        (staging / "inner" / "more.txt").write_text("more")


def names_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_a_published_folder_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    publish(tmp_path / "deep" / "key")
    assert is_published(tmp_path / "deep" / "key")
    files = ["data.txt", "inner", "inner/more.txt", MANIFEST]
    assert names_in(tmp_path / "deep" / "key") == files
    assert names_in(tmp_path / "deep")[0] == "key"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with publishing(tmp_path / "key") as staging:
            (staging / "data.txt").write_text("half")
            assert not (tmp_path / "key").exists()
            raise error

    with pytest.raises(error):
        fail()
    assert names_in(tmp_path) == []
    assert not is_published(tmp_path / "key")


def test_the_slower_of_two_publishers_discards_its_copy(tmp_path: Path) -> None:
    with publishing(tmp_path / "key") as staging:
        (staging / "data.txt").write_text("slower")
        publish(tmp_path / "key", "faster")
    assert (tmp_path / "key" / "data.txt").read_text() == "faster"
    assert is_published(tmp_path / "key")
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_replace_puts_the_new_one_in_place_of_a_whole_one(tmp_path: Path) -> None:
    publish(tmp_path / "key", "old")
    publish(tmp_path / "key", "new", replace=True)
    assert (tmp_path / "key" / "data.txt").read_text() == "new"
    assert is_published(tmp_path / "key")
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def corrupt(folder: Path) -> None:
    (folder / "data.txt").write_text("RESULT")


def truncate(folder: Path) -> None:
    os.truncate(folder / "inner" / "more.txt", 1)


def remove(folder: Path) -> None:
    (folder / "data.txt").unlink()


def remove_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def garble_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff{")


damages = pytest.mark.parametrize(
    "damage", [corrupt, truncate, remove, remove_manifest, garble_manifest]
)


@damages
def test_a_damaged_folder_counts_as_not_there(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    publish(tmp_path / "key")
    damage(tmp_path / "key")
    assert not is_published(tmp_path / "key")


def test_what_others_add_is_no_damage_and_stays(tmp_path: Path) -> None:
    publish(tmp_path / "key")
    for extra in (".DS_Store", "inner/.DS_Store", ".git/HEAD"):
        (tmp_path / "key" / extra).parent.mkdir(exist_ok=True)
        (tmp_path / "key" / extra).write_text("")
    assert is_published(tmp_path / "key")
    publish(tmp_path / "key", "new", replace=True)
    assert is_published(tmp_path / "key")
    assert (tmp_path / "key" / "data.txt").read_text() == "new"
    assert (tmp_path / "key" / ".git" / "HEAD").exists()


@damages
def test_publishing_replaces_a_damaged_folder(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    publish(tmp_path / "key")
    damage(tmp_path / "key")
    publish(tmp_path / "key", "again")
    assert is_published(tmp_path / "key")
    assert (tmp_path / "key" / "data.txt").read_text() == "again"
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_what_is_missing_or_no_folder_is_not_published(tmp_path: Path) -> None:
    assert not is_published(tmp_path / "key")
    (tmp_path / "key").write_text("a file")
    assert not is_published(tmp_path / "key")


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_writes_stays(
    tmp_path: Path,
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}"
    abandoned = tmp_path / f".key.{host}-{dead.pid}-0123abcd.tmp"
    half_replaced = tmp_path / f".key.{host}-{dead.pid}-4567abcd.tmp.old"
    staying = [
        tmp_path / f".key.{host}-{os.getppid()}-0123abcd.tmp",  # alive
        tmp_path / f".key.elsewhere-{dead.pid}-0123abcd.tmp",  # perhaps alive on its host
        tmp_path / f".key2.{host}-{dead.pid}-0123abcd.tmp",  # another target's
    ]
    for folder in (abandoned, half_replaced, *staying):
        folder.mkdir()
        (folder / "data.txt").write_text("half")
    publish(tmp_path / "key")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["key", *(p.name for p in staying)])


def test_a_publisher_killed_midway_leaves_no_target_and_the_next_one_cleans_up(
    tmp_path: Path,
) -> None:
    killed = (
        "import os, sys; from pathlib import Path; from prompt_tuning.storage import publishing\n"
        "with publishing(Path(sys.argv[1])) as staging:\n"
        "    (staging / 'data.txt').write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    process = subprocess.run([sys.executable, "-c", killed, str(tmp_path / "key")], check=False)
    assert process.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    assert not is_published(tmp_path / "key")
    publish(tmp_path / "key")
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize(("renames", "text"), [(1, "old"), (2, "new"), (3, "new")])
def test_one_killed_while_it_replaced_has_not_lost_the_old_one(
    tmp_path: Path, edited: bool, renames: int, text: str
) -> None:
    publish(tmp_path / "key", "old")
    for added in ("notes.txt", "more notes.txt"):
        (tmp_path / "key" / added).write_text("a person's")
    if edited:
        (tmp_path / "key" / "inner" / "more.txt").write_text("edited")
    killed = (
        "import os, sys; from pathlib import Path; from prompt_tuning.storage import publishing\n"
        "rename, count = os.rename, 0\n"
        "def rename_some(source, target):\n"
        "    global count\n"
        "    rename(source, target)\n"
        "    count += 'manifest' not in str(target)\n"
        f"    if count == {renames}: os.kill(os.getpid(), 9)\n"
        "os.rename = rename_some\n"
        "with publishing(Path(sys.argv[1]), replace=True) as staging:\n"
        "    (staging / 'data.txt').write_text('new')\n"
    )
    process = subprocess.run([sys.executable, "-c", killed, str(tmp_path / "key")], check=False)
    assert process.returncode == -9
    assert (tmp_path / "key").exists() == (renames > 1)
    remove_abandoned(tmp_path / "key")
    assert (tmp_path / "key" / "data.txt").read_text() == text
    assert {"notes.txt", "more notes.txt"} < set(names_in(tmp_path / "key"))
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_digests_do_not_depend_on_the_order_of_keys_but_on_all_else() -> None:
    value = {"a": 1, "b": [1, 2], "c": {"d": "ü", "e": None}}
    shuffled = {"c": {"e": None, "d": "ü"}, "b": [1, 2], "a": 1}
    assert digest(value) == digest(shuffled)
    assert json.loads(canonical_json(value)) == value
    others = [value | {"b": [2, 1]}, value | {"a": 1.0}, value | {"a": True}, value | {"f": None}]
    assert len({digest(v) for v in [value, *others]}) == 5
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            digest([number])


def test_folder_digests_see_names_and_contents_but_not_the_place(tmp_path: Path) -> None:
    publish(tmp_path / "one")
    publish(tmp_path / "two")
    first = folder_digest(tmp_path / "one")
    assert folder_digest(tmp_path / "two") == first
    (tmp_path / "two" / "data.txt").rename(tmp_path / "two" / "renamed.txt")
    assert folder_digest(tmp_path / "two") != first
    corrupt(tmp_path / "one")
    assert folder_digest(tmp_path / "one") != first


def test_write_atomic_writes_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.json"
    write_atomic(file, b"one")
    write_atomic(file, b"two")
    assert file.read_bytes() == b"two"
    assert [p.name for p in file.parent.iterdir()] == ["file.json"]


def test_write_atomic_that_fails_keeps_the_old_and_leaves_no_temporary_file(
    tmp_path: Path,
) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(OSError):
        write_atomic(tmp_path / "folder", b"cannot take the place of a folder")
    with pytest.raises(TypeError):
        write_atomic(tmp_path / "file", "no bytes")  # type: ignore[arg-type]
    assert names_in(tmp_path) == ["folder", "folder/inner"]
