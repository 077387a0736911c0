"""What a module with children does itself: the role of work that no leaf module claims."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunescope.analysis.kernels.role import find_roles
from prunescope.analysis.kernels.role_shapes import LaunchedRows
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.kernel_kinds import op_kind
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.timeline.module_scopes import Scopes
from prunescope.taxonomy.roles import ROLES, Place
from tests.analysis.finding_cases import layers, mm
from tests.chrome import chrome, k, module, op, save, step

CAT = OpCall("aten::cat", (((1, 2, 31, 16), (1, 2, 1, 16)),), ("TensorList",))
COPY = OpCall("aten::copy_", ((4, 4), (4, 4)), ("float", "float"))


def role(
    place: Place | None, kind: str, call: OpCall | None = None, *, before: tuple[str, ...] = ()
) -> str:
    """The role of the last of several rows in one call of one module."""
    kinds = [*before, kind]
    index = np.array([-1 if place is None else 0] * len(kinds))
    scopes = Scopes(index, np.zeros(len(kinds), np.int64), [place] if place else [], "modules")
    roles = find_roles(scopes, LaunchedRows.of(kinds, [*[None] * len(before), call]))
    assert set(roles.role) <= set(ROLES)
    return roles.role[-1]


def at(scope: str, name: str = "unknown") -> Place:
    return Place(2, name, scope)


@pytest.mark.parametrize(
    ("scope", "kind", "want"),
    [
        ("attention", "attention", "attention"), ("attention", "softmax", "attention"),
        ("attention", "batched_gemm", "attention"), ("attention", "rope", "rope"),
        ("attention", "elementwise", "rope"), ("attention", "layout", "rope"),
        ("mlp", "elementwise", "activation"), ("mlp", "activation", "activation"),
        ("mlp", "routing", "router"), ("mlp", "grouped_gemm", "experts"),
        ("mlp", "gather_scatter", "router"), ("mlp", "gemm", "unknown"),
        ("layer", "elementwise", "residual"), ("layer", "gemm", "unknown"),
        ("mixer", "conv", "conv"), ("mixer", "scan", "scan"), ("mixer", "elementwise", "scan"),
        ("model", "embedding", "embedding"), ("model", "sampling", "sampling"),
        ("model", "elementwise", "unknown"),
    ],
)  # fmt: skip
def test_work_of_a_module_with_children(scope: str, kind: str, want: str) -> None:
    assert role(at(scope), kind) == want


def test_what_gathers_in_an_mlp_gathers_for_its_experts_where_it_has_some() -> None:
    """A method that routes tokens around a dense MLP gathers there too."""
    assert role(at("mlp"), "gather_scatter", before=("grouped_gemm",)) == "experts"
    places = [at("mlp"), at("mlp", "experts")]
    scopes = Scopes(np.array([0, 1]), np.zeros(2, np.int64), places, "modules")
    assert (
        find_roles(scopes, LaunchedRows.of(["gather_scatter", "gemm"], [None, None])).role[0]
        == "experts"
    )


def test_a_gemm_outside_of_layers_is_a_head_where_tokens_are_embedded() -> None:
    """A plain MLP is two modules, `0` and `2`: neither is the head of a decoder."""
    outside = Place(None, "unknown", "model")
    head = OpCall("aten::mm", ((4, 8), (8, 100)), ("float", "float"))
    table = OpCall("aten::embedding", ((100, 8), (4,)), ("float", "long int"))
    for places, calls, want in (
        ([outside], [table], "unknown"),
        ([outside, at("mlp", "up")], [table], "lm_head"),
        ([outside, at("mlp", "up")], [], "unknown"),
    ):
        scopes = Scopes(np.zeros(2, np.int64), np.zeros(2, np.int64), places, "modules")
        roles = find_roles(scopes, LaunchedRows.of(["gemm", "gemm"], [head, head], every=calls))
        assert roles.role == [want, want]


@pytest.mark.parametrize(
    ("n", "k", "behind", "want"),
    [
        (2304, 768, False, "qkv"), (6144, 4096, False, "qkv"),  # 4096 + 2 · 1024
        (768, 768, True, "o"), (768, 768, False, "unknown"), (2304, 768, True, "o"),
        (2305, 768, False, "unknown"),
    ],
)  # fmt: skip
def test_a_product_alone_in_an_attention_module(n: int, k: int, want: str, *, behind: bool) -> None:
    """A fused QKV by its shape and before attention; the projection behind it."""
    call = OpCall("aten::addmm", ((n,), (32, k), (k, n)), ("float",) * 3)
    before = ("attention",) if behind else ()
    assert role(at("attention"), "gemm", call, before=before) == want


@pytest.mark.parametrize(
    ("n", "named", "want"),
    [(3072, "up", "up"), (6144, "up", "gate_up"), (3072, "gate_up", "up"), (100, "up", "up")],
)
def test_an_ungated_up_is_no_fused_gate(n: int, named: str, want: str) -> None:
    calls = [
        OpCall("aten::mm", ((9, k), (k, m)), ("float",) * 2) for m, k in ((n, 768), (768, 3072))
    ]
    places = [at("mlp", named), at("mlp", "down")]
    scopes = Scopes(np.arange(2), np.zeros(2, np.int64), places, "modules")
    assert find_roles(scopes, LaunchedRows.of(["gemm"] * 2, list(calls))).role == [want, "down"]


def test_passes_of_a_cpu_trace_are_cut_where_tokens_are_picked() -> None:
    """Three forwards in one profile, as nobody marked them: two layers each, and a head."""

    def mm(n: int, k: int) -> OpCall:
        return OpCall("aten::mm", ((9, k), (k, n)), ("float",) * 2)

    table = OpCall("aten::embedding", ((1000, 64), (9,)), ("float", "long int"))
    picked = OpCall("aten::index_select", ((1000, 64), (), (9,)), ("float", "Scalar", "long int"))
    layer = [mm(64, 64), mm(32, 64), mm(32, 64), None, mm(64, 64), mm(256, 64), mm(256, 64),
             mm(64, 256)]  # fmt: skip
    one = [picked, *layer, *layer, mm(1000, 64)]
    kinds = ["gather_scatter" if c is picked else "attention" if c is None else "gemm" for c in one]
    none = np.full(3 * len(one), -1)
    roles = find_roles(
        Scopes(none, none, [], "none"), LaunchedRows.of(kinds * 3, one * 3, every=[table])
    )
    names = ["q", "k", "v", "attention", "o", "gate", "up", "down"]
    assert roles.role == ["embedding", *names, *names, "lm_head"] * 3
    assert roles.layer.tolist() == [-1, *[0] * 8, *[1] * 8, -1] * 3


def test_two_products_next_to_a_linear_are_its_adapter() -> None:
    """LoRA on q and v by the order of kernels, of two layers: each linear, then A and B. Of a model
    that has as many products as others, two through a rank are one linear: k of width 64."""

    def mm(n: int, k: int) -> OpCall:
        return OpCall("aten::mm", ((9, k), (k, n)), ("float",) * 2)

    def roles(q: list[OpCall], k: list[OpCall], v: list[OpCall]) -> list[str]:
        mlp = [mm(64, 64), mm(256, 64), mm(256, 64), mm(64, 256)]
        calls = [*q, *k, *v, None, *mlp] * 2
        kinds = ["attention" if call is None else "gemm" for call in calls]
        none = np.full(len(calls), -1)
        return find_roles(Scopes(none, none, [], "none"), LaunchedRows.of(kinds, calls)).role

    pair = [mm(8, 64), mm(64, 8)]
    rest = ["attention", "o", "gate", "up", "down"]
    adapted, plain = ["adapter"] * 2, [mm(64, 64)]
    found = roles([*plain, *pair], plain, [*plain, *pair])
    assert found == ["q", *adapted, "k", "v", *adapted, *rest] * 2
    assert roles(plain, pair, plain) == ["q", "k", "k", "v", *rest] * 2


def test_a_leaf_names_all_its_work() -> None:
    """A gather that pruning put into q_proj's scope has role q."""
    for kind in ("gemm", "gather_scatter", "layout", "unknown"):
        assert role(at("attention", "q"), kind) == "q"


