"""Runs hybrid-rt-serve for a test, on a free loopback port, and stops it."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hybrid_rt.common.executables import program

START_SECONDS = 120.0
STOP_SECONDS = 60.0


class ServerEnded(AssertionError):
    """Is raised if the server ended before it served. `code` is its exit code, `lines` its stderr."""

    def __init__(self, code: int, lines: list[str]) -> None:
        super().__init__("\n".join([f"hybrid-rt-serve ended with {code} before it served", *lines]))
        self.code = code
        self.lines = lines


@dataclass(frozen=True)
class Answer:
    """A response of the server. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body, parse_constant=lambda word: _fail(f"{word} is no JSON"))


@dataclass
class Server:
    """A running server. `lines` and `log` grow while it runs."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    """Its lines on stderr."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """The same lines parsed as JSON, without those that are not JSON objects."""
    address: str = ""
    port: int = 0
    _grown: threading.Condition = field(default_factory=threading.Condition)
    _at_end: bool = False

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    def wait_for(self, event: str, *, after: int = 0, seconds: float = 30.0, **fields: Any) -> dict[str, Any]:
        """Waits for a log entry of the event with these fields, and returns the first one from index `after` on.

        A request is logged after its response is sent.

        Raises:
            TimeoutError: If there is none in time.
            ServerEnded: If the server ended without one.
        """
        deadline = time.monotonic() + seconds
        fields["event"] = event
        with self._grown:
            while True:
                for entry in self.log[after:]:
                    if all(entry.get(name) == value for name, value in fields.items()):
                        return entry
                if self._at_end:
                    raise ServerEnded(self.process.wait(STOP_SECONDS), self.lines)
                if not self._grown.wait(max(deadline - time.monotonic(), 0.0)):
                    raise TimeoutError("\n".join([f"no {event!r} within {seconds} s", *self.lines]))

    def request(
        self,
        path: str,
        body: bytes | None = None,
        *,
        method: str = "",
        headers: Mapping[str, str] | None = None,
        seconds: float = 60.0,
    ) -> Answer:
        """Sends one request on a new connection: a GET, or a POST if there is a body."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=seconds)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, dict(headers or {}))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def detect(
        self, image: Path | bytes, query: str = "", *, content_type: str = "application/octet-stream", **headers: str
    ) -> Answer:
        """Sends POST /v1/detect with one image; headers are keywords, with _ for -."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        body = image if isinstance(image, bytes) else image.read_bytes()
        return self.request(f"/v1/detect{query}", body, headers={"Content-Type": content_type, **names})

    def read(self, stream: IO[str]) -> None:
        """Reads lines until the stream ends; runs in a separate thread."""
        for line in stream:
            with self._grown:
                self.lines.append(line.rstrip("\n"))
                entry = _as_object(line)
                if entry is not None:
                    self.log.append(entry)
                self._grown.notify_all()
        with self._grown:
            self._at_end = True
            self._grown.notify_all()


@contextmanager
def serving(
    *models: Path | str, exit_code: int | None = 0, env: Mapping[str, str] | None = None, **options: object
) -> Iterator[Server]:
    """Starts a server, waits until it serves, yields it, and stops it with SIGTERM.

    Args:
        models: Bundles, or directories of bundles.
        exit_code: Exit code that the server has to end with. None accepts any. Ignored if the test has already failed.
        env: The server's environment. None inherits this one.
        options: Options of the program: `max_batch=4` for `--max-batch 4`, True for a flag, None for no option.

    Raises:
        ServerEnded: If the server ended before it served.
    """
    command = [program("hybrid-rt-serve", "test"), *(str(model) for model in models)]
    for name, value in {"port": 0, **options}.items():
        if value is not None and value is not False:
            command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env
    )
    assert process.stderr is not None
    server = Server(process)
    reader = threading.Thread(target=server.read, args=(process.stderr,), daemon=True)
    reader.start()
    passed = False
    try:
        start = server.wait_for("serving", seconds=START_SECONDS)
        server.address, server.port = start["address"], start["port"]
        yield server
        passed = True
    finally:
        in_time = _stop(process)
        reader.join(STOP_SECONDS)
        process.stderr.close()
        if passed:
            said = "\n".join(server.lines[-50:])
            assert in_time, f"hybrid-rt-serve did not stop within {STOP_SECONDS} s of SIGTERM\n{said}"
            assert exit_code is None or process.returncode == exit_code, f"exit code {process.returncode}\n{said}"
            assert len(server.log) == len(server.lines), f"a line of the log is no JSON object:\n{said}"


def _stop(process: subprocess.Popen[str]) -> bool:
    """Stops the process. Returns true if it ended after SIGTERM in time, or had already ended."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def _as_object(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _fail(message: str) -> Any:
    raise AssertionError(message)
