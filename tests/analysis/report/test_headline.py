"""The headline where nothing was pruned: the ratio is that of two captures, and no speedup."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import sentences, titles
from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.report.notebook import brief
from prunescope.analysis.schema.report import FamilyVerdict, Finding, Ladder, Pairing, Phase
from tests.analysis.decoder import Layer, census, decoder, write_pair
from tests.analysis.report import example
from tests.chrome import save

NONE_ADDED = Pairing(matched=362, removed=0, added=0, alignment="number")


def compared(family: str, **ladder: object) -> Phase:
    """A phase of unmoved GEMMs at 1.43× [1.38, 1.50], and nothing promised."""
    plain = {"nominal": 1.0, "flop": 1.0, "coverage": 1.0, "roofline": 1.0, "busy": 1.4,
             "realised": 1.43, "realised_ci95": [1.38, 1.5], "share_of_bound": 1.43}  # fmt: skip
    unmoved = [g for g in example.gemms(512) if g.axis == "none"]
    return example.phase(
        family=FamilyVerdict(id=family, confidence=1.0, evidence=["no GEMM moved"]),
        ladder=msgspec.convert({**plain, **ladder}, Ladder),
        gemms=unmoved, pairing=NONE_ADDED,
    )  # fmt: skip


def test_two_captures_of_one_model_have_no_speedup() -> None:
    line = sentences.headline(compared("dense"))
    assert line == (
        "nothing was pruned: 1.43× [1.38×, 1.50×] is the noise between two captures, no speedup"
    )
    once = sentences.headline(compared("dense", realised_ci95=None))
    assert once.startswith("nothing was pruned: 1.43× (no interval: one step or sample) is the")


def test_what_was_promised_is_still_said() -> None:
    line = sentences.headline(compared("dense", nominal=2.0))
    assert line.endswith("is the noise between two captures, no speedup; 2.00× was promised")


def test_shapes_that_cannot_tell_say_so() -> None:
    line = sentences.headline(compared("unknown"))
    assert line.startswith("the shapes show no pruning: 1.43× [1.38×, 1.50×] is the noise between")
    assert line.endswith("two captures, or what a trace does not show")


@pytest.mark.parametrize("what", ["a GEMM moved", "work was added", "no GEMM is known"])
def test_an_unknown_that_moved_keeps_its_speedup(what: str) -> None:
    phase = compared("unknown")
    if what == "a GEMM moved":
        phase.gemms = example.gemms(512)
    elif what == "work was added":
        phase.pairing = Pairing(matched=362, removed=0, added=3, alignment="number")
    else:
        phase.gemms = []
    assert sentences.headline(phase).startswith("1.43× realised [1.38×, 1.50×] of 1.00× promised")


SAMPLES = {"dense": [143_000, 144_000, 142_000], "pruned": [100_000, 101_000, 99_000]}


@pytest.mark.parametrize("apart", [True, False])
def test_captures_that_differ_by_more_than_their_interval_are_a_warning(
    tmp_path: Path, *, apart: bool
) -> None:
    """143 against 100 µs of one model: no speedup of that size is evidence on this machine."""
    trace = decoder([Layer()] * 4)
    run = write_pair(
        tmp_path / "r", trace, trace, both_census=census(0.0), dense_samples_ns=SAMPLES["dense"],
        samples_ns=SAMPLES["pruned" if apart else "dense"],
    )  # fmt: skip
    report = analyze(run).report
    said = [w for w in report.warnings if "nothing was pruned" in w]
    assert sentences.headline(report.phases["prefill"]).startswith("nothing was pruned: 1.")
    if apart:
        assert said[0].startswith(
            "prefill: nothing was pruned, and the two captures differ by 1.43× ["
        )
    else:
        assert said == []


def test_a_bare_pair_of_one_model(tmp_path: Path) -> None:
    one, other = (save(decoder([Layer()] * 4), tmp_path / f"{n}.json") for n in "ab")
    line = sentences.headline(analyze(one, baseline=other).report.phases["trace"])
    assert line.startswith("the shapes show no pruning: 1.00×")


def test_an_interval_that_holds_one_leads() -> None:
    phase = compared("static-nk", nominal=2.0, roofline=1.2, realised_ci95=[0.9, 2.2])
    phase.findings = [
        Finding(id="no-speedup", severity="critical", text="no speedup", evidence=[], change=None,
                predicted_ns=None)
    ]  # fmt: skip
    assert sentences.headline(phase) == (
        "1.43× [0.90×, 2.20×] cannot be told from no speedup: the interval holds 1×; "
        "2.00× was promised"
    )
    assert "no speedup told from noise, static-nk" in brief(
        msgspec.structs.replace(example.two_phases(), phases={"prefill": phase})
    )


def test_more_than_the_bound_is_said_of_the_interval() -> None:
    """Only a whole interval above the bound says that the model of it is wrong."""
    more = {"nominal": 2.0, "roofline": 1.2, "share_of_bound": 1.19}
    line = sentences.headline(compared("static-nk", **more, realised_ci95=[1.1, 1.6]))
    assert line.endswith("119.0 % of the roofline bound (the interval holds the bound)")
    line = sentences.headline(compared("static-nk", **more, realised_ci95=[1.3, 1.6]))
    assert line.endswith("(≥ 100 % of the bound: faster than the model of it allows)")


def test_a_bare_trace_is_headed_by_the_phase_that_it_is() -> None:
    report = example.alone()
    (name, phase), *_ = report.phases.items()
    phase.phase_kind = {"kind": "unknown", "evidence": "no linears"}
    assert titles.heading(name, phase) == name
    phase.phase_kind["kind"] = name
    assert titles.heading(name, phase) == name
    assert titles.heading(f"rank0-{name}", phase) == f"rank0-{name}"
    phase.phase_kind["kind"] = "training"
    assert titles.heading(name, phase) == f"{name} (training)"
    assert f"\n## {name} (training)\n" in render_markdown(report)
    assert f"<h2>{name} (training)</h2>" in render_html(report)
