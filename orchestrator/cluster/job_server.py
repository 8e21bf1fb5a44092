"""The job server of a Ray cluster: submit a job, follow and stop it."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from orchestrator.cluster.resources import Resources, ray_node
from orchestrator.cluster.token import find_token, given_mode, refusal
from orchestrator.errors import InputError
from workers.autoscaler import adds_nodes

if TYPE_CHECKING:
    from ray.job_submission import JobDetails
    from requests import Response

    from orchestrator.cluster.job import Job

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_HEAD_REPORTS_WITHIN_S = 10.0
_NO_SUCH_PROGRAM = 127


class _Refused(RuntimeError):
    """An error response of the job server, with its HTTP status."""

    def __init__(self, answer: Response) -> None:
        super().__init__(f"the job server answered {answer.status_code}: {answer.text}")
        self.status = answer.status_code


class _Client(JobSubmissionClient):
    def _raise_error(self, r: Response) -> NoReturn:
        raise _Refused(r)


class JobServer:
    """The job server of a cluster: at `address`, or as the environment says, or on this machine.

    Raises InputError when no job server answers, its Ray version differs, or it lacks a job.
    """

    def __init__(self, address: str | None) -> None:
        self.address = (address or _address()).rstrip("/")
        # Otherwise Ray prefers the environment to the address it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        try:
            _check_reachable(self.address)
            self._client = _client(self.address)
            theirs = str(self._get("/api/version")["ray_version"])
        except InputError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, AssertionError):
            raise InputError(
                f"{self.address}: no job server of a Ray cluster answers there; name the head's, "
                f"such as --address {DEFAULT_ADDRESS}"
            ) from None
        if theirs != ray.__version__:
            raise InputError(
                f"{self.address}: the cluster runs Ray {theirs}, but here is {ray.__version__}; "
                f"install ray=={theirs} here, or {ray.__version__} there"
            )

    def resources(self) -> Resources:
        """The nodes of the cluster that are up. A new head may take a while to report itself."""
        end = time.monotonic() + _HEAD_REPORTS_WITHIN_S
        while True:
            nodes = self._get("/api/v0/nodes?detail=true&limit=10000")["data"]["result"]["result"]
            up = [
                ray_node(node["resources_total"], node["labels"])
                for node in nodes
                if node["state"] == "ALIVE"
            ]
            if up or time.monotonic() > end:
                status = self._get("/api/cluster_status")["data"]["clusterStatus"]
                return Resources(tuple(up), adds_nodes(status or {}))
            time.sleep(0.5)

    def submit(self, job: Job) -> str:
        """Upload the working directory, start the job, return its name. Raises InputError."""
        try:
            environment: dict[str, Any] = {}
            if job.packages:  # Ray fails on an empty list
                # Uploaded before `excludes` is set, which is for the working directory only.
                environment["py_modules"] = job.packages
                self._client._upload_py_modules_if_needed(environment)
            environment |= {"working_dir": os.getcwd(), "excludes": job.excludes}
            name: str = self._client.submit_job(
                entrypoint=shlex.join([self._python(), *job.arguments]), runtime_env=environment
            )
        except _Refused as refusal:
            if refusal.status != 413:
                raise
            raise InputError(
                f"{self.address}: the working directory {os.getcwd()} is too large for the server: "
                f"{job.parcel}"
            ) from None
        return name

    def _python(self) -> str:
        """The Python that runs Ray on the head, which need not be on a job's PATH."""
        end = time.monotonic() + _HEAD_REPORTS_WITHIN_S
        while True:
            nodes = self._get("/nodes?view=summary")["data"]["summary"]
            heads = [node for node in nodes if node.get("raylet", {}).get("isHeadNode")]
            # Empty until the head has reported itself.
            for argument in (heads[0].get("cmdline") or []) if heads else []:
                if argument.startswith("--python_worker_command="):
                    return shlex.split(argument.partition("=")[2])[0]
            if time.monotonic() > end:
                return "python"
            time.sleep(0.5)

    def _get(self, path: str) -> Any:
        return self._client._do_request("GET", path).json()

    def details(self, name: str) -> JobDetails:
        """The server's record of a job."""
        try:
            return self._client.get_job_info(name)
        except _Refused as refusal:
            if refusal.status != 404:
                raise
            raise InputError(f"{name}: {self.address} has no such job") from None

    def follow(self, name: str) -> JobDetails:
        """Print the lines of a job's log until the job ends."""
        self.details(name)
        asyncio.run(self._print_log(name))
        return self._end_of(name)

    async def _print_log(self, name: str) -> None:
        async for lines in self._client.tail_job_logs(name):
            sys.stdout.write(lines)
            sys.stdout.flush()

    def stop(self, name: str) -> JobDetails:
        """Stop a job and wait until it has ended."""
        self.details(name)
        self._client.stop_job(name)
        return self._end_of(name)

    def _end_of(self, name: str) -> JobDetails:
        while not (details := self.details(name)).status.is_terminal():
            time.sleep(0.2)
        return details


def _client(address: str) -> JobSubmissionClient:
    """Connect, with a token if necessary. Raises InputError when the token is missing or wrong."""
    mode = given_mode()
    token = None if mode == "disabled" else find_token()
    try:
        try:
            return _Client(address)
        except AuthenticationError:
            if not token:
                raise
            # Sent only on request, so that no other server learns the token.
            return _Client(address, headers={"Authorization": f"Bearer {token.value}"})
    except AuthenticationError:
        raise refusal(address, mode, token) from None


def _address() -> str:
    """The job server that the environment names, or the one on this machine."""
    server = os.environ.get("RAY_API_SERVER_ADDRESS")
    if server:
        return server
    cluster = os.environ.get("RAY_ADDRESS")
    if not cluster:
        return DEFAULT_ADDRESS
    if not cluster.startswith(("http://", "https://")):
        raise InputError(
            f"RAY_ADDRESS: {cluster!r} is not the address of a job server; name it by --address, "
            f"such as {DEFAULT_ADDRESS}"
        )
    return cluster


def _check_reachable(address: str) -> None:
    """Raise OSError when nothing listens at the URL's port. Ray itself would retry for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def outcome(details: JobDetails) -> tuple[str, int]:
    """A line with the state of a job, and the matching exit code."""
    name, code = details.submission_id, details.driver_exit_code
    if details.status != "FAILED":
        return f"{name}: {details.status.lower()}", 0 if details.status == "SUCCEEDED" else 1
    if code == 2:
        return f"{name}: failed: invalid input (exit code 2)", 2
    if code == _NO_SUCH_PROGRAM:
        return (
            f"{name}: failed: the cluster does not have its command; activate the environment that "
            "has it before `ray start`",
            1,
        )
    if code is not None:
        return f"{name}: failed with exit code {code}", 1
    reason = (details.message or "no reason given").strip().splitlines()
    return f"{name}: failed before it began: {reason[-1][:500]}", 1


def describe_job(details: JobDetails) -> str:
    """A line with a job's state, start and command."""
    state, _ = outcome(details)
    began = ""
    if details.start_time:
        began = f", started {datetime.fromtimestamp(details.start_time / 1000):%Y-%m-%d %H:%M:%S}"
    return f"{state}{began}: {details.entrypoint}"
