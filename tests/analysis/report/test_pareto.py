"""The figure of a sweep: what is shown, what the margin counts, where labels stand; its options."""

from __future__ import annotations

import itertools
import re

import matplotlib.text
import pytest
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from prunescope.analysis.frontier.frontier import frontier
from prunescope.analysis.paper.paper_figure import looks_of
from prunescope.analysis.pareto.files import pareto_files
from prunescope.analysis.report.looks import family_looks
from prunescope.analysis.report.pareto_figures import frontier_figure, pareto_pictures
from prunescope.analysis.report.pareto_tables import render_pareto
from prunescope.analysis.report.picture import files_of_pictures
from prunescope.analysis.schema.pareto import (
    Pareto,
    ParetoPhase,
    SweepCell,
    SweepPoint,
    SweepSubject,
)
from tests.analysis.pareto_points import point

# Four on the frontier within a hair of each other, two that nobody would use.
CLOSE = [
    point("a", 1.10, 0.02, sparsity=0.125), point("b", 1.16, 0.05, sparsity=0.25),
    point("a", 1.22, 0.08, sparsity=0.375), point("c", 1.29, 0.11, sparsity=0.5),
    point("b", 1.0, 0.1), point("c", 2.0, 5.0), point("d", 2.5, 900.0), point("d", 1.4, 1.2),
]  # fmt: skip


def whole(phases: dict[str, list[SweepPoint]]) -> Pareto:
    found = {}
    for name, points in phases.items():
        for one in frontier(points):
            one.on_frontier = True
        cell = SweepCell(
            batch=1, prompt_len=512, dense_ns={}, winners=[], break_even={}, equal_flops=[],
            equal_sparsity=[],
        )  # fmt: skip
        found[name] = ParetoPhase(points=points, winners=[], break_even={}, cells=[cell])
    return Pareto(tool="t", subject=SweepSubject(), phases=found)


def svgs(pareto: Pareto) -> dict[str, bytes]:
    return files_of_pictures(pareto_pictures(pareto), ["svg"], "t")


def all_have_marks(legend: Legend) -> bool:
    """Whether each entry of a legend is drawn: a line, a marker or a patch."""
    return all(
        isinstance(one, Patch)
        or one.get_linestyle() != "None"
        or one.get_marker() not in ("", "None", None)
        for one in legend.legend_handles
    )


def test_labels_of_the_frontier_do_not_overlap() -> None:
    figure = frontier_figure(whole({"prefill": CLOSE, "decode": CLOSE[:5]}))
    figure.draw_without_rendering()
    for axes in figure.axes:
        labels = [t for t in axes.texts if isinstance(t, matplotlib.text.Annotation)]
        texts = {label.get_text() for label in labels}
        assert {"0.125", "0.25", "0.375", "0.5"} <= texts
        boxes = [matplotlib.text.Text.get_window_extent(label) for label in labels]
        assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_labels_leave_the_intervals_free_where_there_is_a_place() -> None:
    """The second one's interval passes the places above and below the first one."""
    points = [point("a", 1.08, 0.068, sparsity=0.125), point("b", 1.09, 0.2, sparsity=0.25)]
    points[0].realised_ci95, points[1].realised_ci95 = [1.03, 1.14], [1.02, 1.16]
    points += [point("b", 1.39, 1.26, sparsity=0.375)]
    figure = frontier_figure(whole({"decode": points}))
    (axes,) = figure.axes
    labels = [t for t in axes.texts if isinstance(t, matplotlib.text.Annotation)]
    assert {label.get_text() for label in labels} == {"0.125", "0.25", "0.375"}
    boxes = [matplotlib.text.Text.get_window_extent(label) for label in labels]
    for at, one in ((1.068, points[0]), (1.2, points[1])):
        ends = Bbox(axes.transData.transform([(at, y) for y in one.realised_ci95 or ()]))
        assert not [box for box in boxes if box.overlaps(ends)]


def test_a_point_whose_time_is_not_valid_is_marked_in_both_figures() -> None:
    points = [point("a", 1.1, 0.02, sparsity=0.125, timing_valid=False), point("b", 1.3, 0.2)]
    for valid in (False, True):
        points[0].timing_valid = valid
        figure = frontier_figure(whole({"prefill": points}))
        (axes,) = figure.axes
        said = {t.get_text() for t in axes.texts if isinstance(t, matplotlib.text.Annotation)}
        assert said == {"0.125" if valid else "0.125 ?", "0.25"}
        legend = " ".join(text.get_text() for text in figure.legends[0].get_texts())
        assert ("timing not valid" in legend) is not valid
        assert all_have_marks(figure.legends[0])
        hatched = [one.get_hatch() for one in axes.collections if one.get_hatch()]
        assert hatched == ([] if valid else ["xxxxxxxx"])


