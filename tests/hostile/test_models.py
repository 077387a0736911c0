"""Checkpoints, configs and GGUF files of strangers: nothing in them runs, and sizes that cannot be
meant end in one sentence before anything is allocated."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.shapes.named_model import read_model
from prunescope.taxonomy.architectures import read_architecture
from prunescope.taxonomy.configs.stored_tensors import stored_tensors
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.presets import preset_config
from tests.analysis.predict.plain import predict
from tests.hostile.case import ATTACK
from tests.small_capture import saved_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

WRONG: dict[str, Any] = {
    "null": None, "minus one": -1, "zero": 0, "10^12": 10**12, "2^70": 2**70, "text": "x",
    "half": 0.5, "list": [], "object": {}, "NaN": float("nan"),
}  # fmt: skip
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "model_type")
EXPERTS = ("num_local_experts", "first_k_dense_replace", "decoder_sparse_step", "n_shared_experts",
           "mlp_only_layers", "layer_types", "num_experts_per_tok", "expansion_ratio")  # fmt: skip

TEXTS = ("", "[]", "null", "{", "{}", '{"model_type": "llama"', "[" * 5000, '{"model_type": "x"}')


def _gguf() -> tuple[bytes, ...]:
    """Headers that lie: counts, lengths and types that lead out of the file."""

    def head(tensors: int, keys: int, rest: bytes = b"") -> bytes:
        return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest

    key = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<I", 8)
    deep = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)
    tensor = struct.pack("<Q1sIQQIQ", 1, b"t", 2, 2**40, 2**20, 0, 0)
    return (
        b"", b"GGUF", b"GGUF" + bytes(100), b"\x7fELF" + bytes(100), head(1, 1), head(2**40, 0),
        head(0, 1, key + struct.pack("<Q", 2**40) + b"llama"), head(1, 0, tensor),
        head(0, 1, key + struct.pack("<Q", 5) + b"x" * 5), head(0, 1, deep + b"\x09\0\0\0" * 50),
        head(0, 1, key + struct.pack("<Q", 5) + b"llama"),
    )  # fmt: skip


GGUF = _gguf()
SAFETENSORS: dict[str, Callable[[bytes, int], bytes]] = {
    "empty": lambda _whole, _header: b"",
    "cut": lambda whole, _header: whole[:-100],
    "cut in its header": lambda whole, _header: whole[:50],
    "with a header of 2^64 bytes": lambda _whole, _header: b"\xff" * 8,
    "without JSON": lambda whole, header: whole[:8] + b"x" * header + whole[8 + header :],
    "a zip": lambda _whole, _header: b"PK\x03\x04" + bytes(100),
    "a pickle": lambda _whole, _header: b"\x80\x02" + bytes(100),
    "with other offsets": lambda whole, header: (
        whole[:8] + whole[8 : 8 + header].replace(b"[0,", b"[9,")
    ),
}
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
SWEEPS = (
    "", "[]", "x", "{", "a: b: c", "\0", "!!python/object/apply:os.system ['touch ran']",
    "model: tiny-llama\nfamilies: [static-m]\ndraws: 1000000000\n",
    "model: tiny-llama\nfamilies: [static-m]\nbatches: [0]\n",
    "model: tiny-llama\nfamilies: ['../x']\nsparsities: ['../x']\n", LAUGHS,
    LAUGHS.replace("a: &a", "model: &a").replace("i: &i", "families: &i"),
    "&a [*a]", "model: tiny-llama\nfamilies: &f [*f]\n", "[" * 500, "model: &m\n  *m : *m\n",
)  # fmt: skip


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


def load(folder: Path) -> Any:
    from prunescope.tracer.model.load import load_model

    return load_model(str(folder), dtype="auto", device=torch.device("cpu"), attn="sdpa")


def refused(folder: Path) -> str:
    """The sentence that loading ends in."""
    with pytest.raises(PrunescopeError) as error:
        load(folder)
    assert len(str(error.value)) < 900
    return error.value.problem


def config(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    plain = {**preset_config("tiny-llama"), **changes}
    (folder / "config.json").write_text(json.dumps(plain))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint of a tiny Llama."""
    config = {**preset_config("tiny-llama"), "num_hidden_layers": 1}
    return saved_model(tmp_path / "model", **config)


@pytest.mark.parametrize("key", SIZES)
def test_a_config_of_absurd_sizes_is_refused(key: str, tmp_path: Path) -> None:
    for value in WRONG.values():
        folder = config(tmp_path / "m", **{key: value})
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
        assert refused(folder)


@pytest.mark.parametrize("key", (*SIZES, *EXPERTS))
def test_predict_refuses_or_answers_absurd_sizes(key: str, tmp_path: Path) -> None:
    for value in WRONG.values():
        plain = {**preset_config("mixtral-8x7b"), key: value}
        (tmp_path / "config.json").write_text(json.dumps(plain))
        try:
            found = predict(PredictRequest(model=str(tmp_path), device="h100-sxm", phase="prefill"))
        except PrunescopeError as error:
            assert len(str(error)) < 900
        else:
            json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_config_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert refused(tmp_path)
    with pytest.raises(PrunescopeError):
        predict(PredictRequest(model=str(tmp_path), device="h100-sxm"))


