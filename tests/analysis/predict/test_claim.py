"""Claims, the evidence behind ranges, caches, budgets and grids."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prunescope
from prunescope.analysis.predict.claim import judge_claim
from prunescope.analysis.predict.evidence import Kind, Measurement, distance, spread_of
from prunescope.taxonomy.errors import PrunescopeError

SETTING = {"model": "llama-3.1-8b", "device": "h100-sxm", "dtype": "bf16", "phase": "decode"}
PRUNING = {"method": "static-k-24", "sparsity": 0.5}
KIND = Kind(
    mechanism="layers", engine="", phase="decode", launch="graph", generation="hopper", keys=512,
    batch=1, model="dense",
)  # fmt: skip


def test_a_claim_beyond_the_bound_is_impossible() -> None:
    claim = prunescope.claim(9, **SETTING, **PRUNING)
    assert (claim["verdict"], claim.exit_code) == ("impossible", 3)
    assert claim["bound"] < 9
    assert "above" in claim["why"]


@pytest.mark.parametrize(("share", "verdict"), [(1.0, "plausible"), (0.3, "not_supported")])
def test_a_claim_is_held_against_the_range(share: float, verdict: str) -> None:
    expected = prunescope.claim(1.0, **SETTING, **PRUNING)["expected"]
    assert prunescope.claim(share * expected, **SETTING, **PRUNING)["verdict"] == verdict


def test_a_claim_without_a_measurement_of_its_kind_is_unknown() -> None:
    more = {**SETTING, "model": "qwen3-30b-a3b"}
    claim = prunescope.claim(1.1, **more, method="static-experts", sparsity=0.5)
    assert (claim["verdict"], claim.exit_code) == ("unknown", 4)
    assert claim["evidence"]["measurements"] == 0
    assert "no measurement of this kind" in claim["why"]


def test_a_claim_is_about_one_point() -> None:
    with pytest.raises(PrunescopeError, match="one point"):
        prunescope.claim(1.1, **SETTING, method="static-m", sparsity=(0.25, 0.5))
    with pytest.raises(PrunescopeError, match="one phase"):
        prunescope.claim(1.1, **{**SETTING, "phase": "both"}, **PRUNING)


def test_a_near_publication_narrows_a_range_and_a_far_kind_does_not() -> None:
    """FAR = 1 publication of 0.2 and one at distance 0 that missed by 0.1: their mean square is
    (0.04 + 0.01) / 2 = 0.025. One of another mechanism counts nothing."""
    near = Measurement(source="a", setting="", kind=KIND, off=0.1)
    assert spread_of(KIND, [near], 0.2) == pytest.approx(math.sqrt(0.025))
    other = Kind(**{**{name: getattr(KIND, name) for name in KIND.__struct_fields__},
                    "mechanism": "keys"})  # fmt: skip
    assert spread_of(other, [near], 0.2) == pytest.approx(0.2)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_distance_is_symmetric_and_zero_at_home(keys: int, batch: int) -> None:
    fields = {name: getattr(KIND, name) for name in KIND.__struct_fields__}
    other = Kind(**{**fields, "keys": keys, "batch": batch})
    assert distance(KIND, KIND) == 0
    assert distance(KIND, other) == pytest.approx(distance(other, KIND))


def test_a_cache_of_one_byte_is_half_as_large() -> None:
    """Llama-3.1-8B: 32 layers of 2 x 8 heads of 128 numbers, 512 keys: 67,108,864 bytes in bf16."""
    wide, narrow = (
        prunescope.predict(**SETTING, kv_dtype=name)["phases"]["decode"]["kv_bytes"]
        for name in (None, "fp8")
    )
    assert (wide, narrow) == (67108864, 33554432)


def test_flash_reads_grouped_heads_and_a_static_cache_copies_nothing() -> None:
    def step(**how: str) -> float:
        point = prunescope.predict(
            **SETTING, **PRUNING, runtime="hf", batch=32, prompt_len=8192, **how
        )
        execution = point["phases"]["decode"]["predicted"]["execution"]
        return float(next(t["dense_ns"] for t in execution["terms"] if t["name"] == "eager"))

    sdpa, flash, still = step(attn="sdpa"), step(attn="flash"), step(attn="flash", cache="static")
    cache = 32 * 8192 * 131072  # bytes; copied to append is read and written
    rate = 0.85 * 3350  # bytes a ns
    assert flash - still == pytest.approx(2 * cache / rate, rel=1e-6)
    assert sdpa - flash == pytest.approx(2 * 4 * cache / rate, rel=1e-6)  # four heads share a key


def test_a_grid_over_devices_and_batches_has_a_point_and_a_curve_each() -> None:
    grid = prunescope.predict(
        **{**SETTING, "device": "h100-sxm,b200"}, **PRUNING, batch="1,16", curves=True
    )
    places = [(point["device"], point["batch"]) for point in grid["points"]]
    assert places == [("h100-sxm", 1), ("h100-sxm", 16), ("b200", 1), ("b200", 16)]
    assert len(grid["curves"]["decode"]) == 4
    with pytest.raises(PrunescopeError, match="--batch"):
        prunescope.predict(**SETTING, batch="1,x")


def test_a_decode_step_is_never_told_above_its_roofline() -> None:
    point = prunescope.predict(
        "llama-3.1-8b", device="a100-80gb-sxm", method="kv-evict", sparsity=0.999, batch=1,
        knobs={"keep": "sinks", "full_heads": "0.5"}, phase="decode", prompt_len=320000,
        dtype="bf16", runtime="hf", attn="flash",
    )  # fmt: skip
    phase = point["phases"]["decode"]
    execution = phase["predicted"]["execution"]
    assert execution["speedup"] <= phase["ladder"]["roofline"] * (1 + 1e-9)
    assert execution["dense_ns"] == pytest.approx(execution["speedup"] * execution["pruned_ns"])


def test_published_speedups_are_possible_and_doubled_ones_are_not_plausible() -> None:
    """The commands of three files: what was measured may be called impossible once in a hundred."""
    folder = Path(__file__).parents[3] / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        claims = importlib.import_module("predict_claims")
        cells = importlib.import_module("predict_cells")
    verdicts: dict[float, list[str]] = {1.0: [], 2.0: []}
    for name in (*claims.EVIDENCE, claims.FOURTH):
        for row in claims.rows_of(name):
            request = cells.request_of(row["options"])
            for factor, judged in verdicts.items():
                claim = judge_claim(factor * float(row["measured"]), request)
                judged.append(claim.verdict)
    assert verdicts[1.0].count("impossible") <= len(verdicts[1.0]) / 100
    assert verdicts[2.0].count("plausible") <= len(verdicts[2.0]) / 20
