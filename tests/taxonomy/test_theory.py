from __future__ import annotations

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.plan import Op, Workload
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, flop, forward, kv_cache_bytes, roofline

LLAMA = ModelShape.from_config(preset_config("llama-3.1-8b"))
# h 4096, n 32, q 32*128 = 4096, c 8*128 = 1024, f 14336, V 128256
H, N, Q, C, F, V = 4096, 32, 4096, 1024, 14336, 128256
P = 2 * H * (Q + C) + 3 * H * F  # 41,943,040 + 176,160,768 weights a layer
PI, BETA = 989e12, 3350e9


def ops(name: str, work: Workload, sparsity: float = 0.5, **knobs: str) -> list[Op]:
    return family(name).theory(LLAMA, work, family(name).point(sparsity, knobs))


def dense(work: Workload) -> list[Op]:
    return forward([dense_plan(LLAMA, work)])


def linears(listed: list[Op]) -> list[Op]:
    inside = ("q", "k", "v", "o", "gate", "up", "down", "residual")
    return [op for op in listed if op.role in inside and op.cls == "matmul"]


@pytest.mark.parametrize("logits", ["all", "last"])
def test_dense_prefill_flop(logits: str) -> None:
    batch, length = 2, 1024
    dense_ops = dense(Workload(phase="prefill", batch=batch, prompt_len=length, logits=logits))
    rows = batch * length
    head = rows if logits == "all" else batch
    # n[2T*P + 2B*q*S(S+1)] + 2*T_o*h*V
    expected = N * (2 * rows * P + 2 * batch * Q * length * (length + 1)) + 2 * head * H * V
    assert flop(dense_ops) == expected


def test_dense_decode_flop_and_bytes() -> None:
    batch, context = 3, 777
    dense_ops = dense(Workload(phase="decode", batch=batch, context=context))
    # n[2B*P + 4B*q*L] + 2B*h*V
    assert flop(dense_ops) == N * (2 * batch * P + 4 * batch * Q * context) + 2 * batch * H * V
    assert sum(op.layers * op.weight_bytes for op in dense_ops) == 2 * (N * P + H * V)
    assert sum(op.layers * op.kv_read for op in dense_ops) == 2 * N * batch * context * C * 2
    assert sum(op.layers * op.kv_write for op in dense_ops) == 2 * N * batch * C * 2


def test_gemms_of_a_layer() -> None:
    by_name = {op.name: op for op in dense(Workload(phase="prefill", batch=2, prompt_len=100))}
    assert by_name["k"].gemms == (Gemm(200, C, H),)
    assert by_name["down"].gemms == (Gemm(200, H, F),)
    assert by_name["down"].bytes == 2 * (200 * F + H * F + 200 * H)
    assert by_name["attention.full"].gemms == (Gemm(100, 100, 128, 64), Gemm(100, 128, 100, 64))
    assert by_name["lm_head"].gemms == (Gemm(2, V, H),)


def test_elementwise_bytes() -> None:
    by_name = {op.name: op for op in dense(Workload(phase="decode", batch=1))}
    assert by_name["attn_norm"].bytes == by_name["mlp_norm"].bytes == 2 * 4 * H
    assert by_name["rope"].bytes == 2 * 2 * (Q + C)
    assert by_name["activation"].bytes == 2 * 3 * F
    assert not by_name["final_norm"].bounded
    assert not by_name["embedding"].bounded


def test_attention_share_of_flop() -> None:
    shares = []
    for length in (1024, 8192, 32768):
        dense_ops = dense(Workload(phase="prefill", prompt_len=length, logits="all"))
        shares.append(sum(op.layers * op.flop for op in dense_ops if op.cls == "attention")
                      / flop(dense_ops))  # fmt: skip
    assert shares == pytest.approx([0.018, 0.125, 0.36], abs=0.005)


def test_all_logits_cap_static_m() -> None:
    work = Workload(phase="prefill", prompt_len=1024, logits="all")
    head = next(op for op in dense(work) if op.name == "lm_head")
    assert head.flop / flop(dense(work)) == pytest.approx(0.069, abs=5e-4)
    assert flop(dense(work)) / flop(ops("static-m", work)) == pytest.approx(1.87, abs=0.005)
    last = Workload(phase="prefill", prompt_len=1024)
    assert flop(dense(last)) / flop(ops("static-m", last)) == pytest.approx(2.0, abs=0.005)


