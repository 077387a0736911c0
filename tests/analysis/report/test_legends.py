"""Every figure: no entry of a legend without a mark that is seen, no mark without an entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import pytest
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from prunescope.analysis.paper.reproduce import reproduce
from prunescope.analysis.paper.reproduction_figure import reproduction_files
from prunescope.analysis.report import figures
from prunescope.analysis.report.allocation_figure import plan_files
from prunescope.analysis.report.comparison_figure import comparison_pictures
from prunescope.analysis.report.figure_style import plotting
from prunescope.analysis.report.looks import ROWS
from prunescope.analysis.report.pareto_figures import pareto_pictures
from prunescope.analysis.report.picture import Picture
from prunescope.analysis.report.predict_figure import curve_files
from prunescope.analysis.report.replay_figure import replay_figure
from prunescope.analysis.schema.comparison import Comparison
from prunescope.analysis.schema.report import Finding, Report
from prunescope.analysis.schema.reproduction import Reproduction
from prunescope.taxonomy.allocations.allocation_plan import (
    ExpectedPhase,
    KeptLayer,
    PlanEstimate,
    PlanOfLayers,
    Target,
)
from prunescope.taxonomy.paper import paper
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS
from tests.analysis.paper.test_paper_figures import at, of_one_cell, replays
from tests.analysis.paper.test_paper_figures import sweep as of_cells
from tests.analysis.pareto_points import point
from tests.analysis.predict.test_grid import ask
from tests.analysis.report import example
from tests.analysis.report.test_anatomy_figures import anatomy, shape
from tests.analysis.report.test_anatomy_figures import point as call
from tests.analysis.report.test_anatomy_figures import report as alone
from tests.analysis.report.test_pareto import whole
from tests.analysis.test_compare import rows

_NEUTRAL = {"#000000", "#555555"}  # of what has every colour
_PIXELS = 1.5  # at 300 dots an inch


def _look(patch: Patch) -> tuple[str, str]:
    return to_hex(patch.get_facecolor()), (patch.get_hatch() or "")[:1]


def _is_seen(axes: Axes, artist: Artist) -> bool:
    """Whether more of it than a hair is in the axes."""
    if not artist.get_visible():
        return False
    if isinstance(artist, Line2D):
        at = axes.transData.transform(artist.get_xydata())
        box = axes.bbox.padded(1)
        return any(math.isfinite(x + y) and box.contains(x, y) for x, y in at) or (
            len(at) == 2 and artist.get_transform() != axes.transData  # axhline and the like
        )
    box = artist.get_window_extent().intersection(artist.get_window_extent(), axes.bbox)
    return box is not None and min(box.width, box.height) > _PIXELS


def _is_row(patch: Patch) -> bool:
    return str(patch.get_gid()).startswith("row-")


def _marks(figure: Figure) -> tuple[list[Patch], list[Line2D], list[Collection]]:
    """What is drawn and seen."""
    every = [axes for axes in figure.axes if axes.get_visible()]
    patches = [p for axes in every for p in axes.patches if _is_seen(axes, p)]
    lines = [line for axes in every for line in axes.lines if _is_seen(axes, line)]
    return patches, lines, [c for axes in every for c in axes.collections if len(c.get_paths())]


def _entries(figure: Figure) -> Iterator[tuple[str, Any]]:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    for legend in filter(None, legends):
        texts = (text.get_text() for text in legend.get_texts())
        yield from zip(texts, legend.legend_handles, strict=True)


def _marker(line: Line2D) -> str:
    marker = line.get_marker()
    return marker if isinstance(marker, str) and marker not in ("None", " ") else ""


def without_mark(figure: Figure) -> list[str]:
    """Entries of the legend that nothing in the figure looks like."""
    patches, lines, dots = _marks(figure)
    looks = {_look(patch) for patch in patches}
    colours = {to_hex(c) for one in dots for c in (*one.get_facecolor(), *one.get_edgecolor())}
    colours |= {to_hex(one.get_edgecolor()) for one in patches if one.get_hatch()}  # no evidence
    hatches = {(one.get_hatch() or "")[:1] for one in dots} - {""}
    missing = []
    for label, handle in _entries(figure):
        if isinstance(handle, Patch):
            face, hatch = _look(handle)
            found = (face, hatch) in looks or hatch in hatches or face in colours
        elif not isinstance(handle.get_marker(), str):
            continue  # a letter, as it stands beside names
        else:
            colour, marker = to_hex(handle.get_color()), _marker(handle)
            alike = [x for x in lines if colour in {to_hex(x.get_color()), *_NEUTRAL}]
            strokes = {x.get_linestyle() for x in alike}
            found = marker in map(_marker, alike) if marker else handle.get_linestyle() in strokes
            found = found or colour in colours or (marker and handle.get_linestyle() in strokes)
        missing += [] if found else [label]
    return missing


def without_entry(figure: Figure) -> list[Any]:
    """Looks of bars and points that no entry of a legend has, where the figure has a legend. The
    colour of an axis's label names it too; black lines are named at their axis."""
    entries = [handle for _, handle in _entries(figure)]
    if not entries:
        return []
    patches, lines, dots = _marks(figure)
    looks = {_look(one) for one in entries if isinstance(one, Patch)}
    colours = {look[0] for look in looks} | {
        to_hex(one.get_color()) for one in entries if isinstance(one, Line2D)
    }
    colours |= {to_hex(axes.yaxis.label.get_color()) for axes in figure.axes} | {"#ffffff"}
    # Rows of a ledger that stand one below the other are named at their axis.
    named = {to_hex(look.colour) for look in ROWS.values()} if len(looks) < 4 else set()
    patches = [one for one in patches if not (_is_row(one) and _look(one)[0] in named)]
    found: list[Any] = [
        look for look in map(_look, patches)
        if look not in looks and (look[1] or look[0] not in colours)
    ]  # fmt: skip
    pointed = (to_hex(x.get_color()) for x in lines if _marker(x) not in ("", "|", "_"))
    faces = (to_hex(face) for one in dots for face in one.get_facecolor())
    return found + [colour for colour in (*pointed, *faces)
                    if colour not in colours | _NEUTRAL]  # fmt: skip


