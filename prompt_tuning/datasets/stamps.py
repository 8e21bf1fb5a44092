"""Photographic cut-outs for composed scenes: stamps of the drawing program Tux Paint.

They come from Debian's package tuxpaint-stamps-default (GPL-2). They are found where the package
is installed or fetched with apt, and never shipped with this project.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import yaml

PACKAGE = "tuxpaint-stamps-default"
INSTALLED = Path("/usr/share/tuxpaint/stamps")


class StampsUnavailable(RuntimeError):
    """The cut-outs are not on this machine and cannot be fetched; the message says why."""


@functools.cache
def stamp_files() -> dict[str, tuple[str, ...]]:
    """Cut-outs of each category of the built-in list `scenes`, as paths in the stamps folder."""
    text = (resources.files("prompt_tuning") / "data" / "scenes_stamps.yaml").read_text("utf-8")
    return {name: tuple(files) for name, files in yaml.safe_load(text).items()}


def stamps_source(cache: Path) -> Path | None:
    """The folder with every cut-out, installed or fetched earlier into `cache`; else None."""
    for folder in (INSTALLED, cache / "stamps"):
        if not _missing(folder):
            return folder
    return None


def fetch_stamps(cache: Path) -> Path:
    """Download the Debian package (161 MB) without root; keep the used files in `cache/stamps`.

    Raises:
        StampsUnavailable: if apt-get or dpkg is missing or fails.
    """
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / "stamps"
    with tempfile.TemporaryDirectory(prefix=".stamps-", dir=cache) as name:
        # Absolute: apt resolves relative directories against its own root.
        work = Path(name).resolve()
        package = _download(work)
        unpacked = work / "unpacked"
        _call(["dpkg", "-x", str(package), str(unpacked)], work, timeout=300)
        source = unpacked / "usr/share/tuxpaint/stamps"
        check_stamps(source)
        kept = work / "stamps"
        for file in _all_files():
            (kept / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, kept / file)
        shutil.copyfile(unpacked / "usr/share/doc" / PACKAGE / "copyright", kept / "copyright")
        if target.exists() and _missing(target):
            target.rename(work / "incomplete")
        try:
            kept.rename(target)
        except OSError:
            # Another process may have fetched the same files in the meantime.
            if _missing(target):
                raise
    return target


def stamps_hash(source: Path) -> str:
    """SHA-256 (hex) of the names and contents of the cut-outs.

    Raises:
        StampsUnavailable: with the names of the files that `source` lacks.
    """
    check_stamps(source)
    total = hashlib.sha256()
    for file in _all_files():
        total.update(file.encode() + b"\0")
        total.update(hashlib.sha256((source / file).read_bytes()).digest())
    return total.hexdigest()


def _all_files() -> list[str]:
    return sorted(file for files in stamp_files().values() for file in files)


def _missing(folder: Path) -> list[str]:
    return [file for file in _all_files() if not (folder / file).is_file()]


def check_stamps(folder: Path) -> None:
    """Raise StampsUnavailable with the names of the cut-outs that `folder` lacks, if any."""
    missing = _missing(folder)
    if missing:
        raise StampsUnavailable(f"{folder} lacks {len(missing)} stamps: {', '.join(missing)}")


def _download(work: Path) -> Path:
    """Download the package into `work`, with updated package lists if the system's fail."""
    try:
        _call(["apt-get", "download", PACKAGE], work, timeout=1200)
    except StampsUnavailable:
        # apt keeps its own lists and cache in `work`, so that it needs no root.
        state, store = work / "apt/state", work / "apt/cache"
        (state / "lists/partial").mkdir(parents=True)
        (store / "archives/partial").mkdir(parents=True)
        private = ["-o", f"Dir::State={state}", "-o", f"Dir::Cache={store}"]
        _call(["apt-get", "update", *private], work, timeout=300)
        _call(["apt-get", "download", *private, PACKAGE], work, timeout=1200)
    packages = list(work.glob(f"{PACKAGE}_*.deb"))
    if not packages:
        raise StampsUnavailable(f"apt-get download did not write {PACKAGE}_*.deb")
    return packages[0]


def _call(command: list[str], work: Path, timeout: float) -> None:
    name = " ".join(word for word in command[:2] if not word.startswith("-"))
    try:
        subprocess.run(
            command,
            cwd=work,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=True,
        )
    except FileNotFoundError as error:
        raise StampsUnavailable(f"{command[0]} is not installed on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise StampsUnavailable(f"{name} took more than {timeout:.0f} s") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        raise StampsUnavailable(f"{name} failed: {lines[-1]}") from error
