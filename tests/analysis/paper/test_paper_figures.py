"""The paper's kinds of figure of a sweep made by hand: what is drawn, what is not, and why."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from matplotlib.figure import Figure

from prunescope.analysis.paper.gemm_speedups import speedup_curves
from prunescope.analysis.paper.paper_figure import (
    MissingFigure,
    usually_aligned,
)
from prunescope.analysis.paper.paper_files import PaperSet, paper_set
from prunescope.analysis.pareto.write import paper_files
from prunescope.analysis.report.figure_style import plotting
from prunescope.analysis.report.picture import Picture
from prunescope.analysis.report.printing import printed_as, printing_of
from prunescope.analysis.schema.categories import CategoryTime
from prunescope.analysis.schema.pareto import (
    Added,
    AddedPart,
    Pareto,
    ParetoPhase,
    RecoveryLoss,
    SweepCell,
    SweepPoint,
    SweepSubject,
)
from prunescope.analysis.schema.sides import LayerSum
from prunescope.taxonomy.replays import (
    ReplayDevice,
    ReplayedGemm,
    ReplayPeaks,
    Replays,
    ReplayTimes,
    StepCurve,
)
from tests.analysis.pareto_points import MS, point

HOSTILE = "a_b{}$&%\\x"


def parts(**ms: tuple[float, float]) -> list[CategoryTime]:
    """Categories by name: dense, ± 0.1 of it, and pruned, in ms."""
    return [
        CategoryTime(
            name=name,
            dense_ns=dense * MS,
            dense_ci95=[0.9 * dense * MS, 1.1 * dense * MS],
            pruned_ns=pruned * MS,
        )
        for name, (dense, pruned) in ms.items()
    ]


STEP = parts(mlp=(4, 2), qkvo=(2, 1), attention=(1, 1), elementwise=(1, 1), idle=(2, 3.5))


def at(family: str, speed: float, **more: Any) -> SweepPoint:
    """A point at s = 0.5 with the categories of STEP: 10 ms dense."""
    plain = {"sparsity": 0.5, "sparsities": [0.5], "categories": STEP}
    loss = more.pop("loss", None)
    found = point(family, speed, None, **{**plain, **more})
    found.loss = loss
    found.id = f"{family} {sorted(more.items(), key=str)}"[:200]
    return found


def sweep(points: dict[str, list[SweepPoint]], **subject: Any) -> Pareto:
    phases = {}
    for name, of_phase in points.items():
        settings = dict.fromkeys(p.setting for p in of_phase)
        cells = [SweepCell(**{n: getattr(s, n) for n in s.__struct_fields__}, dense_ns={})
                 for s in settings]  # fmt: skip
        phases[name] = ParetoPhase(points=of_phase, cells=cells)
    about = {"model": "m", "device": "d", "config": {"repeats": 20, "placements": 8, "steps": 5}}
    return Pareto(tool="t", subject=SweepSubject(**{**about, **subject}), phases=phases)


def added(ns: float = 1.5 * MS) -> Added:
    made = [AddedPart(name="router", ns=ns - 0.5 * MS, share_of_saved=0.3),
            AddedPart(name="host time", ns=0.5 * MS, share_of_saved=0.2)]  # fmt: skip
    ends = [ns - 0.1 * MS, ns + 0.1 * MS]
    return Added(saved_ns=3 * MS, added_ns=ns, added_ci95=ends, share_of_saved=0.5, parts=made)


CELLS = ((1, 64), (1, 128), (2, 64), (2, 128))


def everything(cells: Sequence[tuple[int, int]] = CELLS) -> Pareto:
    """Two phases, each of the batches and lengths, alignments, a layer alone, recovery and added
    work."""
    points = []
    for batch, length in cells:
        where = {"batch": batch, "prompt_len": length}
        trained = RecoveryLoss(before_rel=0.5, after_rel=0.1, tokens=2048)
        points += [
            at("static-nk", 1.5, set=["align=1"], **where),
            at("static-nk", 1.7, set=["align=16"], recovery=trained, **where),
            at("static-nk", 1.72, set=["align=odd"], **where),
            at(HOSTILE, 1.2, timing_valid=False, simulated="zeros", **where),
            at("dynamic-m", 1.1, overhead=added(), **where),
        ]
    points += [
        at("static-nk", 1.8, set=["align=16"], only="layer"),
        at("dynamic-m", 1.2, only="layer", realised_ci95=None),
    ]
    return sweep({"prefill": points, "decode": points})


def replays(**more: Any) -> Replays:
    """A GEMM whose time falls in steps of 64. Placements move the dense time by 5 % and that of 192
    with it, so that this ratio has no noise; the other sizes take the same in each."""
    sizes, ns = [64, 96, 128, 192, 256], [1e3, 2e3, 2e3, 3e3, 4e3]
    moved = (1 / 1.05, 1 / 1.05, 1.0, 1.05, 1.05)
    placed = [[one * (by if one >= 3e3 else 1.0) for by in moved] for one in ns]
    curve = StepCurve(axis="N", role="up", phase="prefill", m=128, k=512, dtype="fp32", sizes=sizes,
                      ns=ns, ci95=[[0.95 * one, 1.05 * one] for one in ns], placements_ns=placed,
                      width=64, step_ns=1e3, base_ns=0.0)  # fmt: skip
    one = ReplayedGemm(
        m=128, n=128, k=512, dtype="fp32", warm=ReplayTimes(ns=2e3, ci95=[1.9e3, 2.1e3])
    )
    peaks = ReplayPeaks(flop_per_s={"fp32": 1e11}, byte_per_s=1e10)
    device = ReplayDevice(name="d")
    return Replays(device=device, peaks=peaks, placements=5, repeats=15, gemms=[one],
                   curves=[curve], **more)  # fmt: skip


def figure(of: PaperSet, name: str) -> Picture:
    return next(one for one in of.figures if one.stem == f"paper-{name}")


def names_of(of: PaperSet) -> list[str]:
    return [one.stem.removeprefix("paper-") for one in of.figures]


def plotted(of: PaperSet, name: str) -> Figure:
    with plotting():
        drawn = figure(of, name).plot()
    assert drawn is not None
    drawn.draw_without_rendering()
    return drawn


def rows(of: PaperSet, name: str) -> list[dict[str, Any]]:
    one = figure(of, name)
    return list(one.rows)


@cache
def the_whole() -> PaperSet:
    return paper_set(everything(), speedup_curves([replays()]))


@cache
def picture(name: str) -> Figure:
    """A figure of the whole, drawn once for all tests that look at it."""
    return plotted(the_whole(), name)


def of_one_cell() -> PaperSet:
    """Every kind of figure, of one batch and length in two phases."""
    return paper_set(everything(CELLS[:1]), speedup_curves([replays()]))


@cache
def files_of_one_cell() -> dict[str, bytes]:
    return paper_files(of_one_cell(), ["png", "svg", "md"])


@pytest.fixture
def whole() -> PaperSet:
    return the_whole()


def test_every_kind_is_drawn(whole: PaperSet) -> None:
    names = ["shares", "speedup-0.5", "layer", "alignment", "gemms", "recovery", "overhead"]
    assert names_of(whole) == names
    assert not whole.missing
    for one in whole.figures:
        assert "n = " in one.caption and "interval" in one.caption
        assert all(len(row) == len(one.columns) for row in one.rows)


def test_what_has_no_data_is_not_drawn_and_names_its_key() -> None:
    found = paper_set(sweep({"prefill": [at("static-nk", 1.5, categories=[])]}))
    assert names_of(found) == ["speedup-0.5"]
    keys = {one.name: str(one) for one in found.missing}
    assert set(keys) == {"shares", "layer", "alignment", "gemms", "recovery", "overhead"}
    assert "`only: [model, layer]`" in keys["layer"] and "`recover: " in keys["recovery"]
    assert "align: [" in keys["alignment"] and "`families`" in keys["overhead"]
    assert "prunescope gemm" in keys["gemms"] and all("not plotted" in one for one in keys.values())
    bare = paper_set(sweep({"prefill": [at("x", 1.5, sparsity=None, sparsities=[])]}))
    assert any(isinstance(one, MissingFigure) and one.name == "speedup" for one in bare.missing)


def test_nothing_is_wider_than_its_figure(whole: PaperSet) -> None:
    for name in names_of(whole):
        drawn = picture(name)
        (legend,) = drawn.legends
        boxes = [
            legend.get_window_extent(),
            *(a.get_tightbbox() for a in drawn.axes if a.get_visible()),
        ]
        for box in filter(None, boxes):
            assert drawn.bbox.x0 - 1 <= box.x0 and box.x1 <= drawn.bbox.x1 + 1, name


def test_names_of_bars_do_not_overlap() -> None:
    for name in ("layer", "overhead"):
        for axes in picture(name).axes:
            if axes.get_visible():
                ends = [label.get_window_extent().x1 for label in axes.get_xticklabels()]
                assert ends == sorted(ends)


def test_titles_say_what_differs_and_captions_what_is_alike() -> None:
    """Batch and length, and the mode, of which there are two; flushed are all."""
    points = [
        at("static-nk", 1.5, batch=1, prompt_len=64, flush=True, warmup=10, logits="all", mode=mode)
        for mode in ("eager", "graph")
    ]
    found = paper_set(sweep({"prefill": points}))
    for name in ("shares", "speedup-0.5"):
        caption = figure(found, name).caption
        assert "all logits, cache flushed, 10 warm-ups" in caption and "n = 2 results" in caption
        assert "prefill, batch 1, 64 tokens" in caption
    labels = [t.get_text() for t in plotted(found, "shares").axes[0].get_yticklabels()]
    assert labels == [
        "prefill, batch 1, 64 tokens\n10.000 ms", "prefill, batch 1, 64 tokens, graph\n10.000 ms"
    ]  # fmt: skip
    titles = [axes.get_title(loc="left") for axes in plotted(found, "speedup-0.5").axes]
    assert titles == ["prefill, batch 1", "prefill, batch 1, graph"]


def test_shares_add_up_to_the_step(whole: PaperSet) -> None:
    found = [r for r in rows(whole, "shares") if r["phase"] == "prefill"]
    first = [r for r in found if r["setting"] == "batch 1, 64 tokens"]
    shares = {r["category"]: r["share"] for r in first}
    assert shares == pytest.approx(
        {"mlp": 0.4, "qkvo": 0.2, "attention": 0.1, "elementwise": 0.1, "idle": 0.2}
    )
    assert (first[0]["low"], first[0]["high"]) == pytest.approx((0.36, 0.44))
    caption = figure(whole, "shares").caption
    assert "the 95 % interval of a share is at most 8.0 points wide" in caption
    bare = [CategoryTime(name=one.name, dense_ns=one.dense_ns, pruned_ns=1.0) for one in STEP]
    unknown = paper_set(sweep({"prefill": [at("a", 1.0, categories=bare)]}))
    assert "no share has a 95 % interval" in figure(unknown, "shares").caption
    assert {r["n"] for r in first} == {4}  # the fifth result's times are not valid


def test_speedups_are_those_of_the_points(whole: PaperSet) -> None:
    found = rows(whole, "speedup-0.5")
    assert {r["family"]: r["realised"] for r in found} == {
        "static-nk": 1.7, HOSTILE: 1.2, "dynamic-m": 1.1,
    }  # fmt: skip
    assert {(r["nominal"], r["roofline_bound"], r["n"]) for r in found} == {(2.0, 1.2, 1)}
    axes = [one.get_title(loc="left") for one in picture("speedup-0.5").axes]
    assert axes == [
        "prefill, batch 1", "prefill, 64 tokens", "decode, batch 1", "decode, 64 tokens",
    ]  # fmt: skip


def test_times_that_are_no_evidence_are_hatched(whole: PaperSet) -> None:
    for name in ("speedup-0.5", "layer"):
        drawn = picture(name)
        legend = [text.get_text() for text in drawn.legends[0].get_texts()]
        reason = {"layer": "no interval"}.get(name, "timing not valid")
        assert reason in legend
        assert any(p.get_hatch() for axes in drawn.axes for p in axes.patches)
    assert "simulated" in figure(whole, "speedup-0.5").caption


def test_the_usual_alignment_stands_for_a_family() -> None:
    many = [at("a", 1.0, set=[f"align={n}"]) for n in ("1", "16", "128")]
    others = [at("b", 1.0, set=[f"align={n}", "unit=mlp"]) for n in ("odd", "8", "2")]
    kept = usually_aligned([*many, *others, at("c", 1.0)])
    assert [(p.family, p.set) for p in kept] == [
        ("a", ["align=16"]), ("b", ["align=8", "unit=mlp"]), ("c", []),
    ]  # fmt: skip
    # A sweep of alignments beside the families as they are shows each family once.
    assert usually_aligned([at("a", 1.0), *many]) == [at("a", 1.0)]
    other = at("a", 1.0, sparsity=0.25)
    assert usually_aligned([other, *many]) == [other, many[1]]


def test_alignments_stand_in_their_order(whole: PaperSet) -> None:
    axes = picture("alignment").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["odd", "1", "16"]
    assert {r["family"] for r in rows(whole, "alignment")} == {"static-nk"}


def test_points_of_equal_dimensions_are_named_as_one_model() -> None:
    """7,168 channels are a multiple of 2, 16 and 128, and 7,172 of 4 alone; odd is not known."""
    channels = {"2": 7168, "16": 7168, "128": 7168, "just-4": 7172}
    points = [
        at("static-nk", 1.5, set=[f"align={a}"], dimensions={"gate": [[n, 4096, 32]]})
        for a, n in channels.items()
    ]
    points += [at("static-nk", 1.4, set=["align=odd"]), at("b", 1.4, set=["align=16"])]
    found = paper_set(sweep({"prefill": points}))
    assert "are the same model" in (caption := figure(found, "alignment").caption)
    assert "equal: static-nk 2 = 16 = 128." in caption
    same = {r["align"]: r["same_model_as"] for r in rows(found, "alignment")}
    assert same == {"2": "16, 128", "16": "2, 128", "128": "2, 16", "just-4": None, "odd": None}
    (axes,) = plotted(found, "alignment").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "odd", "2", "just-4", "16", "128",
    ]  # fmt: skip
    assert [(text.get_text(), text.xy[0]) for text in axes.texts] == [("=", i) for i in (1, 3, 4)]


def test_a_layer_is_stacked_from_its_categories() -> None:
    axes = picture("layer").axes[0]
    heights = {}
    for bar in (p for p in axes.patches if p.get_width() == pytest.approx(0.7)):
        at_x = round(bar.get_x() + 0.35)
        heights[at_x] = heights.get(at_x, 0.0) + bar.get_height()
    assert heights == pytest.approx({0: 10, 1: 8.5, 2: 8.5})
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["dense", "static-nk 0.5", "dynamic-m 0.5"]


def test_each_layer_has_the_dense_one_of_its_own_result() -> None:
    """Dense layers of 10, 12 and 11 ms: the bar is that of 11. The router of b let .87 of its rows
    through, where s = .5 says .5; the closure of c is not known."""
    made = []
    for name, ms in (("a", 10), ("b", 12), ("c", 11)):
        one = at(name, 1.2, only="layer", categories=parts(mlp=(ms, 5)))
        one.ledger = {**one.ledger, "dense": ms * MS}
        one.ran = {"rows of self_attn": 0.94, "rows of mlp": 0.8} if name == "b" else {}
        if name != "c":
            sides = {"layer": 3, "layers": 8, "layer_ns": 1.0, "rest_ns": 2.0, "whole_ns": 9.6}
            ends = [1.0, 1.25] if name == "b" else None
            one.closure = {"dense": LayerSum(**sides, ratio=10 / 9.6, ratio_ci95=ends)}
        made.append(one)
    found = paper_set(sweep({"prefill": made}))
    dense = {r["result"]: (r["ns"] / MS, r["drawn"], r["closure_high"])
             for r in rows(found, "layer") if r["side"] == "dense"}  # fmt: skip
    assert dense == {"a": (10, False, None), "b": (12, False, 1.25), "c": (11, True, None)}
    own = {r["result"]: r["own_sparsity"] for r in rows(found, "layer") if r["side"] == "pruned"}
    assert own == {"a": None, "b": pytest.approx(0.13), "c": None}
    (axes,) = plotted(found, "layer").axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["dense", "a 0.5", "b 0.5\nhere 0.13", "c 0.5"]
    (of_dense, *lines) = [list(line.get_ydata()) for line in reversed(axes.lines)]
    assert of_dense == [10, 12]  # the whisker of the bar
    assert [ends for ends in lines if ends[0] == ends[1]] == [[11, 11], [12, 12], [10, 10]]
    caption = figure(found, "layer").caption
    assert "take 1.04 to 1.04 of the time of the whole model" in caption
    assert "from 1.00 to 1.25; each" in caption and "Here: the share" in caption


def test_gemm_steps_over_what_is_gone(whole: PaperSet) -> None:
    """From N = 256, 4 us: 64 take 1 us, so that three quarters less are 4 times as fast; at 96 the
    step of 128 still counts, 2 times where the size says 2.67."""
    found = {r["size"]: r for r in rows(whole, "gemms")}
    assert found[64]["speedup"] == 4.0 and found[64]["gone"] == 0.75
    assert found[96]["speedup"] == 2.0 and found[96]["proportional"] == pytest.approx(8 / 3)
    assert (found[128]["low"], found[128]["high"]) == (1.9e3, 2.1e3)
    # Of a size whose own time is the same in each placement, the noise is that of the dense one.
    assert found[128]["speedup_low"] < 0.98 * 2 and found[128]["speedup_high"] > 1.02 * 2
    assert found[192]["speedup_low"] == pytest.approx(4 / 3, rel=1e-3)
    assert found[192]["speedup_high"] == pytest.approx(4 / 3, rel=1e-3)
    assert found[256]["speedup_low"] is None and found[256]["timing_valid"] is True
    assert "ratio of geometric means over placements of medians" in figure(whole, "gemms").caption
    legend = [t.get_text() for t in picture("gemms").legends[0].get_texts()]
    assert "steps" in legend and not any("disturbed" in text for text in legend)
    busy = paper_set(everything(), speedup_curves([replays(disturbed=["other processes"])]))
    assert not any(row["timing_valid"] for row in rows(busy, "gemms"))
    assert "1 of 1 curves, disturbed by other processes" in figure(busy, "gemms").caption
    assert any(patch.get_hatch() for patch in plotted(busy, "gemms").axes[0].patches)
    legend = [t.get_text() for t in plotted(busy, "gemms").legends[0].get_texts()]
    assert "disturbed by other processes" in legend


def test_recovery_has_a_frontier_before_and_one_after() -> None:
    """b is faster than a and loses more before training, so that both are on the frontier; after it
    b loses less, and a is not on it any more."""
    a = at("a", 1.3, recovery=RecoveryLoss(before_rel=0.2, after_rel=0.1, tokens=9))
    b = at("b", 1.5, recovery=RecoveryLoss(before_rel=0.9, after_rel=0.05, tokens=9))
    c = at("c", 0.9, recovery=RecoveryLoss(before_rel=0.0, after_rel=0.0, tokens=9))
    found = paper_set(sweep({"prefill": [a, b, c]}))
    on = {r["family"]: (r["frontier_before"], r["frontier_after"]) for r in rows(found, "recovery")}
    assert on == {"a": (True, False), "b": (True, True), "c": (False, False)}
    random = sweep({"prefill": [a, b]}, text={"source": "random token ids"})
    legend = [t.get_text() for t in plotted(paper_set(random), "recovery").legends[0].get_texts()]
    assert legend[-1] == "random token ids: no loss means anything"


def test_added_work_is_a_share_of_the_dense_step(whole: PaperSet) -> None:
    found = [r for r in rows(whole, "overhead") if r["setting"] == "batch 1, 64 tokens"]
    assert [(r["part"], r["of_dense"]) for r in found[:2]] == [
        ("router", pytest.approx(0.1)), ("host time", pytest.approx(0.05)),
    ]  # fmt: skip
    axes = picture("overhead").axes[0]
    assert [text.get_text() for text in axes.texts] == ["50 % of saved"]


def test_a_page_has_no_more_panels_than_have_room() -> None:
    """Of 2.5 inches each: two in a column, four on a page."""
    many = [
        at("static-nk", 1.5, set=[f"align={n}"], batch=b) for b in range(1, 13) for n in (1, 16)
    ]
    found = paper_set(sweep({"prefill": many}))
    assert len(plotted(found, "alignment").axes) == 2
    assert "10 more settings are in the CSV" in figure(found, "alignment").caption
    assert len(rows(found, "alignment")) == 24
    with printed_as(printing_of(["pdf"], width="page")):
        found = paper_set(sweep({"prefill": many}))
        assert len(plotted(found, "alignment").axes) == 4
    assert "8 more settings are in the CSV" in figure(found, "alignment").caption


def test_files_of_a_set(whole: PaperSet) -> None:
    few = of_one_cell()
    assert names_of(few) == names_of(whole)
    files = files_of_one_cell()
    for one in few.figures:
        assert files[f"{one.stem}.png"][:4] == b"\x89PNG" and len(files[f"{one.stem}.png"]) > 5000
        lines = list(csv.reader(io.StringIO(files[f"{one.stem}.csv"].decode())))
        assert len(lines) == 1 + len(one.rows)
        assert (
            rf"\prunescopedraw{{figure}}{{{one.stem}}}" in files[f"figure-{one.stem}.tex"].decode()
        )
    tex = files["paper.tex"].decode()
    assert (
        tex.count(r"\caption{") == len(few.figures)
        and tex.count(r"\providecommand{\prunescopedraw}") == 1
    )
    assert "(paper-shares.png)" in files["paper.md"].decode()


def test_two_sets_of_one_sweep_are_equal() -> None:
    """Also where other formats are drawn beside the one."""
    first, second = files_of_one_cell(), paper_files(of_one_cell(), ["svg"])
    assert len([name for name in second if name.endswith(".svg")]) == 7
    assert second == {name: first[name] for name in second}
