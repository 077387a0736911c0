"""Pairs of models from other libraries: what is true of them is said, and no more.

pairs/README.md has the models. The truth of each was written down before it was analysed.
"""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.summary.paragraph import summary

FOLDER = Path(__file__).with_name("pairs")
STEPS, APART = 6, 100_000  # numbers of ops of two steps


@dataclass(frozen=True)
class Truth:
    """What is true of a pair: the family (or unknown), and what its evidence or summary says."""

    family: str
    says: str
    ratio: float | None = None  # dense over pruned FLOPs
    bare: str = ""  # what a trace without modules says; as with them if empty


OUTSIDE = "outside"
TRUTHS = {
    # 1: aligned by what runs
    "swinv2_blocks": Truth("static-m", "2 of 12 layers removed", 1.188),
    "encoder_layers": Truth("static-m", "2 of 10 layers removed", 1.249),
    "clip_text_mlps": Truth(
        "static-m", r"2 of 10 MLP sublayers removed: 5, 8", 1.131, r"gone \(4 GEMMs\)"
    ),
    "pixart_heads": Truth(
        "static-nk-heads", "N of 24 projections and K of 8 o", 1.136, r"heads \(16 GEMMs\)"
    ),
    "conformer_blocks": Truth("static-m", "1 of 6 layers removed", 6 / 5),
    # 2: other inputs
    "decoder_batch": Truth(OUTSIDE, "other inputs: 4 × 128 tokens, the dense side 2 × 256"),
    "unet_latents": Truth(OUTSIDE, "8 images of 16 × 16, the dense side 2 images of 32 × 32"),
    "deit_batch_and_mlp": Truth(
        OUTSIDE, r"half the batch[\s\S]*weights of other sizes: N or K of up × 4, down × 4"
    ),
    "vit_other_model": Truth(
        "static-nk+static-nk-cross", "size 256 → 160, .* may be another model of the same kind"
    ),
    "volume_length": Truth(OUTSIDE, r"other inputs \(1.5 × the length\)"),
    # 3: kinds of work
    "mobilenet_expansion": Truth("unknown", "18 of 22 convolutions have other shapes", 1.568),
    "unet_decoder_channels": Truth("unknown", "11 of 31 convolutions have other shapes", 1.231),
    "unet_volume_channels": Truth("unknown", "13 of 14 convolutions have other shapes", 1.687),
    "quantised_mlp": Truth("static-nk-mlp", "N of 4 up and K of 4 down, down K 512 → 384", 1.176),
    "grouped_experts": Truth("static-nk-mlp", "N of 4 gate/up and K of 4 down", 1.298),
}
FALSE = re.compile(
    r"no shape( that is known)? has moved|no gain is to be expected|GEMMs? (was|were) added"
)


def repeated(name: str, *, modules: bool) -> dict[str, Any]:
    """A trace of six equal steps."""
    step = json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))["traceEvents"]
    events = [event for event in step if modules or event["cat"] != "python_function"]
    length = max(event["ts"] + event["dur"] for event in events) + 5
    repeats = []
    for i in range(STEPS):
        for event in events:
            again = {**event, "ts": round(event["ts"] + i * length, 1)}
            if event["cat"] == "user_annotation":
                again["name"] = f"ProfilerStep#{i}"
            if "args" in event:
                number = event["args"]["External id"] + i * APART
                again["args"] = {**event["args"], "External id": number}
            repeats.append(again)
    return {"schemaVersion": 1, "traceEvents": repeats}


def compared(name: str, folder: Path, *, modules: bool) -> Phase:
    paths = [folder / f"{side}.json" for side in ("dense", "pruned")]
    for path in paths:
        path.write_text(json.dumps(repeated(f"{name}_{path.stem}", modules=modules)))
    (phase,) = analyze(paths[1], baseline=paths[0]).report.phases.values()
    return phase


@pytest.mark.parametrize("modules", [False, True], ids=["bare", "modules"])
@pytest.mark.parametrize("name", TRUTHS)
def test_what_is_true_is_said_and_no_more(name: str, tmp_path: Path, *, modules: bool) -> None:
    truth = TRUTHS[name]
    phase = compared(name, tmp_path, modules=modules)
    assert phase.family is not None
    text = "\n".join([summary(phase), *phase.family.evidence])
    is_unknown = not modules and truth.bare and phase.family.id == "unknown"
    assert phase.family.id == truth.family or is_unknown, text
    assert re.search(truth.bare if is_unknown else truth.says, text), text
    assert not any(gemm.axis == "added" for gemm in phase.gemms)
    assert not FALSE.search(text), text
    if truth.ratio is not None:
        assert phase.ladder is not None
        assert phase.ladder.flop == pytest.approx(truth.ratio, abs=1e-3)
        added = next(row.ns for row in phase.ledger or [] if row.row == "added_work")
        assert added == 0
    else:
        assert phase.is_speedup == (truth.family != OUTSIDE)


@pytest.mark.parametrize(
    ("name", "runs", "never"),
    [
        ("conformer_blocks", "o", "v"),  # a linear of queries, of keys with values, and behind both
        ("swinv2_blocks", "qkv", "rope"),  # queries are normalised, and biases joined
    ],
)
def test_roles_of_classes_fit_order_and_shapes(
    name: str, runs: str, never: str, tmp_path: Path
) -> None:
    roles = {kernel.role for kernel in compared(name, tmp_path, modules=True).kernels}
    assert runs in roles and never not in roles


def test_no_file_is_large() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.glob("*.json.gz")}
    assert len(sizes) == 2 * len(TRUTHS) and max(sizes.values()) <= 60_000
