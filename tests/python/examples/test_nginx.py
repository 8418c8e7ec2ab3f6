"""Tests of the TLS proxy of examples/nginx in front of hybrid-rt-serve."""

from __future__ import annotations

import grp
import http.client
import json
import os
import pwd
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.serving import Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.service]

NAME = "detect.example.com"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
MAIN = """
daemon off;
user {user};
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/example.conf;
}}
"""


@dataclass
class Proxy:
    """nginx for a client that trusts its certificate and uses its host name."""

    port: int
    certificate: Path
    server: Server

    def request(self, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> tuple[int, bytes]:
        trusted = ssl.create_default_context(cafile=str(self.certificate))
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection = http.client.HTTPConnection(NAME)
        connection.sock = trusted.wrap_socket(raw, server_hostname=NAME)
        try:
            connection.request("GET" if body is None else "POST", path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def example(upstream: int, port: int, certificate: Path, key: Path) -> str:
    """Returns the example's file with other ports and another certificate, and no other changes."""
    text = (ROOT / "examples" / "nginx" / "hybrid-rt-serve.conf").read_text()
    for pattern, value in (
        (r"server 127\.0\.0\.1:8080;", f"server 127.0.0.1:{upstream};"),
        (r"listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        (r"ssl_certificate /\S+;", f'ssl_certificate "{certificate}";'),
        (r"ssl_certificate_key /\S+;", f'ssl_certificate_key "{key}";'),
    ):
        text, count = re.subn(pattern, value, text)
        assert count == 1, pattern
    return text


@pytest.fixture(scope="module")
def proxy(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    assert NGINX is not None, "install the packages of tools/debian/tests.txt"
    directory = tmp_path_factory.mktemp("nginx")
    certificate, key, port = directory / "tls.pem", directory / "tls.key", free_port()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    with serving(demo_bundle, allowed_host=NAME, warm_up="96x96") as server:
        (directory / "example.conf").write_text(example(server.port, port, certificate, key))
        user = f"{pwd.getpwuid(os.geteuid()).pw_name} {grp.getgrgid(os.getegid()).gr_name}"  # owner of the directory
        (directory / "nginx.conf").write_text(MAIN.format(directory=directory, user=user))
        process = subprocess.Popen(
            [NGINX, "-e", "stderr", "-c", directory / "nginx.conf"], stderr=subprocess.PIPE, text=True
        )
        try:
            wait_for(port, process)
            yield Proxy(port, certificate, server)
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=60)
        assert "[emerg]" not in errors, errors


def wait_for(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail("nginx did not listen")


def test_detections_through_tls_are_those_of_the_service(proxy: Proxy, demo_image_path: Path) -> None:
    image = demo_image_path.read_bytes()
    status, body = proxy.request("/v1/detect", image, {"Content-Type": "image/png"})
    assert status == 200, body
    assert json.loads(body)["pictures"] == proxy.server.detect(image).json()["pictures"]


def test_a_client_without_the_certificate_is_refused(proxy: Proxy) -> None:
    raw = socket.create_connection(("127.0.0.1", proxy.port), timeout=60)
    with raw, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(raw, server_hostname=NAME)


@pytest.mark.parametrize(
    ("origin", "status"), [(f"https://{NAME}", 200), ("https://attacker.example", 403), ("null", 403)]
)
def test_the_page_is_of_the_name_that_clients_use(
    proxy: Proxy, demo_image_path: Path, origin: str, status: int
) -> None:
    headers = {"Content-Type": "image/png", "Origin": origin}
    assert proxy.request("/v1/detect", demo_image_path.read_bytes(), headers)[0] == status


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [("/metrics", 0, 403), ("/v1/reload", 0, 403), ("/healthz", None, 200), ("/v1/detect", 33 << 20, 413)],
)
def test_routes_that_the_proxy_hides(proxy: Proxy, path: str, length: int | None, status: int) -> None:
    """A body that is too large is refused from its headers."""
    headers = {} if length is None else {"Content-Length": str(length)}
    assert proxy.request(path, None if length is None else b"", headers)[0] == status