def test_what_follows_attention_is_no_rotation() -> None:
    assert role(at("attention"), "elementwise", before=("batched_gemm",)) == "attention"
    assert role(at("attention"), "elementwise", before=("elementwise",)) == "rope"


def test_appends_and_copies() -> None:
    assert role(at("attention"), "layout", CAT) == "kv_update"
    assert role(at("attention"), "layout", COPY) == "attention"


QK = OpCall("aten::bmm", ((4, 6, 1), (4, 1, 6)), ("float", "float"), ((6, 1, 1), (6, 6, 1)))
PV = OpCall("aten::bmm", ((4, 6, 6), (4, 6, 1)), ("float", "float"), ((36, 6, 1), (6, 1, 1)))
BY_ONE_MATRIX = OpCall("aten::bmm", ((4, 6, 8), (4, 8, 9)), ("float",) * 2, ((48, 8, 1), (0, 9, 1)))
BY_A_WEIGHT = OpCall("aten::matmul", ((4, 6, 8), (8, 9)), ("float", "float"))
SOFTMAX = OpCall("aten::_softmax", ((4, 6, 6), (), ()), ("float", "Scalar", "Scalar"))


@pytest.mark.parametrize(
    ("calls", "want"),
    [
        ((QK, COPY, SOFTMAX, PV), ["attention"] * 4),
        ((QK, PV), ["unknown"] * 2),
        ((QK,), ["unknown"]),
        ((QK, SOFTMAX, BY_A_WEIGHT, PV), ["unknown", "lm_head", "lm_head", "unknown"]),
        ((QK, SOFTMAX, PV, BY_A_WEIGHT, SOFTMAX), ["attention"] * 3 + ["lm_head"] * 2),
        ((BY_ONE_MATRIX,), ["lm_head"]),
        ((BY_A_WEIGHT, SOFTMAX), ["lm_head"] * 2),
    ],
)
def test_a_batched_product_of_two_activations_is_no_head(
    calls: tuple[OpCall, ...], want: list[str]
) -> None:
    """Whatever the module around it is called; attention's two products have a softmax between."""
    index = np.zeros(len(calls), np.int64)
    scopes = Scopes(index, index, [Place(None, "lm_head", "model")], "modules")
    kinds = [op_kind(call.name, call) for call in calls]
    assert find_roles(scopes, LaunchedRows.of(kinds, list(calls))).role == want


