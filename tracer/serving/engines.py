"""What differs between serving engines: how their profiler is started, and where they say who runs.

An engine is one row. The switches are those of docs/serving.md, which names the versions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunescope.tracer.serving.client import Client

_LONGEST = 100  # characters of a name or a version
START, STOP = "/start_profile", "/stop_profile"


@dataclass(frozen=True, kw_only=True)
class ServingEngine:
    """One engine: what its start_profile takes, and why it may refuse.

    Attributes:
        start: Returns what to post to start the profiler, given the folder for traces.
        version_paths: Where the server says its version, under the key `version`.
        hint: What to change where the profiler's endpoint is refused.
        takes_folder: Whether the folder for traces goes with the request.
    """

    start: Callable[[Path | None], dict[str, Any] | None]
    version_paths: tuple[str, ...]
    hint: str
    takes_folder: bool


def _start_sglang(folder: Path | None) -> dict[str, Any]:
    """Return the request of SGLang: stages together, with shapes, until it is stopped."""
    values: dict[str, Any] = {"activities": ["CPU", "GPU"], "record_shapes": True}
    return values if folder is None else {**values, "output_dir": str(folder)}


ENGINES = {
    "vllm": ServingEngine(
        start=lambda _folder: None,
        version_paths=("/version",),
        hint='start vLLM with --profiler-config \'{"profiler": "torch", '
        '"torch_profiler_dir": "FOLDER"}\' (docs/serving.md)',
        takes_folder=False,
    ),
    "sglang": ServingEngine(
        start=_start_sglang,
        version_paths=("/server_info", "/get_server_info"),
        hint="see docs/serving.md for the versions whose profiler has an endpoint",
        takes_folder=True,
    ),
}


def served_model(client: Client) -> str | None:
    """Return the name of the model that the server lists first; None where it lists none."""
    listed = client.get("/v1/models")
    models = listed.get("data") if isinstance(listed, dict) else None
    first = models[0] if isinstance(models, list) and models else None
    name = first.get("id") if isinstance(first, dict) else None
    return name[:_LONGEST] if isinstance(name, str) else None


def engine_version(client: Client, engine: ServingEngine) -> str | None:
    """Return the version that the server states; None where it states none."""
    for path in engine.version_paths:
        answer = client.get(path)
        version = answer.get("version") if isinstance(answer, dict) else None
        if isinstance(version, str):
            return version[:_LONGEST]
    return None
