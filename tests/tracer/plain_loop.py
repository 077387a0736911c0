"""The ops of a plain loop, and those of what a capture runs: op, shapes and strides, in order.

Plain: `from_pretrained(...).eval()` in a loop under inference mode, with nothing of ours around it.
Shapes: B 2, S 12. A cell is a phase with a policy of its logits.
"""

from __future__ import annotations

import inspect
import itertools
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoModelForCausalLM, DynamicCache

from prunescope.taxonomy.roles import locate
from prunescope.tracer.capture.phases import DecodeLoop, Loop, PrefillLoop
from prunescope.tracer.capture.placements import move_weights
from prunescope.tracer.capture.profiled import profile_loops
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.variants import make_variants

CPU, LENGTH = torch.device("cpu"), 12
CELLS = tuple(itertools.product(("prefill", "decode"), ("last", "all")))
Cell = tuple[str, str]
CACHES = ("past_key_values", "cache", "cache_params")  # as versions of transformers call it
Op = tuple[str, str, str]
Events = list[dict[str, Any]]
CALL: Op = ("call", "", "")  # a module begins
# In no module that a capture marks: positions and masks, and what of the last stream goes on.
AHEAD, BEHIND = "ahead of the layers", "behind the layers"
IDS = torch.randint(500, (2, LENGTH + 1), generator=torch.Generator().manual_seed(1))


def ops_of(events: Events) -> list[Op]:
    """Every op, in order of time, those that hold others first."""
    return [_op(event) for event in _in_order(filter(_is_op, events))]


def by_module(model: torch.nn.Module, events: Events) -> dict[str, list[Op]]:
    """The ops by the innermost module around them, in order, each call of it first; the others
    under AHEAD and BEHIND."""
    names = {name for name, _ in model.named_modules() if name}
    found: dict[str, list[Op]] = {AHEAD: [], BEHIND: []}
    outside = AHEAD
    around: list[tuple[int, str]] = []  # the modules at hand, by their ends in ns
    for event in _in_order(e for e in events if _is_op(e) or _is_call(e, names)):
        start, end = _times(event)
        while around and around[-1][0] <= start:
            around.pop()
        if _is_op(event):
            found[around[-1][1] if around else outside].append(_op(event))
        else:
            around.append((end, event["name"]))
            outside = BEHIND if locate(event["name"]).layer is not None else outside
            found.setdefault(event["name"], []).append(CALL)
    return found


def _is_op(event: dict[str, Any]) -> bool:
    return event.get("cat") == "cpu_op" and event["name"].startswith("aten::")


def _is_call(event: dict[str, Any], names: set[str]) -> bool:
    return event.get("cat") == "user_annotation" and event["name"] in names


def _in_order(events: Iterable[dict[str, Any]]) -> Events:
    return sorted(events, key=lambda e: (_times(e)[0], -_times(e)[1]))


def _times(event: dict[str, Any]) -> tuple[int, int]:
    """(start, end) in ns, of microseconds with three decimals."""
    start = round(1000 * event["ts"])
    return start, start + round(1000 * event["dur"])


def _op(event: dict[str, Any]) -> Op:
    seen = event["args"]
    return event["name"], str(seen.get("Input Dims")), str(seen.get("Input Strides"))


def plain_cells(folder: Path) -> dict[Cell, list[Op]]:
    """The ops of one forward of a plain loop on the model in a folder, by cell."""
    return cells_of(AutoModelForCausalLM.from_pretrained(folder).eval(), folder)


@torch.inference_mode()
def cells_of(model: Any, folder: Path) -> dict[Cell, list[Op]]:
    """The same of a model at hand; its trace is written into the folder."""
    forwards = {cell: _plain_forward(model, *cell) for cell in CELLS}
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as session:
        for cell, forward in forwards.items():
            with record_function(" ".join(cell)):
                forward()
    session.export_chrome_trace(str(folder / "plain.json"))
    events = json.loads((folder / "plain.json").read_text())["traceEvents"]
    spans = {e["name"]: _times(e) for e in events if e.get("cat") == "user_annotation"}
    return {cell: ops_of(_within(events, *spans[" ".join(cell)])) for cell in CELLS}


def _within(events: Events, start: int, end: int) -> Events:
    return [e for e in events if _is_op(e) and start <= _times(e)[0] and _times(e)[1] <= end]


def _plain_forward(model: Any, phase: str, logits: str) -> Callable[[], object]:
    """The forward to be profiled; in decode, behind a prompt and one token."""
    cache = DynamicCache(config=model.config)
    name = next(n for n in CACHES if _takes(model, n))
    options = {name: cache, "use_cache": True}
    options |= {"logits_to_keep": int(logits == "last")} if _takes(model, "logits_to_keep") else {}
    given = IDS[:, :LENGTH]
    if phase == "decode":
        model(input_ids=IDS[:, : LENGTH - 1], **options)
        model(input_ids=IDS[:, LENGTH - 1 : LENGTH], **options)
        given = IDS[:, LENGTH:]
    return lambda: model(input_ids=given, **options)


def _takes(model: Any, name: str) -> bool:
    return name in inspect.signature(type(model).forward).parameters


def our_cells(model: Any) -> dict[Cell, Events]:
    """Of one profiled step of each cell, as a capture takes it: placed in memory, hooks, profiler
    and all, the cells in turn as variants are."""
    move_weights([model], random.Random(0))
    loops: dict[str, Loop] = {}
    for phase, logits in CELLS:
        loops[f"{phase} {logits}"] = (
            PrefillLoop(model, IDS[:, :LENGTH], logits=logits)
            if phase == "prefill"
            else DecodeLoop(model, IDS, prompt_len=LENGTH, logits=logits)
        )
    with torch.inference_mode():
        session = profile_loops(loops, [model], steps=range(1), device=CPU, advance=lambda: None)
    found = session.traces()
    return {cell: found[" ".join(cell)]["traceEvents"] for cell in CELLS}


def made(
    folder: Path, names: tuple[str, ...] = ("dense", "pruned"), **options: Any
) -> dict[str, Any]:
    """The dense and the pruned Variant of the model in a folder, as a capture has them."""
    request = TraceRequest(model=str(folder), out=folder / "out", prompt_len=LENGTH, **options)
    return {v.name: v for v in make_variants(request, CPU, names)}