def test_a_sliding_window_bounds_the_pairs() -> None:
    shape = ModelShape.from_config({**preset_config("mistral-7b"), "sliding_window": 4})
    dense_ops = forward([dense_plan(shape, Workload(phase="prefill", prompt_len=6))])
    attention = next(op for op in dense_ops if op.cls == "attention")
    # queries see 1, 2, 3, 4, 4, 4 keys: 18 pairs; QK and PV, 2 FLOPs, 32 heads of 128
    assert attention.flop == 2 * 2 * 32 * 128 * 18
    step = forward([dense_plan(shape, Workload(phase="decode", context=6))])
    assert next(op for op in step if op.cls == "attention").kv_read == 2 * 2 * 1024 * 4


def test_static_k_24() -> None:
    work = Workload(phase="decode", batch=8)
    down = next(op for op in ops("static-k-24", work) if op.name == "down")
    assert down.flop == 8 * H * F  # 2MN(K/2)
    assert down.weight_bytes == 2 * H * F * 9 / 16
    assert down.gemms == (Gemm(8, H, F),)


def test_low_rank() -> None:
    work = Workload(phase="prefill", prompt_len=1000)
    pair = [op for op in ops("static-k-lowrank", work) if op.name == "gate"]
    rank = 1600  # up16(int(0.5 * 14336*4096/18432)) = up16(1592)
    assert [op.gemms[0] for op in pair] == [Gemm(1000, rank, H), Gemm(1000, F, rank)]
    assert sum(op.flop for op in pair) == 2 * 1000 * rank * (F + H)
    plain = next(op for op in dense(work) if op.name == "gate")
    moved = 2 * (rank * (F + H) - F * H) + 2 * 1000 * rank * 2  # weights, and T*r out and in
    assert sum(op.bytes for op in pair) - plain.bytes == moved
    assert len(linears(ops("static-k-lowrank", work))) == 14


