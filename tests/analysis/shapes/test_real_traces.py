"""Real decoder traces, stripped of what tells shapes, get them back from the model's config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.summary.headline import headline
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.shapes.stripped import (
    B200,
    CASES,
    GRAPH,
    H100,
    MI300,
    SHARED,
    Case,
    events,
    known,
    report,
    save,
    strip,
    table,
    truth,
)

LEAST = {H100.name: 0.99, GRAPH.name: 0.95}
WAYS = [(True, True), (False, True), (True, False), (False, False)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.split("/")[1])
@pytest.mark.parametrize(("modules", "ops"), WAYS)
def test_the_workload_gives_every_shape(
    case: Case, tmp_path: Path, *, modules: bool, ops: bool
) -> None:
    path = strip(case, tmp_path, modules=modules, ops=ops, annotations=False)
    told = report(path, case, model=case.model, **case.workload)
    got, true = known(table(told, case)), truth(case)
    assert set(got) <= set(true), "a wrong row"
    same = sum(ns for row, ns in true.items() if row in got)
    assert same >= LEAST.get(case.name, 0.99) * sum(true.values())
    phase = next(iter(told.phases.values()))
    assert {gemm.shapes for gemm in phase.gemms if gemm.n is not None} == {"model"}
    assert phase.shapes["model"] > 0.15 and set(phase.shapes) == {"model"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.split("/")[1])
@pytest.mark.parametrize("modules", [True, False])
def test_without_a_workload_n_and_k_are_the_same_and_m_is_right_or_null(
    case: Case, tmp_path: Path, *, modules: bool
) -> None:
    path = strip(case, tmp_path, modules=modules, annotations=False)
    got, true = known(table(report(path, case, model=case.model), case)), truth(case)
    widths = {(role, n, k) for role, _, n, k in true}
    assert {(role, n, k) for role, _, n, k in got} == widths
    wrong = [row for row in got if row[1] is not None and row not in true]
    assert not wrong


@pytest.mark.parametrize("case", [GRAPH, B200], ids=["graph", "vllm"])
def test_m_comes_from_the_annotation_of_an_engine(case: Case, tmp_path: Path) -> None:
    path = strip(case, tmp_path, modules=False, ops=False)
    got = known(table(report(path, case, model=case.model), case))
    assert set(got) == set(truth(case))


def test_a_trace_with_shapes_needs_no_config() -> None:
    told = report(H100.path, H100, model="llama-3.1-8b")
    plain = report(H100.path, H100)
    phase, bare = told.phases["trace"], plain.phases["trace"]
    assert phase.gemms == bare.gemms
    assert any("is not needed" in note for note in phase.notes)
    assert set(phase.shapes) == {"recorded"}


def test_attention_gets_its_lengths_from_the_workload(tmp_path: Path) -> None:
    path = strip(H100, tmp_path, modules=False)
    told = report(path, H100, model=H100.model, **H100.workload)
    got = {(g.group, g.batch, g.m, g.n, g.k) for g in told.phases["trace"].gemms
           if g.role == "attention"}  # fmt: skip
    assert got == {("qk", 256, 559, 559, 64), ("pv", 256, 559, 64, 559)}


def test_a_batch_that_no_grid_allows_is_said_and_not_believed(tmp_path: Path) -> None:
    path = strip(B200, tmp_path, modules=False, annotations=False)
    told = report(path, B200, model=B200.model, batch=2, prompt_len=888)
    assert any("M = 1,776 (given) does not fit" in said for said in told.warnings)
    assert {row[1] for row in known(table(told, B200))} <= {None, 888}


def test_a_step_may_hold_several_forward_passes(tmp_path: Path) -> None:
    trace = json.loads(events(GRAPH.name))
    kernels = [e for e in trace["traceEvents"] if e.get("cat") == "kernel"]
    later = [e | {"ts": e["ts"] + 1_000_000, "args": dict(e["args"])} for e in kernels]
    trace["traceEvents"] = kernels + later
    path = save(trace, tmp_path / "twice.json.gz")
    told = report(path, GRAPH, model=GRAPH.model, **GRAPH.workload)
    assert set(known(table(told, GRAPH))) == set(truth(GRAPH))
    assert {g.count for g in told.phases["trace"].gemms if g.role == "gate_up"} == {72.0}


@pytest.mark.parametrize(
    ("case", "modules", "grade", "by"),
    [
        (H100, True, "likely", ["24 layers", "7 GEMMs a layer", "modules of Qwen2"]),
        (H100, False, "possible", ["24 layers"]),
        (B200, True, "sure", ["36 layers", "8 ranks", "201,088", "modules of GptOss"]),
        (B200, False, "likely", ["a head of 201,088 rows by its grid"]),
        (MI300, True, "sure", ["a sampling kernel over 15 × 151,936 logits", "modules of Qwen3"]),
        (MI300, False, "likely", ["36 layers", "4 GEMMs a layer", "15 × 151,936 logits"]),
    ],
)
def test_auto_says_how_sure_it_is_and_by_what(
    case: Case, grade: str, by: list[str], tmp_path: Path, *, modules: bool
) -> None:
    told = report(strip(case, tmp_path, modules=modules), case, model="auto")
    (said,) = [text for text in told.warnings if text.startswith("--model auto")]
    assert f"would be of {case.model}, {grade} by " in said
    assert all(text in said for text in by), said
    assert not known(table(told, case))


def test_auto_names_both_of_two_that_fit_alike(tmp_path: Path) -> None:
    told = report(strip(GRAPH, tmp_path, modules=False), GRAPH, model="auto", **GRAPH.workload)
    (said,) = [text for text in told.warnings if text.startswith("--model auto")]
    assert "qwen3-4b, qwen3-8b are each possible, by 36 layers" in said
    named = strip(GRAPH, tmp_path, modules=False).rename(tmp_path / "serving-Qwen3-8B.json.gz")
    told = report(named, GRAPH, model="auto", **GRAPH.workload)
    (said,) = [text for text in told.warnings if text.startswith("--model auto")]
    assert "would be of qwen3-8b, possible by" in said and "its name in the trace" in said
    assert "qwen3-4b would fit its sizes" in said


def test_a_workload_without_a_model_is_said() -> None:
    told = report(H100.path, H100, batch=16, prompt_len=559)
    assert "without --model nothing is taken from --batch, --prompt-len" in told.warnings


def test_the_headline_says_where_shapes_come_from(tmp_path: Path) -> None:
    path = strip(H100, tmp_path, modules=False)
    phase = report(path, H100, model=H100.model, **H100.workload).phases["trace"]
    assert set(phase.shapes) == {"model"} and phase.shapes["model"] > 0.99
    assert headline(phase).endswith("shapes from the model's config")


@pytest.mark.parametrize(
    ("model", "said"), [(GRAPH.model, "come from the model's config"), (None, "give --eager-trace")]
)
def test_a_replay_whose_shapes_are_told_asks_for_no_eager_trace(
    model: str | None, said: str
) -> None:
    options = GRAPH.workload if model else {}
    (phase,) = report(GRAPH.path, GRAPH, model=model, **options).phases.values()
    (note,) = [text for text in phase.notes if "graph replays" in text]
    assert said in note and ("--eager-trace" in note) == (model is None)


def test_a_workload_that_pointwise_kernels_contradict_is_named(tmp_path: Path) -> None:
    path = strip(H100, tmp_path, modules=False, ops=False)
    told = report(path, H100, model=H100.model, batch=8, prompt_len=559)
    (said,) = [text for text in told.warnings if text.startswith("no shapes")]
    assert "count 8,944 rows of the config's widths, and M is 4,472 (given)" in said
    assert said.endswith("without the workload that was given nothing contradicts it")


@pytest.mark.parametrize(
    ("case", "options", "said"),
    [
        (B200, {"batch": 4, "phase": "decode"}, "--phase decode and its workload are not used"),
        (GRAPH, {"batch": 8, "phase": "decode"}, "M = 8 is given, and a step is annotated with 32"),
    ],
)
def test_a_workload_that_annotations_contradict_is_said(
    case: Case, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    told = report(strip(case, tmp_path, modules=False), case, model=case.model, **options)
    assert any(said in text for text in told.warnings), told.warnings
    assert {row[1] for row in known(table(told, case))} <= {None, case.rows, 1}


def test_a_config_that_adds_nothing_to_an_eager_trace_says_so() -> None:
    eager = SHARED / f"{GRAPH.eager}.json.gz"
    (phase,) = report(GRAPH.path, GRAPH, model=GRAPH.model, eager_trace=eager).phases.values()
    assert f"--model {GRAPH.model} adds no shapes to those of the trace" in phase.notes


def test_mistakes_in_the_request_have_hints(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="holds no config.json"):
        report(H100.path, H100, model=str(tmp_path))
    with pytest.raises(PrunescopeError, match="--baseline-model is given and there is no"):
        report(H100.path, H100, baseline_model=H100.model)
    for option, value in (("batch", 0), ("prompt_len", 10**9), ("context", "x"), ("phase", "both")):
        with pytest.raises(PrunescopeError, match="is not a (?:number|phase)"):
            report(H100.path, H100, model=H100.model, **{option: value})
