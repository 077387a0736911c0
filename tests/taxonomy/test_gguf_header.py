"""The header of a GGUF file as a config: written here by hand, byte by byte."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.shapes.config import read_model
from prunescope.taxonomy.architectures import read_architecture
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.gguf_header import gguf_config, stored_elements
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.shape import ModelShape

RUN = Path(__file__).resolve().parents[2] / "traces" / "tiny-static-m" / "dense" / "run.json"


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word)) + word.encode()


def gguf(path: Path, values: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> Path:
    """Texts and uint32 alone; 4 bits a weight follow, which nothing reads."""
    raw = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for name, value in values.items():
        is_text = isinstance(value, str)
        raw += text(name) + struct.pack("<I", 8 if is_text else 4)
        raw += text(value) if is_text else struct.pack("<I", value)
    for name, shape in tensors.items():
        raw += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        raw += struct.pack("<IQ", 2, 0)
    path.write_bytes(raw + bytes(4096))
    return path


def gemma(path: Path, architecture: str = "gemma3") -> Path:
    numbers = {
        "embedding_length": 1152, "block_count": 26, "feed_forward_length": 6912,
        "attention.head_count": 4, "attention.head_count_kv": 1, "attention.key_length": 256,
        "attention.sliding_window": 512,
    }  # fmt: skip
    values = {"general.architecture": architecture, "general.file_type": 15}
    values |= {f"{architecture}.{name}": value for name, value in numbers.items()}
    return gguf(path, values, {"token_embd.weight": (1152, 262144)})


def test_a_header_gives_the_shape_of_the_config(tmp_path: Path) -> None:
    file = gemma(tmp_path / "m.gguf")
    wanted = ModelShape.from_config(preset_config("gemma-3-1b"))
    named = read_model(str(file))
    assert named.shape == wanted
    assert (named.source, named.quantised) == ("m.gguf", "gguf")
    answers = {one.id: one.applies for one in read_architecture(str(file)).families}
    assert (answers["static-nk-heads"], answers["kv-evict"]) == ("no", "partly")


def test_what_a_header_does_not_say_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="of which headers are not read"):
        gguf_config(gemma(tmp_path / "m.gguf", "mamba"))
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:100])
    with pytest.raises(PrunescopeError, match="no readable GGUF file"):
        gguf_config(tmp_path / "cut.gguf")
    with pytest.raises(PrunescopeError, match="claims 301,989,888 weights"):
        stored_elements(tmp_path / "m.gguf")  # 1152 x 262144, in 4 kB


def test_a_run_gives_the_shape_of_its_model() -> None:
    wanted = ModelShape.from_config(preset_config("tiny-llama"))
    assert read_model(str(RUN)).shape == replace(wanted, layout="")  # it is older than that field
    assert read_architecture(str(RUN)).known
