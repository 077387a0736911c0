"""Figures of the anatomy: what is drawn where, no text on text, fonts, hostile names."""

from __future__ import annotations

import csv
import io
from itertools import combinations
from typing import Any

import msgspec
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from prunescope.analysis.report import figures
from prunescope.analysis.report.measured import idle_and_tiles
from prunescope.analysis.report.phase_tables import experts_table, host_table, shapes_table
from prunescope.analysis.report.tables import csv_tables
from prunescope.analysis.report.titles import device
from prunescope.analysis.schema.anatomy import (
    Anatomy,
    Fit,
    Good,
    HostTime,
    LayerTime,
    RooflinePoint,
    Shape,
    SideAnatomy,
)
from prunescope.analysis.schema.report import Finding, Report
from prunescope.analysis.schema.routing import LayerRouting, PhaseRouting
from tests.analysis.report import example
from tests.analysis.report.drawn import drawn

MS = 1e6
KINDS = ("gemm", "attention", "elementwise", "batched_gemm", "gather_scatter", "norm", "unknown")
ROLES = ("attn_norm", "q", "k", "v", "rope", "attention", "o", "residual", "mlp_norm", "gate", "up",
         "activation", "down", "kv_update", "shared_expert", "mixer_out", "scan")  # fmt: skip


def point(kind: str, flop: float, size: float, ns: float, dtype: str = "bf16") -> RooflinePoint:
    return RooflinePoint(name="k", kind=kind, role="q", dtype=dtype, count=1, flop=flop, bytes=size,
                 busy_ns=ns, clock_ns=ns, bound="compute")  # fmt: skip


