"""A sweep compared: points from runs, draws, sentences and files."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from prunescope.analysis.ledger.dynamic_overhead import weigh_added_work
from prunescope.analysis.pareto import judged, pareto
from prunescope.analysis.pareto.cells import recompute
from prunescope.analysis.pareto.files import to_json
from prunescope.analysis.pareto.write import write_pareto
from prunescope.analysis.report.pareto_tables import render_pareto
from prunescope.analysis.schema.pareto import (
    FailedResult,
    Pareto,
    ParetoPhase,
    SweepCell,
    SweepPoint,
    SweepSubject,
)
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.pareto_points import MS, point
from tests.analysis.report import example


def test_draws_are_one_point_with_an_interval_over_all() -> None:
    own = [point("a", speed, loss) for speed, loss in ((1.2, 0.1), (1.3, 0.5), (1.25, 0.2))]
    (found,) = judged._merge_samples(own)
    assert found.realised == 1.25
    assert found.realised_ci95 == pytest.approx([0.98 * 1.2, 1.02 * 1.3])
    assert found.loss is not None
    assert found.loss.perplexity_rel == 0.2
    assert found.loss.ci95 == pytest.approx([0.09, 0.51])
    assert len(found.draws) == 3


def whole(prefill: list[SweepPoint], decode: list[SweepPoint] | None = None) -> Pareto:
    """A Pareto around points of one cell a phase."""
    phases = {}
    for name, points in (("prefill", prefill), ("decode", decode)):
        if points is None:
            continue
        dense = {"median": 10 * MS, "low": 9.9 * MS, "high": 10.2 * MS, "spread": 0.03}
        cell = SweepCell(batch=1, prompt_len=512, dense_ns=dense)
        phases[name] = ParetoPhase(points=points, cells=[cell])
    found = Pareto(
        tool="prunescope", phases=phases,
        subject=SweepSubject(model="m", device="cpu", dtype="bf16", threads=2,
                             versions={"torch": "2"}, text={"source": "a text", "tokens": 8192}),
        failed=[FailedResult(id="static-k-24-s0.25", error="2:4 sparsity is 0.5 | not 0.25")],
    )  # fmt: skip
    return recompute(found)


def test_the_summary_says_what_holds_and_what_does_not() -> None:
    memory = {"memory_bound": 0.9}
    prefill = [point("static-k", 1.02, 0.01), point("static-m", 1.1, 0.03),
               point("static-k", 1.05, 0.1), point("dynamic-m", 1.3, 0.25),
               point("static-nk", 1.6, 0.5)]  # fmt: skip
    decode = [point("static-m", 1.19, 0.03, **memory), point("static-nk", 1.0, 0.4, **memory),
              point("static-nk", 1.0, 0.5, **memory, simulated="a stand-in",
                    training_stopped="the training diverged at step 9 of 100")]  # fmt: skip
    lines = "\n".join(whole(prefill, decode).summary)
    assert "static-m → dynamic-m → static-nk by loss”: holds in prefill, batch 1, 512" in lines
    assert "where memory-bound”: holds in decode, batch 1" in lines
    assert "512 tokens (memory-bound in 90 % of dense busy time" in lines
    assert "above or below: static-m 0.9 points, static-nk 16.7 points" in lines
    assert "static depth wins at low loss”: holds in prefill" in lines
    assert "Simulated: static-nk: a stand-in." in lines
    assert "Not recovered: static-nk 0.25: the training diverged at step 9 of 100; its" in lines
    assert "spread by up to 3.0 %" in lines
    assert "no recovery training" in lines
    # Where compute is the bound, the claim about memory is not made.
    assert "where memory-bound”: holds in prefill" not in lines


def test_the_summary_contradicts_the_claims_where_the_numbers_do() -> None:
    memory = {"memory_bound": 0.9}
    prefill = [point("static-nk", 1.5, 0.1), point("static-m", 1.2, 0.15),
               point("dynamic-m", 0.8, 0.2)]  # fmt: skip
    decode = [point("static-m", 1.5, 0.03, **memory), point("static-nk", 1.2, 0.5, **memory),
              point("static-nk", 1.2, 0.6, **memory)]  # fmt: skip
    lines = "\n".join(whole(prefill, decode).summary)
    assert "by loss”: does not hold in prefill" in lines
    assert (
        "(observed: static-nk from +10.0 %; of 3 points of the three families, the weaker" in lines
    )
    assert "where memory-bound”: does not hold in decode" in lines
    assert "static depth wins at low loss”: does not hold in prefill" in lines
    assert "not faster beyond noise here, up to the largest s measured: dynamic-m" in lines


def test_a_claim_within_noise_is_said_to_be() -> None:
    """Shares .99 and .98 of one bound, ±2 %: the first place means nothing."""
    memory = {"memory_bound": 0.9}
    decode = [point("static-m", 1.19, 0.03, **memory), point("static-nk", 1.18, 0.5, **memory)]
    lines = "\n".join(whole([point("static-m", 1.1, 0.03)], decode).summary)
    assert "where memory-bound”: undecided in decode" in lines


def test_a_place_within_noise_decides_nothing() -> None:
    """Shares .98 and .99 the other way round: second, and not to be told from the first."""
    memory = {"memory_bound": 0.9}
    decode = [point("static-m", 1.18, 0.03, **memory), point("static-nk", 1.19, 0.5, **memory)]
    lines = "\n".join(whole([point("static-m", 1.1, 0.03)], decode).summary)
    assert "where memory-bound”: undecided in decode" in lines


def test_an_order_with_a_family_missing_is_not_judged() -> None:
    prefill = [point("static-m", 1.1, 0.03), point("dynamic-m", 1.3, 0.2)]
    lines = "\n".join(whole(prefill).summary)
    assert "by loss”: cannot be judged in prefill (static-nk was not measured)." in lines
    assert "Claim “prefill" not in "\n".join(whole([point("static-k-24", 1.1, 0.03)]).summary)


def test_a_loss_of_windows_shorter_than_the_prompts_is_said_to_be() -> None:
    one = point("static-m", 1.2, 0.1)
    assert one.loss is not None
    one.loss.context = 1024
    lines = "\n".join(whole([one]).summary)
    assert "on 8192 tokens of a text, in windows of 1,024 tokens." in lines
    assert "Not measured" not in lines
    one.prompt_len = 4096
    said = "the loss after prompts of 4,096 tokens; their losses are those in windows of 1,024"
    assert f"Not measured: {said}." in whole([one]).summary


def test_losses_that_mean_nothing_or_are_missing_are_said_to() -> None:
    found = whole([point("static-m", 1.2, 0.1)])
    found.subject.text = {"source": "random token ids", "tokens": 256}
    found.subject.config["other_text"] = "other.txt"
    lines = recompute(found).summary
    assert "No loss here means anything: the text that judges is random token ids." in lines
    assert any(line.startswith("Not measured: losses on other.txt; it takes") for line in lines)


def test_losses_over_tasks_stand_beside_perplexity() -> None:
    one = point("static-m", 1.2, 0.1)
    assert one.loss is not None
    one.loss.tasks_signed, one.loss.tasks_signed_ci95 = -0.04, [-0.1, 0.02]
    one.loss.tasks_absolute = 0.05
    found = whole([one, point("dynamic-m", 1.3, 0.3)])
    text = render_pareto(found)
    assert "| tasks, signed | 95 % of it | tasks, absolute |" in text
    assert "| −4.0 % | \\[−10.0 %, +2.0 %\\] | 5.0 % |" in text
    assert "mean signed and the mean absolute relative change over tasks" in text
    assert "tasks" not in render_pareto(whole([point("static-m", 1.2, 0.1)]))


def test_draws_of_task_losses_are_one() -> None:
    own = [point("a", 1.2, 0.1), point("a", 1.2, 0.1)]
    for one, signed in zip(own, (-0.1, -0.2), strict=True):
        assert one.loss is not None
        one.loss.tasks_signed, one.loss.tasks_absolute = signed, 0.3
        one.loss.tasks_signed_ci95 = [signed - 0.01, signed + 0.01]
    (found,) = judged._merge_samples(own)
    assert found.loss is not None
    assert found.loss.tasks_signed == pytest.approx(-0.15)
    assert found.loss.tasks_signed_ci95 == pytest.approx([-0.21, -0.09])


def test_nothing_faster_is_said_so() -> None:
    lines = "\n".join(whole([point("static-m", 0.9, 0.1)]).summary)
    assert "no point is faster than dense." in lines


def test_points_without_an_interval_are_neither_faster_nor_not() -> None:
    found = whole([point("a", 0.9, 0.1, realised_ci95=None), point("b", 1.2, None)])
    lines = "\n".join(found.summary)
    assert "no point could be judged: 1 without an interval, 1 without a known loss." in lines
    assert "faster than dense beyond noise here: b from s = 0.25; not judged, as they h" in lines
    assert found.phases["prefill"].break_even == {"b": 0.25}
    assert "| a | it has no interval |" in render_pareto(found)


def test_a_plan_has_no_sparsity_and_is_judged_by_its_interval() -> None:
    found = whole([point("fast.json", 1.26, 0.1, sparsity=None, sparsities=[]),
                   point("slow.json", 1.01, 0.2, sparsity=None, sparsities=[])])  # fmt: skip
    lines, text = "\n".join(found.summary), render_pareto(found)
    assert "faster than dense beyond noise here: fast.json; not faster bey" in lines
    assert "not faster beyond noise here: slow.json." in lines
    assert "| fast.json | no s: faster |" in text and "| slow.json | no s: not faster |" in text


def test_files(tmp_path: Path) -> None:
    found = whole(
        [point("static-m", 1.2, 0.1), point("dynamic-m", 1.3, 40.0), point("x", 1.1, None)],
        [point("static-m", 1.4, -0.01)],
    )
    paths = write_pareto(found, tmp_path / "p")
    assert {p.name for p in paths} == {"pareto.md", "pareto.json", "table-results.md"} | {
        f"{kind}-{phase}.{ending}"
        for kind, phase in (
            ("speed-quality", "all"), ("bound", "prefill"), ("bound", "decode"),
            ("ledger", "prefill"), ("ledger", "decode"),
        )
        for ending in ("png", "pdf")
    }  # fmt: skip
    assert (tmp_path / "p" / "ledger-decode.png").read_bytes().startswith(b"\x89PNG")
    back = msgspec.json.decode((tmp_path / "p" / "pareto.json").read_bytes(), type=Pareto)
    assert back == found
    text = render_pareto(found)
    assert "![" in text
    assert "2:4 sparsity is 0.5 &#124; not 0.25" in text
    assert text.count("| static-m | 0.25 | 20.0 % | 1.20× |") == 1
    with pytest.raises(PrunescopeError, match="unknown format"):
        write_pareto(found, tmp_path / "q", formats=["docx"])
    assert not (tmp_path / "q").exists()


def test_markdown_and_figures_are_reproducible() -> None:
    from prunescope.analysis.report.pareto_figures import pareto_pictures
    from prunescope.analysis.report.picture import files_of_pictures

    found = whole([point("static-m", 1.2, 0.1), point("dynamic-m", 1.3, 40.0)])
    first, second = (files_of_pictures(pareto_pictures(found), ["svg"], "t") for _ in range(2))
    assert first == second


def test_added_work_is_a_share_of_what_was_saved_before_it() -> None:
    """10 - 9 = 1 ms was saved after 0.5 ms were added: 1.5 ms before it."""
    parts = [example.part("router", "router", "matmul", 0.2), example.part("x", "x", "cat", 0.3)]
    ledger = [
        example.row("dense", 10.0),
        example.row("added_work", 0.5, *parts),
        example.row("pruned", 9.0),
    ]
    added_work = weigh_added_work(ledger)
    assert added_work is not None
    assert added_work.saved_ns == pytest.approx(1.5 * MS)
    assert added_work.share_of_saved == pytest.approx(1 / 3)
    assert added_work.without == pytest.approx(10 / 8.5)
    assert added_work.break_even is None  # of a family that adds work alone
    assert [p.name for p in added_work.parts] == ["x", "router"]
    assert added_work.parts[0].share_of_saved == pytest.approx(0.2)
    ledger[2] = example.row("pruned", 11.0)
    slower = weigh_added_work(ledger)
    assert slower is not None
    assert slower.share_of_saved is None  # nothing was saved


def test_json_is_the_struct() -> None:
    found = whole([point("static-m", 1.2, 0.1)])
    plain = json.loads(to_json(found))
    assert plain == msgspec.to_builtins(found)
    keys = {"id", "family", "sparsity", "batch", "prompt_len", "realised", "realised_ci95",
            "bounds", "loss", "flop_sparsity", "on_frontier"}  # fmt: skip
    assert keys <= set(plain["phases"]["prefill"]["points"][0])


@pytest.mark.all_layers
@pytest.mark.torch
@pytest.mark.slow
def test_a_real_sweep_end_to_end(tmp_path: Path) -> None:
    from prunescope.tracer.sweep.request import SweepRequest
    from prunescope.tracer.sweep.sweep import sweep

    config = tmp_path / "c.yaml"
    config.write_text(
        "model: tiny-llama\nfamilies: [static-m]\nsparsities: [0.5]\nphases: [decode]\n"
        "prompt_lens: [16]\ndecode_steps: 2\nrepeats: 3\nsteps: 2\nthreads: 1\n"
    )
    out = sweep(SweepRequest(config=config, out=tmp_path / "s"))
    (one,) = pareto.judge(out).phases["decode"].points
    assert one.loss is not None
    assert one.realised_ci95 is not None
    # Half of the layers, and lm_head stays: 1/2 < 1 - FLOP sparsity < 1.
    assert one.flop_sparsity is not None
    assert 0.4 < one.flop_sparsity < 0.5


def test_the_control_counts_intervals_of_points_that_do_the_dense_work() -> None:
    """Of two dense-like points, one interval holds 1.00 (0.98..1.02), one does not."""
    from prunescope.analysis.pareto.summary import control

    dense = {"flop_sparsity": 0.0, "parameter_sparsity": 0.0}
    points = [point("a", 1.0, 0.0, **dense), point("b", 1.1, 0.0, **dense), point("c", 1.5, 0.1)]
    assert list(control(points))[0].startswith("Control: 1 of the 2 points")
    assert list(control(points[2:])) == []
    points[1].timing_valid = False
    assert list(control(points))[0].startswith("Control: 1 of the 1 points")


def test_a_loss_that_an_older_rule_scored_is_named() -> None:
    """Of dynamic-m in decode in one forward, from before its influence was measured: today token by
    token; a static family's is what it would be today."""
    from prunescope.analysis.pareto.summary import scoring_notes

    points = [point("dynamic-m", 1.2, 0.1), point("static-m", 1.1, 0.2)]
    for one in points:
        assert one.loss is not None
        one.loss.scoring, one.loss.looks_ahead = "prefill", None
    (note,) = scoring_notes({"decode": points})
    assert "dynamic-m in one forward, by an older rule: they are now scored one token" in note
    assert "static-m in one forward, in which no prediction depends on later tokens" in note
    (note,) = scoring_notes({"prefill": points})
    assert "older rule" not in note


