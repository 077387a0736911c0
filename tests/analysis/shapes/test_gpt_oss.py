"""A decode of gpt-oss-20b with the sizes of its config, served with a graph: shapes and roles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict_from import predict_from
from prunescope.analysis.schema.report import Phase, Report
from prunescope.taxonomy.presets import preset_config
from tests.analysis.shapes.gpt_oss import captured, replayed
from tests.chrome import save

TRUE = {
    ("qkv", 32, 5120, 2880), ("o", 32, 2880, 4096), ("router", 32, 32, 2880),
    ("experts", 128, 5760, 2880), ("experts", 128, 2880, 2880), ("lm_head", 32, 201088, 2880),
}  # fmt: skip


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("gpt_oss")
    return (
        save(replayed(), folder / "decode.json.gz"), save(captured(), folder / "capture.json.gz"),
    )  # fmt: skip


def analysed(trace: Path, model: str | None, eager: Path | None = None) -> tuple[Report, Phase]:
    report = analyze(trace, options=Options(model=model, eager_trace=eager)).report
    (phase,) = report.phases.values()
    return report, phase


@pytest.mark.parametrize("by_capture", [False, True])
def test_its_own_config_is_taken(traces: tuple[Path, Path], *, by_capture: bool) -> None:
    """o has 90 tiles of 32 × 32 for 304 CUs, and lm_head 449: their rates N·K/time, 0.77 and 2.09
    elements a ns, are 2.71 times apart. 31.6 of 32 experts are read, of 5,760 × 2,880 weights of
    half a byte: 262 MB in 136.4 us are 1.92 TB/s, 36 % of 5.3."""
    decode, capture = traces
    report, phase = analysed(decode, "gpt-oss-20b", capture if by_capture else None)
    assert not [text for text in report.warnings if "no shapes" in text]
    linears = [g for g in phase.gemms if g.role != "attention"]
    assert {(gemm.role, gemm.m, gemm.n, gemm.k) for gemm in linears} == TRUE
    (wide,) = (gemm for gemm in phase.gemms if gemm.n == 5760)
    assert wide.efficiency == pytest.approx(0.364, abs=0.005)
    assert phase.coverage["kind"] == pytest.approx(1.0)


def test_the_vocabulary_is_no_shared_expert(traces: tuple[Path, Path]) -> None:
    """Without ops only the head has a size: every other layer has one product less behind its
    router. The capture shows the table that tokens are looked up in, in a generated kernel."""
    decode, capture = traces
    _, alone = analysed(decode, None)
    _, with_ops = analysed(decode, None, capture)
    assert {gemm.role for gemm in alone.gemms if gemm.n == 201088} == {"unknown"}
    assert {gemm.role for gemm in with_ops.gemms if gemm.n == 201088} == {"lm_head"}
    assert "shared_expert" not in {*alone.roles, *with_ops.roles}
    scatters = [k for k in with_ops.kernels if k.name.startswith("_finalize_matmul_scatter")]
    assert {kernel.kind for kernel in scatters} == {"gather_scatter"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"vocab_size": 32000}, "lm_head has N"), ({"num_hidden_layers": 22}, "24 layers"),
        ({"num_attention_heads": 16}, "their rates"),
    ],
)  # fmt: skip
def test_other_configs_are_refused(
    changes: dict[str, int], why: str, traces: tuple[Path, Path], tmp_path: Path
) -> None:
    config = preset_config("gpt-oss-20b") | changes
    config["layer_types"] = config["layer_types"][: config["num_hidden_layers"]]
    (tmp_path / "config.json").write_text(json.dumps(config))
    report, _ = analysed(traces[0], str(tmp_path / "config.json"))
    assert any("no shapes" in text and why in text for text in report.warnings), report.warnings


def test_half_of_the_experts_from_the_step(traces: tuple[Path, Path]) -> None:
    """Both grouped products take 24 · (136.4 + 156.7) = 7,034 us of 10.4 ms: halved, 1.51×."""
    request = PredictRequest(
        "gpt-oss-20b", from_run=traces[0], method="static-experts", sparsity=0.5
    )
    result = predict_from(request)
    assert any("published as mxfp4" in text for text in result.warnings)
    (phase,) = result.phases.values()
    (row,) = phase.families
    true = phase.wall_ns / (phase.wall_ns - 0.5 * 7_034_400)
    assert row.range[0] <= true <= row.range[1]
