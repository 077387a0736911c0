from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.predict import PredictRequest, predict
from taxonomy.errors import PrunescopeError
from taxonomy.family import families
from taxonomy.presets import preset_config, preset_names


def ask(**options: Any) -> dict[str, Any]:
    defaults = {"model": "llama-3.1-8b", "device": "h100-sxm", "method": "static-m",
                "sparsity": 0.5, "prompt_len": 1024}  # fmt: skip
    return predict(PredictRequest(**{**defaults, **options}))


def test_ladder_of_the_table() -> None:
    result = ask(method="dynamic-m", phase="decode", batch=8)
    ladder = result["phases"]["decode"]["ladder"]
    assert ladder["roofline"] == pytest.approx(1.04, abs=0.005)
    assert ladder["nominal"] == 2
    assert ladder["realised"] is None
    assert list(result["phases"]) == ["decode"]


def test_coverage_by_hand() -> None:
    # static-nk-mlp on a device whose bandwidth never binds: time is FLOPs, coverage is the FLOP
    # ratio with only gate, up, down halved: P = 218,103,808 of which the MLP 176,160,768.
    result = ask(method="static-nk-mlp", phase="prefill", prompt_len=1, bandwidth=1e9)
    ladder = result["phases"]["prefill"]["ladder"]
    layers = 32 * (2 * 218_103_808 + 2 * 4096 * 2)
    head = 2 * 4096 * 128_256
    expected = (layers + head) / (layers + head - 32 * 2 * 176_160_768 / 2)
    assert ladder["flop"] == pytest.approx(expected)
    assert ladder["coverage"] == pytest.approx(expected, rel=1e-4)
    assert ladder["roofline"] == pytest.approx(expected, rel=1e-4)


def test_sums() -> None:
    for name in ("static-nk", "static-k-lowrank", "dynamic-m"):
        for phase in ask(method=name)["phases"].values():
            assert sum(phase["roles"].values()) == pytest.approx(phase["ideal_ns"])
            assert sum(phase["bound"].values()) == pytest.approx(phase["ideal_ns"])
            pointwise = ("attn_norm", "mlp_norm", "rope", "activation")
            gemms = sum(row["ideal_ns"] for row in phase["gemms"])
            rest = sum(phase["roles"][role] for role in pointwise)
            assert gemms + rest == pytest.approx(phase["ideal_ns"])


def test_axes_of_the_gemm_rows() -> None:
    def axes(method: str, phase: str = "prefill") -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for row in ask(method=method)["phases"][phase]["gemms"]:
            found.setdefault(row["group"], set()).add(row["axis"])
        return found

    assert axes("static-nk")["qkv"] == {"N"}
    assert axes("static-nk")["down"] == {"K"}
    assert axes("static-nk")["qk"] == {"heads"}
    assert axes("static-k-24")["o"] == {"2:4"}
    assert axes("static-k-lowrank")["gate_up"] == {"rank"}
    assert axes("static-m")["o"] == {"none", "gone"}
    assert axes("dynamic-nk") == {
        "qkv": {"none"}, "qk": {"N"}, "pv": {"K"}, "o": {"none"}, "gate_up": {"none"},
        "down": {"none"}, "lm_head": {"none"},
    }  # fmt: skip
    assert axes("static-nk-cross")["added"] == {"added"}
    assert axes("dynamic-m", "decode")["down"] == {"M"}
    assert axes("token-drop")["qk"] == {"none", "M"}


def test_gone_rows_have_count_zero() -> None:
    rows = ask()["phases"]["decode"]["gemms"]
    assert {row["count"] == 0 for row in rows if row["axis"] == "gone"} == {True}
    assert sum(row["count"] for row in rows if row["role"] == "down") == 16