def test_what_nobody_would_use_is_counted_in_the_margin() -> None:
    figure = frontier_figure(whole({"prefill": CLOSE}))
    (axes,) = figure.axes
    assert axes.get_xlim()[1] <= 4.0
    assert axes.get_xlabel().endswith("(2 beyond 4×)")
    wide = frontier_figure(whole({"prefill": CLOSE}), most=10.0)
    assert wide.axes[0].get_xlabel().endswith("(1 beyond 10×)")


def test_an_empty_panel_says_why() -> None:
    far = [point("a", 1.6, 4341685199.409), point("b", 1.3, 17369.337)]
    (axes,) = frontier_figure(whole({"prefill": far})).axes
    assert axes.get_xlim() == (1.0, 4.0)
    said = [text.get_text() for text in axes.texts]
    assert "all 2 points lie beyond this axis,\nat 17,400× to 4.3e9× the dense perplexity" in said
    (axes,) = frontier_figure(whole({"prefill": [point("a", 1.3, 4.5)]})).axes
    said = [text.get_text() for text in axes.texts]
    assert "its one point lies beyond this axis,\nat 5.5× the dense perplexity" in said
    (axes,) = frontier_figure(whole({"prefill": CLOSE})).axes
    assert not any("this axis" in text.get_text() for text in axes.texts)


def test_an_interval_of_disturbed_times_leaves_room_for_the_points() -> None:
    """1.2x [0.9, 180]: the axis ends at 1.4 times the largest speedup."""
    far = [point("a", 1.2, 0.1, realised_ci95=[0.9, 180.0]), point("b", 1.5, 0.2)]
    (axes,) = frontier_figure(whole({"prefill": far})).axes
    assert axes.get_ylim()[1] == pytest.approx(1.4 * 1.03 * 1.5)


def test_the_legend_is_no_wider_than_the_figure() -> None:
    """One panel is 3.35 inches wide: four columns of such labels are not."""
    found = whole({"prefill": [point("static-nk-mlp", 1.3, 0.2, timing_valid=False)]})
    for phases in (found.phases, {**found.phases, "decode": found.phases["prefill"]}):
        figure = frontier_figure(Pareto(tool="t", subject=SweepSubject(), phases=phases))
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0


def test_one_legend_for_all_phases_and_a_marker_a_family() -> None:
    figure = frontier_figure(whole({"prefill": CLOSE, "decode": CLOSE}))
    legends = [child for child in figure.get_children() if isinstance(child, Legend)]
    assert len(legends) == 1
    assert [text.get_text() for text in legends[0].get_texts()][:4] == ["a", "b", "c", "d"]


def test_a_family_looks_the_same_in_the_paper_set() -> None:
    points = [point(f"family {i}", 1.1, 0.1) for i in range(9)]
    assert family_looks((p.label, p.family) for p in points) == looks_of(points)


def test_a_cell_without_a_loss_is_drawn() -> None:
    files = svgs(whole({"prefill": [point("a", 1.1, None)]}))
    assert files["speed-quality-all.svg"].startswith(b"<?xml")


def test_the_loss_shown_is_that_after_recovery() -> None:
    one = point("a", 1.3, 0.9)
    assert one.loss is not None
    one.loss.perplexity_rel_recovered, one.loss.recovered_ci95 = 0.2, [0.1, 0.3]
    figure = frontier_figure(whole({"prefill": [one]}))
    dots = [line for line in figure.axes[0].lines if line.get_marker() not in (None, "None")]
    assert [float(line.get_xdata()[0]) for line in dots] == [1.2]  # type: ignore[index]


def test_options_of_an_old_sweep_have_the_names_of_today() -> None:
    old = {"select": ["random", "calibrated"], "seatings": 8, "batch": 1}
    found = Pareto(tool="t", subject=SweepSubject(model="m", config=old), phases={})
    assert "select random, importance · placements 8 · batch 1" in render_pareto(found)


def test_the_page_shows_every_page_of_a_figure() -> None:
    """Thirty families need four panels of eight, of which a column holds two."""
    points = [point(f"own{number}", 1.1, 0.1) for number in range(30)]
    files = pareto_files(whole({"prefill": points}), ["md", "png"])
    page = files["pareto.md"].decode()
    drawn = [name for name in files if name.endswith(".png")]
    assert {"bound-prefill-2.png", "speed-quality-all-2.png"} <= set(drawn)
    assert sorted(re.findall(r"\]\(([^)]+\.png)\)", page)) == sorted(drawn)


