"""`configs/nginx.conf` with a real nginx and the service's HTTP front: TLS, ids, sizes, pages."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from prompt_tuning.tagging.tagger import Tag
from workers.serving.app import build_app
from workers.serving.http_server import http_server
from workers.serving.limits import Limits
from workers.serving.model import TaggedImage

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(not (NGINX and OPENSSL), reason="nginx or openssl is missing")

CONFIG = Path(__file__).parent.parent / "configs" / "nginx.conf"
RIGHT = {"Authorization": "Bearer s3cret"}


class Models:
    """Ray Serve's handle of models that tag each image with its size."""

    def options(self, **_: Any) -> Any:
        return SimpleNamespace(remote=self._tag)

    async def _tag(self, _: str, image: bytes, __: object) -> TaggedImage:
        return TaggedImage("v1", [Tag(str(len(image)), 1.0)])


def bound() -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", 0))
    return one


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Sends to nginx, and knows its certificate."""
    folder = tmp_path_factory.mktemp("nginx")
    certificate, key = folder / "datafree.crt", folder / "datafree.key"
    made = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=tags.example -addext"
    named = ["subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([str(OPENSSL), *made.split(), *named], check=True, capture_output=True)
    with bound() as free:
        port = free.getsockname()[1]
    handle: Any = Models()
    limits = Limits(receive_seconds=300, seconds=300)  # however slow this machine is
    app = build_app(handle, ["all"], {"/": "<!doctype html>"}, "s3cret", ["*"], limits)
    with bound() as listening, http_server(app, listening, limits):
        text = CONFIG.read_text()
        for there, here in (
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("127.0.0.1:8080", f"127.0.0.1:{listening.getsockname()[1]}"),
            ("/etc/ssl/datafree.crt", str(certificate)),
            ("/etc/ssl/datafree.key", str(key)),
        ):
            assert there in text
            text = text.replace(there, here)
        (folder / "datafree.conf").write_text(text)
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"pid {folder}/pid; daemon off; error_log stderr; worker_processes 1; events {{}}\n"
            f"http {{ access_log off; {temporary} include {folder}/datafree.conf; }}\n"
        )
        # As root its worker is another user, who may not enter pytest's folders.
        command = [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")]
        if os.geteuid() == 0:
            command += ["-g", "user root;"]
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            trusted = ssl.create_default_context(cafile=str(certificate))
            with httpx.Client(
                base_url=f"https://127.0.0.1:{port}", verify=trusted, timeout=300
            ) as through:
                yield through
        finally:
            process.terminate()
            process.wait(60)


def test_tags_come_through_tls(client: httpx.Client) -> None:
    body = {"images": b"x" * 1234, "something else": bytes(90_000_000)}
    answer = client.post("/tag", files=body, headers=RIGHT)
    assert answer.status_code == 200, answer.text
    assert answer.json()["images"][0]["tags"][0]["name"] == "1234"
    assert len(answer.headers["x-request-id"]) == 32  # nginx's
    assert client.get("/").text == "<!doctype html>"


def test_refusals_are_the_services_own_up_to_the_largest_body(client: httpx.Client) -> None:
    body = {"files": {"images": b"x" * 21_000_000}}
    assert "at most 20 MB" in client.post("/tag", headers=RIGHT, **body).json()["error"]  # type: ignore[arg-type]
    assert client.post("/tag", files={"images": b"x"}).status_code == 401
    most = Limits().request_bytes
    assert f"client_max_body_size {most // 1_000_000}m;" in CONFIG.read_text()


def test_only_the_services_own_page_may_post(client: httpx.Client) -> None:
    for origin, status in ((str(client.base_url), 200), ("https://elsewhere.example", 403)):
        headers = RIGHT | {"Origin": origin.rstrip("/")}
        answer = client.post("/tag", files={"images": b"x"}, headers=headers)
        assert answer.status_code == status, answer.text
