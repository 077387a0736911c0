"""What every family would give, from one dense run: golden traces, runs made here, public ones."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from rich.console import Console

from prunescope.analysis.measured_step import unprofiled_parts_of
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.scaled_times import Measured
from prunescope.analysis.predict.setting import resolve, workloads
from prunescope.analysis.predict.side import predicted_side
from prunescope.analysis.predict_from import measured_phase
from prunescope.analysis.report.predict_tables import prediction
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from tests.analysis.predict.plain import predict_from
from tests.stored import TRACES, report_of, stored_once

__all__ = ["stored_once"]
pytestmark = pytest.mark.usefixtures("stored_once")


def ask(name: str = "tiny-static-m", **options: Any) -> dict[str, Any]:
    return predict_from(PredictRequest(from_run=TRACES / name, **options))


def test_a_pair_gives_a_row_a_family_from_its_dense_run() -> None:
    result = ask(sparsity=0.5)
    assert set(result["phases"]) == {"prefill", "decode"}
    assert ask(sparsity=0.5)["phases"] == predict_from(
        PredictRequest(from_run=TRACES / "tiny-static-m" / "dense", sparsity=0.5)
    )["phases"]  # fmt: skip
    for phase in result["phases"].values():
        ids = [row["id"] for row in phase["families"]]
        assert len(ids) == len(set(ids))
        # a CPU has no matrix units for 2:4: it is a mask, once
        of_experts = {f.id for f in families() if f.changes_experts}  # there are none
        assert set(ids) == {f.id for f in families()} - {"dense", "static-k-24", *of_experts}
        expected = [row["expected"] for row in phase["families"]]
        assert expected == sorted(expected, reverse=True)
        for row in phase["families"]:
            low, high = row["range"]
            assert low <= row["expected"] <= high
            total = sum(row["parts"].values()) + row["gap_ns"] + row["added_ns"]
            assert total == pytest.approx(row["wall_ns"])
    json.dumps(result, allow_nan=False)
    out = io.StringIO()
    Console(file=out, width=80).print(prediction(result))
    assert "only the dense side was run" in out.getvalue()
    assert out.getvalue().count("on a CPU they are guesses") == 2


def test_the_measured_parts_are_the_wall() -> None:
    result = ask(sparsity=0.5)
    report = report_of("tiny-static-m/dense")
    for name, phase in result["phases"].items():
        assert sum(phase["shares"].values()) + phase["gap_share"] == pytest.approx(1)
        samples = report.phases[name].unprofiled_ns
        assert samples is not None
        assert phase["wall_ns"] == pytest.approx(samples.median)


def test_on_a_device_only_the_gaps_take_up_what_the_profiler_added() -> None:
    phase = report_of("tiny-static-m/dense").phases["decode"]
    samples, busy = phase.unprofiled_ns, sum(phase.roles.values())
    assert samples is not None

    def at(median: float) -> Measured:
        timed = msgspec.structs.replace(samples, median=median)
        timed_phase = msgspec.structs.replace(phase, unprofiled_ns=timed)
        return measured_phase(timed_phase, timed_phase.roles)

    lead, short = at(busy + 7e5), at(busy / 2)
    assert lead.gap_ns == pytest.approx(7e5)
    assert sum(lead.parts.values()) == pytest.approx(busy)
    # kernels alone cannot take longer than the step: then everything is scaled
    assert short.wall_ns == pytest.approx(busy / 2)


def test_on_a_cpu_the_parts_lose_what_the_profiler_recorded_in_them() -> None:
    """Two layers, each a GEMM of 100 ns without inner ops and a norm of 40 ns with one of them,
    behind gaps of 30 ns with 3 records and of 10 ns with 1. A step takes 360 ns profiled and 310
    without: 50 ns for 2 x (1 + 3 + 1) records are 5 each. No part loses more than it may."""
    rows = [
        {"role": role, "kind": kind, "name": role, "layer": layer, "busy": busy, "gap": gap,
         "recorded_inside": inside, "recorded_before": before}
        for layer in (0, 1)
        for role, kind, busy, gap, inside, before in (
            ("gate", "gemm", 100, 30, 0, 3), ("mlp_norm", "norm", 40, 10, 1, 1),
        )
    ]  # fmt: skip
    parts, gap = unprofiled_parts_of(pl.DataFrame(rows), 1, 2, tail_ns=0.0, wall_ns=310.0)
    assert parts == {"gate_up": pytest.approx(200), "norms": pytest.approx(2 * (40 - 5))}
    assert gap == pytest.approx(2 * (30 - 3 * 5 + 10 - 5))
    alike, _ = unprofiled_parts_of(pl.DataFrame(rows), 1, 2, tail_ns=0.0, wall_ns=720.0)
    assert alike == {"gate_up": pytest.approx(400), "norms": pytest.approx(160)}  # twice as long


def test_a_mask_changes_nothing_and_half_the_layers_halve_what_they_hold() -> None:
    phase = ask(sparsity=0.5)["phases"]["prefill"]
    rows = {row["id"]: row for row in phase["families"]}
    assert rows["static-k-mask"]["expected"] == pytest.approx(1)
    dense = {name: share * phase["wall_ns"] for name, share in phase["shares"].items()}
    half = rows["static-m"]["parts"]
    for part in ("qkv", "o", "gate_up", "down", "norms", "attention"):
        assert half[part] == pytest.approx(dense[part] / 2)
    assert half["lm_head"] == pytest.approx(dense["lm_head"])
    assert rows["static-m"]["added_ns"] == 0


def test_a_pruned_model_stands_in_place_of_a_family() -> None:
    """The measured dense side, and the shape of the run that static-m pruned: half of its layers,
    as the family at 0.5, though it says its parameters."""
    at = {"phase": "prefill"}
    (half,) = ask(method="static-m", sparsity=0.5, **at)["phases"]["prefill"]["families"]
    pruned = TRACES / "tiny-static-m" / "pruned" / "run.json"
    (row,) = ask(pruned_model=str(pruned), **at)["phases"]["prefill"]["families"]
    assert (row["id"], row["label"]) == ("pruned", "pruned") and not row["extension"]
    assert row["expected"] == pytest.approx(half["expected"])
    assert row["memory_bytes"] == half["memory_bytes"]
    assert row["range"][0] < row["expected"] < row["range"][1]  # of a kind that nobody measured
    assert 0 < row["sparsity"] < 0.5  # the embedding stays
    with pytest.raises(PrunescopeError, match="--method cannot be combined with --pruned-model"):
        ask(pruned_model=str(pruned), method="static-m", **at)


def test_terms_can_be_left_out_of_a_run_too() -> None:
    def cross(**options: Any) -> dict[str, Any]:
        found = ask(method="static-nk-cross,dynamic-m", phase="decode", **options)["phases"]
        return {row["id"]: row for row in found["decode"]["families"]}

    full, less = cross(), cross(without=("added", "launch", "kernel"))
    assert less["dynamic-m"]["added_ns"] < full["dynamic-m"]["added_ns"]
    assert less["static-nk-cross"]["gap_ns"] < full["static-nk-cross"]["gap_ns"]
    assert less["dynamic-m"]["expected"] > full["dynamic-m"]["expected"]


def test_some_methods_at_some_sparsities() -> None:
    phase = ask(method="static-m,static-nk", sparsity="0.25,0.5", phase="decode")["phases"]
    assert list(phase) == ["decode"]
    found = sorted((row["id"], row["sparsity"]) for row in phase["decode"]["families"])
    assert found == [(n, s) for n in ("static-m", "static-nk") for s in (0.25, 0.5)]


def test_methods_by_the_names_that_people_type() -> None:
    phase = ask(method="shortgpt,attention-drop,slicegpt", phase="decode")["phases"]["decode"]
    rows = {row["label"]: row for row in phase["families"]}
    assert {label: row["id"] for label, row in rows.items()} == {
        "shortgpt": "static-m", "attention-drop": "static-m", "static-nk-cross": "static-nk-cross",
    }  # fmt: skip
    assert rows["shortgpt"]["expected"] > rows["attention-drop"]["expected"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"from_run": TRACES / "tiny-static-m" / "pruned"}, "dense"),
        ({"from_run": TRACES / "nowhere"}, "nowhere"),
        ({"from_run": TRACES / "tiny-static-m", "launch": "eager"}, "--launch"),
        ({"from_run": TRACES / "tiny-static-m", "without": ("lunch",)}, "launch"),
        ({"from_run": TRACES / "tiny-static-m", "curves": True}, "curves"),
        ({"from_run": TRACES / "tiny-static-m", "method": "static-q"}, "static-"),
        ({"from_run": TRACES / "tiny-static-m", "phase": "decode", "sparsity": "2"}, "[0, 1)"),
        ({"from_run": TRACES / "tiny-static-m", "batch": 8}, "--batch 8 does not match this run"),
        (
            {"from_run": TRACES / "tiny-static-m", "logits": "all"},
            "--logits all does not match this",
        ),
        (
            {"from_run": TRACES / "tiny-static-m", "context": 7},
            "--context 7 does not match this run",
        ),
        (
            {"from_run": TRACES / "tiny-static-m", "model": "llama-3.1-8b"},
            "does not match this run of",
        ),
        ({"from_run": TRACES / "tiny-static-m", "knobs": {"colour": "red"}}, "option 'colour'"),
        (
            {"from_run": TRACES / "tiny-static-m", "method": "static-m", "knobs": {"unit": "head"}},
            "unit",
        ),
    ],
)
def test_mistakes(options: dict[str, Any], word: str) -> None:
    with pytest.raises(PrunescopeError) as error:
        predict_from(PredictRequest(**options))
    assert word in str(error.value)


def test_a_public_trace_of_another_engine(real_trace: Callable[[str], Path]) -> None:
    trace = real_trace("mi300x_sglang_qwen3-8b_prefilldecode.json.gz")
    with pytest.raises(PrunescopeError, match="--model"):
        predict_from(PredictRequest(from_run=trace))
    result = predict_from(
        PredictRequest(from_run=trace, model="qwen3-8b", batch=15, prompt_len=1024)
    )
    rows = {row["id"]: row for row in result["phases"]["prefill"]["families"]}
    # 36 layers and an lm_head that one row a sequence passes: the rest is layers
    assert 1.9 < rows["static-m"]["expected"] < 2.0
    assert rows["dynamic-nk"]["bound"] < 1.05


@pytest.mark.parametrize("pair", ["tiny-static-m", "tiny-static-nk", "tiny-static-k-mask"])
def test_flop_and_bytes_of_traced_tiny_models(pair: str) -> None:
    """Theory against the shapes that a trace recorded, within 1 %, dense and pruned."""
    for variant in ("dense", "pruned"):
        path = TRACES / pair / variant
        report = report_of(f"{pair}/{variant}")
        run = json.loads((path / "run.json").read_text())
        for name, phase in report.phases.items():
            seen = run["phases"][name]
            request = PredictRequest(
                model="tiny-llama", device="h100-sxm", phase=name, batch=seen["batch"],
                prompt_len=seen["prompt_len"],
                context=seen["context"] if name == "decode" else None,
                logits=seen["logits"], dtype=run["dtype"],
            )  # fmt: skip
            method = run["pruning"] and run["pruning"]["method"]
            share = run["pruning"]["sparsity"] if method else None
            setting, _ = resolve(request, method, share, [])
            (work,) = workloads(request, setting)
            side = predicted_side(setting, work, pruned=bool(method))
            theory = [op for op in side.bounded if op.cls == "matmul"]
            rows = [g for g in phase.gemms if g.group not in ("qk", "pv") and g.count]
            assert sum(g.flop * g.count for g in rows if g.flop) == pytest.approx(
                sum(op.layers * op.flop for op in theory), rel=0.01
            )
            assert sum(g.bytes * g.count for g in rows if g.bytes) == pytest.approx(
                sum(op.layers * op.bytes for op in theory), rel=0.01
            )


def test_the_cost_of_an_op_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunescope.analysis.predict import costs, side
    from prunescope.analysis.predict import kernel_times as kernels

    counted: Counter[int] = Counter()
    kept: list[Any] = []  # so that no id comes again

    def counts(one: Any, op: Any) -> Any:
        kept.append(op)
        counted[id(op)] += 1
        return kernels.op_cost(one, op)

    side.dense_forward.cache_clear()
    monkeypatch.setattr(costs, "op_cost", counts)
    result = ask(sparsity=0.5)
    assert len(result["phases"]["prefill"]["families"]) > 10
    assert set(counted.values()) == {1}


def test_a_family_that_cannot_be_applied_has_no_row(tmp_path: Path) -> None:
    """The run has four KV heads; with one there is none to cut."""
    rows = ask(sparsity=0.5)["phases"]["prefill"]["families"]
    assert "static-nk-heads" in {row["id"] for row in rows}
    run = tmp_path / "run"
    shutil.copytree(TRACES / "tiny-static-m" / "dense", run)
    manifest = json.loads((run / "run.json").read_bytes())
    manifest["model"]["shape"]["kv_heads"] = 1
    (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    result = predict_from(PredictRequest(from_run=run, sparsity=0.5, phase="prefill"))
    rows = result["phases"]["prefill"]["families"]
    assert "static-nk-heads" not in {row["id"] for row in rows}
    assert any("one KV head serves all" in warning for warning in result["warnings"])


@pytest.mark.parametrize("side", ["dense", "pruned"])
def test_a_run_that_calls_itself_pruned_is_not_dense(side: str, tmp_path: Path) -> None:
    """As the recorder writes it, without an entry on the pruning, and in either folder."""
    shutil.copytree(TRACES / "tiny-static-m" / side, tmp_path / side)
    manifest = tmp_path / side / "run.json"
    told = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps(told | {"variant": "pruned", "pruning": None, "twin": None}))
    with pytest.raises(PrunescopeError, match=f"{side}/ is a pruned run"):
        predict_from(PredictRequest(from_run=tmp_path / side, sparsity=0.5))


def test_dense_times_that_are_not_valid_are_a_warning(tmp_path: Path) -> None:
    """What is scaled is what was measured beside other work."""
    assert not any("timing not valid" in warning for warning in ask(sparsity=0.5)["warnings"])
    run = tmp_path / "run"
    shutil.copytree(TRACES / "tiny-static-m" / "dense", run)
    manifest = json.loads((run / "run.json").read_bytes())
    decode = manifest["phases"]["decode"]
    count, steps = len(decode["samples_ns"]), decode["steps"]
    decode["seatings"] = [
        {"samples": count, "steps": steps, "disturbed": count, "reasons": ["other processes"]}
    ]
    (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    warnings = predict_from(PredictRequest(from_run=run, sparsity=0.5))["warnings"]
    said = [warning for warning in warnings if "timing not valid" in warning]
    assert len(said) == 1 and said[0].startswith("decode: ")


def test_a_table_of_80_columns_loses_no_unit() -> None:
    result = ask(sparsity="0.25,0.5")
    for phase in result["phases"].values():
        for row in phase["families"]:
            row["memory_bytes"] = 436_460_000
    out = io.StringIO()
    Console(file=out, width=80).print(prediction(result))
    rows = [line for line in out.getvalue().splitlines() if line.startswith(" static-m ")]
    assert len(rows) == 4 and all(line.rstrip().endswith(" 436.46") for line in rows)
    assert "  MB" in out.getvalue() and "bytes: weights and KV cache" in out.getvalue()
