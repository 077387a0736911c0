"""From a running serving engine to a run folder: warm up, time, profile, collect.

In: a `CaptureEngineRequest`. Out: a folder with a trace for each rank and serving.json. The times
of requests are taken before the profiler starts. In the profiled window, at least five prompts of
one token each run one after the other, which are steps of prefill; then all prompts decode at once.
"""

from __future__ import annotations

import platform
import re
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunescope.taxonomy.atomic_write import (
    claimed,
    clean_termination,
    partial_folder,
    put_in_place,
    scratch_folder,
)
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import as_path
from prunescope.taxonomy.runs.serving import (
    SERVING,
    ProfiledWindow,
    ServedRequest,
    Serving,
    percentiles,
    read_serving,
)
from prunescope.tracer.capture.progress import Progress, Silent
from prunescope.tracer.serving.address import parse_address
from prunescope.tracer.serving.client import Client, Deadline
from prunescope.tracer.serving.engines import (
    ENGINES,
    START,
    STOP,
    ServingEngine,
    engine_version,
    served_model,
)
from prunescope.tracer.serving.load import Prompt, Prompts, read_prompts, send_all
from prunescope.tracer.serving.request import LEAST_STEPS, PORTS, CaptureEngineRequest
from prunescope.tracer.serving.written_traces import FilesBefore

TOOL = "prunescope capture"
_REPEATED = (
    "the prompts of a file are sent again in each round: where the engine caches prefixes, later "
    "prefills are shorter"
)
_PROFILED_TOKENS = 16  # of an answer, at most: a trace grows by 1 to 5 MB a step
_STOP_S = 60.0  # to stop a profiler whose capture failed
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_FOLDER_KEYS = ("output_dir", "torch_profiler_dir", "trace_dir", "profile_dir", "folder")


@dataclass(frozen=True)
class _Capture:
    """One capture: what was asked for, the engine that answers, and the prompts that it gets."""

    request: CaptureEngineRequest
    client: Client
    engine: ServingEngine
    model: str | None
    prompts: Prompts
    given: Path | None  # the folder of --traces

    def send(self, prompts: list[Prompt], *, tokens: int, at_once: int) -> list[ServedRequest]:
        """Send prompts, some at a time, and return the times of each."""
        return send_all(self.client, self.model, prompts, tokens=tokens, at_once=at_once)


def capture_engine(request: CaptureEngineRequest) -> Path:
    """Capture traces and request times of a running engine.

    Args:
        request: What to send where, and where the traces go.

    Returns:
        The run folder.

    Raises:
        PrunescopeError: The address is not on this machine and remote ones are not allowed, the
            server refuses or does not answer in time, or it wrote no trace.
    """
    request.check()
    url = request.url or f"http://127.0.0.1:{PORTS[request.engine]}"
    address = parse_address(url, allow_remote=request.allow_remote)
    prompts = read_prompts(request.prompts, request.prompt_len)
    given, out = as_path(request.traces), as_path(request.out)
    _check_folders(given, out, overwrite=request.overwrite)
    client = Client(address, Deadline(time.monotonic() + request.timeout))
    progress = request.progress or Silent()
    engine, model = ENGINES[request.engine], served_model(client)
    target = out or Path("traces") / _UNSAFE.sub("-", f"{request.engine}-{_last(model)}")
    _check_folders(None, target, overwrite=request.overwrite)
    run = _Capture(request, client, engine, model, prompts, given)
    with clean_termination(), claimed(target), partial_folder(target) as partial:
        _capture(run, partial, progress)
        put_in_place(partial, target)
    return target


def _last(model: str | None) -> str:
    """Return the last part of a model's name."""
    return (model or "model").rstrip("/").split("/")[-1][:80] or "model"


def _check_folders(traces: Path | None, out: Path | None, *, overwrite: bool) -> None:
    """Raise PrunescopeError for folders that cannot be read or written, before anything is sent."""
    if traces is not None and not traces.is_dir():
        raise PrunescopeError(
            f"--traces: there is no folder {traces.name}",
            hint="name the folder that the engine writes its traces to, as this machine sees it",
        )
    if out is not None and out.exists() and not overwrite:
        raise PrunescopeError(
            f"{out.name} exists", hint="--overwrite replaces it, or name another --out"
        )


