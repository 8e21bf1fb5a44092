"""`datafree serve`: tags over HTTP, by Ray Serve, until the command is stopped."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ray import serve as ray_serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig
from rich.console import Console

from orchestrator.cluster.connect import connect, disconnect
from orchestrator.cluster.placement import place
from orchestrator.cluster.resources import find_resources
from orchestrator.errors import InputError, as_input_error
from orchestrator.pages.html import page_template
from orchestrator.tagging.review import prepared_review
from prompt_tuning.backbones import fetch_weights
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.starter import artifact_folder
from workers.failure import DescribedFailure
from workers.serving.app import build_app
from workers.serving.deployment import APPLICATION, MODEL, Lifeline, application
from workers.serving.http_server import HttpServer, http_server
from workers.serving.limits import Limits
from workers.serving.review.session import ReviewFolder
from workers.serving.traffic import Traffic
from workers.waiting import Waiting

_POLL_S = 1.0
_SECONDS_BETWEEN_REPORTS = 30.0
# Together with the shutdown after them, well within the 30 s after which Kubernetes kills.
_DRAIN_S = 15.0


def serve_artifacts(
    artifacts: list[str],
    *,
    cache: Path,
    console: Console,
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    replicas: tuple[int, int] | None = None,
    limits: Limits = Limits(),
    review: Path | None = None,
) -> None:
    """Check the arguments, start Ray Serve, print the address, and serve until KeyboardInterrupt.

    `artifacts`: as in `named_folders`. `token`: required unless `host` is this machine.
    `replicas`: copies of the models, at least and at most; by default one per GPU, or two on CPUs.
    `review`: a folder of images to review, for one artifact (see `prepared_review`).

    Raises:
        InputError: for a mistake in the arguments.
        DescribedFailure: when the service does not start, or ends on its own.
        KeyboardInterrupt: when it is stopped, after the requests under way.
    """
    folders = named_folders(artifacts)
    if review and len(folders) > 1:
        raise InputError(f"--review: takes one artifact (got {len(folders)})")
    for folder in folders.values():
        with as_input_error():
            fetch_weights(Artifact.load(folder).vlm_settings)
    hosts = _allowed_hosts(host, token)
    with ExitStack() as held:
        listening = held.enter_context(_listening(host, port))
        reviewed = None
        if review:
            [(name, folder)] = folders.items()
            reviewed = held.enter_context(prepared_review(review, folder, console))
            folders = {name: reviewed.improved}
        _serve(folders, reviewed, hosts, cache, console, listening, token, replicas, limits)


def _serve(
    folders: dict[str, Path],
    review: ReviewFolder | None,
    hosts: list[str],
    cache: Path,
    console: Console,
    listening: socket.socket,
    token: str | None,
    replicas: tuple[int, int] | None,
    limits: Limits,
) -> None:
    resources = find_resources()
    gpus = 1 if resources.gpus else 0
    if replicas is None:
        # Two on CPUs, so that one answers while the other restarts.
        count = resources.gpus or min(2, max(1, resources.cpus))
        replicas = count, count
    least, most = replicas
    # Those that come later need room as well; some may wait for nodes that a cluster adds.
    at_once = max(least, min(most, resources.holds(1, gpus)))
    cpus = int(place(at_once, gpus, resources, "--replicas"))
    with ExitStack() as running:
        running.callback(disconnect)
        console.print("Starting Ray")
        # Each turn of its loop costs, also while nothing happens; its default is 0.1 s.
        os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")
        connect(resources.cpus, resources.gpus, dashboard=False)
        now = ray_serve.status()
        if now.proxies or now.applications:
            raise InputError(
                "RAY_ADDRESS: Ray Serve already runs on this cluster; stop it with "
                "`serve shutdown --yes` on the head node, or use another cluster"
            )
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
        if os.environ.get("RAY_ADDRESS"):  # else Ray ends here, with all of it
            running.callback(ray_serve.shutdown)
        ray_serve.start(proxy_location="Disabled", logging_config=quiet)
        lifeline: Any = Lifeline
        lifeline = lifeline.remote()
        service = application(folders, cache, replicas, cpus, gpus, limits, lifeline)
        each = f"{cpus} CPU{'s' if cpus > 1 else ''}" + (f" and {gpus} GPU" if gpus else "")
        many = f"{least}" if least == most else f"{least} to {most}"
        console.print(f"Loading the models: {many} replicas with {each} each")
        [handle] = ray_serve.run_many(
            [
                ray_serve.RunTarget(
                    service, name=APPLICATION, route_prefix=None, logging_config=quiet
                )
            ],
            wait_for_applications_running=False,
        )
        app = build_app(handle, list(folders), _pages(limits, review), token, hosts, limits, review)
        server = running.enter_context(http_server(app, listening, limits))
        _wait_until_ready(least, Waiting("serve", {"CPU": cpus, "GPU": gpus}), console)
        host, port = listening.getsockname()[:2]
        url = f"http://{_in_url(host)}:{port}"
        if review:
            console.print(f"Review {review.folder} at {url}/review", soft_wrap=True, markup=False)
        console.print(f"Serving {', '.join(folders)} at {url} (Ctrl-C stops)", soft_wrap=True)
        try:
            while True:
                time.sleep(_POLL_S)
                _status()
                server.check()
        except KeyboardInterrupt:
            _drain(app, server, console)
            raise


def _pages(limits: Limits, review: ReviewFolder | None) -> dict[str, str]:
    """The HTML of each page, by path."""
    count = len(review.files) if review else 0
    pages = {
        "/": page_template("service.html.j2").render(
            image_bytes=limits.image_bytes, review_images=count
        )
    }
    if review:
        pages["/review"] = page_template("review.html.j2").render(
            folder=review.folder.name.encode("utf-8", "replace").decode(),
            artifact_folder=review.improved.name,
        )
    return pages


def named_folders(artifacts: list[str]) -> dict[str, Path]:
    """The artifacts' folders by the names that requests use, in order.

    The name is the part before `=`, else the folder's own name, or the run's name where the folder
    is called `artifact`, as in runs. `starter` is the packaged artifact.

    Raises:
        InputError: for two artifacts with the same name.
    """
    folders: dict[str, Path] = {}
    for given in artifacts:
        name, _, rest = given.partition("=")
        folder = artifact_folder(given).absolute()
        if name and rest and not folder.exists():
            folder = artifact_folder(rest).absolute()
        else:
            name = folder.parent.name if folder.name == "artifact" else folder.name
        if name in folders:
            raise InputError(
                f"{given}: another artifact is already named {name}; choose a name: NAME={folder}"
            )
        folders[name] = folder
    return folders


def _allowed_hosts(host: str, token: str | None) -> list[str]:
    """Host names that requests may use. Raises InputError when a token is required and missing."""
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if is_local and not token:
        return ["localhost", "127.0.0.1", _in_url(host)]
    if not token:
        raise InputError(
            f"--host: {host} can be reached from other machines, which requires a token; set "
            "DATAFREE_TOKEN or --token"
        )
    return ["*"]


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound. Raises InputError when the port cannot be listened on."""
    with ExitStack() as open_now:
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            bound = open_now.enter_context(socket.socket(family, socket.SOCK_STREAM))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError as error:
            raise InputError(
                f"--port: cannot listen on {host}:{port} ({error.strerror}); "
                "choose another port or host"
            ) from None
        yield bound


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _status() -> ApplicationStatusOverview:
    """The state of the service. Raises DescribedFailure when it has ended."""
    status = ray_serve.status().applications.get(APPLICATION)
    if status is None:
        raise DescribedFailure(
            "the service was stopped by another process, such as `serve shutdown`"
        )
    if status.status == ApplicationStatus.DEPLOY_FAILED:
        raise DescribedFailure(
            f"Ray Serve could not start the models: {' '.join(status.message.split())}"
        )
    return status


