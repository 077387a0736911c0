"""Roles by the types of modules: what a class is counts before where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.analysis.timeline.test_scopes import F, H, T, add, attention, frame, mm, nn, pytorch
from tests.chrome import chrome, k, op

E = 2  # experts


def conv() -> Any:
    return op("aten::convolution", [1, 8, 9, 9], [8, 8, 3, 3],
              kernels=[k(us=4, name="implicit_gemm")])  # fmt: skip


def norm(name: str) -> Any:
    return nn(name, op("aten::native_layer_norm", [T, H], [], [H], [H], [],
                       kernels=[k(us=1, name="vectorized_layer_norm")]))  # fmt: skip


def gelu(name: str) -> Any:
    return nn(name, op("aten::gelu", [T, F], [], kernels=[k(us=1, name="gelu")]))


def linear(name: str, n: int, kk: int) -> Any:
    return nn(name, mm(n, kk))


def cat() -> Any:
    return op("aten::cat", [[T, H, 1]] * E, [], dtypes=["TensorList", "Scalar"],
              strides=[[], []], kernels=[k(us=9, name="CatArrayBatchedCopy")])  # fmt: skip


def total() -> Any:
    return op("aten::sum", [T, H, E], [], [], [], concrete=["", "[-1]", "False", ""],
              kernels=[k(us=3, name="reduce_kernel")])  # fmt: skip


def picked() -> Any:
    return op("aten::topk", [T, E], [], [], [], [], kernels=[k(us=1, name="gatherTopK")])


def roles(*items: Any, tmp_path: Path) -> list[tuple[str, str]]:
    rows = frame(pytorch(chrome(*items)), tmp_path)
    return list(zip(rows["role"].to_list(), rows["kind"].to_list(), strict=True))


def attn(name: str = "Attention_0") -> Any:
    return nn(name, linear("Linear_90", 3 * H, H), attention(), linear("Linear_91", H, H))


def test_a_norm_of_channels_is_none_of_a_transformer(tmp_path: Path) -> None:
    """A block of a ResNet has neither attention nor an MLP: its norms are of convolutions."""
    block = nn("BasicBlock_0", nn("Conv2d_1", conv()), norm("BatchNorm2d_1"),
               nn("Conv2d_2", conv()), norm("BatchNorm2d_2"), add())  # fmt: skip
    decoder = nn("Decoder_0", nn("Conv2d_3", conv()), norm("GroupNorm_0"))
    roles_of = roles(nn("ResNet_0", norm("BatchNorm2d_0"), block), decoder, tmp_path=tmp_path)
    assert {role for role, kind in roles_of if kind == "norm"} == {"unknown"}


def test_norms_are_those_of_what_they_stand_beside(tmp_path: Path) -> None:
    """T5 wraps each sublayer with its norm, BERT has the norm in the output of each, and another
    style wraps a norm and what it feeds."""
    t5 = nn("T5Block_0", nn("T5LayerSelfAttention_0", norm("T5LayerNorm_0"), attn("T5Attention_0")),
            nn("T5LayerFF_0", norm("T5LayerNorm_1"),
               nn("T5DenseGatedActDense_0", linear("Linear_4", F, H), linear("Linear_5", F, H),
                  linear("Linear_6", H, F))))  # fmt: skip
    bert = nn("BertLayer_0",
              nn("BertAttention_0", nn("BertSelfAttention_0", attention()),
                 nn("BertSelfOutput_0", linear("Linear_3", H, H), norm("LayerNorm_0"))),
              nn("BertIntermediate_0", linear("Linear_4", F, H)),
              nn("BertOutput_0", linear("Linear_5", H, F), norm("LayerNorm_1")))  # fmt: skip
    wrapped = nn("Block_0", nn("PreNorm_0", norm("LayerNorm_0"), attn()),
                 nn("PreNorm_1", norm("LayerNorm_1"),
                    nn("FeedForward_0", linear("Linear_7", F, H), linear("Linear_8", H, F))),
                 )  # fmt: skip
    gated = ["gate", "up", "down"]
    for layer, linears in ((t5, ["qkv", "o", *gated]), (bert, ["o", "up", "down"]),
                           (wrapped, ["qkv", "o", "up", "down"])):  # fmt: skip
        roles_of = roles(layer, tmp_path=tmp_path)
        norms = [role for role, kind in roles_of if kind == "norm"]
        assert norms == ["attn_norm", "mlp_norm"]
        assert [role for role, kind in roles_of if kind == "gemm"] == linears


def test_norms_before_an_attention_without_linears_are_of_q_and_k(tmp_path: Path) -> None:
    """As engines call them: the linears, the norms and the attention are siblings."""
    whole = nn("Qwen3Attention_0", linear("QKVParallelLinear_0", 3 * H, H), norm("RMSNorm_0"),
               norm("RMSNorm_1"), nn("RadixAttention_0", attention()),
               linear("RowParallelLinear_0", H, H))  # fmt: skip
    roles_of = roles(nn("Qwen3DecoderLayer_0", whole), tmp_path=tmp_path)
    assert [role for role, _ in roles_of] == ["qkv", "qk_norm", "qk_norm", "attention", "o"]


def test_layers_of_several_classes_are_counted_as_they_are_called(tmp_path: Path) -> None:
    """PyTorch counts the modules of each class: both an encoder and a decoder have a layer 0."""
    stacks = [nn(f"{kind}Layer_{i}", attn(f"Attention_{i}")) for kind in ("Encoder", "Decoder")
              for i in range(2)]  # fmt: skip
    rows = frame(pytorch(chrome(*stacks)), tmp_path)
    assert rows["layer"].to_list() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    # Blocks in a layer are no layers, and one class keeps its numbers.
    nested = nn("DecoderLayer_5", nn("MixtralSparseMoeBlock_0", attn()))
    assert set(frame(pytorch(chrome(nested)), tmp_path)["layer"]) == {5}


def expert(i: int) -> Any:
    return nn(
        f"FeedForward_{i}",
        nn(
            f"Sequential_{2 * i}",
            nn(f"Sequential_{2 * i + 1}", linear("Linear_3", F, H), gelu(f"GELU_{i}")),
            linear("Linear_4", H, F),
        ),
    )


def test_experts_and_what_gathers_them(tmp_path: Path) -> None:
    """Stacking the results of experts and their weighted sum are work of the experts; what runs
    before them chooses."""
    mixture = nn("SwitchMoE_0", nn("SwitchGate_0", linear("Linear_2", E, H), picked()), add(),
                 *(expert(i) for i in range(E)), cat(), total())  # fmt: skip
    roles_of = roles(
        nn(
            "SwitchTransformerBlock_0",
            attn("MultiQueryAttention_0"),
            norm("LayerNorm_0"),
            mixture,
            norm("LayerNorm_0"),
        ),
        tmp_path=tmp_path,
    )
    assert [role for role, _ in roles_of] == [
        "qkv", "attention", "o", "attn_norm", "router", "router", "router",
        *["experts"] * (3 * E), "experts", "experts", "mlp_norm",
    ]  # fmt: skip


@pytest.mark.parametrize("around", ["SwitchFeedForward_0", "MixtralSparseMoeBlock_0"])
def test_several_mlps_in_one_are_experts(around: str, tmp_path: Path) -> None:
    """A linear beside them is the router."""
    mlps = [nn(f"BlockMLP_{i}", linear("Linear_1", F, H), linear("Linear_2", H, F)) for i in (0, 1)]
    roles_of = roles(nn("Layer_0", attn(), nn(around, linear("Linear_0", E, H), picked(), *mlps)),
                  tmp_path=tmp_path)  # fmt: skip
    assert [role for role, _ in roles_of][3:] == ["router", "router", *["experts"] * 4]


def test_an_mlp_beside_fused_experts_is_the_shared_one(tmp_path: Path) -> None:
    mixture = nn("Llama4TextMoe_0", nn("Llama4Router_0", linear("Linear_0", E, H)),
                 nn("Llama4TextExperts_0", mm(2 * F, H), mm(H, F)),
                 nn("Llama4TextMLP_0", linear("Linear_1", F, H), linear("Linear_2", F, H),
                    linear("Linear_3", H, F)))  # fmt: skip
    roles_of = roles(nn("Llama4TextDecoderLayer_0", attn(), mixture), tmp_path=tmp_path)
    assert [role for role, _ in roles_of][3:] == [
        "router", "experts", "experts", *["shared_expert"] * 3
    ]  # fmt: skip


def adapted(name: str, n: int, kk: int, first: int) -> Any:
    """Return a linear of peft with an adapter of rank 2.

    Its class is called Linear too, and so are what it adapts and the two GEMMs through the rank.
    """
    inner = [(n, kk), (2, kk), (n, 2)]
    return nn(name, *(linear(f"Linear_{first + i}", *sizes) for i, sizes in enumerate(inner)))


def test_the_pair_beside_a_linear_is_its_adapter(tmp_path: Path) -> None:
    """q and v of four projections and down of three have an adapter: 3 pairs."""
    attends = nn(
        "LlamaAttention_0", adapted("Linear_0", H, H, 10), linear("Linear_20", H, H),
        adapted("Linear_1", H, H, 30), attention(), linear("Linear_40", H, H),
    )  # fmt: skip
    mlp = nn("LlamaMLP_0", linear("Linear_50", F, H), linear("Linear_51", F, H),
             adapted("Linear_2", H, F, 60))  # fmt: skip
    roles_of = roles(nn("LlamaDecoderLayer_0", attends, mlp), tmp_path=tmp_path)
    names = [role for role, kind in roles_of if kind == "gemm"]
    pair = ["adapter"] * 2
    assert names == ["q", *pair, "k", "v", *pair, "o", "gate", "up", "down", *pair]