def pair(**changes: Any) -> Report:
    """Two phases; a row of the ledger that moved by a nanosecond more than its noise."""
    report = example.two_phases()
    for phase in report.phases.values():
        for row in phase.ledger or []:
            if row.row == "shape":
                row.ns, row.ci95, row.noise_ns, row.parts = 1.0, None, None, []
    report.phases = {
        name: msgspec.structs.replace(phase, **changes) for name, phase in report.phases.items()
    }
    return report


def one_run() -> Report:
    """A hair of a bound that is unknown, eight kinds with FLOPs, a dense N that no curve has."""
    found = anatomy()
    found.kind_bounds = {kind: {"compute": 1e9, "unknown": 3.0} for kind in found.kind_bounds}
    found.points = [call(f"kind {i}", 6e11, 1e9, 1e6) for i in range(8)]
    one = shape("gate", 1160, 1536)
    found.shapes = [msgspec.structs.replace(one, curve=[at for at in one.curve if at[0] != 1536])]
    report = alone(found)
    report.phases["trace"].token_ids = RANDOM_IDS
    return report


def sweep() -> Any:
    """A family without a bound, one whose times are not valid, a row of a ledger that is a hair."""
    points = [
        point("a", 1.1, 0.02), point("b", 1.2, 0.1, bounds={}),
        point("c", 1.3, 0.2, timing_valid=False), point("d", 1.3, 900.0),
    ]  # fmt: skip
    for one in points:
        one.ledger |= {"added_work": 1.0}
    return whole({"prefill": points, "decode": points})


def reproduced() -> Reproduction:
    """Ours of one family alone, whose times are not valid."""
    points = [at("static-nk", 1.5, timing_valid=False)]
    return reproduce(of_cells({"prefill": points, "decode": points}), paper())


def plan() -> PlanOfLayers:
    """A layer that is dropped, one with an MLP of low rank, one that is narrower."""
    dense: dict[str, Any] = {"dense_kv_heads": 8, "dense_channels": 64, "loss": 0.1,
                             "saves_ns": {"prefill": 1e6}}  # fmt: skip
    layers = [
        KeptLayer(layer=0, dropped=True, **dense),
        KeptLayer(layer=1, kv_heads=8, channels=64, mlp_lowrank=50, **dense),
        KeptLayer(layer=2, kv_heads=4, channels=32, **dense),
    ]
    phases = {"prefill": ExpectedPhase(dense_ns=4e6, ns=2e6, speedup=2, range=[1.8, 2.1], weight=1)}
    expected = PlanEstimate(speedup=2, range=[1.8, 2.1], phases=phases, memory_bytes=1,
                        dense_memory_bytes=2, loss=0.3)  # fmt: skip
    return PlanOfLayers(kind="allocation", model="m", target=Target(phase="prefill", speedup=2),
                        expected=expected, layers=layers)  # fmt: skip


def drawn(pictures: Iterable[Picture]) -> list[Figure | None]:
    with plotting():
        return [picture.plot() for picture in pictures]


INVALID = [Finding(id="timing-not-valid", severity="critical", text="x", evidence=[], change=None,
                   predicted_ns=None)]  # fmt: skip
CASES: dict[str, Callable[[], object]] = {
    "pair": lambda: figures.figure_files(pair(), "png"),
    "pair, not valid": lambda: figures.figure_files(pair(findings=INVALID), "png"),
    "one run": lambda: figures.figure_files(one_run(), "png"),
    "sweep": lambda: drawn(pareto_pictures(sweep())),
    "comparison": lambda: drawn(
        comparison_pictures(Comparison(tool="t", baseline=None, rows=rows(4)))
    ),
    "prediction": lambda: curve_files(ask(method="static-m,dynamic-m", curves=True)),
    "prediction of one": lambda: curve_files(ask(method="static-m", curves=True)),
    "reproduction": lambda: reproduction_files(reproduced(), ["png"]),
    "paper": lambda: drawn(of_one_cell().figures),
    "plan": lambda: plan_files(plan(), "plan", ["png"]),
    "replay": lambda: replay_figure(replays().curves, [], "m"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_legend_names_what_is_seen_and_nothing_else(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Figure] = []

    def keep(figure: Figure, *_: object, **__: object) -> None:
        made.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    found = CASES[case]()
    made += [one for one in (found if isinstance(found, list) else [found])
             if isinstance(one, Figure)]  # fmt: skip
    assert made
    for figure in made:
        figure.set_dpi(300)
        figure.draw_without_rendering()
        title = figure.get_suptitle() or figure.axes[0].get_ylabel()
        assert (title, without_mark(figure)) == (title, [])
        assert (title, without_entry(figure)) == (title, [])