def _wait_until_ready(replicas: int, waiting: Waiting, console: Console) -> None:
    """Print the progress until all models are ready. Raises DescribedFailure when it ends."""
    begun = last_ready = reported = time.monotonic()
    ready = 0
    while (status := _status()).status != ApplicationStatus.RUNNING:
        states = status.deployments[MODEL].replica_states
        running = sum(count for state, count in states.items() if state == "RUNNING")
        now = time.monotonic()
        line = f"{running} of {replicas} replicas are ready after {now - begun:.0f} s"
        if running > ready:
            console.print(line)
            ready, last_ready, reported = running, now, now
        elif now - reported > _SECONDS_BETWEEN_REPORTS:
            console.print(waiting.describe(now - last_ready, f"{line}; {{}}".format))
            reported = now
        time.sleep(_POLL_S)
    seconds = time.monotonic() - begun
    console.print(f"{replicas} of {replicas} replicas are ready after {seconds:.0f} s")


def _drain(app: Traffic, server: HttpServer, console: Console) -> None:
    """Let the requests under way finish, and refuse new ones."""
    console.print(f"Stopping: requests under way have {_DRAIN_S:g} s to finish")
    try:
        server.wait_for(app.drain(), _DRAIN_S)
    except TimeoutError:
        console.print(f"Requests that took longer than {_DRAIN_S:g} s are cut off")
