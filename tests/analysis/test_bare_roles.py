"""Roles without modules: from the order of attention and weight GEMMs, or not at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis.pipeline import analyze
from tests.analysis.test_scopes import KV, F, H, Q, add, attention, mm
from tests.chrome import chrome, save

SEPARATE = (*(mm(n, H) for n in (Q, KV, KV)), attention(), mm(H, Q), mm(F, H), mm(F, H), mm(H, F))
FUSED = (mm(Q + 2 * KV, H), attention(), mm(H, Q), mm(2 * F, H), mm(H, F))
PLAIN = (*(mm(n, H) for n in (Q, KV, KV)), attention(), mm(H, Q), mm(F, H), mm(H, F))


def roles(tmp_path: Path, *items: Any) -> list[tuple[int | None, str]]:
    rows = analyze(save(chrome(*items), tmp_path / "t.json")).frames["trace"]
    rows = rows.filter(pl.col("kind").is_in(["gemm", "gemv", "attention"]))
    return list(zip(rows["layer"].to_list(), rows["role"].to_list(), strict=True))


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (SEPARATE, ["q", "k", "v", "attention", "o", "gate", "up", "down"]),
        (FUSED, ["qkv", "attention", "o", "gate_up", "down"]),
        (PLAIN, ["q", "k", "v", "attention", "o", "up", "down"]),
    ],
    ids=["separate", "fused", "no gate"],
)
@pytest.mark.parametrize("head", [True, False])
def test_layers_of_a_decoder(
    layer: tuple[Any, ...], names: list[str], tmp_path: Path, *, head: bool
) -> None:
    last = [mm(100, H)] if head else []
    got = roles(tmp_path, *[x for _ in range(4) for x in (add(), *layer)], *last)
    want: list[tuple[int | None, str]] = [(i, name) for i in range(4) for name in names]
    assert got == want + ([(None, "lm_head")] if head else [])


def test_an_uneven_sequence_is_unknown(tmp_path: Path) -> None:
    """Five, then seven GEMMs between attentions: no order to read roles from."""
    uneven = (*SEPARATE, mm(H, H), mm(H, H), *FUSED, *SEPARATE)
    assert {role for _, role in roles(tmp_path, *uneven)} <= {"unknown", "attention"}


def test_gemms_without_attention_are_unknown(tmp_path: Path) -> None:
    assert {role for _, role in roles(tmp_path, mm(Q, H), mm(H, Q), mm(F, H))} == {"unknown"}


def test_the_report_says_where_roles_come_from(tmp_path: Path) -> None:
    trace = save(chrome(*SEPARATE * 3), tmp_path / "t.json")
    assert any("order" in note for note in analyze(trace).report.phases["trace"].notes)


def test_a_real_trace_without_modules_has_the_same_roles(
    real_trace: Callable[[str], Path], tmp_path: Path
) -> None:
    """All 168 linears of 24 layers as its modules name them."""
    path = real_trace("h100_qwen1.5-0.5b_prefill.json.gz")
    trace = json.loads(gzip.decompress(path.read_bytes()))
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e.get("cat") != "python_function"]
    linears = pl.col("kind").is_in(["gemm", "attention"])
    told, bare = (
        analyze(p).frames["trace"].filter(linears).select("start", "layer", "role")
        for p in (path, save(trace, tmp_path / "t.json"))
    )  # fmt: skip
    assert len(told) == 192
    assert bare.equals(told)
