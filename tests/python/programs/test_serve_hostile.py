"""Tests of clients that try to stop the service, or to use it through someone else's browser or proxy."""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.serving import Server, serving
from tools.dev.process_work import work_of
from tools.load.hostile_requests import (
    DETECT,
    HEALTH,
    HIDDEN,
    ODD_HEADS,
    TWO_LENGTHS,
    png_of,
    png_with_texts,
    progressive_jpeg,
    zeros,
)


@pytest.fixture(scope="module")
def server(demo_bundle: Path) -> Iterator[Server]:
    with serving(demo_bundle, max_connections=24, allowed_host="detect.example.com") as running:
        yield running


def connect(server: Server) -> socket.socket:
    return socket.create_connection((server.address, server.port), timeout=30)


def half_a_head(server: Server) -> socket.socket:
    connection = connect(server)
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    return connection


def answers(server: Server, request: bytes) -> bytes:
    """Returns everything received on one connection, until the service closes it or is silent for two seconds."""
    with connect(server) as connection:
        connection.settimeout(2)
        connection.sendall(request)
        received = b""
        try:
            while more := connection.recv(1 << 16):
                received += more
        except TimeoutError:
            pass
    return received


def is_closed(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_half_open_headers_block_nobody(server: Server) -> None:
    with ExitStack() as held:
        slow = [held.enter_context(half_a_head(server)) for _ in range(120)]
        for _ in range(10):
            assert server.request("/healthz", seconds=10).status == 200
        assert is_closed(slow[0], 10)


@pytest.mark.slow
def test_a_header_sent_byte_by_byte_gets_ten_seconds(server: Server) -> None:
    with half_a_head(server) as connection:
        end = time.monotonic() + 20
        try:
            while time.monotonic() < end and not is_closed(connection, 1):
                connection.sendall(b"x")
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert time.monotonic() < end


@pytest.mark.slow
def test_a_kept_connection_may_idle_longer_than_a_first_header(server: Server) -> None:
    with connect(server) as connection:
        for _ in range(2):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(12)


def test_clients_that_leave_during_a_body_hold_no_slot(server: Server) -> None:
    for _ in range(120):
        with connect(server) as connection:
            connection.sendall(
                b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 900000\r\n\r\n"
                + bytes(1000)
            )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if server.request("/healthz", seconds=10).status == 200:
            return
    pytest.fail("nobody was let in within ten seconds")


def test_a_client_that_has_closed_its_half_is_answered(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("request_sent", TWO_LENGTHS)
def test_a_request_of_two_lengths_is_refused_and_nothing_after_it_is_read(server: Server, request_sent: bytes) -> None:
    received = answers(server, request_sent)
    assert received.startswith(b"HTTP/1.1 400")
    assert b"expected one Content-Length or one Transfer-Encoding" in received
    assert received.count(b"HTTP/1.1") == 1
    assert server.request("/healthz").status == 200


@pytest.mark.parametrize("request_sent", ODD_HEADS)
def test_ambiguous_headers_end_their_connection(server: Server, request_sent: bytes) -> None:
    """These are refused by RFC 9112, 2.2, 3.2, 5.1, 6.1 and 6.3, and bytes that follow are not read as a request."""
    received = answers(server, request_sent)
    assert received.startswith(b"HTTP/1.1 400"), received[:100]
    # libmicrohttpd sends some of these twice before it closes the connection.
    assert set(re.findall(rb"HTTP/1\.1 (\d+)", received)) == {b"400"}, received
    assert b"Connection: close" in received


def test_leniency_that_rfc_9112_permits_is_kept(server: Server) -> None:
    """Lines may end in LF only (2.2), and a folded header is one value with a space in it (5.2)."""
    for request in (HEALTH.replace(b"\r", b"") + b"Host: x\n\n", HEALTH + b"Host: x\r\nA: b\r\n c\r\n\r\n"):
        received = answers(server, request + HIDDEN)
        assert received.count(b"HTTP/1.1 200") == 2, received
    folded = b"A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc"
    received = answers(server, DETECT + folded + HIDDEN)  # no other framing is accepted
    assert (received[:12], received.count(b" Bad Request\r\n")) == (b"HTTP/1.1 400", 1), received
    assert b"200 OK" not in received


def test_nothing_is_read_after_a_chunked_body(server: Server) -> None:
    """Readers differ in where a chunk ends, so that the response closes the connection."""
    for body in (b"3\r\nabc\r\n0\r\n\r\n", b"3\nabc\n0\n\n", b'3;a="\n"\r\nabc\r\n0\r\n\r\n'):
        received = answers(server, DETECT + b"Transfer-Encoding: chunked\r\n\r\n" + body + HIDDEN)
        assert received.count(b"HTTP/1.1 ") == 1, received
        assert b"Connection: close" in received or received.startswith(b"HTTP/1.1 400")


def test_a_query_of_as_many_arguments_as_may_be_is_answered(server: Server) -> None:
    assert server.request("/healthz?" + "&".join(["a=1"] * 64)).status == 200


@pytest.mark.parametrize(("argument", "number"), [(b"a=1", 65), (b"a", 66), (b"abc=%20", 500), (b"a", 3000)])
def test_a_query_of_too_many_arguments_is_answered(server: Server, argument: bytes, number: int) -> None:
    """The HTTP library alone sends no response when they exhaust the memory of a connection."""
    many = b"&".join([argument] * number)
    received = answers(server, b"GET /healthz?" + many + b" HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN)
    assert received.startswith(b"HTTP/1.1 414"), received[:100]
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(("workers", "is_over"), [(1, True), (3, False)])
def test_a_stuck_worker_is_abandoned(demo_bundle: Path, demo_image_path: Path, workers: int, is_over: bool) -> None:
    """Each image takes longer than the limit in this test. The process ends once every worker is stuck."""
    code = 6 if is_over else 0
    with serving(demo_bundle, exit_code=code, workers=workers, threads=1, stuck_seconds=0.001) as running:
        answer = running.detect(demo_image_path)
        assert answer.status == 503
        assert "expected a result within 1 ms, got a worker that is stuck" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "1"
        if is_over:
            said = running.wait_for("stopped")
            assert said["reason"] == "every worker is stuck"
            assert running.process.wait(30) == code
        else:
            assert running.request("/healthz").status == 200
            running.wait_for("request")
            assert [entry["status"] for entry in running.log if entry.get("event") == "request"] == [503]


def cpu_seconds(server: Server) -> float:
    return work_of(Path(f"/proc/{server.process.pid}/stat"))[0]


def test_texts_of_an_image_are_not_unpacked(server: Server) -> None:
    """Two gigabytes of texts once stopped the service for ten seconds."""
    before = cpu_seconds(server)
    answer = server.detect(png_with_texts(300))
    assert answer.status == 200
    assert cpu_seconds(server) - before < 2


def test_image_data_behind_the_last_row_is_not_unpacked(server: Server) -> None:
    """Four gigabytes of it, compressed to four megabytes, once took a worker five seconds."""
    before = cpu_seconds(server)
    answer = server.detect(png_of(96, 96, zeros(256)))
    assert answer.status == 422
    assert "more image data than its rows need" in answer.json()["detail"]
    assert cpu_seconds(server) - before < 2


def test_scans_of_an_image_are_counted(server: Server) -> None:
    """Each scan takes as long as the whole image; 498 of them once took a worker four seconds."""
    for scans, status in ((40, 200), (800, 422), (5000, 422)):
        answer = server.detect(progressive_jpeg(1100, scans))
        assert answer.status == status, answer.body
    assert "more than 500 scans" in answer.json()["detail"]


def test_no_worker_is_abandoned_within_its_limit(demo_bundle: Path, demo_image_path: Path) -> None:
    for seconds in (0, 60):
        with serving(demo_bundle, stuck_seconds=seconds) as running:
            assert [running.detect(demo_image_path).status for _ in range(3)] == [200] * 3


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://detect.example.com", "Host": "detect.example.com"}, 200),
        ({"Origin": "https://DETECT.example.com:8443", "Host": "DETECT.example.com:8443"}, 200),
        ({"Origin": "http://localhost:8080", "Host": "localhost:8080", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://[::1]:8080", "Host": "[::1]:8080"}, 200),
        ({"Origin": "http://192.168.7.7", "Host": "192.168.7.7"}, 200),
        ({"Sec-Fetch-Site": "none", "Host": "127.0.0.1"}, 200),
        ({"Host": "attacker.example"}, 200),
        ({"Origin": "http://attacker.example", "Host": "attacker.example"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Host": "attacker.example"}, 403),
        ({"Origin": "http://attacker.example", "Host": "127.0.0.1"}, 403),
        ({"Origin": "null", "Host": "127.0.0.1"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Host": "127.0.0.1"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Host": "127.0.0.1"}, 403),
    ],
)
def test_only_the_services_own_page_may_reload_from_a_browser(
    server: Server, headers: dict[str, str], status: int
) -> None:
    """A host name that an attacker resolves to this server has the same origin as the attacker's page."""
    deadline = time.monotonic() + 30
    while (answer := server.request("/v1/reload", b"", headers=headers)).status == 409:  # a reload is still running
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert answer.status == status


def test_a_name_that_is_not_utf8_is_written_as_json(demo_bundle: Path, tmp_path: Path) -> None:
    """The responses of /v1/models and /v1/reload were once never sent."""
    shutil.copy(demo_bundle, tmp_path / "menu\udce9.pt")
    with serving(tmp_path / "menu\udce9.pt", warm_up="96x96") as served:
        (model,) = served.request("/v1/models").json()["models"]
        assert model["name"].startswith("menu")
        assert served.request("/v1/reload", b"").json() == {"reloaded": [model["name"]]}
