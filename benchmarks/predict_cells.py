"""Published measurements as cells: what was measured, and what the model expects there.

In: taxonomy/paper.json (the seed paper), published.json (papers that constants were read from) and
published_commands.csv (other publications, each cell with the options of the command that expresses
it, decided before its prediction was seen). Out: Cell, with a function that gives the expected
speedup for any constants. A group is a phase of a figure, or a publication: what shares a set-up is
left out of the calibration together.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from msgspec.structs import replace

from prunescope.analysis.predict.answers import (
    answer_uncertainty,
    predict_answer,
    predict_answers,
)
from prunescope.analysis.predict.constants import Constants
from prunescope.analysis.predict.costs import expected_speedup
from prunescope.analysis.predict.kernel_times import op_ns
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.ranges import (
    Uncertainty,
    differences,
    host_modes,
    uncertainty_of,
)
from prunescope.analysis.predict.request_points import sized_for_model
from prunescope.analysis.predict.setting import Setting, read_model_on_device, resolve, workloads
from prunescope.analysis.predict.side import PredictedSide, predicted_side
from prunescope.taxonomy.option import options_of
from prunescope.taxonomy.plan import Workload

HERE = Path(__file__).parent
PAPER = json.loads((HERE.parent / "taxonomy/paper.json").read_text(encoding="utf-8"))
PUBLISHED = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
MODEL, DEVICE = "llama-3.1-8b", "rtx-pro-6000-blackwell"
# Fig. 5 at batch 1 and 32k: Figs. 2 and 6, from which constants are read, are of that point.
FITTED = [1, 32768]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One measured speedup. `gain(constants)`: the expected one; `None`: the values in use."""

    group: str
    source: str
    family: str
    phase: str
    label: str
    setting: Setting
    measured: float
    gain: Callable[[Constants | None], float]
    work: Workload
    what: str = "forward"
    new_tokens: int = 0  # of an answer; 0: one forward
    commanded: bool = False  # of published_commands.csv
    apart: bool = False  # its set-up differs in more than the pruning, or is not printed

    def uncertainty(self) -> Uncertainty:
        """The spread of the prediction by constants and chance; GEMMs alone have no other kernels
        with them."""
        now = self.setting
        if self.new_tokens:
            sides = [
                predict_answer(now, self.work, new_tokens=self.new_tokens, pruned=pruned)
                for pruned in (False, True)
            ]
            return answer_uncertainty(*sides)[1]
        dense, pruned = predicted_side(now, self.work, pruned=False), predicted_side(now, self.work)
        other = differences(dense, pruned, now.terms)
        if self.what != "forward":
            other = replace(other, added=0.0, routing=0.0)
        modes = host_modes(self.gain, dense, now.terms)
        return uncertainty_of(self.gain, pruned, now.terms, differences=other, modes=modes)

    @property
    def error(self) -> float:
        """Expected over measured - 1."""
        return self.gain(None) / self.measured - 1


def cells() -> list[Cell]:
    """Every cell that no constant was read from at its own point."""
    return [*seed_cells(), *published_cells(), *commanded_cells()]


def seed_cells(*, fitted: bool = False) -> Iterator[Cell]:
    """Fig. 5 of the seed paper without, or only, its batch-1 32k column."""
    for method, phase, batch, length, measured in PAPER["figure_5"]:
        if ([batch, length] == FITTED) is not fitted:
            continue
        setting, work = setting_of(
            {"model": MODEL, "device": DEVICE, "phase": phase, "batch": batch,
             "prompt_len": length, "logits": "all"}, method, 0.5)  # fmt: skip
        yield Cell(
            group=f"Fig. 5, {phase}", source="seed paper", family=method, phase=phase,
            label=f"{method} {phase} {batch}x{length}", setting=setting, measured=measured,
            gain=_forward(setting, work), work=work,
        )  # fmt: skip


def published_cells() -> Iterator[Cell]:
    """The cells of published.json."""
    for source in PUBLISHED["sources"]:
        for row in source["cells"]:
            one = {**{k: v for k, v in source.items() if k != "cells"}, **row}
            yield _published(one)


