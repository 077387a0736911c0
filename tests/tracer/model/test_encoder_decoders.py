"""Encoder-decoders: parameters of every part, and the FLOPs of a forward as torch counts them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prunescope.taxonomy.configs.stored_tensors import StoredTensors
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.stored_layers import shape_of_weights
from prunescope.taxonomy.theory import dense_plans, flop, forward
from prunescope.taxonomy.trees.tree_shape import shape_of_tree

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from prunescope.tracer.model.inventory import build_inventory, model_class  # noqa: E402

pytestmark = pytest.mark.torch
# The published sizes of t5-small, bart-base and whisper-tiny; the others at their defaults.
SIZES: dict[str, dict[str, Any]] = {
    "t5": {},
    "bart": {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6,
             "encoder_attention_heads": 12, "decoder_attention_heads": 12,
             "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072},
    "whisper": {"d_model": 384, "encoder_layers": 4, "decoder_layers": 4,
                "encoder_attention_heads": 6, "decoder_attention_heads": 6,
                "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536},
    "marian": {}, "mbart": {}, "pegasus": {}, "m2m_100": {},
}  # fmt: skip
BARTS = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 128, "vocab_size": 120,
    "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1,
    "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
T5 = {
    "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1,
    "vocab_size": 100,
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "t5": {**T5, "d_model": 64, "num_layers": 2, "num_decoder_layers": 3},
    "umt5": {**T5, "d_kv": 16, "feed_forward_proj": "gated-gelu"},
    "bart": BARTS, "marian": BARTS, "mbart": BARTS, "pegasus": BARTS, "m2m_100": BARTS,
    "whisper": {**BARTS, "num_mel_bins": 8, "max_source_positions": 24,
                "max_target_positions": 32},
}  # fmt: skip
SOURCE, TARGET = 24, 6


def config_of(kind: str, sizes: dict[str, Any]) -> dict[str, Any]:
    config = transformers.CONFIG_MAPPING[kind](**sizes)
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {**values, "architectures": [model_class(kind, None, is_seq2seq=True).__name__]}


def read(config: dict[str, Any]) -> ModelShape:
    tree = build_inventory(config)
    assert tree is not None
    return shape_of_tree(tree, config)


def built(config: dict[str, Any], device: str) -> Any:
    kind = str(config["model_type"])
    known = transformers.CONFIG_MAPPING[kind].from_dict(dict(config))
    with torch.device(device):
        cls = model_class(kind, None, is_seq2seq=True)
        # The counter knows no fused attention on a CPU.
        return cls._from_config(known, attn_implementation="eager").eval()


def dense_flop(shape: ModelShape, source: int, target: int) -> float:
    work = Workload(phase="prefill", prompt_len=target, source=source, logits="all")
    return flop(forward(dense_plans(shape, work)))


@pytest.mark.parametrize("kind", SIZES)
def test_parameters_are_those_of_the_modules(kind: str) -> None:
    config = config_of(kind, SIZES[kind])
    shape = read(config)
    stored = sum(weight.numel() for weight in built(config, "meta").parameters())
    assert shape.parameters() == stored
    ops = forward(dense_plans(shape, Workload(phase="decode", prompt_len=16)))
    assert sum(op.layers * op.parameters for op in ops) == stored
    assert ModelShape.from_run(json.loads(json.dumps(shape.to_dict()))) == shape


@pytest.mark.parametrize("kind", SMALL)
def test_flops_are_those_that_torch_counts(kind: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = config_of(kind, SMALL[kind])
    model, shape = built(config, "cpu"), read(config)
    ids = torch.ones(1, SOURCE, dtype=torch.long)
    given: dict[str, Any] = {"input_ids": ids}
    if kind == "whisper":  # two frames a token
        given = {"input_features": torch.zeros(1, 8, 2 * SOURCE)}
        assert shape.parts[0].tokens == SOURCE
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**given, decoder_input_ids=ids[:, :TARGET], use_cache=False)
    assert dense_flop(shape, SOURCE, TARGET) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_tiny_t5_by_hand() -> None:
    config = config_of("t5", T5)
    shape = read(config)
    # An attention has 4·32·32 = 4096 numbers and a table of 32 buckets by 4 heads; an MLP 2·32·64.
    encoder = 4096 + 128 + 4096 + 2 * 32 + 32  # two norms, and the last one
    decoder = 4096 + 128 + 4096 + 4096 + 3 * 32 + 32  # with the attention to the encoder
    assert shape.parts[0].shape.parameters() == encoder
    assert shape.parameters() == 100 * 32 + encoder + decoder
    s, t = 10, 3
    flops = 2 * s * (4096 + 4096) + 4 * s * s * 32  # the encoder: every token attends to every
    flops += 2 * t * (4096 + 4096) + 4 * (1 + 2 + 3) * 32  # the decoder, causal
    flops += 2 * t * 2048 + 2 * s * 2048 + 4 * s * t * 32  # q and o; k and v; attention to it
    assert dense_flop(shape, s, t) == flops + 2 * t * 3200
    # A decode step behind a prompt of 10 and 3 tokens of its own: one row each; no k and v of the
    # encoder, whose cache it reads, as its own.
    step = Workload(phase="decode", prompt_len=s, context=s + t)
    ops = forward(dense_plans(shape, step))
    assert flop(ops) == 2 * (4096 + 4096 + 2048 + 3200) + 4 * (s + t) * 32
    assert sum(op.layers * op.kv_read for op in ops) == 2 * 2 * 32 * (s + t)


def test_an_encoder_that_attends_within_blocks_is_refused() -> None:
    sizes = {**T5, "local_radius": 7}
    config = config_of("longt5", sizes)
    with pytest.raises(PrunescopeError, match="within blocks, by local_radius"):
        read(config)


@pytest.mark.parametrize("kind", ["umt5", "bart"])
def test_stored_weights_are_read_for_each_part(kind: str) -> None:
    config = config_of(kind, SMALL[kind])
    shape = read(config)
    sizes = {name: tuple(w.shape) for name, w in built(config, "meta").state_dict().items()}
    assert shape_of_weights(shape, StoredTensors(sizes, complete=True)) == (shape, [])
    before = shape.parts[0].shape.mlp.intermediate
    fewer = {
        name: tuple(n // 2 if n == before else n for n in size) if "encoder." in name else size
        for name, size in sizes.items()
    }
    weights, notes = shape_of_weights(shape, StoredTensors(fewer, complete=True))
    assert weights.parts[0].shape.mlp.intermediate == before // 2
    assert weights.mlp.intermediate == shape.mlp.intermediate
    assert [note.partition(":")[0] for note in notes] == ["encoder"]
