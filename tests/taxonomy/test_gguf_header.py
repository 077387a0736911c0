"""The header of a GGUF file as a config: written here by hand, byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from prunescope.analysis.shapes.named_model import read_model
from prunescope.taxonomy.architectures import read_architecture
from prunescope.taxonomy.configs.gguf_header import gguf_config, stored_elements
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.shape import ModelShape
from tests.gguf_file import write_gguf

RUN = Path(__file__).resolve().parents[2] / "traces" / "tiny-static-m" / "dense" / "run.json"


def gemma(path: Path, architecture: str = "gemma3") -> Path:
    numbers = {
        "embedding_length": 1152, "block_count": 26, "feed_forward_length": 6912,
        "attention.head_count": 4, "attention.head_count_kv": 1, "attention.key_length": 256,
        "attention.sliding_window": 512,
    }  # fmt: skip
    values = {"general.architecture": architecture, "general.file_type": 15}
    values |= {f"{architecture}.{name}": value for name, value in numbers.items()}
    return write_gguf(path, values, {"token_embd.weight": (1152, 262144)})


def test_a_header_gives_the_shape_of_the_config(tmp_path: Path) -> None:
    file = gemma(tmp_path / "m.gguf")
    wanted = ModelShape.from_config(preset_config("gemma-3-1b"))
    named = read_model(str(file))
    assert named.shape == wanted
    assert (named.source, named.quantised) == ("m.gguf", "gguf")
    answers = {row.id: row.applies for row in read_architecture(str(file)).families}
    assert (answers["static-nk-heads"], answers["kv-evict"]) == ("no", "partly")


def test_lists_and_tensors_of_a_header_give_each_layer_its_shape(tmp_path: Path) -> None:
    """As llama.cpp writes a DeciLM: 0 heads without attention, 0 KV heads for one matrix."""
    numbers = {
        "embedding_length": 64, "block_count": 3, "attention.key_length": 16,
        "feed_forward_length": [96, 48, 0], "attention.head_count": [4, 4, 0],
        "attention.head_count_kv": [2, 0, 0],
    }  # fmt: skip
    values = {"general.architecture": "deci", **{f"deci.{k}": v for k, v in numbers.items()}}
    file = write_gguf(tmp_path / "m.gguf", values, {"token_embd.weight": (64, 512)})
    shape = read_model(str(file)).shape
    assert [layer.attention_kind for layer in shape.layer_shapes] == ["usual", "linear", "none"]
    assert [layer.intermediate for layer in shape.layer_shapes] == [96, 48, 0]
    tensors = {"token_embd.weight": (64, 512), "blk.0.attn_q.weight": (64, 64),
               "blk.0.attn_k.weight": (64, 32), "blk.0.attn_v.weight": (64, 32),
               "blk.0.attn_output.weight": (64, 64),
               "blk.1.attn_output.weight": (64, 64)}  # fmt: skip
    for number, width in enumerate((80, 48)):
        tensors |= {f"blk.{number}.ffn_{name}.weight": (64, width) for name in ("gate", "up")}
        tensors[f"blk.{number}.ffn_down.weight"] = (width, 64)
    named = read_model(str(write_gguf(tmp_path / "m.gguf", values, tensors)))
    assert [layer.intermediate for layer in named.shape.layer_shapes] == [80, 48]
    assert named.shape.layer(1).attention_kind == "linear"
    assert "48–80 MLP channels (config: 48–96)" in named.notes[0]


def test_what_a_header_does_not_say_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="of which headers are not read"):
        gguf_config(gemma(tmp_path / "m.gguf", "rwkv7"))
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:100])
    with pytest.raises(PrunescopeError, match="not a readable GGUF file"):
        gguf_config(tmp_path / "cut.gguf")
    with pytest.raises(PrunescopeError, match="claims 301,989,888 weights"):
        stored_elements(tmp_path / "m.gguf")  # 1152 x 262144, in 4 kB


def test_a_run_gives_the_shape_of_its_model() -> None:
    wanted = ModelShape.from_config(preset_config("tiny-llama"))
    assert read_model(str(RUN)).shape == replace(wanted, layout="")  # it is older than that field
    assert read_architecture(str(RUN)).known
