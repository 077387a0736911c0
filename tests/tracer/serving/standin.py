"""A stand-in for the server of an engine on the loopback: both protocols, traces of a file."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

TOKEN = {"choices": [{"text": "a", "index": 0, "finish_reason": None}]}


@dataclass
class StandIn:
    """What the stand-in does and saw: the trace that it writes, and the requests in order."""

    trace: Path | None = None
    traces: Path | None = None  # the folder that it was started with, as vLLM is
    names: tuple[str, ...] = ("host1_77.rank0.pt.trace.json.gz",)
    # "drips", "silent", "dies", "dies while profiled", "no profiler", "moved", "boasts", "fails",
    # "ends early", "says why it ends", "stalls"
    broken: str = ""
    names_folder: bool = False
    seen: list[tuple[str, Any]] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    url: str = ""

    @property
    def paths(self) -> list[str]:
        """The paths that were asked for."""
        return [path for path, _ in self.seen]


class _Handler(BaseHTTPRequestHandler):
    """The answers of a stand-in, which a class made for it holds."""

    standin: StandIn

    def log_message(self, *_args: Any) -> None:
        pass

    def answer(self, values: Any, status: int = 200) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        if status == 307:
            self.send_header("Location", "http://192.0.2.1/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.standin.seen.append((self.path, None))
        while self.standin.broken == "drips":  # a head without end, a byte at a time
            time.sleep(0.1)
            self.wfile.write(b"H")
        name = "Qwen/Qwen3-8B" + "/x" * (100_000 if self.standin.broken == "boasts" else 0)
        self.answer({"data": [{"id": name}], "version": "0.0-stand-in"})

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        values = json.loads(self.rfile.read(size) or b"null")
        self.standin.seen.append((self.path, values))
        if self.path.endswith("_profile"):
            self.profile(values)
        else:
            self.standin.prompts.append(values["prompt"])
            self.complete(values["max_tokens"])

    def profile(self, values: Any) -> None:
        if self.standin.broken == "no profiler":
            return self.answer({"detail": "Not Found"}, 404)
        if self.standin.broken == "moved":
            return self.answer({}, 307)
        folder = self.standin.traces or Path(str((values or {}).get("output_dir", "/nowhere")))
        if self.path == "/start_profile":
            self.standin.traces = folder
        elif self.standin.trace is not None:
            for name in self.standin.names:
                if self.standin.broken == "stalls":
                    Thread(target=write_in_two, args=(self.standin.trace, folder / name)).start()
                else:
                    shutil.copyfile(self.standin.trace, folder / name)
        return self.answer({"output_dir": str(folder)} if self.standin.names_folder else {})

    def complete(self, tokens: int) -> None:
        self.send_response(200)
        self.end_headers()
        tokens = min(tokens, 3) if self.standin.broken == "ends early" else tokens
        for number in range(tokens):
            is_profiled = "/start_profile" in self.standin.paths
            if self.standin.broken == "dies" or (
                self.standin.broken == "dies while profiled" and is_profiled
            ):
                return
            while self.standin.broken == "silent" and number == 1:
                time.sleep(0.2)
                self.wfile.write(b"x")  # never a line
                self.wfile.flush()
            self.event(TOKEN)
            if self.standin.broken == "fails" and number == 2:
                self.event({"error": {"message": "out of memory at /home/alice/x", "code": 500}})
                self.wfile.write(b"data: [DONE]\n\n")
                return
        if self.standin.broken == "says why it ends":
            self.event({"choices": [{"text": "", "index": 0, "finish_reason": "length"}]})
        told = 10**30 if self.standin.broken == "boasts" else tokens
        usage = {"choices": [], "usage": {"completion_tokens": told}}
        self.event(usage)
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, values: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(values).encode() + b"\n\n")
        self.wfile.flush()


def write_in_two(source: Path, target: Path) -> None:
    """Write a file as an engine on a slow disk does: a half, nothing for a while, the rest."""
    content = source.read_bytes()
    with target.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(1.2)
        file.write(content[len(content) // 2 :])


@contextmanager
def serving(standin: StandIn) -> Iterator[StandIn]:
    """Serve until the block ends."""

    handler = type("Handler", (_Handler,), {"standin": standin})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    standin.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield standin
    finally:
        server.shutdown()
        server.server_close()
