"""The options of `prunescope capture`. Nothing is sent here, and torch is not imported."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import Option
from prunescope.tracer.capture.progress import Progress

Engine = Literal["vllm", "sglang"]
PORTS = {"vllm": 8000, "sglang": 30000}  # of the engines' own defaults
MOST_TOKENS = 1 << 22  # of a prompt or an answer: above any context
LEAST_STEPS = 5  # of prefill and of decode in the profiled window


@dataclass(frozen=True, kw_only=True)
class CaptureEngineRequest:
    """A serving engine that runs, the prompts to send to it, and where its traces go."""

    engine: Annotated[
        Engine, Option(help="Serving engine that runs at --url, whose profiler is started.")
    ]
    url: Annotated[
        str | None,
        Option(
            help="Address of the engine's server on this machine: localhost, 127.0.0.0/8 or ::1; "
            "without it, the engine's own port on 127.0.0.1.",
            metavar="URL",
        ),
    ] = None
    allow_remote: Annotated[
        bool,
        Option(help="Also send to an address that is not on this machine; without it, an error."),
    ] = False
    prompts: Annotated[
        str | int,
        Option(
            help="Prompts to send: a number of random ones, or a text file with one a line.",
            metavar="FILE|N",
            typed=str,
        ),
    ] = 8
    prompt_len: Annotated[
        int,
        Option(
            help="Length of a random prompt in tokens.", unit="tokens", least=1, most=MOST_TOKENS
        ),
    ] = 512
    new_tokens: Annotated[
        int,
        Option(
            help="Length of an answer in tokens; the profiled ones are cut off at 16.",
            unit="tokens",
            least=LEAST_STEPS + 1,
            most=MOST_TOKENS,
        ),
    ] = 16
    concurrency: Annotated[
        int | None,
        Option(
            help="Number of requests at a time; without it, all prompts at once.",
            unit="requests",
            least=1,
            most=4096,
        ),
    ] = None
    traces: Annotated[
        Path | str | None,
        Option(
            help="Folder that the engine writes its traces to; without it, the one that the "
            "engine's answer names.",
            metavar="FOLDER",
        ),
    ] = None
    timeout: Annotated[
        float,
        Option(help="Time in seconds after which the capture ends with an error.", metavar="S"),
    ] = 600.0
    out: Annotated[
        Path | str | None,
        Option(
            help="Folder to write traces and times to; without it, traces/ENGINE-MODEL.",
            metavar="FOLDER",
        ),
    ] = None
    overwrite: Annotated[
        bool, Option(help="Replace the folder if it exists; without it, that is an error.")
    ] = False
    progress: Progress | None = field(default=None, repr=False)

    def check(self) -> None:
        """Raise PrunescopeError for values that no capture can have, before anything is sent."""
        if not 1 <= self.timeout <= 86_400:
            raise PrunescopeError(
                f"--timeout {self.timeout:g} is no time to wait", hint="1 to 86400 seconds"
            )
        if self.new_tokens <= LEAST_STEPS:
            raise PrunescopeError(
                f"--new-tokens {self.new_tokens} gives no {LEAST_STEPS} steps of decode",
                hint=f"give at least {LEAST_STEPS + 1}",
            )
