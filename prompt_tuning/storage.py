"""Content-addressed results on disk: hash, publish atomically, verify.

Results are written beside their target, fsynced and renamed, so a reader sees a whole result or
none, even if a writer is killed. A published folder has a `manifest.json` with the size and
checksum of each of its files; a folder whose files no longer match counts as missing. Other files
in the folder (.DS_Store, .git) change nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MANIFEST = "manifest.json"
VERSION_DIGITS = 12
"""Of a manifest's digest: the version of what it lists, for people and other programs."""

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# Messages of safetensors, SQLite and torch about a full disk.
_FULL = re.compile(r"os error (28|122|27)\)|disk is full|inline_container.* unexpected pos")


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value; equal values hash alike whatever the order of their keys."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces. Raises ValueError for NaN and infinity."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) over the relative names and contents of all files below a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return digest([[str(p.relative_to(folder)), file_digest(p)] for p in files])


@contextmanager
def naming(target: Path | str) -> Iterator[None]:
    """Name the target that could not be written: most errors of a full disk name no file.

    Raises:
        OSError: with `target` as its `filename`, if something in the block cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in _CANNOT_WRITE:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(target)) from None
    except (RuntimeError, SafetensorError, sqlite3.Error) as error:
        if not _FULL.search(str(error)):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from None


@contextmanager
def replacing(target: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Give a file to write, which takes the target's place once it is complete and synced.

    Readers see the old file or the new one. `temporary`: the file to write, on the same file
    system; by default one beside the target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or target.with_name(f".{target.name}.{_writer()}")
    try:
        with naming(target):
            yield temporary
            _fsync(temporary)
        os.rename(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(target.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file; readers see its old or its new content, never a part."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def copy_atomic(source: Path, target: Path) -> None:
    """Copy a file of any size as `write_atomic` writes one."""
    with replacing(target) as temporary, source.open("rb") as read, temporary.open("wb") as written:
        shutil.copyfileobj(read, written)


@contextmanager
def publishing(target: Path, replace: bool = False) -> Iterator[Path]:
    """Give a private folder to fill; on success it becomes `target`, on failure it is removed.

    A whole target stays, and this copy is discarded (another process was faster). With `replace` it
    is replaced, except files that others put into it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target)
    staging = target.with_name(f".{target.name}.{_writer()}")
    staging.mkdir()
    try:
        with naming(target):
            yield staging
            write_atomic(staging / MANIFEST, canonical_json(_inventory(staging)).encode())
            for path in staging.rglob("*"):
                if path.is_file():
                    # Some libraries write for their owner only; caches are shared.
                    path.chmod(0o644)
                _fsync(path)
            _rename_folder(staging, target, replace)
        _fsync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def is_published(target: Path) -> bool:
    """Whether a folder was published whole and still matches its manifest."""
    return find_damage(target) is None


def find_damage(target: Path, files: Iterable[str] | None = None) -> str | None:
    """A sentence about the first difference from a folder's manifest, or None.

    `files`: names of the files to compare; by default all in the manifest.
    """
    listed = _listed(target)
    if listed is None:
        return f"{MANIFEST} is missing or was altered"
    for name in listed if files is None else files:
        try:
            if listed.get(name) != _entry(target / name):
                return f"{name} was altered"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _rename_folder(staging: Path, target: Path, replace: bool) -> None:
    try:
        os.rename(staging, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if replace or not is_published(target):
            old = staging.with_name(f"{staging.name}.old")
            os.rename(target, old)
            os.rename(staging, target)
            if replace:
                _keep_foreign(old, target)
            shutil.rmtree(old)


def _keep_foreign(old: Path, target: Path) -> None:
    """Move other people's files from a published folder to the one that replaces it."""
    own = {name.partition("/")[0] for name in _listed(old) or ()}
    for path in old.iterdir():
        if path.name not in own and not (target / path.name).exists():
            os.rename(path, target / path.name)


def _listed(folder: Path) -> dict[str, Any] | None:
    """The entries of a folder's manifest, or None if it cannot be read."""
    try:
        listed = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return listed if isinstance(listed, dict) else None


def _inventory(folder: Path) -> dict[str, dict[str, int | str]]:
    return {
        str(path.relative_to(folder)): _entry(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }


def _entry(file: Path) -> dict[str, int | str]:
    return {"bytes": file.stat().st_size, "sha256": file_digest(file)}


def _host() -> str:
    """The scope of this process's number: containers may share a host's name."""
    return f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}"


def _writer() -> str:
    return f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"


def remove_abandoned(target: Path) -> None:
    """Remove the leftovers of killed processes of this host for the same target.

    A process killed while replacing the target has moved it away: it is moved back, or, if its
    successor is in place, only other people's files are.
    """
    for path in target.parent.glob(f".{target.name}.{_host()}-*.tmp*"):
        pid = path.name.removesuffix(".old").rsplit("-", 2)[-2]
        if Path("/proc", pid).exists():
            continue
        if path.suffix == ".old":
            if not target.exists():
                os.rename(path, target)
                continue
            _keep_foreign(path, target)
        shutil.rmtree(path, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