def commanded_cells() -> Iterator[Cell]:
    """The cells of published_commands.csv."""
    with (HERE / "published_commands.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield _commanded(row)


def third_cells() -> Iterator[Cell]:
    """The cells of published_third.csv, from which neither constants nor the error are read."""
    with (HERE / "published_third.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield _commanded(row)


def _commanded(row: dict[str, str]) -> Cell:
    request = request_of(row["options"])
    request = sized_for_model(request, read_model_on_device(request, []).shape)
    sparsity = None if request.sparsity is None else float(str(request.sparsity))
    setting, _ = resolve(request, request.method and str(request.method), sparsity, [])
    works = {work.phase: work for work in workloads(request, setting)}
    work = works.get(row["phase"], next(iter(works.values())))
    answered = request.new_tokens or 0
    if request.chunk:  # of a prompt, whose forward is measured
        answered = 0
    if row["phase"] == "throughput":
        gain = _throughput(setting, request)
    elif answered:
        gain = _generate(setting, work, answered)
    else:
        gain = _forward(setting, work)
    return Cell(
        group=row["source"], source=row["source"], family=str(setting.family and setting.family.id),
        phase=row["phase"], label=row["setting"], setting=setting, measured=float(row["measured"]),
        gain=gain, work=work, what="generate" if answered else "forward",
        new_tokens=answered, commanded=True,
    )  # fmt: skip


def request_of(options: str) -> PredictRequest:
    """The request of a command's options."""
    kinds = {option.flags[0]: option for option in options_of(PredictRequest)}
    found: dict[str, Any] = {}
    words = iter(options.split())
    for word in words:
        option, value = kinds[word], next(words)
        parts = value.partition("=")
        if option.name == "knobs":
            found.setdefault("knobs", {})[parts[0]] = parts[2]
        elif option.name == "peaks":
            found.setdefault("peaks", {})[parts[0]] = float(parts[2])
        elif option.name == "without":
            found.setdefault("without", []).append(value)
        else:
            types = {option.type, *get_args(option.type)}
            kind = int if int in types else float if float in types else str
            is_file = option.name in ("model", "pruned_model") and value.startswith("configs/")
            made = option.option.canonical or kind
            found[option.name] = str(HERE / value) if is_file else made(value)
    return PredictRequest(**found)


def _published(one: dict[str, Any]) -> Cell:
    what = one["what"]
    phase = "decode" if what == "decode" else "prefill"
    batch, length = one.get("batch", 1), one.get("prompt_len", one.get("rows", 1))
    setting, work = setting_of(
        {"model": one["model"], "device": one["device"], "phase": phase, "batch": batch,
         "prompt_len": length, "dtype": one["dtype"], "knobs": one.get("knobs", {}),
         "launch": one.get("launch", "graph")}, one["method"], one["sparsity"])  # fmt: skip
    if what == "gemm":
        gain = _gemms(setting, work, frozenset(one["roles"]))
    elif what == "generate":
        gain = _generate(setting, work, one["new_tokens"])
    else:
        gain = _forward(setting, work)
    unit = one.get("knobs", {}).get("unit", "")
    roles = "+".join(one["roles"]) if what == "gemm" and len(one["roles"]) < 3 else ""
    label = " ".join(
        str(w) for w in (one["model"], one["method"], unit, roles, f"s={one['sparsity']:g}",
                         f"batch {batch}" if what == "decode" else "") if w)  # fmt: skip
    return Cell(
        group=one["id"], source=one["where"], family=one["method"], phase=what, label=label,
        setting=setting, measured=one["measured"], gain=gain, work=work, what=what,
        new_tokens=one["new_tokens"] if what == "generate" else 0,
        apart=bool(one.get("apart")),
    )  # fmt: skip


def setting_of(
    options: dict[str, Any], method: str | None, sparsity: float
) -> tuple[Setting, Workload]:
    """A point and its workload."""
    request = PredictRequest(**options)
    setting, _ = resolve(request, method, sparsity, [])
    return setting, workloads(request, setting)[0]


def _with(setting: Setting, constants: Constants | None) -> Setting:
    return setting if constants is None else replace(setting, constants=constants)


def _forward(setting: Setting, work: Workload) -> Callable[[Constants | None], float]:
    def gain(constants: Constants | None) -> float:
        return expected_speedup(_with(setting, constants), work)

    return gain


def _gemms(
    setting: Setting, work: Workload, roles: frozenset[str]
) -> Callable[[Constants | None], float]:
    """GEMMs timed alone: their kernels, back to back, with no gaps and no other ops."""

    def ns(side: PredictedSide) -> float:
        c, total = side.setting.constants, 0.0
        for op in side.bounded:
            if op.role in roles:
                ramp = c.ramp_ns(side.setting.device)
                total += op.layers * (op_ns(side, op, setting.terms) + ramp)
        return total

    def gain(constants: Constants | None) -> float:
        now = _with(setting, constants)
        return ns(predicted_side(now, work, pruned=False)) / ns(predicted_side(now, work))

    return gain


def _throughput(setting: Setting, request: PredictRequest) -> Callable[[Constants | None], float]:
    def gain(constants: Constants | None) -> float:
        answer = predict_answers(_with(setting, constants), request)
        assert answer.throughput is not None
        return answer.throughput.speedup

    return gain


def _generate(
    setting: Setting, work: Workload, new_tokens: int
) -> Callable[[Constants | None], float]:
    dense = predict_answer(setting, work, new_tokens=new_tokens, pruned=False)
    pruned = predict_answer(setting, work, new_tokens=new_tokens)

    def gain(constants: Constants | None) -> float:
        c = constants or setting.constants
        return dense.total_ns(c) / pruned.total_ns(c)

    return gain