def test_zeros_and_stand_ins_are_marked_in_every_figure() -> None:
    """A simulated point gets `*`, one that does the dense work `†`, in its panel and the legend."""
    zeros = {"flop_sparsity": 0.0, "parameter_sparsity": 0.0}
    points = [
        point("static-k-24", 1.0, 0.9, simulated="zeros on dense kernels", **zeros),
        point("static-k-mask", 1.01, 0.3, **zeros),
        point("static-m", 1.3, 0.5),
    ]
    figure = frontier_figure(whole({"prefill": points}))
    (axes,) = figure.axes
    labels = {t.get_text() for t in axes.texts if isinstance(t, matplotlib.text.Annotation)}
    assert labels == {"*†", "†", "0.25"}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:3] == ["static-k-24 *†", "static-k-mask †", "static-m"]
    assert legend[-2:] == ["simulated", "zeros or nothing: the dense work"]
    assert all_have_marks(figure.legends[0])
    files = svgs(whole({"prefill": points}))
    for kind in ("bound", "ledger"):
        assert b">simulated<" in files[f"{kind}-prefill.svg"]
    page = render_pareto(whole({"prefill": points}))
    assert "static-k-24 \\*†" in page and "† removed no work" in page


def test_losses_of_random_token_ids_are_marked_in_the_figure() -> None:
    found = whole({"prefill": CLOSE})
    (axes,) = frontier_figure(found).axes
    assert "random" not in axes.get_xlabel()
    found.subject.text = {"source": "random token ids"}
    (axes,) = frontier_figure(found).axes
    assert axes.get_xlabel().endswith("\non random token ids: no loss means anything")
    assert [one.get_hatch() for one in axes.patches] == ["oo"]
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert legend[-1] == "random token ids: no loss means anything"


def test_a_family_without_a_point_in_sight_is_not_in_the_legend() -> None:
    figure = frontier_figure(whole({"prefill": CLOSE}))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "d" in names
    far = frontier_figure(whole({"prefill": [point("a", 1.1, 0.1), point("e", 2.0, 900.0)]}))
    assert "e" not in [text.get_text() for text in far.legends[0].get_texts()]


def test_no_frontier_is_drawn_where_no_point_was_judged() -> None:
    """Judged: a valid time with an interval, and a loss on a text that means something."""

    def has_line(pareto: Pareto) -> bool:
        figure = frontier_figure(pareto)
        legend = [text.get_text() for own in figure.legends for text in own.get_texts()]
        return "frontier: full marks, with their s" in legend

    assert has_line(whole({"prefill": CLOSE}))
    invalid = [point("a", 1.1, 0.02, timing_valid=False), point("b", 1.3, 0.2, timing_valid=False)]
    assert not has_line(whole({"prefill": invalid}))
    assert not has_line(whole({"prefill": [point("a", 1.1, None)]}))
    random = whole({"prefill": CLOSE})
    random.subject.text = {"source": "random token ids"}
    assert not has_line(random)


def test_above_eight_families_a_panel_names_eight_and_shows_the_others_in_grey() -> None:
    points = [point(f"family {i}", 1.1 + i / 50, 0.02 + i / 100) for i in range(12)]
    figure = frontier_figure(whole({"prefill": points}))
    named = [
        [line for line in axes.lines if str(line.get_gid()).startswith("family-")]
        for axes in figure.axes
    ]
    assert [len(lines) for lines in named] == [8, 4]
    grey = [
        sum(len(line.get_xdata()) for line in axes.lines if line.get_label() == "others")
        for axes in figure.axes
    ]
    assert grey == [4, 8]
    assert "others" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_captions_of_a_sweep_stand_alone_and_their_numbers_have_a_csv() -> None:
    found = whole({"prefill": CLOSE, "decode": CLOSE})
    found.subject = SweepSubject(
        model="m", device="d", dtype="bf16", config={"repeats": 12, "placements": 3, "steps": 5}
    )
    for picture in pareto_pictures(found):
        caption = picture.caption
        for words in ("m, a, b, c and d", "s = 0.125", "batch 1, 512 tokens", "bf16, d", "n = "):
            assert words in caption, picture.stem
        assert "of 12 unprofiled samples in 3 placements" in caption
        assert picture.rows and picture.alt
    found.subject.config["until"] = 0.02
    for picture in pareto_pictures(found):
        words = "until the interval of a speedup was ±2 %, in at most 3 placements and at most 5"
        assert words in picture.caption


def test_a_row_of_the_ledger_is_found_by_its_id_and_has_one_colour() -> None:
    points = CLOSE[:2]
    for one in points:
        one.ledger = {"dense": 100.0, "promised": 50.0, "coverage": 20.0, "pruned": 70.0}
    (svg,) = (data for name, data in svgs(whole({"p": points})).items() if "ledger" in name)
    assert svg.count(b'<g id="row-coverage">') == svg.count(b'<g id="row-coverage_2">') == 1