def shape(role: str, n: int, dense: int | None) -> Shape:
    curve = [[float(at), MS * (1 + at // 256)] for at in sorted({64, 512, n, dense or n, 4096})]
    good = Good(value=n - 64, change_ns=-MS, low_ns=-2 * MS, high_ns=-0.5 * MS)
    return Shape(role=role, count=2, m=512, n=n, k=64, axis="N", busy_ns=MS * (1 + n // 256),
                 tile="128x256", waves=2.5, dense=dense, below=good, curve=curve)  # fmt: skip


def anatomy(layers: int = 32) -> Anatomy:
    return Anatomy(
        kind_bounds={kind: {"compute": MS * (9 - i), "memory": MS, "latency": MS, "unknown": MS}
                     for i, kind in enumerate(KINDS)},
        layers=[
            *(LayerTime(layer=i, busy_ns=17 * MS, gap_ns=0, roles=dict.fromkeys(ROLES, MS))
              for i in range(layers)),
            LayerTime(layer=None, busy_ns=MS, gap_ns=0, roles={"lm_head": MS}),
        ],
        # 600 TFLOP/s, 1 TFLOP/s, 2,000 TFLOP/s (above every ceiling), 1e-3 TFLOP/s but no time
        points=[point("gemm", 6e11, 1e9, MS), point("attention", 1e9, 1e8, MS),
                point("batched_gemm", 2e12, 2e9, MS), point("norm", 1.0, 1.0, 1.0)],
        tiles={"persistent": 3 * MS, "unexplained": MS, "no shape": 4 * MS},
        gaps={"host": 2 * MS, "sync": MS, "memcpy": 0, "device": MS, "tail": 0},
        graph_speedup=121 / 118,
        kernels_speedup=121 / 110,
        dispatch_ns=2 * MS,
        host=[HostTime(op="aten::mm", role="q", count=3, host_ns=MS, wait_ns=2 * MS)],
        shapes=[shape("gate", 1160, 1536), shape("q", 512, 576), shape("k", 128, None),
                Shape(role="v", count=1, m=None, n=None, k=None, axis="N", busy_ns=MS,
                      refused="no shapes")],
        fit=Fit(gemms=7, factor=1.43, spread=0.13, unaligned=None),
    )  # fmt: skip


def routed(number: int) -> LayerRouting:
    """Half of the experts, in which tokens are less evenly spread."""
    return LayerRouting(
        layer=number, experts=8, distinct=7.5, fullest=2.0, entropy=0.75, dense_experts=16,
        dense_distinct=12.0, dense_fullest=1.5, dense_entropy=0.9,
    )  # fmt: skip


def report(of: Anatomy | None = None, **device: Any) -> Report:
    out = example.alone()
    out.phases["trace"].anatomy = found = of or anatomy()
    numbered = [one.layer for one in found.layers if one.layer is not None]
    out.phases["trace"].routing = PhaseRouting(layers=[routed(number) for number in numbered])
    out.device = {**out.device, **device}
    return out


def figure_of(of: Report, kind: str) -> Figure:
    found = figures.plot(of, "trace", kind)
    assert found is not None
    found.draw_without_rendering()
    return found


def test_the_files_of_a_phase() -> None:
    endings = ("png", "pdf", "svg")
    files = figures.figure_files(report(), *endings)
    assert set(files) == {
        f"{kind}-trace.{ending}"
        for kind in ("roofline", "bounds", "layers", "waves", "experts")
        for ending in endings
    }
    # Drawn again, an SVG is the same though nothing else is asked for.
    again = figures.figure_files(report(), "svg")
    assert again == {name: data for name, data in files.items() if name.endswith(".svg")}
    for name, data in files.items():
        if name.endswith(".pdf"):
            assert b"/CIDFontType2" in data and b"/Type3" not in data


@pytest.mark.parametrize(("layers", "hostile"), [(2, False), (126, False), (32, True)])
def test_no_text_overlaps_or_leaves_the_page(layers: int, hostile: bool) -> None:
    of = report(anatomy(layers))
    for figure in drawn(figures.figure_files, example.hostile(of) if hostile else of).values():
        boxes = []
        for axes in figure.axes:
            low, high = sorted(axes.get_xlim())
            bottom, top = sorted(axes.get_ylim())
            texts = [*axes.texts, axes.xaxis.label, axes.yaxis.label]
            texts += [t for t, x in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
                      if low <= x <= high]  # fmt: skip
            texts += [t for t, y in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
                      if bottom <= y <= top]  # fmt: skip
            boxes += [t.get_window_extent() for t in texts if t.get_text()]
        boxes += [t.get_window_extent() for legend in figure.legends for t in legend.get_texts()]
        for a, b in combinations([box.expanded(1, 0.7) for box in boxes], 2):
            assert not a.overlaps(b)
        page = figure.bbox
        assert all(b.x0 >= page.x0 - 1 and b.x1 <= page.x1 + 1 for b in boxes)
        assert all(b.y0 >= page.y0 - 1 and b.y1 <= page.y1 + 1 for b in boxes)


def test_the_roofline_holds_every_point_and_both_ceilings() -> None:
    peaks = {"dense_flop_per_s": {"bf16": 8e14}, "byte_per_s": 3e12}
    sheet = {"dense_flop_per_s": {"bf16": 989e12}, "byte_per_s": 3.35e12}
    figure = figure_of(report(measured=True, peaks=peaks, sheet=sheet), "roofline")
    (axes,) = figure.axes
    measured, table = axes.get_lines()
    assert measured.get_ydata()[-1] == pytest.approx(800)
    assert measured.get_xdata()[1] == pytest.approx(8e14 / 3e12)
    assert table.get_ydata()[-1] == pytest.approx(989)
    (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
    offsets = [tuple(one.get_offsets()[0]) for one in axes.collections]
    assert sorted(y for _, y in offsets) == pytest.approx([1, 600, 2000])
    assert all(left <= x <= right and low <= y <= high for x, y in offsets)
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels[-2:] == ["bf16, measured", "bf16, data sheet"]


def test_without_peaks_there_is_no_roofline() -> None:
    assert figures.plot(report(peaks=None), "trace", "roofline") is None
    fp8 = {"dense_flop_per_s": {"fp8": 1e15}, "byte_per_s": 1e12}
    assert figures.plot(report(peaks=fp8), "trace", "roofline") is None


def test_the_dimension_that_ran_is_filled_and_the_dense_one_hollow() -> None:
    (axes,) = figure_of(report(), "waves").axes
    marks = [(float(x.get_xdata()[0]), float(x.get_ydata()[0]), x.get_markerfacecolor())
             for x in axes.get_lines() if x.get_marker() not in ("None", None, "")]  # fmt: skip
    filled = {(x, y) for x, y, face in marks if face != "white"}
    hollow = {(x, y) for x, y, face in marks if face == "white"}
    assert filled == {(1160, 5), (512, 3), (128, 1)}
    assert hollow == {(1536, 7), (576, 3)}


def test_a_phase_without_layers_or_tiles_has_no_strip_and_no_waves() -> None:
    bare = anatomy(0)
    bare.shapes = bare.shapes[-1:]
    files = figures.figure_files(report(bare), "png")
    assert set(files) == {"roofline-trace.png", "bounds-trace.png"}
    assert set(figures.figure_files(example.alone(), "png")) == {"kinds-trace.png"}


def test_the_words_and_tables() -> None:
    phase = report().phases["trace"]
    idle, tiles, fit = idle_and_tiles(phase)
    assert idle.endswith(
        "; without late dispatch 1.03×; a CUDA graph gives at most 1.10×, because 1.000 ms of idle "
        "time remain"
    )
    # 3 of the 4 ms that can be tested, which are half of all
    assert "explain the grids of 75.0 % of the GEMM time that can be tested" in tiles
    assert "50.0 % of all GEMM time" in tiles
    assert fit.startswith("7 distinct GEMMs take 1.43 times")
    shapes, host = shapes_table(phase), host_table(phase)
    assert shapes is not None
    assert host is not None
    assert [cell.text for cell in shapes.rows[0]] == [
        "gate", "N", "1160", "128x256", "2.50", "5.000", "1096", "−1.000 [−2.000, −0.500]", "–",
        "–", "",
    ]  # fmt: skip
    assert shapes.rows[-1][-1].text == "no shapes"
    assert [cell.text for cell in host.rows[0]] == ["aten::mm", "q", "3", "1.000", "2.000"]
    phase.anatomy = None
    assert idle_and_tiles(phase) == []
    assert shapes_table(phase) is host_table(phase) is None


def test_the_words_name_what_a_late_host_did_but_dispatch() -> None:
    """A half of the 2 ms of a late host is no dispatch: the first number is of the other half."""
    of = anatomy()
    of.dispatch_ns = MS
    idle = idle_and_tiles(report(of).phases["trace"])[0]
    assert "the host was late 2.000 ms" in idle
    assert "; without late dispatch (1.000 ms) 1.03×; a CUDA graph gives at most" in idle
    assert idle.endswith("because 2.000 ms of idle time remain")


def test_a_size_of_several_rows_is_said_to_change_with_all_of_them() -> None:
    of = anatomy()
    phase = report(of).phases["trace"]
    table = shapes_table(phase)
    assert table is not None
    assert len(table.notes) == 1
    of.shapes.append(shape("o", 512, 576))  # as wide as q
    table = shapes_table(phase)
    assert table is not None
    assert "then all change" in table.notes[1]


def test_fp32_as_three_products_of_tf32_has_a_peak_and_a_ceiling_of_its_own() -> None:
    """Bounds use tf32 ÷ 3, so the page shows that."""
    report = example.alone()
    rates = {"tf32": 12e12, "fp32": 12e12}
    report.device |= {"peaks": {"dense_flop_per_s": rates, "byte_per_s": 360e9}}
    phase = report.phases["trace"]
    phase.anatomy = anatomy()
    assert "3xtf32" not in device(report)
    phase.anatomy.points = [point("gemm", 6e11, 1e9, 2 * MS, "fp32"),
                            point("attention", 1e9, 1e8, MS, "3xtf32")]  # fmt: skip
    phase.gemms = [msgspec.structs.replace(phase.gemms[0], dtype=d) for d in ("fp32", "3xtf32")]
    assert "3xtf32 4 TFLOP/s (a third of TF32)" in device(report).replace("4.000", "4")
    figure = figures.plot(report, "trace", "roofline")
    assert figure is not None
    tops = {line.get_ydata()[-1] for line in figure.axes[0].lines}
    assert tops == {12.0, 4.0}
    assert "3xtf32, data sheet" in {t.get_text() for t in figure.legends[0].get_texts()}


def test_experts_chosen_for_random_token_ids_stand_on_hatched_ground() -> None:
    random = report(anatomy(3))
    random.phases["trace"].token_ids = "random token ids"
    figure = figure_of(random, "experts")
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "random token ids"
    assert all(axes.patches[0].get_hatch() == "oo" for axes in figure.axes)
    plain = figure_of(report(anatomy(3)), "experts")
    assert not any(axes.patches for axes in plain.axes)


def test_experts_are_drawn_layer_by_layer() -> None:
    """Three strips, dense and pruned in each; a phase without counts or with one layer has none."""
    strips = figure_of(report(anatomy(3)), "experts").axes
    for axes, (dense, pruned) in zip(strips, [(12, 7.5), (1.5, 2), (0.9, 0.75)], strict=True):
        lines = [list(line.get_ydata()) for line in axes.get_lines()]
        assert lines == [[dense] * 3, [pruned] * 3]
    one = report(anatomy(3))
    one.phases["trace"].routing = PhaseRouting(layers=[routed(0)])
    assert figures.plot(one, "trace", "experts") is None
    assert experts_table(example.alone().phases["trace"]) is None
    table = experts_table(report(anatomy(2)).phases["trace"])
    assert table is not None and [cell.text for cell in table.rows[0]] == [
        "mean", "16", "8", "12", "7.5", "1.50×", "2.00×", "90.0 %", "75.0 %",
    ]  # fmt: skip
    assert [row[0].text for row in table.rows[1:3]] == ["least", "most"]
    assert len(table.rows) == 5
    brief = experts_table(report(anatomy(2)).phases["trace"], brief=True)
    assert brief is not None and len(brief.rows) == 3


@pytest.mark.parametrize("kind", ["layers", "bounds"])
def test_a_figure_of_a_phase_whose_timing_is_not_valid_says_so(kind: str) -> None:
    report = example.two_phases()
    phase = report.phases["prefill"]
    phase.anatomy = anatomy(2)
    invalid = Finding(
        id="timing-not-valid", severity="critical", text="disturbed", evidence=[], change=None,
        predicted_ns=None,
    )  # fmt: skip
    phase.findings = [invalid]
    drawing = figures.plot(report, "prefill", kind)
    assert drawing is not None
    texts = [text.get_text() for text in drawing.findobj(Text)]
    assert any("timing not valid" in text for text in texts), texts


def test_the_largest_points_of_a_roofline_are_named_by_their_roles() -> None:
    of = anatomy()
    for point_of, role in zip(of.points, ("down", "attention", "gate"), strict=False):
        point_of.role = role
    (axes,) = figure_of(report(of), "roofline").axes
    assert {text.get_text() for text in axes.texts} == {"down", "attention", "gate"}


def pair_with_anatomies() -> Report:
    """A pair whose dense side has twice the time of the pruned one in every part."""
    pair = example.two_phases()
    phase = pair.phases["prefill"]
    assert phase.baseline is not None
    phase.anatomy, dense = anatomy(3), anatomy(3)
    parts = {kind: {bound: 2 * ns for bound, ns in own.items()}
             for kind, own in dense.kind_bounds.items()}  # fmt: skip
    phase.baseline.anatomy = SideAnatomy(
        kind_bounds=parts, layers=dense.layers, points=dense.points
    )
    pair.device |= {"peaks": {"dense_flop_per_s": {"bf16": 8e14}, "byte_per_s": 3e12}}
    return pair


def test_the_dense_side_is_in_bounds_layers_and_roofline() -> None:
    pair = pair_with_anatomies()
    bounds, layers, roofline = (
        figures.plot(pair, "prefill", kind) for kind in ("bounds", "layers", "roofline")
    )
    assert bounds is not None and layers is not None and roofline is not None
    names = [label.get_text() for label in bounds.axes[0].get_yticklabels()][:4]
    assert names == ["gemm, dense", "pruned", "attention, dense", "pruned"]
    totals = [text.get_text() for text in bounds.axes[0].texts][:2]
    assert totals == ["24.000", "12.000"]  # 9 + 1 + 1 + 1 ms, twice of it dense
    assert [axes.get_xlabel() for axes in layers.axes[:2]] == ["layer, dense", "layer, pruned"]
    sides = {str(one.get_gid()).split("-")[0] for one in roofline.axes[0].collections}
    assert sides == {"dense", "pruned"}


def test_rows_of_tables_name_their_side() -> None:
    pair = pair_with_anatomies()
    for file in ("bounds.csv", "layers.csv", "roofline.csv"):
        lines = list(csv.DictReader(io.StringIO(csv_tables(pair)[file])))
        assert {line["side"] for line in lines if line["phase"] == "prefill"} == {"dense", "pruned"}
    alone = list(csv.DictReader(io.StringIO(csv_tables(report())["bounds.csv"])))
    assert {line["side"] for line in alone} == {""}
