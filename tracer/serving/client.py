"""A client of one server, bounded in time and in what it reads.

Each request opens a connection to the address itself: no proxy is asked, no redirect is followed,
and every wait ends at the deadline of the capture, however slowly a server answers.
"""

from __future__ import annotations

import http.client
import io
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.scrub import scrub
from prunescope.tracer.serving.address import Address

_MOST_BYTES = 64 << 20  # of one answer
_BLOCK = 64 << 10
_CONNECT_S = 10.0
_SHOWN = 200  # characters of an answer in an error


@dataclass(frozen=True)
class Deadline:
    """The time at which a capture ends, on the clock of `time.monotonic`."""

    at: float

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            PrunescopeError: None are.
        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise PrunescopeError(
                "the engine did not answer in time",
                hint="look at its log; --timeout S waits longer, fewer --prompts need less",
            )
        return left


class _BoundedReads(io.RawIOBase):
    """What arrives at a socket, read until the deadline: a timeout of its own bounds each read."""

    def __init__(self, inner: io.RawIOBase, sock: socket.socket, deadline: Deadline) -> None:
        self._inner, self._sock, self._deadline = inner, sock, deadline

    def readable(self) -> bool:
        """Return True, as io asks."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read into a buffer, and return the number of bytes."""
        self._sock.settimeout(self._deadline.left())
        return self._inner.readinto(buffer)

    def close(self) -> None:
        """Close the socket's own reader, which counts as one of its users."""
        self._inner.close()
        super().close()


class _BoundedResponse(http.client.HTTPResponse):
    """An answer whose head and body both end at the deadline, a byte at a time as well."""

    def __init__(self, deadline: Deadline, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        inner: Any = self.fp.detach()
        self.fp = io.BufferedReader(_BoundedReads(inner, sock, deadline))


@dataclass(frozen=True)
class Client:
    """A client of the server at an address."""

    address: Address
    deadline: Deadline

    def get(self, path: str) -> Any:
        """Return the JSON at a path; None where the server has none there."""
        status, body = self._exchange("GET", path, None)
        return _parse(body) if status == 200 else None

    def post(self, path: str, values: dict[str, Any] | None, *, hint: str) -> Any:
        """Post values, and return the JSON of the answer; None where it is no JSON.

        Raises:
            PrunescopeError: The server refuses; `hint` says what to change.
        """
        status, body = self._exchange("POST", path, values)
        if not 200 <= status < 300:
            raise _refused(path, status, body, hint)
        return _parse(body)

    def stream(self, path: str, values: dict[str, Any], *, hint: str) -> Iterator[dict[str, Any]]:
        """Post values, and yield the events of the answer as they arrive.

        Raises:
            PrunescopeError: The server refuses, or ends or stalls before the last event.
        """
        with closing(self._connect()) as connection:
            response = self._send(connection, "POST", path, values)
            if response.status != 200:
                raise _refused(path, response.status, self._read(response), hint)
            rest = b""
            for block in self._blocks(response):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    event = line.strip().removeprefix(b"data:").strip()
                    if event == b"[DONE]":
                        return
                    values_of_event = _parse(event) if event else None
                    if isinstance(values_of_event, dict):
                        yield values_of_event
        raise PrunescopeError("the engine ended an answer before its end", hint="look at its log")

    def _exchange(self, method: str, path: str, values: dict[str, Any] | None) -> tuple[int, bytes]:
        """Send a request and read the whole answer."""
        with closing(self._connect()) as connection:
            response = self._send(connection, method, path, values)
            return response.status, self._read(response)

    def _connect(self) -> http.client.HTTPConnection:
        """Return a connection that is not open yet."""
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        timeout = min(_CONNECT_S, self.deadline.left())
        kind = kinds[self.address.scheme]
        connection = kind(self.address.host, self.address.port, timeout=timeout)
        connection.response_class = partial(_BoundedResponse, self.deadline)
        return connection

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        values: dict[str, Any] | None,
    ) -> http.client.HTTPResponse:
        """Send a request and return its answer, of which the head was read."""
        body = None if values is None else json.dumps(values).encode()
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.connect()
            connection.sock.settimeout(self.deadline.left())
            connection.request(method, path, body=body, headers=headers)
            return connection.getresponse()
        except TimeoutError:
            self.deadline.left()
            raise _unreachable() from None
        except (OSError, http.client.HTTPException):
            raise _unreachable() from None

    def _blocks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """Yield what arrives of an answer, in blocks.

        Raises:
            PrunescopeError: The deadline passes, the connection breaks, or the answer is too long.
        """
        total = 0
        while True:
            try:
                block = response.read1(_BLOCK)
            except TimeoutError:
                self.deadline.left()
                raise _unreachable() from None
            except (OSError, ValueError, http.client.HTTPException):
                raise _unreachable() from None
            if not block:
                return
            total += len(block)
            if total > _MOST_BYTES:
                raise PrunescopeError("the engine's answer has no end", hint="look at its log")
            yield block

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """Return the whole answer."""
        return b"".join(self._blocks(response))


def _parse(body: bytes) -> Any:
    """Return the values of a JSON text; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _unreachable() -> PrunescopeError:
    """Return the error about a server that does not answer."""
    return PrunescopeError(
        "the engine's server does not answer, or breaks off",
        hint="start it and wait until it is ready, and check --url",
    )


def _refused(path: str, status: int, body: bytes, hint: str) -> PrunescopeError:
    """Return the error about a request that the server refused."""
    shown = scrub(body[:_SHOWN].decode(errors="replace").strip())
    hint = "redirects are not followed: check --url" if 300 <= status < 400 else hint
    return PrunescopeError(
        f"the engine answered {path} with status {status}{f': {shown}' if shown else ''}", hint=hint
    )
