"""`datafree submit` to a real job server that asks for a token: what runs, what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import ray
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from orchestrator.cluster.access import _set_mode, accessible
from orchestrator.cluster.job import prepare_job
from orchestrator.cluster.job_server import JobServer, outcome
from orchestrator.cluster.resources import Node, Resources
from orchestrator.errors import InputError

ROOT = Path(__file__).parent.parent
CONFIG = """
name: tiny
categories: [dog, car, tree]
knowledge: {questions: {per_category: 0, relationships: 0}}
captions: {files: [own.tsv], held_out: 0.3}
hierarchy: {groups: auto, coarse: 2, fine: 2}
vlm: {model: efficientnet-lite0+minilm, resolution: 224}
tuning: {epochs: 2, batch: 16}
"""
SENTENCES = "".join(
    f"A {look} {name} {place}.\t{name}\n"
    for name in ("dog", "car", "tree")
    for look in ("small", "old")
    for place in ("near a wall", "in the sun")
)
NOT_OURS = ("DATAFREE_CACHE", "DATAFREE_RUNS", "PYTHONPATH")
TOKEN = "0123456789abcdef" * 2


@dataclass(frozen=True)
class Head:
    """A head node. `address`: of its job server; `cluster`: for RAY_ADDRESS; `environment`: of its
    machine."""

    address: str
    cluster: str
    pid: int
    folder: Path
    environment: dict[str, str]


@contextmanager
def started_head(activated: bool, token: bool) -> Iterator[Head]:
    """`activated`: whether our `python` was on its PATH. `token`: whether its machine has a file of
    one, which any Ray that was started there before leaves."""
    ports = _free_ports(4)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in NOT_OURS and not name.startswith("RAY_")
    }
    path = [str(Path(sys.executable).parent)] if activated else []
    environment["PATH"] = os.pathsep.join([*path, "/usr/bin", "/bin"])
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short, for sockets
        environment["HOME"] = folder
        if token:
            Path(folder, ".ray").mkdir()
            Path(folder, ".ray", "auth_token").write_text(TOKEN, "ascii")
        starts = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--num-cpus=2", "--include-dashboard=true", f"--temp-dir={folder}/ray"),
            *("--min-worker-port=0", "--max-worker-port=0"),  # none of those below
            *(f"--port={ports[0]}", f"--dashboard-port={ports[1]}"),
            *(f"--dashboard-agent-listen-port={ports[2]}", f"--ray-client-server-port={ports[3]}"),
        ]
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(
                starts, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder
            )
        try:
            address = f"http://127.0.0.1:{ports[1]}"
            _wait_for(process, ports[1], Path(folder, "log"))
            yield Head(address, f"127.0.0.1:{ports[0]}", process.pid, Path(folder), environment)
        finally:
            for member in psutil.Process(process.pid).children(recursive=True):
                member.kill()
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """On a machine on which a local run has been, and from an environment that is not activated."""
    with started_head(activated=False, token=True) as head:
        yield head


def _free_ports(count: int) -> list[int]:
    places = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [place.getsockname()[1] for place in places]
    for place in places:
        place.close()
    return ports


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    while True:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            threading.Event().wait(0.1)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of a person's own: a config and sentences."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(CONFIG, "utf-8")
    (folder / "own.tsv").write_text(SENTENCES, "utf-8")
    return folder


def start(
    head: Head, project: Path, *arguments: str, folders: bool = True, **environment: str
) -> subprocess.Popen[str]:
    """`datafree submit …`, from the project's folder, with our packages from the checkout."""
    places = ("--cache", str(project / "cache"), "--runs", str(project / "runs"))
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "orchestrator", "submit", *arguments),
            *("--address", head.address, *(places if folders else ())),
        ],
        cwd=project,
        env={**head.environment, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def ask(head: Head, project: Path, *arguments: str) -> tuple[int, str]:
    return end(start(head, project, *arguments, folders=False))


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The lines up to the first with these words: they come while the job runs."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if words in line:
            return read
    raise AssertionError(read)


def name_of(output: str) -> str:
    found = re.search(r"^(raysubmit_\w+): submitted to ", output, re.M)
    assert found, output
    return found[1]


def test_a_run_is_followed_to_its_artifact(
    head: Head, project: Path, new_cache: Callable[[Path], Path]
) -> None:
    new_cache(project / "cache")
    running = start(head, project, "tiny.yaml", "--set", "seeds=[3]")
    read_until(running, "caption features: ")
    assert running.poll() is None
    code, output = end(running)
    assert code == 0, output
    assert "tuning seed 3: 2 of 2" in output
    assert re.search(r"^raysubmit_\w+: succeeded\n\Z", output, re.M)
    assert (project / "runs/tiny/artifact/manifest.json").is_file()
    assert (project / "runs/tiny/metrics.json").is_file()


def test_a_job_outlives_who_follows_it_until_it_is_stopped(head: Head, project: Path) -> None:
    left = start(head, project, "tiny.yaml", "run")
    said = read_until(left, "Running entrypoint")
    name = name_of(said)
    assert f"datafree submit logs {name} --address {head.address}" in said
    watching = start(head, project, "logs", name, folders=False)
    read_until(watching, "Running entrypoint")
    for process, number in ((left, signal.SIGINT), (watching, signal.SIGTERM)):
        process.send_signal(number)
        code, output = end(process)
        assert code == 128 + number
        assert f"{name}: continues on the cluster" in output
        assert "Traceback" not in output
    follower = start(head, project, "logs", name, folders=False)
    code, output = ask(head, project, "status", name)
    assert code == 0
    python = re.escape(sys.executable)
    assert re.match(
        rf"{name}: running, started 20.*: {python} -m orchestrator run tiny.yaml", output
    )
    code, output = ask(head, project, "stop", name)
    assert (code, output) == (0, f"{name}: stopped\n")
    code, output = end(follower)
    assert code == 1
    assert output.endswith(f"{name}: stopped\n")


def test_what_need_not_travel_stays_and_our_packages_travel_whole(
    head: Head, project: Path
) -> None:
    data = project / "data"
    data.mkdir()
    (data / "labels.csv").write_text("a.png,dog\n", "utf-8")
    with (project / "tiny.yaml").open("a") as file:
        file.write(f"evaluation: {{dataset: folder, root: {data}}}")
    code, output = end(start(head, project, "tiny.yaml", "knowledge", "--no-wait"))
    assert code == 0, output
    name = name_of(output)
    code, output = ask(head, project, "logs", name)
    assert code == 0, output  # it has read prompt_tuning/data
    assert (project / "runs/tiny/knowledge/captions.parquet").is_file()
    assert "captions.parquet" in output
    copies = head.folder.glob("ray/session_2*/runtime_resources/working_dir_files/*/tiny.yaml")
    [copy] = [copy for copy in copies if str(data) in copy.read_text("utf-8")]
    assert {path.name for path in copy.parent.iterdir()} == {"tiny.yaml", "own.tsv"}


def test_a_person_s_mistake_that_only_the_cluster_sees_exits_2_and_is_reported_once(
    head: Head, project: Path
) -> None:
    wrong = ("--set", "captions.files=[/nowhere.tsv]", "--cache", f"{project}/cache")
    here = ("configs/quickstart.yaml", *wrong, "--runs", f"{project}/runs")
    code, output = end(start(head, ROOT, *here, folders=False))  # whose packages travel as they are
    assert code == 2, output
    assert output.count("captions.files: '/nowhere.tsv' is not a file") == 1
    assert output.splitlines()[-1] == f"{name_of(output)}: failed: invalid input (exit code 2)"


def test_a_failure_exits_1(head: Head, project: Path) -> None:
    (project / "cache").mkdir()
    (project / "cache/knowledge").touch()
    code, output = end(start(head, project, "tiny.yaml", "knowledge"))
    assert code == 1, output
    assert "failed: " in output
    assert output.splitlines()[-1] == f"{name_of(output)}: failed with exit code 1"


def test_the_plain_command_of_the_page_where_no_token_is(
    project: Path, tmp_path: Path, ask_for_access: Callable[..., str]
) -> None:
    page = (ROOT / "docs" / "clusters.md").read_text("utf-8")
    [command] = re.findall(r"^ray job submit .*$", page, re.M)
    with started_head(activated=True, token=False) as head:
        done = subprocess.run(
            ["bash", "-c", command.replace("/shared/", f"{tmp_path}/") + " --dry-run"],
            cwd=ROOT,
            env={**head.environment, "RAY_ADDRESS": head.address},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "plan of quickstart" in done.stdout
        process = start(head, project, "status", "raysubmit_no", folders=False)
        refused(process, f"raysubmit_no: {head.address} has no such job")
        # What would be sent unasked makes actors die there, for no reason that Ray gives.
        said = ask_for_access(head, "token", TOKEN, "", "/proc")
        assert "RAY_AUTH_MODE is token here, but this cluster does not ask for tokens" in said
        for mode in (None, "disabled"):
            assert not ask_for_access(head, mode, TOKEN, "", "/proc")
            assert os.environ["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.usefixtures("nowhere")
def test_a_command_that_the_cluster_does_not_have(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `ray job submit -- python …` leaves it where the environment is not activated."""
    monkeypatch.setenv("HOME", str(head.folder))
    server = JobServer(head.address)
    name = server._client.submit_job(entrypoint="python-of-nobody -m orchestrator")
    said, code = outcome(server.follow(name))
    assert code == 1
    assert said.startswith(
        f"{name}: failed: the cluster does not have its command; activate the env"
    )


def test_a_service_on_the_cluster_ends_with_its_command_even_if_that_is_killed(
    head: Head, artifact: Path, lasting_cache: Path
) -> None:
    [port] = _free_ports(1)
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "orchestrator", "serve", str(artifact)),
            *("--port", str(port), "--cache", str(lasting_cache)),
        ],
        env={
            **head.environment,
            "PYTHONPATH": str(ROOT),
            "RAY_ADDRESS": head.cluster,
        },
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("Serving "):
                break
        process.kill()
    assert [line.split()[0] for line in said][:2] == ["Starting", "Loading"], said
    assert "2 of 2 replicas are ready after" in "".join(said)
    deadline = time.monotonic() + 120
    while left := _serve_processes(head):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def _serve_processes(head: Head) -> list[str]:
    """Titles of what Ray Serve runs below the head."""
    titles = []
    for process in psutil.Process(head.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            titles.append(" ".join(process.cmdline()))
    return [title for title in titles if title.startswith(("ray::Serve", "ray::ProxyActor"))]


def test_relative_folders_are_refused_in_a_job(head: Head, project: Path) -> None:
    """As `ray job submit` runs it, without our checks before."""
    (project / "tiny.yaml").write_text(CONFIG + "evaluation: {dataset: folder, root: data}")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", "tiny.yaml"],
        cwd=project,
        env={**head.environment, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: evaluation.root: 'data' must be absolute on a cluster")
    assert done.stderr.count("\n") == 1


REFUSED = [
    ("none.yaml", "none.yaml"),
    ("tiny.yaml tuning.epoch=1", "did you mean tuning.epochs?"),
    ("tiny.yaml hierarchy.groups=no.yaml", "hierarchy.groups: 'no.yaml' is not a file"),
    ("tiny.yaml evaluation={dataset: folder, root: data}", "evaluation.root: 'data' must be abs"),
    ("../elsewhere.yaml", "../elsewhere.yaml: must be below the working directory"),
    ("tiny.yaml categories=../out.txt", "categories: '../out.txt' is not below the working"),
    ("tiny.yaml paths={cache: cache}", "paths.cache: 'cache' must be absolute on a cluster"),
    ("tiny.yaml paths={cache: /c, runs: r}", "paths.runs: 'r' must be absolute on a cluster"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_refused_before_anything_is_sent(
    project: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, words: str
) -> None:
    (project.parent / "elsewhere.yaml").write_text(CONFIG, "utf-8")
    (project.parent / "out.txt").write_text("dog\ncar\n", "utf-8")
    monkeypatch.chdir(project)
    config, _, override = arguments.partition(" ")
    places = (None, None) if "paths" in override else ("/shared/cache", "/shared/runs")
    with pytest.raises(InputError) as refusal:
        prepare_job(Path(config), "run", [override] if override else [], *places)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("arguments", [("tiny.yaml", "tune"), ("status",)])
def test_a_call_that_means_nothing(head: Head, project: Path, arguments: tuple[str, ...]) -> None:
    refused(start(head, project, *arguments, folders=False), " must ")


def test_a_job_that_there_is_not(head: Head, project: Path) -> None:
    process = start(head, project, "status", "raysubmit_no", folders=False)
    refused(process, f"raysubmit_no: {head.address} has no such job")


@pytest.mark.usefixtures("nowhere")
def test_a_cluster_that_asks_for_a_token(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal() -> str:
        with pytest.raises(InputError) as error:
            JobServer(head.address)
        return str(error.value)

    monkeypatch.setenv("HOME", str(tmp_path))
    assert "this cluster asks for a token: put it in RAY_AUTH_TOKEN, in the file" in refusal()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    assert "this cluster does not accept the token in RAY_AUTH_TOKEN; `ray get-a" in refusal()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.folder / ".ray/auth_token"))
    JobServer(head.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    assert refusal().startswith("RAY_AUTH_TOKEN_PATH: '/nowhere' cannot be read (No such file")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "new\nline")
    assert refusal().startswith("RAY_AUTH_TOKEN: must be a token: visible ASCII characters")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "asks for a token, but RAY_AUTH_MODE is disabled here" in refusal()
    monkeypatch.setenv("RAY_AUTH_MODE", "no")
    assert refusal() == "RAY_AUTH_MODE: must be token or disabled, or not set (got 'no')"


ASKS = "this cluster asks for a token: put it in RAY_AUTH_TOKEN"
NOT_ACCEPTED = "this cluster does not accept the token in"
DISABLED = "this cluster asks for a token, but RAY_AUTH_MODE is disabled here"
# RAY_AUTH_MODE, RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, HOME: what is said, or nothing if it works.
ON_A_CLUSTER_WITH_TOKENS: list[tuple[str | None, str, str, str | None, str]] = [
    (None, "", "", "{empty}", ASKS),
    (None, "", "", "{home}", ""),
    (None, TOKEN, "", "{empty}", ""),
    (None, TOKEN, "/nowhere", "/proc", ""),
    (None, "", "{home}/.ray/auth_token", "/nowhere", ""),
    (None, "", "/nowhere", "{home}", "RAY_AUTH_TOKEN_PATH: '/nowhere' cannot be read"),
    (None, "f" * 32, "", "{home}", f"{NOT_ACCEPTED} RAY_AUTH_TOKEN;"),
    ("token", "", "", "{empty}", ASKS),
    ("Token", "", "", "{home}", ""),
    ("token", TOKEN, "", None, ""),
    ("token", "f" * 32, "", "/proc", f"{NOT_ACCEPTED} RAY_AUTH_TOKEN;"),
    ("token", "", "{empty}/wrong", "{home}", f"{NOT_ACCEPTED} {{empty}}/wrong;"),
    ("disabled", TOKEN, "", "{home}", DISABLED),
    ("disabled", "not a\ntoken", "", "{home}", DISABLED),
    ("on", TOKEN, "", "{home}", "RAY_AUTH_MODE: must be token or disabled, or not set (got 'on')"),
]


@pytest.fixture
def ask_for_access(
    nowhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """Whether `accessible` lets a process join a cluster: why not, or nothing."""
    (tmp_path / "wrong").write_text("e" * 32)

    def ask(head: Head, mode: str | None, token: str, path: str, home: str | None) -> str:
        values = {"RAY_AUTH_TOKEN": token, "RAY_AUTH_TOKEN_PATH": path, "HOME": home}
        for name, value in {"RAY_AUTH_MODE": mode, **values}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value.format(home=head.folder, empty=tmp_path))
        try:
            joined = accessible(head.cluster)
        except InputError as error:
            said = str(error)
        else:
            assert joined.endswith(head.cluster.partition(":")[2])
            return ""
        assert os.environ.get("RAY_AUTH_MODE") == mode
        assert TOKEN not in said
        return said

    yield ask
    monkeypatch.undo()
    _set_mode(os.environ.get("RAY_AUTH_MODE"))


def test_every_way_to_give_a_cluster_its_token(
    head: Head, ask_for_access: Callable[..., str], tmp_path: Path
) -> None:
    began = time.monotonic()
    for *given, expected in ON_A_CLUSTER_WITH_TOKENS:
        said = ask_for_access(head, *given)
        assert bool(said) == bool(expected), (given, said)
        assert expected.format(empty=tmp_path) in said
        assert "\n" not in said
    assert time.monotonic() - began < 60  # Ray alone would take 20 s for each refusal


def test_a_run_on_a_cluster_whose_token_is_only_in_the_home_folder(
    head: Head, project: Path
) -> None:
    """By an address of the cluster itself, to which Ray alone does not send a token unasked."""
    done = run_there(head, project, "run", "tiny.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "plan of tiny" in done.stdout


def run_there(
    head: Head, project: Path, *arguments: str, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """A command that joins the cluster. An environment variable that is None is not set."""
    given = {**head.environment, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": head.cluster}
    given |= {name: value for name, value in environment.items() if value is not None}
    places = ("--cache", str(project / "cache"), "--runs", str(project / "runs"))
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments, *places],
        cwd=project,
        env={name: value for name, value in given.items() if environment.get(name, "") is not None},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
@pytest.mark.parametrize("home", ["/proc", "/nowhere", None])
def test_whole_runs_and_jobs_with_every_kind_of_home(
    head: Head, project: Path, new_cache: Callable[[Path], Path], home: str | None
) -> None:
    """Read-only, missing and not set; the other tests have a fresh one."""
    new_cache(project / "cache")
    given = {"RAY_AUTH_TOKEN_PATH": f"{head.folder}/.ray/auth_token", "HOME": home}
    done = run_there(head, project, "run", "tiny.yaml", **given)
    assert done.returncode == 0, done.stderr
    assert (project / "runs/tiny/artifact/manifest.json").is_file()
    submit = ("submit", "tiny.yaml", "knowledge", "--address", head.address)
    done = run_there(head, project, *submit, **given, RAY_ADDRESS=None)
    assert done.returncode == 0, done.stderr


def test_what_makes_the_working_directory_large_is_named_before_anything_is_sent(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ray's rules for what travels, to the byte."""
    monkeypatch.chdir(project)
    (project / "photos").mkdir()
    (project / "photos/.gitignore").write_text("*.tmp\n", "utf-8")
    for name in ("photos/a.bin", "photos/b.tmp", "model.bin", ".git/pack", "my runs/old", "left"):
        (project / name).parent.mkdir(exist_ok=True)
        with (project / name).open("wb") as file:
            file.truncate(60_000_000)  # takes no room
    (project / ".rayignore").write_text("/left\n", "utf-8")
    given = (Path("tiny.yaml"), "run", [], "/shared/cache", str(project / "my runs"))
    with pytest.raises(InputError) as refusal:
        prepare_job(*given)
    assert str(refusal.value).startswith(
        f"{project}: must be smaller than 105 MB to be uploaded (got 120 MB; largest: "
    )
    for words in ("photos/ 60 MB", "model.bin 60 MB", ".rayignore"):
        assert words in str(refusal.value)
    (project / "model.bin").unlink()
    job = prepare_job(*given)
    assert job.parcel.is_large
    assert str(job.parcel).startswith("60 MB; largest: photos/ 60 MB, ")
    packed = project.parent / "packed.zip"
    excludes = [*get_runtime_env_default_excludes(), *job.excludes]
    create_package(str(project), packed, include_gitignore=True, excludes=excludes)
    assert job.parcel.packed == packed.stat().st_size


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "tuning.workers=99",
            "error: tuning.workers: 99 with 0.25 CPUs .* 2 CPUs and 0 GPUs; 8 w",
        ),
        ("knowledge.llm.pool=gpus", "error: knowledge.llm.pool: no node advertises .* 'gpus'; the"),
    ],
)
def test_what_the_cluster_has_no_room_for_is_refused_before_anything_is_sent(
    head: Head, project: Path, override: str, words: str
) -> None:
    asks = ("--set", "knowledge.questions.per_category=1")
    code, output = end(start(head, project, "tiny.yaml", *asks, "--set", override))
    assert code == 2, output
    assert re.match(words, output)
    assert output.count("\n") == 1


def refused(process: subprocess.Popen[str], words: str) -> None:
    code, output = end(process)
    assert code == 2, output
    assert words in output
    assert output.startswith("error: ")
    assert output.count("\n") == 1


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address where nobody answers, and an environment that names none, and no token."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    [port] = _free_ports(1)
    return f"http://127.0.0.1:{port}"


def test_no_cluster_answers(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(address: str | None = None) -> str:
        with pytest.raises(InputError) as error:
            JobServer(address)
        return str(error.value)

    assert refusal(nowhere).startswith(f"{nowhere}: no job server of a Ray cluster answers there")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert refusal().startswith("RAY_ADDRESS: '127.0.0.1:6379' is not the address of a job server")
    monkeypatch.setenv("RAY_ADDRESS", nowhere)
    assert refusal().startswith(f"{nowhere}: ")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"{nowhere}/server/")
    assert refusal().startswith(f"{nowhere}/server: ")


class OldServer(BaseHTTPRequestHandler):
    """What a cluster of another Ray says of itself."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"version": "4", "ray_version": "2.9.3", "ray_commit": "x"}')

    def log_message(self, *_: object) -> None: ...


class NewServer(OldServer):
    """That of a cluster whose head reports itself only when asked for the second time."""

    nodes: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        answer: dict[str, Any] = {"version": "4", "ray_version": ray.__version__, "ray_commit": "x"}
        if self.path.startswith("/api/v0/nodes"):
            answer = {"data": {"result": {"result": list(self.nodes)}}}
            self.nodes.append({"state": "ALIVE", "resources_total": {"CPU": 2.0}, "labels": {}})
        elif self.path == "/api/cluster_status":
            answer = {"data": {"clusterStatus": None}}
        self.wfile.write(json.dumps(answer).encode())


@pytest.mark.usefixtures("nowhere")
def test_a_cluster_that_has_just_begun_is_waited_for() -> None:
    server = HTTPServer(("127.0.0.1", 0), NewServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        there = JobServer(f"http://127.0.0.1:{server.server_port}").resources()
    finally:
        server.shutdown()
    assert there == Resources((Node(2, 0),))


@pytest.mark.usefixtures("nowhere")
def test_a_cluster_of_another_ray() -> None:
    server = HTTPServer(("127.0.0.1", 0), OldServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(InputError, match=r"runs Ray 2\.9\.3, but here is 2\.\d+\.\d+; install ray"):
        JobServer(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_the_entry_point_says_all_that_was_asked_for(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("DATAFREE_CACHE", "/shared/a b")
    job = prepare_job(Path("tiny.yaml"), "run", ["seeds=[0, 1]"], None, str(project / "my runs"))
    assert job.arguments == [
        *("-m", "orchestrator", "run", "tiny.yaml", "--set", "seeds=[0, 1]"),
        *("--cache", "/shared/a b", "--runs", f"{project}/my runs"),
    ]
    assert job.excludes == ["/my runs"]
    assert {Path(package).name for package in job.packages} == {
        *("orchestrator", "workers", "prompt_tuning")
    }
    monkeypatch.chdir(ROOT)
    inside = prepare_job(Path("configs/quickstart.yaml"), "run", [], None, "/shared/runs")
    assert inside.packages == []
