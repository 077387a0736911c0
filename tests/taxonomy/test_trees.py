"""Shapes by module trees that are written here by hand, and the two witnesses together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from prunescope.taxonomy import witnesses
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.inventory import Inventory, StoredModule, StoredWeight
from prunescope.taxonomy.inventory_reader import read_inventories_by
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, flop, forward
from prunescope.taxonomy.trees.tree_shape import shape_of_tree
from prunescope.taxonomy.witnesses import read_shape, read_witnesses, unread_keys

LLAMA = {
    "model_type": "made_up", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip


def linear(path: str, n: int, k: int, **more: Any) -> StoredModule:
    """Return a module with one matrix, that every token passes once."""
    values = {"kind": "Linear", "passes": 1.0} | more
    return StoredModule(path=path, weights=(StoredWeight(name="weight", shape=(n, k)),), **values)


def norm(path: str, size: int = 64) -> StoredModule:
    weights = (StoredWeight(name="weight", shape=(size,)),)
    return StoredModule(path=path, kind="Norm", weights=weights, passes=1.0)


def layer(number: int, *, width: int = 96) -> list[StoredModule]:
    """Return a layer of 4 heads of 16 with 2 KV heads and a gated MLP."""
    place = f"model.layers.{number}"
    return [
        linear(f"{place}.self_attn.q_proj", 64, 64, sizes={"head_dim": 16}),
        linear(f"{place}.self_attn.k_proj", 32, 64),
        linear(f"{place}.self_attn.v_proj", 32, 64),
        linear(f"{place}.self_attn.o_proj", 64, 64, sizes={"head_dim": 16}),
        linear(f"{place}.mlp.gate_proj", width, 64),
        linear(f"{place}.mlp.up_proj", width, 64),
        linear(f"{place}.mlp.down_proj", 64, width),
        norm(f"{place}.input_layernorm"),
        norm(f"{place}.post_attention_layernorm"),
    ]


def tree(*layers: list[StoredModule], more: tuple[StoredModule, ...] = ()) -> Inventory:
    table = linear("model.embed_tokens", 100, 64, kind="Embedding", passes=1 / 64)
    modules = (table, *(m for each in layers for m in each), *more, norm("model.norm"))
    return Inventory(
        model_class="MadeUp",
        library="made up 1",
        followed=True,
        modules=(*modules, linear("lm_head", 100, 64)),
    )


def flop_of(inventory: Inventory) -> float:
    shape = shape_of_tree(inventory, LLAMA)
    work = Workload(phase="prefill", prompt_len=8, logits="all")
    return flop(forward([dense_plan(shape, work)]))


def test_a_plain_tree_by_hand() -> None:
    shape = shape_of_tree(tree(layer(0), layer(1)), LLAMA)
    assert (shape.layers, shape.hidden, shape.mlp.intermediate) == (2, 64, 96)
    assert (shape.attention.heads, shape.attention.kv_heads, shape.attention.head_dim) == (4, 2, 16)
    # a layer: q, o 2*64*64, k, v 2*32*64, MLP 3*96*64, two norms of 64; two tables, a norm
    each = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64 + 2 * 64
    assert shape.parameters() == 2 * each + 2 * 100 * 64 + 64
    assert shape.layout == "ff" and not shape.layer_shapes


def test_every_matrix_that_tokens_pass_is_a_gemm() -> None:
    """A gate of attention and a matrix outside of the layers are in no table of roles."""
    plain = flop_of(tree(layer(0), layer(1)))
    gates = [linear(f"model.layers.{i}.self_attn.g_proj", 4, 64) for i in range(2)]
    extra = (linear("model.input_projection", 64, 64),)
    whole = flop_of(tree([*layer(0), gates[0]], [*layer(1), gates[1]], more=extra))
    # 8 tokens: a gate of each layer [4, 64], and a square of 64
    assert whole - plain == 2 * 8 * (2 * 4 * 64 + 64 * 64)


def test_a_part_that_a_text_does_not_reach_is_stored_and_costs_no_flop() -> None:
    tower = tuple(linear(f"vision.blocks.{i}.mlp.fc1", 64, 64, passes=0.0) for i in range(3))
    inventory = tree(layer(0), layer(1), more=tower)
    shape = shape_of_tree(inventory, LLAMA)
    assert shape.parameters() == inventory.parameters
    assert shape.embedding.extras == 3 * 64 * 64
    assert flop_of(inventory) == flop_of(tree(layer(0), layer(1)))


def test_layers_that_differ_keep_their_own_widths() -> None:
    shape = shape_of_tree(tree(layer(0), layer(1, width=32)), LLAMA)
    assert [each.intermediate for each in shape.layer_shapes] == [96, 32]


def test_a_layer_that_runs_three_times_is_three_layers_stored_once() -> None:
    def passed(inventory: list[StoredModule]) -> list[StoredModule]:
        return [
            StoredModule(path=m.path, kind=m.kind, weights=m.weights, passes=3.0, sizes=m.sizes)
            for m in inventory
        ]

    inventory = tree(passed(layer(0)), passed(layer(1)))
    shape = shape_of_tree(inventory, LLAMA)
    assert (shape.layers, shape.shared_blocks) == (6, 2)
    assert shape.parameters() == inventory.parameters


def test_a_matrix_that_nobody_understands_is_refused_by_name() -> None:
    """Of a stack of matrices that tokens pass no one knows what it multiplies."""
    weights = (StoredWeight(name="kernel", shape=(8, 64, 64)),)
    odd = StoredModule(path="model.layers.0.self_attn.odd", kind="Odd", weights=weights, passes=1.0)
    with pytest.raises(PrunescopeError, match=r"odd \[8, 64, 64\]"):
        shape_of_tree(tree([*layer(0), odd], layer(1)), LLAMA)


def test_an_attention_to_an_encoder_that_is_not_there_is_refused() -> None:
    crossing = [linear("model.layers.0.encoder_attn.q_proj", 64, 64)]
    inventory = tree([*layer(0), *crossing], layer(1))
    whole = Inventory(
        model_class="MadeUp", library="made up 1", followed=True, is_seq2seq=True,
        modules=inventory.modules,
    )  # fmt: skip
    with pytest.raises(PrunescopeError, match="0 stacks of layers stand beside"):
        shape_of_tree(whole, LLAMA)


def test_a_config_of_encoder_and_decoder_is_never_its_decoder_alone() -> None:
    config = {**LLAMA, "model_type": "bart", "is_encoder_decoder": True}
    with pytest.raises(PrunescopeError, match="an encoder and a decoder") as raised:
        read_shape(config)
    assert "architectures" in raised.value.hint
    assert read_shape({**config, "is_encoder_decoder": False}).layers == 2


def test_a_table_and_a_head_may_be_narrower_than_the_stream() -> None:
    """RemBERT has tokens of 16 features and a head that reads 32; the stream has 64."""
    inventory = tree(layer(0), layer(1))
    middle = [m for m in inventory.modules if m.path not in ("model.embed_tokens", "lm_head")]
    modules = (
        linear("model.embed_tokens", 100, 16, kind="Embedding", passes=1 / 64),
        linear("model.mapping", 64, 16),
        *middle,
        linear("head.dense", 32, 64),
        linear("lm_head", 100, 32),
    )
    narrow = msgspec.structs.replace(inventory, modules=modules)
    shape = shape_of_tree(narrow, LLAMA)
    assert (shape.embedding.width, shape.embedding.head_width) == (16, 32)
    # Two matrices more; a head of [100, 32] in place of [100, 64]; 8 tokens.
    more = 64 * 16 + 32 * 64 - 100 * (64 - 32)
    assert flop_of(narrow) - flop_of(inventory) == 2 * 8 * more
    assert ModelShape.from_run(shape.to_dict()) == shape


def test_an_encoder_says_so_by_its_class() -> None:
    whole = msgspec.structs.replace(tree(layer(0), layer(1)), is_encoder=True)
    assert shape_of_tree(whole, LLAMA).is_one_pass
    assert not shape_of_tree(tree(layer(0), layer(1)), LLAMA).is_one_pass


def test_where_the_witnesses_differ_the_tree_holds() -> None:
    read_inventories_by(lambda _config: tree(layer(0, width=80), layer(1, width=80)))
    seen = read_witnesses(LLAMA)
    assert seen.witness == "modules" and seen.shape.mlp.intermediate == 80
    assert f"{seen.shape.parameters():,}" in seen.note
    witnesses.forget()
    read_inventories_by(lambda _config: tree(layer(0), layer(1)))
    assert read_witnesses(LLAMA)[1:] == ("both", "")


def test_no_tree_is_built_where_the_config_is_known_to_agree() -> None:
    def reader(_config: object) -> Inventory:
        raise AssertionError("a tree was built")

    read_inventories_by(reader)
    assert "llama" in witnesses.agreed().types
    assert read_witnesses({**LLAMA, "model_type": "llama"}).witness == "config"


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"index_topk": 8}, ["index_topk"]),
        ({"altup_num_inputs": 4}, ["altup_num_inputs"]),
        ({"layers_block_type": ["mamba"]}, ["layers_block_type"]),  # not one entry a layer
        ({"layers_block_type": ["attention"] * 2}, []),
        ({"index_topk": None}, []),
    ],
)
def test_a_key_that_changes_shapes_and_that_nobody_reads(
    more: dict[str, Any], names: list[str]
) -> None:
    config = {**LLAMA, "model_type": "llama", **more}
    assert unread_keys(config) == names
    if not names:
        assert read_shape(config).layers == 2
        return
    with pytest.raises(PrunescopeError, match=names[0]):
        read_shape(config)