def test_static_nk() -> None:
    by_name = {op.name: op for op in ops("static-nk", Workload(phase="prefill", prompt_len=10))}
    assert by_name["q"].gemms == (Gemm(10, Q // 2, H),)
    assert by_name["v"].gemms == (Gemm(10, C // 2, H),)
    assert by_name["o"].gemms == (Gemm(10, H, Q // 2),)
    assert by_name["gate"].gemms == (Gemm(10, F // 2, H),)
    assert by_name["attention.full"].gemms[0] == Gemm(10, 10, 128, 16)


def test_static_nk_cross() -> None:
    work = Workload(phase="prefill", prompt_len=100)
    pruned_ops = linears(ops("static-nk-cross", work))
    narrow = 2048
    # P' = 2h'(q+c) + 3h'f + 2h'^2 against P: .538 at s = .5
    share = 2 * narrow * (Q + C) + 3 * narrow * F + 2 * narrow**2
    assert sum(op.flop for op in pruned_ops) == 2 * 100 * share
    assert share / P == pytest.approx(0.538, abs=5e-4)
    head = next(op for op in ops("static-nk-cross", work) if op.name == "lm_head")
    assert head.gemms == (Gemm(1, V, narrow),)
    same = linears(ops("static-nk-cross", work, junctions="same"))
    assert sum(op.flop for op in same) == 2 * 100 * P // 2


def test_static_nk_cross_of_parallel_layers_with_layer_norms() -> None:
    config = {
        "model_type": "gpt_neox", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 512,
        "num_attention_heads": 4, "intermediate_size": 96, "tie_word_embeddings": True,
    }  # fmt: skip
    work, pruning = Workload(phase="prefill", prompt_len=10), family("static-nk-cross")
    for parallel, maps in ((True, 1), (False, 2)):
        shape = ModelShape.from_config({**config, "use_parallel_residual": parallel})
        pruned_ops = pruning.theory(shape, work, pruning.point(0.5))
        residual = [op for op in pruned_ops if op.role == "residual"]
        # 2 layers of `maps` GEMMs [10, 32] x [32, 32]
        assert sum(op.layers * op.flop for op in residual) == 2 * maps * 2 * 10 * 32 * 32
    stored = {op.name: op.parameters for op in pruned_ops}
    assert stored["attn_norm"] == 32  # a gain; its bias is one of q, k and v
    assert stored["up"] == 96 * 32 + 96
    assert stored["down"] == 32 * 96 + 32
    assert stored["lm_head"] == 512 * 32 + 512  # no longer the embedding, with the last bias


def test_dynamic_m_expands_the_latents_that_active_queries_read() -> None:
    config = {
        "model_type": "deepseek_v3", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 512,
        "num_attention_heads": 4, "intermediate_size": 96, "kv_lora_rank": 16, "q_lora_rank": 24,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    }  # fmt: skip
    shape, pruning = ModelShape.from_config(config), family("dynamic-m")
    prefill = Workload(phase="prefill", batch=2, prompt_len=6, itemsize=2)
    decode = Workload(phase="decode", batch=2, context=10, itemsize=2)
    by_name = {
        work.phase: {op.name: op for op in pruning.theory(shape, work, pruning.point(0.5))}
        for work in (prefill, decode)
    }
    flop = {phase: {n: op.flop for n, op in ops.items()} for phase, ops in by_name.items()}
    # keys and values 4 * (16 + 16) of a latent of 16; 24 = 16 + 8 from every token
    assert flop["prefill"]["kv_b"] == 2 * 12 * 128 * 16
    assert flop["prefill"]["kv_a"] == 2 * 12 * 24 * 64
    assert flop["prefill"]["q_a"] == 2 * 6 * 24 * 64
    assert flop["decode"]["kv_b"] == 2 * (2 * 10 / 2) * 128 * 16  # one of two sequences
    assert flop["decode"]["kv_a"] == 2 * 2 * 24 * 64
    assert flop["decode"]["q_b"] == 2 * 1 * 96 * 24
    # read where one of two sequences is active: 1 - 1/4
    assert by_name["decode"]["kv_b"].weight_bytes == 2 * 128 * 16 * 0.75


def test_dynamic_m() -> None:
    batch, length, p = 2, 64, 0.5
    rows = batch * length
    pruned_ops = ops("dynamic-m", Workload(phase="prefill", batch=batch, prompt_len=length))
    # n[2T*2hc + 2Tp(2hq + 3hf) + p*2BqS(S+1)] + routers (2 a layer, 2T*h) + 2*T_o*h*V
    expected = N * (
        2 * rows * 2 * H * C
        + 2 * rows * p * (2 * H * Q + 3 * H * F)
        + p * 2 * batch * Q * length * (length + 1)
        + 2 * 2 * rows * H
    )
    assert flop(pruned_ops) == expected + 2 * batch * H * V
    step = ops("dynamic-m", Workload(phase="decode", batch=batch, context=length))
    read = sum(op.layers * op.weight_bytes for op in step if not op.added)
    # E[W] = b[n(2hc + (1 - s^B)(2hq + 3hf)) + hV]
    assert read == 2 * (N * (2 * H * C + (1 - 0.5**2) * (2 * H * Q + 3 * H * F)) + H * V)


def test_dynamic_nk() -> None:
    work = Workload(phase="decode", batch=2, context=512)
    plain = next(op for op in dense(work) if op.cls == "attention")
    for blocks, share in (("key_value", 0.5), ("value", 0.75)):
        op = next(o for o in ops("dynamic-nk", work, blocks=blocks) if o.cls == "attention")
        assert op.flop == share * plain.flop
        assert op.kv_read == share * plain.kv_read


def test_kv_cache() -> None:
    work = Workload(phase="decode", batch=4, context=1000)
    full = 4 * 1000 * N * 2 * C * 2
    for name, share in (("static-m", 0.5), ("static-nk", 0.5), ("static-nk-cross", 1),
                        ("dynamic-m", 1), ("dynamic-nk", 1), ("kv-evict", 0.5)):  # fmt: skip
        pruning = family(name)
        assert kv_cache_bytes(pruning.plans(LLAMA, work, pruning.point(0.5))) == share * full


def test_token_drop() -> None:
    pruned_ops = ops("token-drop", Workload(phase="prefill", prompt_len=100), 0.75, after="8")
    gates = [(op.layers, op.gemms[0].m) for op in pruned_ops if op.name == "gate"]
    assert gates == [(8, 100), (24, 25)]


def test_ridge_of_a_linear() -> None:
    # T* = x0/(1 - x0(1/N + 1/K)), x0 = pi*b/(2*beta) = 295 on the H100: where F/pi = Q/beta
    x0 = PI * 2 / (2 * BETA)
    assert x0 == pytest.approx(295, abs=0.5)
    ridge = x0 / (1 - x0 * (1 / F + 1 / H))
    gemm = Gemm(10**6, F, H)
    below, above = (Gemm(round(ridge * x), gemm.n, gemm.k) for x in (0.99, 1.01))
    assert below.flop / PI < below.bytes(2) / BETA
    assert above.flop / PI > above.bytes(2) / BETA


def test_scaled_peaks_scale_the_bound() -> None:
    dense_ops = dense(Workload(phase="decode"))
    once = roofline(dense_ops, flop_per_s=PI, byte_per_s=BETA)
    assert roofline(dense_ops, flop_per_s=2 * PI, byte_per_s=2 * BETA) == pytest.approx(once / 2)


# s = .5, Llama-3.1-8B, H100 SXM data sheet; dense over pruned. The cells of the
# taxonomy's table:
# prefill 1k B=32 (all, last logits), prefill 32k B=1 (all, last), decode B=1 L=1k, B=8 L=1k,
# B=16 L=32k. By hand for static-m, decode B=1 L=1k, where every op is memory-bound:
#   a layer: weights 2*218,103,808 B = 436.2 MB, GEMM vectors 2*(7*4096+...) < 0.2 MB,
#   cache 2*1024*2048 B = 4.2 MB -> 440.6 MB; head 1050.7 MB;
#   (32*440.6 + 1050.9)/(16*440.6 + 1050.9) = 15150/8100 = 1.870
CELLS = (
    ("prefill", 1024, 32, "all"), ("prefill", 1024, 32, "last"),
    ("prefill", 32768, 1, "all"), ("prefill", 32768, 1, "last"),
    ("decode", 1024, 1, "last"), ("decode", 1024, 8, "last"), ("decode", 32768, 16, "last"),
)  # fmt: skip
TABLE = {
    "static-m": (1.88, 2.00, 1.92, 2.00, 1.87, 1.88, 1.98),
    "static-k-24": (1.70, 1.79, 1.38, 1.41, 1.67, 1.61, 1.08),
    "static-k-lowrank": (1.70, 1.78, 1.38, 1.40, 1.85, 1.75, 1.09),
    "static-nk": (1.82, 1.92, 1.88, 1.95, 1.87, 1.87, 1.97),
    "static-nk-cross": (1.76, 1.74, 1.41, 1.39, 1.85, 1.76, 1.09),
    "dynamic-m": (1.77, 1.86, 1.84, 1.91, 1.81, 1.04, 1.70),
    "dynamic-nk": (1.00, 1.00, 1.21, 1.22, 1.00, 1.03, 1.69),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_roofline_table(name: str) -> None:
    peaks = {"flop_per_s": PI, "byte_per_s": BETA}
    rows = []
    for phase, length, batch, logits in CELLS:
        work = Workload(phase=phase, batch=batch, prompt_len=length, logits=logits)
        rows.append(roofline(dense(work), **peaks) / roofline(ops(name, work), **peaks))
    assert rows == pytest.approx(TABLE[name], abs=0.00501)  # the table has two decimals


@pytest.mark.parametrize(
    "bad", [{"phase": "both"}, {"logits": "some"}, {"batch": 0}, {"prompt_len": 0}]
)
def test_a_workload_that_cannot_be_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(PrunescopeError):
        Workload(**{"phase": "decode", **bad})  # type: ignore[arg-type]


def test_absorbed_latent_attention_by_hand() -> None:
    """With 4 heads over latents of 16 + 8 numbers, kv_b is a product per head and sequence.

    It has in [16] and out [16] of queries and of values, on one row; queries of 24 attend to 24,
    and get 16.
    """
    config = {
        "model_type": "deepseek_v3", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 512,
        "num_attention_heads": 4, "intermediate_size": 96, "kv_lora_rank": 16, "q_lora_rank": 24,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    }  # fmt: skip
    shape = ModelShape.from_config(config)
    step = Workload(phase="decode", batch=2, context=10, itemsize=2, absorbed=True)
    by_name = {op.name: op for op in forward([dense_plan(shape, step)])}
    kv_b, attention = by_name["kv_b"], by_name["attention.full"]
    assert kv_b.flop == 2 * 2 * 128 * 16
    assert kv_b.weight_bytes == 2 * 128 * 16
    assert kv_b.bytes == kv_b.weight_bytes + 2 * 2 * 4 * (16 + 16 + 16 + 16)
    assert attention.flop == 2 * (2 * 4) * (24 + 16) * 10
    assert attention.kv_read == 2 * 2 * 10 * 24
    assert attention.bytes == attention.kv_read + 2 * (2 * 4 * (24 + 16) + 2 * 24)
    assert attention.gemms == (Gemm(1, 10, 24, 8), Gemm(1, 16, 10, 8))
    # A prefill expands its keys and values either way; attention without latents has no choice.
    for plain, phase in ((config, "prefill"), ({**config, "kv_lora_rank": None}, "decode")):
        shape = ModelShape.from_config({k: v for k, v in plain.items() if v is not None})
        sides = [
            forward([dense_plan(shape, Workload(phase=phase, prompt_len=6, absorbed=absorbed))])
            for absorbed in (True, False)
        ]
        assert sides[0] == sides[1]
    # One of two sequences is active.
    half = {op.name: op for op in family("dynamic-m").theory(
        ModelShape.from_config(config), step, family("dynamic-m").point(0.5))}  # fmt: skip
    assert half["kv_b"].flop == kv_b.flop / 2
    assert half["kv_b"].weight_bytes == kv_b.weight_bytes * 0.75
