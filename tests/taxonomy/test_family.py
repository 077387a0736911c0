from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families, family, register
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, flop, forward, roofline

IDS = {
    "dense", "static-m", "static-k-24", "static-k-lowrank", "static-nk", "static-nk-heads",
    "static-nk-mlp", "static-nk-cross", "dynamic-m", "dynamic-nk", "static-k-mask", "token-drop",
    "kv-evict", "dynamic-depth", "dynamic-width", "dynamic-k", "static-experts", "static-topk",
}  # fmt: skip
FREE = sorted(IDS - {"dense", "static-k-24"})  # those with a sparsity of their own choice
H100 = {"flop_per_s": 989e12, "byte_per_s": 3350e9}
TINY = ModelShape.from_config(preset_config("tiny-llama"))


def test_exactly_the_families_of_the_taxonomy() -> None:
    assert {f.id for f in families()} == IDS
    assert len(families()) == len(IDS)
    extensions = {f.id for f in families() if f.extension}
    assert extensions == {
        "static-k-mask", "token-drop", "kv-evict", "dynamic-depth", "dynamic-width", "dynamic-k",
        "static-nk-heads", "static-nk-mlp", "static-experts", "static-topk",
    }  # fmt: skip


def test_patterns_of_the_table() -> None:
    assert list(family("static-nk").axes.values()) == ["N", "M", "M", "K", "N", "K"]
    assert list(family("static-nk-cross").axes.values()) == ["K", "none", "none", "N", "K", "N"]
    assert list(family("dynamic-nk").axes.values()) == ["none", "N", "K", "none", "none", "none"]
    assert list(family("static-experts").axes.values())[4:] == ["G", "G"]
    assert list(family("static-topk").axes.values())[4:] == ["M", "M"]


def test_what_a_calibrated_choice_rests_on() -> None:
    """Statistics of a text, or the attention of the input itself; None: it cannot be calibrated."""
    calibrations = {member.id: member.to_dict()["calibration"] for member in families()}
    assert {name for name, by in calibrations.items() if by is None} == {
        "dense", "dynamic-depth", "dynamic-width", "dynamic-k", "static-topk",
    }  # fmt: skip
    assert {name for name, by in calibrations.items() if by == "input"} == {
        "dynamic-nk", "token-drop", "kv-evict",
    }  # fmt: skip
    assert set(calibrations.values()) == {None, "text", "input"}
    with pytest.raises(RuntimeError, match="calibration"):
        register(replace(family("dense"), calibration="guess"), {})


def test_a_second_family_of_an_id_is_refused() -> None:
    by_id: dict[str, Family] = {}
    register(family("dense"), by_id)
    with pytest.raises(RuntimeError, match="dense"):
        register(family("dense"), by_id)
    with pytest.raises(RuntimeError, match="axes"):
        register(replace(family("dense"), axes={}), {})


def test_an_unknown_family_names_its_neighbours() -> None:
    with pytest.raises(PrunescopeError, match="static-m"):
        family("static-q")


def test_knobs_are_checked_and_typed() -> None:
    point = family("token-drop").point(0.5, {"after": "3"})
    assert point.knobs["after"] == 3
    assert family("static-nk").point(0.5).knobs["rounding"] == "nearest"
    for name, knobs in (
        ("static-nk", {"rounding": "up"}),
        ("static-nk", {"round": "paper"}),
        ("token-drop", {"after": "soon"}),
        ("token-drop", {"after": 99}),
    ):
        with pytest.raises(PrunescopeError):
            pruning = family(name)
            pruning.theory(TINY, Workload(phase="prefill"), pruning.point(0.5, knobs))


def test_impossible_points_are_errors() -> None:
    work = Workload(phase="decode")
    for name, sparsity in (("static-k-24", 0.25), ("static-m", 1.0), ("static-k-lowrank", 0.001)):
        with pytest.raises(PrunescopeError):
            family(name).theory(TINY, work, family(name).point(sparsity))


@pytest.mark.parametrize("preset", preset_names())
def test_at_sparsity_zero_every_family_is_dense(preset: str) -> None:
    shape = ModelShape.from_config(preset_config(preset))
    for phase in ("prefill", "decode"):
        work = Workload(phase=phase, batch=2, prompt_len=300)
        dense = forward([dense_plan(shape, work)])
        for name in sorted(IDS):
            same = family(name).theory(shape, work, family(name).point(0.0))
            assert flop(same) == pytest.approx(flop(dense)), name
            assert roofline(same, **H100) == pytest.approx(roofline(dense, **H100)), name


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(FREE),
    st.sampled_from(["prefill", "decode"]),
    st.integers(1, 8),
    st.integers(1, 2048),
    st.floats(0.05, 0.7),
)
def test_more_sparsity_is_never_more_flop(
    name: str, phase: str, batch: int, length: int, sparsity: float
) -> None:
    pruning, work = family(name), Workload(phase=phase, batch=batch, prompt_len=length)
    shape = ModelShape.from_config(preset_config("llama-3.2-1b"))
    less = flop(pruning.theory(shape, work, pruning.point(sparsity)))
    more = flop(pruning.theory(shape, work, pruning.point(sparsity + 0.2)))
    assert more <= less * (1 + 1e-12)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(IDS)), st.sampled_from(["prefill", "decode"]), st.integers(1, 64))
def test_ops_are_sound(name: str, phase: str, batch: int) -> None:
    work = Workload(phase=phase, batch=batch, prompt_len=128)
    for op in family(name).theory(TINY, work, family(name).point(0.5)):
        assert op.layers > 0
        assert op.bytes > 0
        assert op.flop >= 0
        assert op.weight_bytes + op.kv_read <= op.bytes * (1 + 1e-12)
        assert (op.cls == "pointwise") == (not op.gemms)


def test_mixers_that_are_not_known_are_refused() -> None:
    shape = replace(TINY, other_layers=4)
    with pytest.raises(PrunescopeError, match="no attention"):
        dense_plan(shape, Workload(phase="prefill"))
