"""Layers and roles from module scopes: our annotations by path, PyTorch's by class and nesting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prunescope.analysis.pipeline import analyze
from tests.chrome import chrome, k, module, op, save, step

T, H, Q, KV, F = 32, 64, 64, 32, 96


def mm(n: int, kk: int, m: int = T) -> Any:
    return op("aten::mm", [m, kk], [kk, n], dtype="c10::BFloat16", kernels=[k(us=7, name="gemm")])


def add() -> Any:
    return op(
        "aten::add", [T, H], [T, H], dtype="c10::BFloat16", kernels=[k(us=2, name="elementwise")]
    )


def attention() -> Any:
    heads = ([1, 4, T, 16], [1, 2, T, 16], [1, 2, T, 16])
    return op("aten::_scaled_dot_product_flash_attention", *heads, dtype="c10::BFloat16",
              kernels=[k(us=5, name="flash_fwd")])  # fmt: skip


def layer(i: int) -> Any:
    at = f"model.layers.{i}"
    inputs = (("q", Q), ("k", KV), ("v", KV))
    return module(
        at,
        module(f"{at}.input_layernorm", add()),
        module(
            f"{at}.self_attn",
            *(module(f"{at}.self_attn.{x}_proj", mm(n, H)) for x, n in inputs),
            op("aten::mul", [T, Q], [T, Q], kernels=[k(us=1, name="elementwise")]),
            attention(), module(f"{at}.self_attn.o_proj", mm(H, Q)),
        ),
        add(),
        module(f"{at}.post_attention_layernorm", add()),
        module(
            f"{at}.mlp", module(f"{at}.mlp.gate_proj", mm(F, H)),
            module(f"{at}.mlp.act_fn", op("aten::silu", [T, F], kernels=[k(us=1, name="silu")])),
            module(f"{at}.mlp.up_proj", mm(F, H)),
            op("aten::mul", [T, F], [T, F], kernels=[k(us=1, name="elementwise")]),
            module(f"{at}.mlp.down_proj", mm(H, F)),
        ),
        add(),
    )  # fmt: skip


LAYER = ["attn_norm", "q", "k", "v", "rope", "attention", "o", "residual", "mlp_norm", "gate",
         "activation", "up", "activation", "down", "residual"]  # fmt: skip


def frame(trace: dict[str, Any], tmp_path: Path) -> pl.DataFrame:
    return analyze(save(trace, tmp_path / "t.json")).frames["trace"]


@pytest.mark.parametrize("cpu", [False, True])
def test_roles_by_path(tmp_path: Path, *, cpu: bool) -> None:
    rows_of = op("aten::index_select", [100, H], [], [T], kernels=[k(us=1, name="indexSelect")])
    embed = op("aten::embedding", [100, H], [T], inner=[rows_of])
    model = (module("model.embed_tokens", embed), layer(0), layer(1), module("model.norm", add()),
             module("lm_head", mm(100, H)))  # fmt: skip
    rows = frame(chrome(step(0, module("model", *model[:-1]), model[-1]), cpu=cpu), tmp_path)
    assert rows["role"].to_list() == ["embedding", *LAYER, *LAYER, "final_norm", "lm_head"]
    assert rows["layer"].to_list() == [None, *[0] * len(LAYER), *[1] * len(LAYER), None, None]


def test_an_op_outside_every_scope_belongs_to_the_one_closed_last(tmp_path: Path) -> None:
    late = op("aten::copy_", [T, H], [T, H], kernels=[k(us=1, name="copy")])
    rows = frame(
        chrome(step(0, late, module("model.layers.3.mlp.up_proj", mm(F, H)), late)), tmp_path
    )
    assert list(zip(rows["layer"], rows["role"], strict=True)) == [
        (None, "unknown"), (3, "up"), (3, "up"),
    ]  # fmt: skip


def test_scopes_of_equal_times_nest_by_path(tmp_path: Path) -> None:
    """On a CPU a module that only calls another one lasts exactly as long."""
    inner = module("model.layers.0.mlp.down_proj", mm(H, F))
    trace = chrome(step(0, module("model.layers.0", module("model.layers.0.mlp", inner))), cpu=True)
    for events in (trace["traceEvents"], trace["traceEvents"][::-1]):
        rows = frame({**trace, "traceEvents": events}, tmp_path)
        assert rows["role"].to_list() == ["down"]


def test_another_thread_has_its_own_scopes(tmp_path: Path) -> None:
    trace = chrome(step(0, module("model.layers.0.mlp.up_proj", mm(F, H))))
    for event in trace["traceEvents"]:
        if event["cat"] == "user_annotation" and "up_proj" in event["name"]:
            event["tid"] = 99
    assert frame(trace, tmp_path)["role"].to_list() == ["unknown"]


def pytorch(trace: dict[str, Any]) -> dict[str, Any]:
    """User annotations `nn.Module: X_0` as PyTorch's own module events."""
    for event in trace["traceEvents"]:
        if event["name"].startswith("nn.Module: "):
            event["cat"] = "python_function"
    return trace


