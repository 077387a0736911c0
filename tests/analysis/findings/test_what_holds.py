"""Sentences that must be true of the run that says them: limits, missing shapes, masks left on."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

import prunescope
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.comparison import comparison_table
from prunescope.analysis.report.comparison_figure import comparison_pictures
from prunescope.analysis.schema.report import Allocation, Phase
from prunescope.analysis.summary.headline import headline
from prunescope.analysis.summary.paragraph import summary
from tests.analysis.decoder import Layer, census
from tests.analysis.finding_cases import (
    FULL,
    MANY,
    NARROW,
    found,
    method,
    model,
    of_pair,
    of_run,
    two_placements,
)
from tests.chrome import chrome, k, op, save, step

TINY = Path(__file__).resolve().parents[3] / "traces" / "tiny-static-nk"


def test_a_limit_that_was_passed_is_not_said_to_be_impassable(tmp_path: Path) -> None:
    """Samples that fell to a quarter beside a bound below 2."""
    more = {"dense_samples_ns": [4 * n for n in MANY], "samples_ns": MANY}
    phase = of_run(
        tmp_path, model(FULL, vocabulary=16_384), model(NARROW, vocabulary=16_384), **more
    )
    assert phase.ladder is not None and phase.ladder.coverage is not None
    assert phase.ladder.realised > phase.ladder.coverage
    for finding in phase.findings:
        assert "cannot pass" not in finding.text
    limited = found(phase, "coverage-limited")
    assert limited is None or "measured 4.00× exceeds it" in limited.text


@pytest.mark.parametrize("cpu", [False, True])
def test_a_trace_without_shapes_leads_with_what_is_missing(tmp_path: Path, *, cpu: bool) -> None:
    def bare(layer: Layer, us: float) -> dict[str, Any]:
        trace = model(layer, cpu=cpu, us=us)
        for event in trace["traceEvents"]:
            for key in ("Input Dims", "Input Strides", "Concrete Inputs", "Input type"):
                event.get("args", {}).pop(key, None)
        return trace

    d, p = save(bare(FULL, 10), tmp_path / "d.json"), save(bare(NARROW, 8), tmp_path / "p.json")
    report = prunescope.analyze(p, baseline=d)
    phase = report.phases["trace"]
    assert "record_shapes=True" in report.warnings[0]
    assert {g.axis for g in phase.gemms} <= {"unknown"}
    assert phase.ladder is not None
    assert (phase.ladder.roofline, phase.ladder.share_of_bound) == (None, None)
    assert (phase.ladder.nominal, phase.ladder.coverage) == (None, None)
    assert found(phase, "above-bound") is None
    if phase.gemms:
        assert headline(phase).startswith("no shapes, so what was pruned is unknown (capture again")
    check_not_explained(phase)
    check_consumers(report, tmp_path / "out")
    beside = prunescope.compare([p, d], baseline=d)
    assert beside.rows[0].ledger is not None and "shape" not in beside.rows[0].ledger
    assert "not explained" in [column.title for column in comparison_table(beside).columns]
    assert [picture.stem for picture in comparison_pictures(beside)]


@pytest.mark.parametrize("seen", [None, "aten::embedding", "aten::_flash_attention_forward"])
def test_a_trace_without_shapes_is_told_what_it_could_say(seen: str | None, tmp_path: Path) -> None:
    """A config's shapes are of a model of tokens; pruned is what a baseline has more."""
    names = ["aten::cudnn_convolution", "aten::mm", *([seen] if seen else [])]
    trace = chrome(step(0, *(op(name, kernels=[k(us=9, name="kernel")]) for name in names)))
    path = save(trace, tmp_path / "t.json")
    (alone, *_) = prunescope.analyze(path).warnings
    assert "no GEMM has shapes, so FLOPs and bounds are unknown: capture again" in alone
    assert ("--model (a decoder's config)" in alone) is (seen is not None)
    (pair, *_) = prunescope.analyze(path, baseline=path).warnings
    assert "so what was pruned, FLOPs and bounds are unknown" in pair