def test_realised_sparsity_and_memory() -> None:
    phase = ask(phase="decode")["phases"]["decode"]
    # 16 of 32 layers of 218,112,000 numbers (two norms) of 8,030,261,248
    assert phase["sparsity"]["parameters"] == pytest.approx(16 * 218_112_000 / 8_030_261_248)
    assert phase["kv_bytes"] == 16 * 1024 * 2048 * 2
    assert phase["memory_bytes"] == phase["weight_bytes"] + phase["kv_bytes"]
    masked = ask(method="static-k-mask")["phases"]["prefill"]
    assert masked["sparsity"] == {"nominal": 0.5, "parameters": 0, "flop": 0, "bytes": 0}
    dynamic = ask(method="dynamic-depth", phase="decode")["phases"]["decode"]
    assert dynamic["sparsity"]["parameters"] == 0


def test_break_even() -> None:
    cross = ask(method="static-nk-cross", phase="prefill")["phases"]["prefill"]
    # the residual GEMMs cost 2h'^2 of about 53,000h': a small cut loses, a half wins
    assert 1 / 64 < cross["predicted"]["break_even"]["sparsity"] < 0.25
    short = ask(method="dynamic-nk", phase="prefill")["phases"]["prefill"]["predicted"]
    # below the ridge attention is memory-bound in prefill: fewer FLOPs save nothing
    assert short["break_even"]["context"]["from"] > 256
    zeros = ask(method="static-k-mask", phase="decode")["phases"]["decode"]["predicted"]
    assert zeros["break_even"] == {"sparsity": None, "batch": None, "context": None}


def test_without_a_method() -> None:
    result = ask(method=None, sparsity=0.25)
    assert result["baseline"] is None
    assert result["phases"]["prefill"]["ladder"] is None
    assert result["phases"]["prefill"]["ideal_ns"] > 0


def test_24_without_sparse_matrix_units_is_masking() -> None:
    result = ask(method="static-k-24", device="v100-sxm2", phase="decode")
    assert result["phases"]["decode"]["ladder"]["roofline"] == 1
    assert any("2:4" in text for text in result["warnings"])
    assert any("fp16" in text for text in result["warnings"])


def test_a_config_file_and_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(preset_config("qwen3-4b")))
    wanted = ask(model="qwen3-4b")["phases"]
    assert ask(model=str(tmp_path))["phases"] == wanted
    result = ask(model=str(tmp_path / "config.json"))
    assert result["phases"] == wanted
    assert str(tmp_path) not in json.dumps(result["subject"]["model"]["source"])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"model": "lama-3.1-8b"}, "llama-3.1-8b"),
        ({"device": "h10-sxm"}, "h100-sxm"),
        ({"device": None}, "--peak"),
        ({"method": "static-q"}, "static-m"),
        ({"method": "package.module:function"}, "families"),
        ({"method": "static-k-24", "sparsity": 0.25}, "0.5"),
        ({"sparsity": 1.5}, "0.25"),
        ({"phase": "training"}, "prefill"),
        ({"knobs": {"colour": "red"}}, "unit"),
        ({"dtype": "fp7"}, "bf16"),
        ({"device": "mi210", "dtype": "fp8"}, "--peak"),
        ({"batch": 0}, "one"),
    ],
)
def test_bad_requests(options: dict[str, Any], word: str) -> None:
    with pytest.raises(PrunescopeError) as error:
        ask(**options)
    assert word in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"hidden_size": 3}'])
def test_bad_configs(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PrunescopeError):
        ask(model=str(tmp_path))


@pytest.mark.parametrize("model", preset_names())
def test_every_family_on_every_preset_is_json(model: str) -> None:
    for one in families():
        result = ask(model=model, method=one.id, dtype="bf16")
        json.dumps(result, allow_nan=False)
        for phase in result["phases"].values():
            if phase["ladder"]:
                assert phase["ladder"]["coverage"] > 0
                assert 0 < phase["ladder"]["roofline"] < 3
            moved = {row["axis"] for row in phase["gemms"]}
            assert "unknown" not in moved