def _capture(run: _Capture, partial: Path, progress: Progress) -> None:
    """Warm up, time and profile, and write the traces and serving.json into a folder."""
    client, prompts, request = run.client, run.prompts, run.request
    at_once = min(request.concurrency or prompts.count, prompts.count)
    profiled_tokens = min(request.new_tokens, _PROFILED_TOKENS)
    progress.stage("warm up", 1)
    run.send(prompts.take(), tokens=request.new_tokens, at_once=at_once)
    progress.stage("time requests without the profiler", 1)
    served = run.send(prompts.take(), tokens=request.new_tokens, at_once=at_once)
    progress.stage("profile prefill and decode", 1)
    with ExitStack() as scratch:
        folder = run.given
        if folder is None and run.engine.takes_folder and client.address.is_local:
            folder = scratch.enter_context(scratch_folder())
        before = None if folder is None else FilesBefore.look(folder)
        begun = time.time_ns()
        try:  # from here on it may run, whatever comes of the answer
            answers = [client.post(START, run.engine.start(folder), hint=run.engine.hint)]
            prefills = max(LEAST_STEPS, prompts.count)
            run.send(prompts.take(prefills), tokens=1, at_once=1)
            run.send(prompts.take(), tokens=profiled_tokens, at_once=at_once)
        except BaseException:
            _stop_all_the_same(client)
            raise
        answers.append(client.post(STOP, None, hint=run.engine.hint))
        before = before or _named_folder(answers, begun, is_local=client.address.is_local)
        progress.stage("collect the traces", 1)
        traces = before.collect(client.deadline, partial)
    version = engine_version(client, run.engine)
    serving = Serving(
        tool=TOOL,
        engine=request.engine,
        model=run.model,
        versions={
            "python": platform.python_version(),
            **({request.engine: version} if version else {}),
        },
        prompts=prompts.count,
        prompt_len=request.prompt_len if prompts.is_random else None,
        new_tokens=request.new_tokens,
        concurrency=at_once,
        requests=served,
        ttft_ns=percentiles([times.ttft_ns for times in served]),
        tpot_ns=percentiles([times.tpot_ns for times in served if times.tpot_ns is not None]),
        profiled=ProfiledWindow(prefills=prefills, decodes=prompts.count, tokens=profiled_tokens),
        traces=traces,
        notes=[
            *([] if prompts.is_random else [_REPEATED]),
            *_early_ends(served, request.new_tokens),
        ],
    )
    (partial / SERVING).write_bytes(serving.to_json())
    read_serving(partial)  # what cannot be read back is no run


def _early_ends(served: list[ServedRequest], tokens: int) -> list[str]:
    """Return a note where answers ended before they had as many tokens as were asked for."""
    short = [times.tokens for times in served if times.tokens < tokens]
    if not short:
        return []
    return [
        f"{len(short)} of {len(served)} timed answers ended before --new-tokens {tokens}, the "
        f"shortest after {min(short)}: the profiled window may hold as few steps of decode"
    ]


def _stop_all_the_same(client: Client) -> None:
    """Stop the profiler of a capture that failed: it would go on, and fill the disk."""
    late = Client(client.address, Deadline(time.monotonic() + _STOP_S))
    with suppress(PrunescopeError):
        late.post(STOP, None, hint="")


def _named_folder(answers: list[Any], begun_ns: int, *, is_local: bool) -> FilesBefore:
    """Return the folder for traces that an answer of the engine names.

    Raises:
        PrunescopeError: None names a folder that is there.
    """
    named = [
        answer[key]
        for answer in answers
        if isinstance(answer, dict) and is_local
        for key in _FOLDER_KEYS
        if isinstance(answer.get(key), str)
    ]
    for text in named:
        folder = Path(text)
        if folder.is_absolute() and folder.is_dir():
            return FilesBefore.look(folder).older_than(begun_ns)
    raise PrunescopeError(
        "the engine does not say where its traces are",
        hint="name the folder with --traces; it is the one that the engine was started with",
    )
