"""A config that the trace contradicts gives no shapes, and the warning says what contradicts it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from prunescope.taxonomy.presets import preset_config
from tests.analysis.shapes.stripped import (
    B200,
    GRAPH,
    H100,
    MI300,
    Case,
    known,
    report,
    strip,
    table,
    truth,
)

WRONG: list[tuple[Case, dict[str, Any], str]] = [
    (H100, {"num_hidden_layers": 23}, "24 layers in the trace, 23 in the config"),
    (H100, {"num_hidden_layers": 28}, "24 layers in the trace, 28 in the config"),
    (H100, {"num_hidden_layers": 12}, "layers"),
    (H100, {"intermediate_size": 2112}, "their rates"),
    (H100, {"intermediate_size": 3520}, "their rates"),
    (H100, {"intermediate_size": 4864}, "their rates"),
    (H100, {"num_key_value_heads": 4}, "their rates"),
    (H100, {"num_key_value_heads": 8}, "their rates"),
    (H100, {"num_key_value_heads": 1}, "compared with"),  # narrower than a tile, and as slow as q
    (H100, {"intermediate_size": 2560}, "activations have 2"),
    (H100, {"num_attention_heads": 8, "num_key_value_heads": 8}, "heads"),
    (H100, {"head_dim": 128}, "heads of 64"),
    (H100, {"hidden_size": 1280, "head_dim": 64}, "residual adds"),
    (H100, {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2}, "heads"),
    (MI300, {"num_hidden_layers": 32}, "36 layers in the trace, 32 in the config"),
    (MI300, {"num_hidden_layers": 40}, "36 layers in the trace, 40 in the config"),
    (MI300, {"intermediate_size": 9216}, "no M fits"),
    (MI300, {"intermediate_size": 15360}, "no M fits"),
    (MI300, {"num_key_value_heads": 16}, "no M fits"),
    (MI300, {"num_key_value_heads": 32}, "no M fits"),
    (MI300, {"hidden_size": 5120}, "no M fits"),
    (MI300, {"head_dim": 64}, "no M fits"),
    (MI300, {"vocab_size": 128256}, "lm_head"),
    (GRAPH, {"num_hidden_layers": 35}, "36 layers in the trace, 35 in the config"),
    (GRAPH, {"num_hidden_layers": 28}, "36 layers in the trace, 28 in the config"),
    (GRAPH, {"head_dim": 64}, "heads of 128"),
    (GRAPH, {"num_key_value_heads": 4}, "4 query heads a key, the config has 8"),
    (GRAPH, {"num_attention_heads": 64, "num_key_value_heads": 16}, "the cache takes 2,048"),
    (GRAPH, {"vocab_size": 50304}, "their rates"),
    (GRAPH, {"num_attention_heads": 64}, "4 query heads a key, the config has 8"),
    (GRAPH, {"intermediate_size": 49152}, "their rates"),
    (GRAPH, {"intermediate_size": 6144}, "their rates"),
    (GRAPH, {"vocab_size": 32000}, "their rates"),
    (B200, {"num_hidden_layers": 24}, "36 layers in the trace, 24 in the config"),
    (B200, {"hidden_size": 4096}, "no M fits"),
    (B200, {"num_key_value_heads": 64}, "no shapes"),
    (B200, {"num_attention_heads": 128}, "no M fits"),
    (B200, {"head_dim": 128}, "no M fits"),
    (B200, {"num_local_experts": 256}, "no M fits"),
]


def changed(case: Case, folder: Path, changes: dict[str, Any]) -> str:
    """Write a config.json that differs from the case's."""
    config = preset_config(case.model) | changes
    if len(config.get("layer_types") or []) > config["num_hidden_layers"]:
        config["layer_types"] = config["layer_types"][: config["num_hidden_layers"]]
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("case", "changes", "why"), WRONG, ids=lambda value: str(value)[:60])
def test_no_row_has_a_wrong_width(
    case: Case, changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    path = strip(case, tmp_path, modules=False)
    model = changed(case, tmp_path, changes)
    true = {(role, n, k) for role, _, n, k in truth(case)}
    for workload in (case.workload, {}):
        told = report(path, case, model=model, **workload)
        wrong = {(role, n, k) for role, _, n, k in known(table(told, case))} - true
        assert not wrong
        said = " ".join(told.warnings)
        assert why in said, said


CANNOT_TELL = [
    (H100, 2792, "gate", 2816), (H100, 2800, "gate", 2816),
    (MI300, 12225, "gate_up", 24576), (MI300, 12256, "gate_up", 24576),
    (GRAPH, 11776, "gate_up", 24576), (GRAPH, 13312, "gate_up", 24576),
]  # fmt: skip


@pytest.mark.parametrize(("case", "width", "role", "true"), CANNOT_TELL)
def test_what_the_trace_cannot_decide_is_taken_and_said(
    case: Case, width: int, role: str, true: int, tmp_path: Path
) -> None:
    path = strip(case, tmp_path, modules=False)
    model = changed(case, tmp_path, {"intermediate_size": width})
    told = report(path, case, model=model, **case.workload)
    n = width * (2 if role == "gate_up" else 1)
    assert {row[2] for row in known(table(told, case)) if row[0] == role} == {n}
    (said,) = [note for phase in told.phases.values() for note in phase.notes
               if note.startswith("the trace fits N of")]  # fmt: skip
    match = re.search(rf"[ ,]{role} ([\d,]+)–([\d,]+) by its", said)
    assert match, said
    low, high = (int(number.replace(",", "")) for number in match.groups())
    assert low <= n <= high and low <= true <= high


def test_a_width_outside_the_interval_is_refused(tmp_path: Path) -> None:
    path = strip(MI300, tmp_path, modules=False)
    model = changed(MI300, tmp_path, {"intermediate_size": 12224})  # 24,448: one less tile
    told = report(path, MI300, model=model, **MI300.workload)
    assert not known(table(told, MI300))
    assert any("no M fits" in said for said in told.warnings)


@pytest.mark.parametrize(("case", "vocab"), [(MI300, 75968), (B200, 100544)])
def test_a_head_whose_rows_its_grid_does_not_allow_has_no_shape(
    case: Case, vocab: int, tmp_path: Path
) -> None:
    path = strip(case, tmp_path, modules=False)
    model = changed(case, tmp_path, {"vocab_size": vocab})  # half: twice as many tiles along M
    told = report(path, case, model=model, **case.workload)
    rows = known(table(told, case))
    assert rows and "lm_head" not in {row[0] for row in rows}
    assert any("lm_head gets no shape" in said for said in told.warnings)


def test_a_head_of_unknown_rows_is_not_slower_than_its_width(tmp_path: Path) -> None:
    path = strip(GRAPH, tmp_path, modules=False, annotations=False)
    told = report(path, GRAPH, model=changed(GRAPH, tmp_path, {"vocab_size": 50304}))
    assert not known(table(told, GRAPH))
    assert any("lm_head" in said and "their rates" in said for said in told.warnings)


@pytest.mark.parametrize(
    ("case", "said"),
    [(GRAPH, "by its time"), (MI300, "lm_head 151,809–152,064 by its grid"),
     (B200, "lm_head 6,145–6,336 or 24,577–25,344 by its grid")],
)  # fmt: skip
def test_the_head_has_an_interval_too(case: Case, said: str, tmp_path: Path) -> None:
    path = strip(case, tmp_path, modules=False)
    told = report(path, case, model=case.model, **case.workload)
    (note,) = [note for phase in told.phases.values() for note in phase.notes
               if note.startswith("the trace fits N of")]  # fmt: skip
    assert re.search(rf"{said}\b", note[note.index("lm_head") :]), note