def test_no_scope() -> None:
    assert role(None, "gemm") == "unknown"
    assert role(None, "sampling") == "sampling"


def test_a_product_behind_a_norm_is_no_norm(tmp_path: Path) -> None:
    """A quantised head has no parameters, so no scope: the norm's was the last to close."""
    table = op("aten::embedding", [512, 64], [32], kernels=[k(us=1, name="embedding")])
    items = [
        module("model.embed_tokens", table),
        module("model.layers.0.mlp.down_proj", mm(32, 64, 96)),
        module("model.norm", op("aten::mul", [32, 64], kernels=[k(us=1, name="mul_kernel")])),
        mm(32, 512, 64),
    ]
    frame = analyze(save(chrome(step(0, *items)), tmp_path / "t.json")).frames["trace"]
    assert frame["role"].to_list() == ["embedding", "down", "final_norm", "lm_head"]


def test_the_name_of_a_module_is_not_overruled_by_its_shape(tmp_path: Path) -> None:
    """o_proj from 64 features to 192, alone in its attention: N = 3·K is a fused QKV's too."""
    path = save(layers(("self_attn.o_proj", mm(512, 192, 64))), tmp_path / "t.json.gz")
    frame = next(iter(analyze(path).frames.values()))
    assert set(frame["role"]) == {"o"}


@pytest.mark.parametrize(
    ("shapes", "before", "want"),
    [
        (((2, 8, 4), (2, 8, 4), ()), "down", "residual"),
        (((2, 8, 4), (4,), ()), "down", "activation"),  # a bias
        (((2, 8, 4), (2, 8, 4), ()), "up", "activation"),
    ],
)
def test_a_sum_behind_down_is_the_residual(
    shapes: tuple[tuple[int, ...], ...], before: str, want: str
) -> None:
    """As `ViTOutput` adds the hidden states that its layer hands it."""
    places = [at("mlp", before), at("mlp")]
    scopes = Scopes(np.array([0, 1]), np.array([0, 1]), places, "nn.Module")
    add = OpCall("aten::add", shapes, ("float", "float", "Scalar"))
    assert find_roles(scopes, LaunchedRows.of(["gemm", "elementwise"], [None, add])).role == [
        before,
        want,
    ]


def mul(*shapes: tuple[int, ...]) -> OpCall:
    return OpCall("aten::mul", shapes, ("float",) * len(shapes))


@pytest.mark.parametrize(
    ("calls", "want"),
    [
        ([mul((2, 8, 4), ())], ["attention"]),  # queries scaled, as Owlv2Attention does
        ([OpCall("aten::add_", ((8, 4), (4,)), ("float",) * 2)], ["attention"]),  # a bias
        ([mul((2, 8, 4), (8, 4)), OpCall("aten::neg", ((2, 8, 2),), ("float",)),
          OpCall("aten::add", ((2, 8, 4), (2, 8, 4)), ("float",) * 2)], ["rope"] * 3),
        ([mul((2, 8, 4), (8, 4)), mul((2, 8, 4), ())], ["rope", "attention"]),
        ([None], ["rope"]),
    ],
)  # fmt: skip
def test_rope_is_what_stands_beside_a_rotation(calls: list[OpCall | None], want: list[str]) -> None:
    index = np.zeros(len(calls), np.int64)
    scopes = Scopes(index, index, [at("attention")], "nn.Module")
    assert find_roles(scopes, LaunchedRows.of(["elementwise"] * len(calls), calls)).role == want
