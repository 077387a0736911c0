"""What the reader of a recorded run fills in, of a file that a stranger may have written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prunescope.taxonomy.runs.run import Run

CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip


def recorded(config: dict[str, Any], matrices: list[dict[str, Any]], source: str) -> Run:
    plain = {
        "schema": 1, "variant": "dense", "phases": {}, "dtype": "fp32", "device": {},
        "versions": {}, "seeds": {}, "argv": [], "census": {"matrices": matrices},
        "model": {"id": "m", "source": source, "config": config, "shape": None},
    }  # fmt: skip
    return Run.from_json(json.dumps(plain))


def test_roles_and_the_shape_follow_from_names_and_weights() -> None:
    """The weights win over the config: 48 channels where it says 64."""
    names = {"gate_proj": [48, 32], "up_proj": [48, 32], "down_proj": [32, 48]}
    rows = [
        {"name": f"model.layers.{i}.mlp.{name}", "shape": shape}
        for i in range(2)
        for name, shape in names.items()
    ]
    run = recorded(CONFIG, rows, "recorder")
    assert run.census is not None
    assert [(row.layer, row.role) for row in run.census.matrices][:3] == [
        (0, "gate"), (0, "up"), (0, "down"),
    ]  # fmt: skip
    assert run.model.shape is not None and run.model.shape["intermediate"] == 48
    assert recorded(CONFIG, rows, "capture").model.shape is None


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9}, {"hidden_size": 0}, {"num_attention_heads": "x"},
        {"num_key_value_heads": -1}, {"layer_types": [[]]}, {"model_type": {}},
    ],
)  # fmt: skip
def test_a_config_of_nonsense_has_no_shape(change: dict[str, Any]) -> None:
    rows = [{"name": "model.layers.0.self_attn.k_proj", "shape": [0, 32]}, {"name": "x"}]
    run = recorded({**CONFIG, **change}, rows, "recorder")
    assert run.model.shape is None or run.model.shape["layers"] < 10**6
