"""`serve`: check what is asked, start Ray Serve, say where, stay until stopped."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig
from rich.console import Console

from orchestrator.cluster.connect import connect, disconnect
from orchestrator.cluster.placement import place
from orchestrator.cluster.resources import find_resources
from orchestrator.errors import InputError
from orchestrator.pages.run_page import page_template
from prompt_tuning.backbones.base import fetch_weights
from prompt_tuning.tagging.artifact import Artifact
from workers.failure import DescribedFailure
from workers.serving.app import APPLICATION, MODEL, Lifeline, application
from workers.serving.requests import Limits
from workers.waiting import Waiting

_LOOK_EACH_S = 0.5
_SPEAK_EACH_S = 30.0
# With what follows, well within the 30 s after which Kubernetes kills.
_DRAIN_S = 15.0
_PASS_ON_S = 1.0


@dataclass(frozen=True)
class ServeOptions:
    """What is asked. `artifacts`: folders, or NAME=FOLDER; `replicas`: of the model."""

    artifacts: list[str]
    host: str
    port: int
    token: str | None
    replicas: int | None
    cache: Path
    limits: Limits = field(default_factory=Limits)


def serve(options: ServeOptions, console: Console) -> None:
    """Serve artifacts until KeyboardInterrupt.

    Raises:
        InputError: for what a person has to change.
        DescribedFailure: when the service does not start, or ends without this command.
        KeyboardInterrupt: when it is stopped, after the requests under way.
    """
    folders = named_folders(options.artifacts)
    for folder in folders.values():
        _check_artifact(folder)
    hosts = _hosts(options)
    _check_port(options)
    resources = find_resources()
    gpus = 1 if resources.gpus else 0
    # Two on CPUs, for one that dies.
    replicas = options.replicas or resources.gpus or min(2, max(1, resources.cpus))
    cpus = int(place(replicas, gpus, resources, "--replicas"))
    front: DeploymentHandle | None = None
    started = False
    try:
        console.print("Starting Ray")
        connect(resources.cpus, resources.gpus)
        if ray_serve.status().proxies:
            raise InputError(
                "RAY_ADDRESS: Ray Serve runs on this cluster already, at a port of its own; "
                "end it with Ray's `serve shutdown --yes` on the head node, or name another cluster"
            )
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
        started = True
        ray_serve.start(
            proxy_location="HeadOnly",
            http_options={"host": options.host, "port": options.port},
            logging_config=quiet,
        )
        lifeline: Any = Lifeline
        service = application(
            folders,
            options.cache,
            page_template("service.html.j2").render(image_bytes=options.limits.image_bytes),
            options.token,
            hosts,
            replicas,
            cpus,
            gpus,
            options.limits,
            lifeline.remote(),
        )
        each = f"{cpus} CPU{'s' if cpus > 1 else ''}" + (f" and {gpus} GPU" if gpus else "")
        console.print(f"Loading the models: {replicas} replicas with {each} each")
        [handle] = ray_serve.run_many(
            [ray_serve.RunTarget(service, name=APPLICATION, logging_config=quiet)],
            wait_for_applications_running=False,
        )
        _wait_until_ready(replicas, Waiting("serve", {"CPU": cpus, "GPU": gpus}), console)
        front = handle
        where = f"http://{_in_url(options.host)}:{options.port}"
        console.print(f"Serving {', '.join(folders)} at {where} · Ctrl-C ends it", soft_wrap=True)
        while True:
            time.sleep(_LOOK_EACH_S)
            _status()
    except KeyboardInterrupt:
        if front:
            _drain(front, console)
        raise
    finally:
        if started and os.environ.get("RAY_ADDRESS"):  # else Ray ends here, with all of it
            ray_serve.shutdown()
        disconnect()


def named_folders(artifacts: list[str]) -> dict[str, Path]:
    """The artifacts' folders by the names that requests have for them, in order.

    A name is what stands before `=`, else the folder's own; the run's, where the folder is named
    `artifact`, as runs leave it.

    Raises:
        InputError: for two of one name.
    """
    folders: dict[str, Path] = {}
    for given in artifacts:
        name, folder = _named(given)
        if name in folders:
            raise InputError(f"{given}: a second artifact named {name}; name it: NAME={folder}")
        folders[name] = folder
    return folders


def _named(given: str) -> tuple[str, Path]:
    name, equals, rest = given.partition("=")
    if equals and name and not Path(given).exists():
        return name, Path(rest).absolute()
    folder = Path(given).absolute()
    return (folder.parent.name if folder.name == "artifact" else folder.name), folder


def _check_artifact(folder: Path) -> None:
    """Raises InputError for one that is none, or whose model cannot be had."""
    try:
        fetch_weights(Artifact.load(folder).vlm_settings)
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from None


def _hosts(options: ServeOptions) -> list[str]:
    """What browsers may call the service by. Raises InputError when it wants a token first."""
    if _is_local(options.host):
        return ["localhost", "127.0.0.1", _in_url(options.host)]
    if not options.token:
        raise InputError(
            f"--host: {options.host} can be reached from other machines; give a token in "
            "DATAFREE_TOKEN or with --token, which requests then have to send"
        )
    return ["*"]


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_port(options: ServeOptions) -> None:
    """Raises InputError when nobody can listen there; Ray would tell it minutes later."""
    try:
        family, *_, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except OSError as error:
        raise InputError(
            f"--port: cannot listen at {options.host}:{options.port} ({error.strerror}); "
            "choose another port or host"
        ) from None


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _status() -> ApplicationStatusOverview:
    """How the service is. Raises DescribedFailure when it has ended."""
    status = ray_serve.status().applications.get(APPLICATION)
    if status is None:
        raise DescribedFailure("the service was ended from outside, as by `serve shutdown`")
    if status.status == ApplicationStatus.DEPLOY_FAILED:
        raise DescribedFailure(f"the service ended: {' '.join(status.message.split())}")
    return status


def _wait_until_ready(replicas: int, waiting: Waiting, console: Console) -> None:
    """Say how far the models are until all answer, and what they wait for.

    Raises:
        DescribedFailure: when the service has ended, or no further model comes.
    """
    begun = came = spoke = time.monotonic()
    ready = 0
    while (status := _status()).status != ApplicationStatus.RUNNING:
        states = status.deployments[MODEL].replica_states
        running = sum(count for state, count in states.items() if state == "RUNNING")
        now = time.monotonic()
        told = f"{running} of {replicas} replicas are ready after {now - begun:.0f} s"
        if running > ready:
            console.print(told)
            ready, came, spoke = running, now, now
        elif now - spoke > _SPEAK_EACH_S:
            console.print(waiting.describe(now - came, f"{told}; {{}}".format))
            spoke = now
        time.sleep(_LOOK_EACH_S)
    seconds = time.monotonic() - begun
    console.print(f"{replicas} of {replicas} replicas are ready after {seconds:.0f} s")


def _drain(front: DeploymentHandle, console: Console) -> None:
    """Let requests under way end; whoever comes now is refused."""
    console.print(f"Ending: requests under way have {_DRAIN_S:g} s")
    try:
        front.drain.remote().result(timeout_s=_DRAIN_S)
        time.sleep(_PASS_ON_S)  # Ray Serve's proxy has the last answers yet to send
    except TimeoutError:
        console.print(f"Requests that took longer than {_DRAIN_S:g} s are cut")
    except (RayActorError, RayServeException):
        pass  # the front is gone, and what it had with it