def test_a_config_or_header_with_a_key_twice_is_refused(checkpoint: Path) -> None:
    """The last of two is what Python reads; an engine in another language may read the first."""
    file, weights = checkpoint / "config.json", checkpoint / "model.safetensors"
    plain, whole = file.read_text(), weights.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = whole[8 : 8 + length].strip()
    first = header[1 : header.index(b"}") + 1]  # the first entry
    doubled = b"{" + first + b"," + header[1:]
    weights.write_bytes(struct.pack("<Q", len(doubled)) + doubled + whole[8 + length :])
    stored = stored_tensors(file)
    assert stored is not None and "twice in one object" in stored.problem
    weights.write_bytes(whole)
    for key in json.loads(plain):
        file.write_text(plain.replace(f'"{key}":', f'"{key}": 1, "{key}":', 1))
        assert refused(checkpoint) == f"config.json has the key {key!r} twice in one object"
        for read in (read_model, read_architecture):
            with pytest.raises(PrunescopeError, match=f"has the key '{key}' twice"):
                read(str(checkpoint))


def test_a_model_larger_than_the_machine_is_refused_at_once(tmp_path: Path) -> None:
    folder = config(tmp_path / "m", hidden_size=1 << 20, intermediate_size=1 << 22, head_dim=128)
    assert "GiB" in refused(folder)


def test_pickled_weights_are_never_opened(checkpoint: Path, tmp_path: Path) -> None:
    """Neither alone nor beside an adapter or an index that points to them."""
    (checkpoint / "model.safetensors").unlink()
    mark = tmp_path / "ran"
    for name in ("pytorch_model.bin", "model.bin", "adapter_model.bin", "model.safetensors.bin"):
        torch.save(Bomb(mark), checkpoint / name)
    assert refused(checkpoint)
    for pointed in ("pytorch_model.bin", "../model.safetensors", "/etc/passwd"):
        index = {"metadata": {}, "weight_map": {"lm_head.weight": pointed}}
        for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
            (checkpoint / name).write_text(json.dumps(index))
        assert refused(checkpoint)
    assert not mark.exists()
    torch.load(checkpoint / "model.bin", weights_only=False)
    assert mark.exists(), "the trap works"


def test_code_in_a_checkpoint_is_never_run(checkpoint: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (checkpoint / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    plain = json.loads((checkpoint / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (checkpoint / "config.json").write_text(json.dumps({**plain, "auto_map": auto}))
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    from prunescope.tracer.model.load import load_tokenizer

    load_tokenizer(load(checkpoint))
    unknown = {**plain, "auto_map": auto, "model_type": "unheard-of"}
    (checkpoint / "config.json").write_text(json.dumps(unknown))
    assert refused(checkpoint)
    assert not mark.exists()


def test_a_checkpoint_that_lacks_weights_is_not_filled_with_random_ones(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    gone = {k: v for k, v in weights.items() if "down_proj" not in k}
    save_file(gone, checkpoint / "model.safetensors", {"format": "pt"})
    assert "lacks 1 of its weights" in refused(checkpoint)


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_damaged_safetensors_are_refused(kind: str, checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(SAFETENSORS[kind](whole, int.from_bytes(whole[:8], "little")))
    assert refused(checkpoint)


@pytest.mark.parametrize("number", range(len(GGUF)))
def test_damaged_gguf_files_are_refused(number: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GGUF[number])
    assert refused(path)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("text", SWEEPS, ids=range(len(SWEEPS)))
def test_hostile_sweep_files_are_refused(text: str, tmp_path: Path) -> None:
    from prunescope.tracer.sweep.request import SweepRequest
    from prunescope.tracer.sweep.sweep import plan_of

    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(PrunescopeError) as error:
        plan_of(SweepRequest(config=path, out=tmp_path / "out"))
    assert len(str(error.value)) < 1500
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sweep.yaml"]


def test_a_hostile_family_stays_in_the_folder_of_the_sweep(tmp_path: Path) -> None:
    """A family may be a path or a function: the ids of its results are plain names, of which the
    sweep itself refuses those that are not there."""
    from prunescope.tracer.sweep.config import read_configs
    from prunescope.tracer.sweep.plan import make_plan
    from prunescope.tracer.sweep.request import SweepRequest
    from prunescope.tracer.sweep.sweep import plan_of

    path = tmp_path / "sweep.yaml"
    names = json.dumps([ATTACK, "../../x", "/etc/passwd", "a:b", "x" * 5000 + "/y"])
    path.write_text(f"model: tiny-llama\nfamilies: {names}\n")
    with pytest.raises(PrunescopeError):
        plan_of(SweepRequest(config=path, out=tmp_path / "out"))
    for result in make_plan(read_configs(path, None), None).results:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}", result.id), result.id
