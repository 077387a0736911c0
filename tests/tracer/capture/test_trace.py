"""A capture end to end on the CPU: what stands in the run folder."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.runs.run import read_run, sha256_of

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]


def events(path: Path) -> list[dict[str, Any]]:
    trace: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    found: list[dict[str, Any]] = trace["traceEvents"]
    return found


def test_both_variants_hold_manifest_and_traces(static_m: Path) -> None:
    for variant in ("dense", "pruned"):
        run = read_run(static_m / variant)
        assert run.variant == variant
        assert set(run.phases) == {"prefill", "decode"}
        for name, phase in run.phases.items():
            assert phase.trace == f"{name}.trace.json.gz"
            assert phase.sha256 == sha256_of(static_m / variant / phase.trace)
            assert len(phase.samples_ns) == 2
            assert phase.interleaved == "alternating"
        files = {p.name for p in (static_m / variant).iterdir()}
        assert files == {"run.json", "prefill.trace.json.gz", "decode.trace.json.gz"}


def test_positions_and_context(static_m: Path) -> None:
    phases = read_run(static_m / "dense").phases
    assert phases["prefill"].positions == [0, 16]
    assert phases["prefill"].context == 16
    assert phases["decode"].positions == [16, 19]
    assert phases["decode"].context == 18  # (17 + 18 + 19) / 3
    assert (phases["prefill"].tokens_per_step, phases["decode"].tokens_per_step) == (16, 1)
    assert (phases["prefill"].steps, phases["decode"].steps) == (2, 3)


def test_pruned_run_names_its_baseline(static_m: Path) -> None:
    run = read_run(static_m / "pruned")
    digest = sha256_of(static_m / "dense" / "run.json")
    assert plain(run.twin) == {"path": "../dense/run.json", "sha256": digest}
    dense = read_run(static_m / "dense")
    assert dense.twin is None
    assert dense.pruning is None
    assert run.pruning is not None
    assert run.pruning.method == "static-m"
    assert run.layer_map == (run.pruning.kept or {})["layers"]
    assert len(run.layer_map) == 2  # 4 - int(4 * .5)


def test_too_few_blocks_to_skip_one_are_noted(quick: Callable[..., Path]) -> None:
    """16 tokens are 8 blocks of 2: round(8 * .95) = 8 are seen, round(8 * .75) = 6."""
    for sparsity, noted in ((0.05, True), (0.25, False)):
        out = quick(method="dynamic-nk", sparsity=sparsity, phase="prefill")
        pruning = read_run(out / "pruned").pruning
        assert pruning is not None
        said = "prefill: no block is skipped: a prompt of 16 tokens has too few of them"
        assert any(said in note for note in pruning.notes or ()) == noted


def test_memory_shrinks_with_the_layers(static_m: Path) -> None:
    dense, pruned = read_run(static_m / "dense"), read_run(static_m / "pruned")
    kv = 2 * 4 * 16 * 4  # K and V, 4 KV heads of 16 in fp32: bytes a token and layer
    assert dense.phases["prefill"].kv_bytes == 4 * kv * 16
    assert pruned.phases["prefill"].kv_bytes == 2 * kv * 16
    assert dense.phases["decode"].kv_bytes == 4 * kv * 19
    layer = 128 * 128 * 2 + 64 * 128 * 2 + 3 * 128 * 352 + 2 * 128
    assert dense.parameters is not None
    assert pruned.parameters is not None
    assert dense.parameters - pruned.parameters == 2 * layer
    for run in (dense, pruned):
        assert run.weight_bytes is not None
        for phase in run.phases.values():
            assert phase.peak_memory_bytes is not None
            assert phase.peak_memory_bytes > run.weight_bytes


def test_decode_peak_counts_weights_cache_and_one_step(static_m: Path) -> None:
    run = read_run(static_m / "dense")
    decode = run.phases["decode"]
    assert decode.peak_memory_bytes is not None
    assert run.weight_bytes is not None
    assert decode.kv_bytes is not None
    beyond = decode.peak_memory_bytes - run.weight_bytes
    # A token adds one layer's old keys beside its new ones and some kB of vectors: no second cache.
    assert decode.kv_bytes * 15 / 19 < beyond < 1.6 * decode.kv_bytes


def test_no_path_host_or_user(static_m: Path) -> None:
    for path in static_m.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
            assert str(static_m.parent) not in text
            assert "/somewhere" not in text
            assert "host_name" not in text
            assert "traceName" not in text
            assert f'"{socket.gethostname()}"' not in text
    assert read_run(static_m / "dense").argv == ["trace", "--out", "<path>/run"]


def test_annotations_and_scopes(static_m: Path) -> None:
    spans = [e for e in events(static_m / "dense" / "prefill.trace.json.gz") if e["ph"] == "X"]
    names = [e["name"] for e in spans if e["cat"] == "user_annotation"]
    assert names.count("prunescope.phase") == 1
    steps = [n for n in names if n.startswith("prunescope.step#")]
    assert steps == ["prunescope.step#warmup", "prunescope.step#0", "prunescope.step#1"]
    for scope in ("model.layers.3", "model.layers.3.self_attn", "model.layers.3.mlp.gate_proj"):
        assert names.count(scope) == 2
    assert {"model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"} <= set(names)
    phase = next(e for e in spans if e["name"] == "prunescope.phase")
    assert all(
        phase["ts"] <= e["ts"] and e["ts"] + e["dur"] <= phase["ts"] + phase["dur"] + 0.001
        for e in spans
    )
    mm = [e for e in spans if e["name"] == "aten::mm"]
    assert len(mm) == 2 * (4 * 7 + 1)  # as in a plain loop, lm_head is one product too
    assert "aten::bmm" not in {e["name"] for e in spans}
    assert [[16, 128], [128, 352]] in [e["args"]["Input Dims"] for e in mm]


def test_every_op_lies_in_a_step(static_m: Path) -> None:
    paths = list(static_m.glob("*/*.gz"))
    assert len(paths) == 4
    for path in paths:
        spans = [e for e in events(path) if e["ph"] == "X"]
        steps = [e for e in spans if e["name"].startswith("prunescope.step#")]
        for op in (e for e in spans if e["cat"] == "cpu_op"):
            holders = [s for s in steps if s["ts"] <= op["ts"] <= s["ts"] + s["dur"]]
            assert len(holders) == 1
            assert holders[0]["name"] != "prunescope.step#warmup"


def test_removed_layers_are_renumbered(static_m: Path) -> None:
    names = {e["name"] for e in events(static_m / "pruned" / "decode.trace.json.gz")}
    assert "model.layers.1" in names
    assert "model.layers.2" not in names


def test_dense_alone_without_a_method(quick: Callable[..., Path]) -> None:
    folder = quick(phase="decode")
    assert [p.name for p in folder.iterdir()] == ["dense"]
    assert read_run(folder / "dense").phases["decode"].interleaved == "alone"


def test_baseline_is_a_run_of_before(quick: Callable[..., Path], tmp_path: Path) -> None:
    dense = quick(out=tmp_path / "a" / "dense-only")
    out = quick(method="static-nk", baseline=dense, out=tmp_path / "b" / "nk")
    assert [p.name for p in out.iterdir()] == ["pruned"]
    run = read_run(out / "pruned")
    assert run.twin is not None
    assert run.twin.path == "../../../a/dense-only/dense/run.json"
    assert (out / "pruned" / run.twin.path).resolve() == (dense / "dense/run.json").resolve()
    assert run.twin.sha256 == sha256_of(dense / "dense" / "run.json")


def test_baseline_of_other_inputs_is_refused(quick: Callable[..., Path], tmp_path: Path) -> None:
    dense = quick(phase="decode")
    with pytest.raises(PrunescopeError, match="prompt_len 16, this one 8"):
        quick(method="static-m", phase="decode", baseline=dense, prompt_len=8, out=tmp_path / "x")
    for options, says in (
        ({"flush": True}, "decode was timed without a flushed cache, this one with it"),
        ({"mode": "compile"}, "mode eager, this one compile"),
    ):
        with pytest.raises(PrunescopeError, match=says):
            quick(method="static-m", phase="decode", baseline=dense, out=tmp_path / "x", **options)
    with pytest.raises(PrunescopeError, match="no prefill phase"):
        quick(method="static-m", baseline=dense, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_no_baseline(quick: Callable[..., Path]) -> None:
    folder = quick(method="static-k-mask", no_baseline=True, phase="prefill")
    assert [p.name for p in folder.iterdir()] == ["pruned"]
    run = read_run(folder / "pruned")
    assert run.twin is None
    assert run.census is not None
    rows = {row.name: row for row in run.census.matrices}
    assert rows["model.layers.0.mlp.down_proj"].zeros == 0.25
    assert rows["lm_head"].zeros == 0


def test_two_models_are_dense_and_pruned(quick: Callable[..., Path]) -> None:
    folder = quick(baseline_model="tiny-llama", phase="decode")
    assert read_run(folder / "pruned").pruning is None
    assert read_run(folder / "pruned").twin is not None


def test_same_request_prunes_the_same(quick: Callable[..., Path], static_m: Path) -> None:
    again = read_run(quick(method="static-m", sparsity=0.5, phase="decode") / "pruned")
    other = read_run(quick(method="static-m", sparsity=0.5, phase="decode", seed=1) / "pruned")
    assert again.layer_map == read_run(static_m / "pruned").layer_map
    assert other.layer_map != again.layer_map


def test_golden_size(quick: Callable[..., Path]) -> None:
    """Captured as the runs of traces/ are (traces/README.md)."""
    folder = quick(prompt_len=64, decode_steps=3, steps=3, method="static-nk", sparsity=0.5)
    for variant in ("dense", "pruned"):
        assert sum(p.stat().st_size for p in (folder / variant).iterdir()) <= 300_000