def test_a_shorter_trace_without_shapes_has_no_realised_speedup_either(tmp_path: Path) -> None:
    """Half the products are gone; of which layer and of what size nobody says."""

    def products(count: int, name: str) -> Path:
        gelu = op("aten::gelu", us=5)
        trace = chrome(step(0, *([op("aten::mm", us=10)] * count), gelu), cpu=True)
        for event in trace["traceEvents"]:
            for key in ("Input Dims", "Input Strides", "Concrete Inputs", "Input type"):
                event.get("args", {}).pop(key, None)
        return save(trace, tmp_path / name)

    dense, pruned = products(8, "d.json"), products(4, "p.json")
    phase = prunescope.analyze(pruned, baseline=dense, sparsity=0.5).phases["trace"]
    assert phase.ladder is not None and phase.family is not None and phase.family.id == "unknown"
    assert headline(phase).startswith("no shapes, so what was pruned is unknown (capture again")


def check_not_explained(phase: Phase) -> None:
    """Rows that need FLOPs are null; what they come to closes the sum, to the nanosecond."""
    rows = {row.row: row for row in phase.ledger or []}
    unknown = {name for name, row in rows.items() if row.ns is None}
    assert unknown == {"coverage", "roofline_shift", "shape", "kernel_efficiency"}
    assert list(rows)[-2:] == ["not_explained", "pruned"]
    assert rows["promised"].ns == rows["dense"].ns  # nobody said a sparsity
    closes = sum(row.moves_ns for row in list(rows.values())[1:-1])
    assert round(closes) == round(rows["pruned"].moves_ns)
    unexplained = rows["not_explained"]
    # The kernels are shorter, and nobody knows why.
    assert unexplained.ns is not None and unexplained.ns < -1000
    assert sum(part.ns for part in unexplained.parts) == pytest.approx(unexplained.ns)
    assert unexplained.noise_ns is not None