def nn(name: str, *items: Any) -> Any:
    return module(f"nn.Module: {name}", *items)


def nn_layer(i: int) -> Any:
    linear = iter(range(7 * i, 7 * i + 7))
    return nn(
        f"LlamaDecoderLayer_{i}", nn(f"LlamaRMSNorm_{2 * i}", add()),
        nn(f"LlamaAttention_{i}", *(nn(f"Linear_{next(linear)}", mm(n, H)) for n in (Q, KV, KV)),
           op("aten::mul", [T, Q], [T, Q], kernels=[k(us=1, name="elementwise")]),
           attention(), nn(f"Linear_{next(linear)}", mm(H, Q))),
        add(), nn(f"LlamaRMSNorm_{2 * i + 1}", add()),
        nn(f"LlamaMLP_{i}", nn(f"Linear_{next(linear)}", mm(F, H)),
           nn(f"SiLU_{i}", op("aten::silu", [T, F], kernels=[k(us=1, name="silu")])),
           nn(f"Linear_{next(linear)}", mm(F, H)),
           op("aten::mul", [T, F], [T, F], kernels=[k(us=1, name="elementwise")]),
           nn(f"Linear_{next(linear)}", mm(H, F))),
        add(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("whole", "head"),
    [
        ("LlamaForCausalLM", "Linear"),
        ("GPT2LMHeadModel", "Linear"),
        ("LlamaForCausalLM", "ParallelLMHead"),
    ],
)
def test_roles_by_class(whole: str, head: str, tmp_path: Path) -> None:
    """A model with a head in its class is no head: not all that it runs is one."""
    model = nn("LlamaModel_0", nn_layer(0), nn_layer(1), nn("LlamaRMSNorm_4", add()))
    embed = op("aten::embedding", [100, H], [T], kernels=[k(us=1, name="indexSelect")])
    trace = pytorch(chrome(nn(f"{whole}_0", embed, model, nn(f"{head}_14", mm(100, H)))))
    rows = frame(trace, tmp_path)
    assert rows["role"].to_list() == ["embedding", *LAYER, *LAYER, "final_norm", "lm_head"]
    assert rows["layer"].to_list() == [None, *[0] * len(LAYER), *[1] * len(LAYER), None, None]


def test_a_norm_before_the_first_layer_is_not_the_final_one(tmp_path: Path) -> None:
    """A vision tower with a norm behind its embeddings, a text tower in the same model, and a norm
    of the model's own behind both."""
    vision = nn("OwlVisionTransformer_0", nn("OwlVisionEmbeddings_0", nn("Conv2d_0", add())),
                nn("LayerNorm_0", add()), nn("OwlEncoder_0", nn_layer(0), nn_layer(1)),
                nn("LayerNorm_5", add()))  # fmt: skip
    text = nn("OwlTextTransformer_0", nn("OwlTextEmbeddings_0", nn("LayerNorm_9", add())),
              nn("OwlEncoder_1", nn_layer(2)), nn("LayerNorm_8", add()))  # fmt: skip
    whole = nn("OwlForObjectDetection_0", nn("OwlModel_0", vision, text), nn("LayerNorm_9", add()))
    rows = frame(pytorch(chrome(whole)), tmp_path).filter(pl.col("layer").is_null())
    assert rows["role"].to_list() == [
        "embedding", "unknown", "final_norm", "embedding", "final_norm", "final_norm",
    ]  # fmt: skip


def _torch_layer() -> Any:
    """Return a torch.nn.TransformerEncoderLayer.

    Its attention multiplies by in_proj and out_proj itself, and the layer calls linear1 and
    linear2.
    """
    return nn(
        "TransformerEncoderLayer_0",
        nn("LayerNorm_0", add()),
        nn("MultiheadAttention_0", mm(3 * H, H), attention(), mm(H, H)),
        nn("LayerNorm_1", add()),
        nn("Linear_0", mm(F, H)),
        nn("Linear_1", mm(H, F)),
    )


def _clip_layer() -> Any:
    """Return a block whose MLP is a Sequential of Linear, GELU, Linear."""
    return nn("ResidualAttentionBlock_0", nn("LayerNorm_0", add()),
              nn("MultiheadAttention_0", mm(3 * H, H), attention(), mm(H, H)),
              nn("LayerNorm_1", add()),
              nn("Sequential_0", nn("Linear_0", mm(F, H)), nn("Linear_1", mm(H, F))))  # fmt: skip


def _packed_layer() -> Any:
    """Return an attention with a linear for q, k and v, and one in a Sequential behind it."""
    return nn(
        "Block_0",
        nn(
            "Attention_0",
            nn("Linear_0", mm(3 * H, H)),
            attention(),
            nn("Sequential_0", nn("Linear_1", mm(H, H))),
        ),
        nn(
            "FeedForward_0",
            nn(
                "Sequential_1",
                nn("LayerNorm_0", add()),
                nn("Linear_2", mm(F, H)),
                nn("Linear_3", mm(H, F)),
            ),
        ),
    )


@pytest.mark.parametrize("layer", [_torch_layer, _clip_layer, _packed_layer])
def test_roles_of_modules_that_only_have_a_class(layer: Any, tmp_path: Path) -> None:
    rows = frame(pytorch(chrome(layer())), tmp_path).filter(pl.col("kind") == "gemm")
    assert rows["role"].to_list() == ["qkv", "o", "up", "down"]
    assert rows["layer"].to_list() == [0] * 4


def test_two_linears_through_a_rank_have_the_role_of_the_one_they_replace(tmp_path: Path) -> None:
    """`down` is left whole: the module that replaces a linear counts as one beside it."""
    rank = 8

    def low(i: int, n: int, kk: int) -> Any:
        inner = nn(f"Linear_{2 * i}", mm(rank, kk)), nn(f"Linear_{2 * i + 1}", mm(n, rank))
        return nn(f"LowRank_{i}", *inner)

    layer = nn(
        "LlamaDecoderLayer_0",
        nn("LlamaAttention_0", low(0, Q, H), low(1, KV, H), low(2, KV, H), attention(),
           low(3, H, Q)),
        nn("LlamaMLP_0", low(4, F, H), nn("SiLU_0", add()), low(5, F, H),
           nn("Linear_12", mm(H, F))),
    )  # fmt: skip
    rows = frame(pytorch(chrome(layer)), tmp_path).filter(pl.col("kind") == "gemm")
    twice = [role for name in ("q", "k", "v", "o", "gate", "up") for role in (name, name)]
    assert rows["role"].to_list() == [*twice, "down"]


def test_a_linear_with_its_adapter_in_a_class_of_its_own_is_no_q_k_and_v(tmp_path: Path) -> None:
    """LoRA on q, v and up, its linears in either order: q, k and v share their inputs."""
    rank, numbers = 8, iter(range(100))

    def linear(n: int, kk: int) -> Any:
        return nn(f"Linear_{next(numbers)}", mm(n, kk))

    def lora(i: int, n: int, kk: int, *, last: bool = False) -> Any:
        pair, whole = [linear(rank, kk), linear(n, rank)], [linear(n, kk)]
        items = [*pair, *whole] if last else [*whole, *pair]
        return nn(f"LoRA_{i}", *items[:1], nn(f"Dropout_{i}", add()), *items[1:])

    layer = nn(
        "LlamaDecoderLayer_0",
        nn("LlamaAttention_0", lora(0, Q, H), linear(KV, H), lora(1, KV, H, last=True),
           attention(), linear(H, Q)),
        nn("LlamaMLP_0", lora(2, F, H), nn("GELU_0", add()), linear(H, F)),
    )  # fmt: skip
    rows = frame(pytorch(chrome(layer)), tmp_path).filter(pl.col("kind") == "gemm")
    pair = ["adapter"] * 2
    assert rows["role"].to_list() == ["q", *pair, "k", *pair, "v", "o", "up", *pair, "down"]


def test_two_linears_in_the_only_module_of_an_mlp_are_its_own(tmp_path: Path) -> None:
    inner = nn("Inner_0", nn("Linear_0", mm(F, H)), nn("Linear_1", mm(H, F)))
    layer = nn("Block_0", nn("LlamaAttention_0", attention()), nn("LlamaMLP_0", inner))
    rows = frame(pytorch(chrome(layer)), tmp_path).filter(pl.col("kind") == "gemm")
    assert rows["role"].to_list() == ["up", "down"]


@pytest.mark.parametrize("names", [("q_norm",), ("q_norm", "k_norm")])
def test_norms_inside_attention_are_of_q_and_k(names: tuple[str, ...], tmp_path: Path) -> None:
    at = "model.layers.0.self_attn"
    inner = [module(f"{at}.{name}", add()) for name in names]
    rows = frame(chrome(step(0, module(at, *inner, attention()))), tmp_path)
    assert rows["role"].to_list() == ["qk_norm"] * len(names) + ["attention"]


def test_a_cache_that_grows_is_its_own_role(tmp_path: Path) -> None:
    """A cat of unequal parts appends keys; a cat of equal ones rotates halves."""
    at = "model.layers.0.self_attn"

    def cat(a: int, b: int) -> Any:
        return op("aten::cat", [[1, 2, a, 16], [1, 2, b, 16]], dtypes=["TensorList"],
                  strides=[[]], kernels=[k(us=1, name="CatArrayBatchedCopy")])  # fmt: skip

    rows = frame(chrome(step(0, module(at, cat(8, 8), cat(31, 1), attention()))), tmp_path)
    assert rows["role"].to_list() == ["rope", "kv_update", "attention"]


def test_an_attention_of_separate_ops(tmp_path: Path) -> None:
    """QKᵀ, mask, softmax and PV are attention; what stands before them rotates."""
    at = "model.layers.0.self_attn"

    def bmm(n: int, kk: int) -> Any:
        return op("aten::bmm", [4, T, kk], [4, kk, n], kernels=[k(us=3, name="gemm")])

    soft = op("aten::_softmax", [1, 4, T, T], kernels=[k(us=2, name="softmax")])
    ops = (add(), bmm(T, 16), add(), soft, bmm(16, T), add())  # fmt: skip
    rows = frame(chrome(step(0, module(at, *ops))), tmp_path)
    assert rows["role"].to_list() == ["rope", *["attention"] * 5]


@pytest.mark.parametrize(
    ("around", "want"),
    [
        ([("TimesformerIntermediate_0", 1), ("TimesformerOutput_0", 1)], ["up", "down"]),
        ([("FFN_0", 2)], ["up", "down"]),
        ([("Sequential_0", 2)], ["up", "down"]),
        ([("BertSelfOutput_0", 1)], ["unknown"]),
    ],
)
def test_linears_by_the_class_of_their_parents(
    around: list[tuple[str, int]], want: list[str], tmp_path: Path
) -> None:
    parts = [
        nn(name, *(nn(f"Linear_{3 * i + j}", mm(64, H)) for j in range(count)))
        for i, (name, count) in enumerate(around)
    ]
    rows = frame(pytorch(chrome(nn("Model_0", nn("TimesformerLayer_0", *parts)))), tmp_path)
    assert rows["role"].to_list() == want


@pytest.mark.parametrize(("width", "told"), [(H, False), (H // 2, True)])
def test_heads_of_two_widths_are_of_two_models(width: int, told: bool, tmp_path: Path) -> None:
    """A target of two layers and its draft of one."""

    def model(number: int, first: int, layers: int, h: int) -> Any:
        inner = [
            nn(f"LlamaDecoderLayer_{i}",
               nn(f"LlamaAttention_{i}", *(nn(f"Linear_{4 * i + j}", mm(h, h)) for j in range(4))))
            for i in range(first, first + layers)
        ]  # fmt: skip
        return nn(f"LlamaForCausalLM_{number}", *inner, nn(f"Linear_{90 + number}", mm(100, h)))

    embed = op("aten::embedding", [100, H], [T], kernels=[k(us=1, name="indexSelect")])
    whole = chrome(embed, model(0, 0, 2, H), model(1, 2, 1, width))
    (phase,) = analyze(save(pytorch(whole), tmp_path / "t.json")).report.phases.values()
    lines = [line for line in phase.notes if "several models" in line]
    assert len(lines) == told
    if told:
        assert f"read states of the widths {H} (layers: 2), {width} (layers: 1);" in lines[0]


def test_a_module_that_is_called_again_is_no_further_linear(tmp_path: Path) -> None:
    """Gate three times more in each layer: five calls of three linears."""

    def layer(i: int) -> Any:
        whole = nn_layer(i)
        mlp = whole.items[-2]
        gate = nn(f"Linear_{7 * i + 4}", mm(F, H))
        again = nn(f"LlamaMLP_{i}", *mlp.items[:-1], *[gate] * 3, mlp.items[-1])
        return nn(f"LlamaDecoderLayer_{i}", *whole.items[:-2], again, whole.items[-1])

    rows = frame(pytorch(chrome(nn("LlamaModel_0", layer(0), layer(1)))), tmp_path)
    assert rows["role"].to_list() == [*LAYER[:-2], *["gate"] * 3, *LAYER[-2:]] * 2


def test_a_module_of_an_own_class_that_multiplies_stands_for_a_linear(tmp_path: Path) -> None:
    """A mask is multiplied in by the module of gate and up itself; its role is theirs."""
    mask = op("aten::mul", [F, H], [F, H], kernels=[k(us=1, name="elementwise")])

    def layer(i: int) -> Any:
        mlp = nn(f"LlamaMLP_{i}", nn(f"Own_{2 * i}", mask, mm(F, H)),
                 nn(f"Own_{2 * i + 1}", mask, mm(F, H)),
                 nn(f"Linear_{7 * i + 6}", mm(H, F)))  # fmt: skip
        return nn(f"LlamaDecoderLayer_{i}", *nn_layer(i).items[:-2], mlp)

    rows = frame(pytorch(chrome(nn("LlamaModel_0", layer(0), layer(1)))), tmp_path)
    mlp = rows.filter(pl.col("layer") == 0)["role"].to_list()[-5:]
    assert mlp == ["gate", "gate", "up", "up", "down"]
