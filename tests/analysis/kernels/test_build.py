"""The passes of a phase, records of its kernels made by hand, and views without what was recorded.

A view gives what a trace without that information gives, and neither reads nor links it again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.inputs import side as reading
from prunescope.analysis.inputs.open import open_side
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.kernels import linked_phase
from prunescope.analysis.kernels.build import KernelsBuilder, PassContext
from prunescope.analysis.kernels.frame import HostWork, Kernels, ModuleRoles, OpShapes
from prunescope.analysis.kernels.linked_phase import LinkedTrace
from prunescope.analysis.ledger.gemm_calls import collect_gemm_calls
from prunescope.analysis.ledger.gemms import pair_calls
from prunescope.analysis.ledger.pairing import pair
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.schema.pair_comparison import MODULES, REPLAYS, SHAPES
from prunescope.analysis.trace.load import load
from tests.analysis.decoder import Layer, decoder
from tests.chrome import save
from tests.records import COLUMNS, kernels_in, kernels_of


def test_kernels_by_hand_have_the_columns_of_a_trace(tmp_path: Path) -> None:
    frame = kernels_in(load(save(decoder([Layer()]), tmp_path / "t.json"))).frame
    assert dict(frame.schema) == {name: kind for name, (kind, _) in COLUMNS.items()}


def test_kernels_by_hand_close() -> None:
    gemm = {"class": "matmul", "busy": 7_000, "modelled": True}
    kernels = kernels_of(gemm, {"gap": 3_000}, {"step": 1}, trailing_idle=500)
    assert (kernels.num_steps, kernels.kernels_per_step) == (2, [2, 1])
    assert kernels.wall == 7_000 + 3_000 + 1_000 + 1_000 + 2 * 500
    assert kernels.linked.wall.tolist() == [11_500, 1_500] and kernels.trailing_idle == 1_000
    assert kernels.has_shapes and not kernels_of({**gemm, "modelled": False}).has_shapes
    assert kernels.values("class") == {"matmul", "pointwise"}
    # Frames have no truth value: empty ones are compared by what they show.
    assert repr(kernels.host) == repr(HostWork()) and kernels.modules == ModuleRoles()
    assert kernels_of({}, modules=ModuleRoles("order")).is_by_order


def test_kernels_by_hand_are_read_by_the_ledger() -> None:
    def product(n: int) -> Kernels:
        call = OpCall("aten::mm", ((8, 16), (16, n)), ("c10::BFloat16",) * 2)
        gemm = {"op": call.name, "kind": "gemm", "class": "matmul", "role": "up", "layer": 0}
        shapes = OpShapes([call], [work_of(call)])
        return kernels_of({**gemm, "call": 0, "modelled": True}, {"gap": 3_000}, shapes=shapes)

    dense, pruned = product(32), product(16)
    units = pair(dense, pruned, None)
    (gemms,) = pair_calls(collect_gemm_calls(dense), collect_gemm_calls(pruned, units.alignment))
    assert units.matched.all() and gemms.axis == "N"


def test_a_view_without_shapes_is_that_of_a_trace_without_shapes(tmp_path: Path) -> None:
    path = save(decoder([Layer(), Layer()]), tmp_path / "t.json")
    phase = open_side(path, Options(), eager=None).read("trace")
    bare = load(path).without_shapes()
    context = PassContext(bare, LinkedTrace(bare).phase(), peaks=phase.side.peaks)
    expected = KernelsBuilder(context).kernels
    view = phase.without(SHAPES)
    assert phase.kernels.has_shapes and not view.kernels.has_shapes
    assert view.kernels.frame.equals(expected.frame)
    assert (view.kernels.shapes, view.kernels.notes) == (expected.shapes, expected.notes)
    both = view.without(MODULES)
    assert both.ignored == {SHAPES, MODULES} and both.kernels.modules.were_ignored
    assert both.kernels.shapes == expected.shapes


@pytest.mark.parametrize("kind", [SHAPES, REPLAYS, MODULES])
def test_nothing_is_read_or_linked_again_for_a_view(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    calls: Counter[str] = Counter()
    names = ("find_windows", "link", "unusual_calls", "clock_skew")
    read = [(reading, "load"), *((linked_phase, name) for name in names)]
    for module, name in read:
        function = getattr(module, name)

        def counted(*given: Any, name: str = name, function: Any = function, **more: Any) -> Any:
            calls[name] += 1
            return function(*given, **more)

        monkeypatch.setattr(module, name, counted)
    path = save(decoder([Layer(), Layer()]), tmp_path / "t.json")
    phase = open_side(path, Options(), eager=None).read("trace")
    once = calls.copy()
    phase.without(kind)
    assert calls == once and {once[name] for name in names} == {1}
