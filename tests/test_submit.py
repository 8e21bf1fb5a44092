"""`datafree submit` to a real job server that asks for a token: what runs, what is refused."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from orchestrator.config_file import InputError
from orchestrator.submit import JobServer, prepare_job

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
NOT_OURS = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "DATAFREE_CACHE", "DATAFREE_RUNS")


@dataclass(frozen=True)
class Head:
    """A head node with a job server; `environment`: of those who may talk to it."""

    address: str
    folder: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    ports = _free_ports(4)
    environment = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 2,
        # A job's `python` is ours; its packages have to travel.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short, for sockets
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
            yield Head(address, Path(folder), environment)
        finally:
            for member in psutil.Process(process.pid).children(recursive=True):
                member.kill()
            process.kill()
            process.wait()


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


def test_a_run_is_followed_to_its_artifact(head: Head, project: Path) -> None:
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
    left.send_signal(signal.SIGINT)
    code, output = end(left)
    assert code == 130
    assert f"{name}: goes on without you" in output
    assert "Traceback" not in output
    follower = start(head, project, "logs", name, folders=False)
    code, output = ask(head, project, "status", name)
    assert code == 0
    assert re.match(rf"{name}: running, begun 20.*: python -m orchestrator run tiny.yaml", output)
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


def test_a_person_s_mistake_that_only_the_cluster_sees_exits_2_and_is_told_once(
    head: Head, project: Path
) -> None:
    wrong = ("--set", "captions.files=[/nowhere.tsv]", "--cache", f"{project}/cache")
    here = ("configs/quickstart.yaml", *wrong, "--runs", f"{project}/runs")
    code, output = end(start(head, ROOT, *here, folders=False))  # whose packages travel as they are
    assert code == 2, output
    assert output.count("captions.files: '/nowhere.tsv' is no file") == 1
    assert output.splitlines()[-1] == f"{name_of(output)}: failed, for what it was given is wrong"


def test_a_failure_exits_1(head: Head, project: Path) -> None:
    (project / "cache").mkdir()
    (project / "cache/knowledge").touch()
    code, output = end(start(head, project, "tiny.yaml", "knowledge"))
    assert code == 1, output
    assert "failed: " in output
    assert output.splitlines()[-1] == f"{name_of(output)}: failed with exit code 1"


def test_the_plain_command_of_the_page(head: Head, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    [command] = re.findall(r"^ray job submit .*$", page, re.M)
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
    ("tiny.yaml hierarchy.groups=no.yaml", "hierarchy.groups: 'no.yaml' is no file"),
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


def test_a_cluster_that_asks_for_a_token(head: Head, project: Path) -> None:
    words = "this cluster asks for a token: set RAY_AUTH_MODE=token"
    refused(start(head, project, "tiny.yaml", RAY_AUTH_MODE="disabled"), words)


def test_a_working_directory_that_is_too_large(head: Head, project: Path) -> None:
    (project / "photos.bin").write_bytes(random.Random(0).randbytes(101 * 2**20))
    refused(start(head, project, "tiny.yaml"), f"{project}: is too large to travel")


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
    code, output = end(start(head, project, "tiny.yaml", "--set", override))
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
    """An address where nobody answers, and an environment that names none."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone
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
    assert job.entrypoint == (
        "python -m orchestrator run tiny.yaml --set 'seeds=[0, 1]' --cache '/shared/a b' "
        f"--runs '{project}/my runs'"
    )
    assert job.excludes == ["/my runs"]
    assert {Path(package).name for package in job.packages} == {
        *("orchestrator", "workers", "prompt_tuning")
    }
    monkeypatch.chdir(ROOT)
    inside = prepare_job(Path("configs/quickstart.yaml"), "run", [], None, "/shared/runs")
    assert inside.packages == []