def test_what_is_not_valid_is_said_and_decides_nothing() -> None:
    """Two points of losses that nobody can read, timed while other work ran."""
    points = [
        point("static-m", 1.6, 4341685199.409, timing_valid=False),
        point("static-nk", 1.3, 17369.337, timing_valid=False),
    ]
    found = whole(points)
    lines, text = "\n".join(found.summary), render_pareto(found)
    assert "no point could be judged: 2 with times that are not valid." in lines
    assert "prefill: not judged, as their times are not valid: static-m, static-nk." in lines
    assert "faster than dense beyond noise here" not in lines and "holds" not in lines
    assert "| static-m | its times are not valid |" in text
    assert "| 1.60× ? at 4.3e9× | 1.30× ? at 17,400× |" in text
    assert "4341685" not in text.replace(",", "") and "1736933" not in text.replace(",", "")


def test_the_summary_says_shares_ties_and_windows() -> None:
    """b cannot be told from a; c is scored in decode, in longer windows; `*` is one label's."""
    points = [point("a", 1.2, 0.1), point("b", 1.199, 0.101), point("c", 1.5, 0.4),
              point("d", 1.1, 0.5, select="random", simulated="random decisions"),
              point("d", 1.1, 0.6, select="importance")]  # fmt: skip
    for one in points:
        assert one.loss is not None
        one.loss.scoring, one.loss.context = "prefill", 1024
    assert points[2].loss is not None
    points[2].loss.scoring, points[2].loss.context = "decode", 4096
    found = whole(points)
    lines = "\n".join(found.summary)
    assert (
        "c 0.25 1.50× [1.47, 1.53] at +40.0 % [+39.0 %, +41.0 %] perplexity, on it in 100" in lines
    )
    assert "tokens: indistinguishable in speed and in loss: a 0.25 and b 0.25." in lines
    assert "Losses in prefill were scored so: c one token after another; a, b, d (random)" in lines
    assert "Confounded: losses in windows of 1,024, 4,096 tokens were read on different" in lines
    assert "Simulated: d (random): random decisions." in lines
    assert "Simulated: d (importance)" not in lines and "Simulated: d:" not in lines
    assert found.samples is not None and found.samples.count == 2000
    assert "of samples: in which share of samples" in render_pareto(found)
