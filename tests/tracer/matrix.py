"""Every family on one tiny architecture: pruned, traced in process, and named without its record.

In: a name of `tiny_models.TINY`, and families, with knobs of theirs ("kv-evict keep=sinks"). Out: a
Cell for each. All variants of an architecture are
timed and profiled in one session, each beside the dense model; `pruning` of the manifest is None.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from prunescope.analysis.inputs.open import open_side
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.inputs.side import Side, SidePhase
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.taxonomy.families.token_drop import ranked
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.capture.progress import Silent
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.runs import Capture, write_runs
from prunescope.tracer.capture.session import capture
from prunescope.tracer.capture.variants import Variant
from prunescope.tracer.model.load import Loaded
from prunescope.tracer.pruners import family_point, pruner
from tests.described import describe
from tests.small_capture import PEAKS
from tests.tracer.matrix_theory import BLOCK, PROMPT, STEPS, Case, Work, compared
from tests.tracer.tiny_models import tiny_model

SPARSITY = 0.5
FAMILIES = tuple(one.id for one in families() if one.cuts and not one.predicted_only)
# A trace alone shows where the dimensions of these went; zeros and routes take the run's counts.
FROM_TRACES = (
    "static-m", "static-k-lowrank", "static-nk", "static-nk-heads", "static-nk-mlp",
    "static-nk-cross",
)  # fmt: skip


@dataclass
class Cell:
    """What became of a family on an architecture. `named` and `bare`: the verdict by phase, of the
    run and, for `FROM_TRACES`, of the traces alone; `works`: executed against theory, by phase."""

    family: str
    expected: str
    knobs: dict[str, str] = field(default_factory=dict)  # as given beside the family
    why: str = ""  # why it does not apply
    named: dict[str, str] = field(default_factory=dict)
    bare: dict[str, str] = field(default_factory=dict)
    works: dict[str, Work] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """ "ok", "unknown", "wrong" or "none" (does not apply), of all phases together."""
        return _state(self.named, self.expected)

    @property
    def bare_state(self) -> str:
        """The same of the traces alone; "none" where they need not tell."""
        return _state(self.bare if self.family in FROM_TRACES else {}, self.expected)


def _state(named: dict[str, str], expected: str) -> str:
    if not named:
        return "none"
    if set(named.values()) == {expected}:
        return "ok"
    return "unknown" if set(named.values()) <= {expected, "unknown"} else "wrong"


def matrix_row(
    name: str, wanted: Collection[str] = FAMILIES, *, batch: int = 1, **fields: Any
) -> list[Cell]:
    """The cells of an architecture, those of `wanted` alone, with `batch` sequences; `fields` of
    its config beside the usual ones."""
    model = tiny_model(name, **fields)
    loaded = Loaded(model=model, id=name, source="preset", notes=["random weights, toy sizes"])
    variants = [Variant(name="dense", model=model, loaded=loaded)]
    cells: list[Cell] = []
    for label in wanted:
        family, *given = label.split()
        knobs = dict(word.split("=") for word in given)
        cell = Cell(family, _expected(family, model), knobs)
        cells.append(cell)
        try:
            variants.append(_variant(label, family, knobs, loaded))
        except PrunescopeError as error:
            cell.why = error.problem
    captures = capture(_request(name, batch), Silent(), peaks=PEAKS, variants=variants)
    sides: dict[tuple[str, str], SidePhase] = {}
    with mock.patch.object(Side, "read", _read_once(sides)):
        for label, cell in zip(wanted, cells, strict=True):
            if label in captures:
                _judge(cell, captures["dense"], captures[label], model.config.to_dict(), batch)
                for phase in cell.works:
                    del sides["pruned", phase]
    return cells


def _read_once(kept: dict[tuple[str, str], SidePhase]) -> Callable[..., SidePhase]:
    """`Side.read` that keeps what it read of a run, by variant and phase: the dense one stands
    beside every other, and the work of a pruned one is that of which its report was made."""
    read = Side.read

    def once(side: Side, name: str, **options: bool) -> SidePhase:
        if side.run is None or options:
            return read(side, name, **options)
        key = side.run.variant, name
        if key not in kept:
            kept[key] = read(side, name)
        return kept[key]

    return once


def _expected(family: str, model: Any) -> str:
    """Where no head can be cut, static-nk is what its other half is."""
    if family == "static-nk":
        found = describe(model.config.to_dict())["families"]
        gemms = next(one["gemms"] for one in found if one["id"] == family)
        return family if "qkv" in gemms else "static-nk-mlp"
    return family


def _variant(label: str, family: str, given: dict[str, str], loaded: Loaded) -> Variant:
    config = loaded.model.config.to_dict()
    after = {"after": ranked(ModelShape.from_config(config)).start}
    knobs: dict[str, Any] = {"token-drop": after, "dynamic-nk": {"block": BLOCK}}.get(family, {})
    point = family_point(family, Point(sparsity=SPARSITY, knobs={**knobs, **given}))
    with torch.no_grad():
        applied = pruner(family).prune(copy.deepcopy(loaded.model), point)
    return Variant(
        name=label, model=applied.model, loaded=loaded, layer_map=applied.layer_map, pruning=None
    )


def _request(name: str, batch: int) -> TraceRequest:
    return TraceRequest(
        model=name, out=Path(), method="static-m", sparsity=SPARSITY, prompt_len=PROMPT,
        batch=batch, decode_steps=STEPS, warmup=0, repeats=1, steps=1, device="cpu",
    )  # fmt: skip


def _judge(cell: Cell, dense: Capture, pruned: Capture, config: dict[str, Any], batch: int) -> None:
    pruned.run.variant = "pruned"
    assert pruned.run.pruning is None
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        out = Path(folder) / "run"
        write_runs(out, {"dense": dense, "pruned": pruned}, None)
        report = analyze(out).report
        cell.named = _names(report)
        side = open_side(out / "pruned", Options(), eager=None)
        for phase in report.phases:
            if cell.family in FROM_TRACES:
                file = f"{phase}.trace.json.gz"
                alone = analyze(out / "pruned" / file, baseline=out / "dense" / file).report
                cell.bare[phase] = next(iter(_names(alone).values()))
            kernels = side.read(phase).kernels
            case = Case(cell.family, phase, batch, cell.knobs)
            cell.works[phase] = compared(config, case, kernels, pruned.run)


def _names(report: Report) -> dict[str, str]:
    return {name: one.family.id for name, one in report.phases.items() if one.family is not None}