def check_consumers(report: prunescope.Report, folder: Path) -> None:
    """Every format, the comparison, the tables of Python and the rules of `check` bear the null."""
    report.save(folder, formats=["md", "html", "json", "tex", "csv", "svg"])
    assert prunescope.Report.load(folder / "report.json") == report
    for name in ("report.md", "report.html", "report.tex"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "not explained" in text and "unknown without shapes" in text, name
    lines = (folder / "ledger.csv").read_text(encoding="utf-8").splitlines()
    assert '"trace","shape","","","","","","","",""' in lines
    assert report.ledger.to_polars().filter(row="shape")["ns"].to_list() == [None]
    rules = ["ledger.shape <= 5%", "ledger.not_explained <= 5%"]
    verdicts = prunescope.check(report, require=rules).verdicts
    assert [verdict.state for verdict in verdicts] == ["undecided", "undecided"]  # of two steps


def test_masks_of_torch_that_were_left_on(tmp_path: Path) -> None:
    """The mask of up, 256 x 256, multiplied anew in every layer."""
    trace = model(FULL)
    row = {**census(0.5)["matrices"][5], "shape": [512, 256], "applied": "torch.nn.utils.prune"}
    mul = op("aten::mul", [512, 256], [512, 256], kernels=[k(us=40, name="vectorized_mul")])
    extra = model(replace(FULL, added=(mul,)))
    phase = of_run(tmp_path, trace, extra, census={"matrices": [row]}, dense_census=census(0.0))
    mask = found(phase, "added-mask")
    assert mask is not None and "prune.remove" in str(mask.change)
    assert mask.predicted_ns == pytest.approx(4 * 40_000)  # one in each of four layers
    more = found(phase, "added-work")
    assert more is None or "fuse" not in str(more.change)
    zeros = of_run(tmp_path / "z", trace, extra, census={"matrices": [row]},
                   dense_census=census(0.0), **method("static-k-mask"))  # fmt: skip
    assert "prune.remove" in str(getattr(found(zeros, "zeros-in-dense"), "change", ""))
    row.pop("applied")
    phase = of_run(tmp_path / "b", trace, extra, census={"matrices": [row]},
                   dense_census=census(0.0))  # fmt: skip
    own = found(phase, "added-mask")  # of one's own: no module of torch.nn.utils.prune is there
    assert own is not None and str(own.change).endswith("once before the run (weight.mul_(mask))")
    assert found(phase, "decompressed") is None


DISTURBED = {"dense_samples_ns": MANY, "samples_ns": MANY,
             "both_placements": two_placements(len(MANY) // 2)}  # fmt: skip


@pytest.mark.parametrize("more", [{}, DISTURBED])
def test_zeros_in_dense_tensors_name_allocate_too(more: dict[str, Any], tmp_path: Path) -> None:
    """The allocation has the model, the phase and the speedup that was promised."""
    trace = model(FULL)
    phase = of_run(tmp_path, trace, trace, census=census(0.5, 0.6),
                   dense_census=census(0.0), **method("static-k-mask"), **more)  # fmt: skip
    masked = found(phase, "zeros-in-dense")
    assert masked is not None and masked.allocate is not UNSET
    assert (masked.allocate.speedup, masked.allocate.phase) == (2.0, "prefill")
    if more:
        told = "Whatever the times are: zeros leave every GEMM in the shape of its dense one, "
        assert f"{told}so no gain is to be expected; {masked.all_changes}" in summary(phase)


@pytest.mark.parametrize(("away", "path"), [("", "{name}/dense"), ("..", None), (".", "dense")])
def test_missed_coverage_ends_with_a_command_that_can_be_typed(
    away: str, path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path is from the working directory; a file holds none of another folder."""
    run = tmp_path / "here" / "run"
    shutil.copytree(TINY, run)
    places = {"": run.parent, "..": tmp_path / "elsewhere", ".": run}
    places[".."].mkdir()
    monkeypatch.chdir(places[away])
    phase = prunescope.analyze(run).phases["decode"]
    limited = found(phase, "coverage-limited")
    assert limited is not None and phase.answer is not None
    assert limited.allocate == Allocation(model="tiny-llama", speedup=2.0, phase="decode")
    words = "--model tiny-llama --speedup 2.00 --phase decode"
    dense = path and path.format(name=run.name)
    wanted = f"prunescope allocate --from-run {dense} {words}" if dense else ""
    assert phase.answer.command == wanted
    assert phase.answer.change.startswith("Fewer and larger ops")
    assert str(tmp_path) not in str(phase)


def test_no_allocation_is_advised_that_cannot_reach_the_promise() -> None:
    """Of eight layers one stays: with all of the step in layers that is 8×, and 9× was promised."""
    report = analyze(Path(os.path.relpath(TINY)), options=Options(sparsity=8 / 9)).report
    limited = found(report.phases["decode"], "coverage-limited")
    assert limited is not None and limited.allocate is UNSET


def test_a_config_whose_tiles_do_not_fit_leads_the_answer(tmp_path: Path) -> None:
    """Without --baseline-model the dense run gets the config of the pruned one.

    It then has 57 tiles where it ran 76 blocks. What its shapes would say of kernels is left out.
    """
    served = TINY.parent / "stories" / "nsys"
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
              "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
              "intermediate_size": 3648, "vocab_size": 151936, "tie_word_embeddings": True,
              "dtype": "bfloat16"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ask: dict[str, Any] = {"baseline": served / "dense.sqlite", "model": str(tmp_path)}
    phase = prunescope.analyze(served / "pruned.sqlite", **ask).phases["trace"]
    assert found(phase, "uncertain-config") is not None
    assert summary(phase).startswith("the config may be that of another model")
    assert "faster kernels" not in summary(phase)
    assert summary(phase).endswith("(--model, and --baseline-model for the dense run).")
    assert phase.findings[0].id == "uncertain-config"
    assert all(item.predicted_ns is None for item in phase.findings)
    ask["baseline_model"] = "qwen2.5-0.5b"
    phase = prunescope.analyze(served / "pruned.sqlite", **ask).phases["trace"]
    assert found(phase, "uncertain-config") is None and "1.08× realised" in summary(phase)[:20]
    assert phase.family is not None and phase.family.confidence == 1
    # 3,072 channels in place of 3,648 read as a pruning of more of them.
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 3072}))
    phase = prunescope.analyze(served / "pruned.sqlite", **ask).phases["trace"]
    assert phase.family is not None and phase.family.id == "static-nk-mlp"
    assert phase.family.confidence == 0.5 and "another tile" not in summary(phase)
    assert any("may be that of another model" in line for line in phase.family.evidence)
    # 57 blocks of 128 rows: N of gate_up, by tiles alone; its time allows 4 times as much.
    (fits,) = (note for note in phase.notes if note.startswith("the trace fits N of"))
    assert "gate_up 7,169–7,296 by its grid" in fits and "is not (6,144 of gate_up)" in fits


def test_swapped_sides_are_told_before_any_advice(tmp_path: Path) -> None:
    """Dense and pruned in the place of each other."""
    phase = of_pair(tmp_path, model(NARROW), model(FULL))
    told = summary(phase)
    assert told.endswith("First: give the dense trace as --baseline, and the pruned one as the "
                         "trace to analyse.")  # fmt: skip
    assert "are the two sides swapped? " in told and "differs only in the pruning" not in told
