"""One short entry for each architecture whose layers were read: what differs from the common rules.

The common rules are the table of names in `taxonomy.roles`, separate q, k, v, o and gate, up, down,
sequential residuals and heads of one width. An entry holds everything else, and nothing else holds
it.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

# Keys of a rewritten config: what stands in the place of each layer's attention and MLP.
ATTENTION_KINDS, MLP_KINDS = "attention_kinds", "mlp_kinds"


class Biases(Struct, frozen=True, kw_only=True):
    """The matrices that have a bias, where the config does not say so."""

    every: bool = False  # every linear of attention and MLP
    by_default: bool = False  # where `use_bias` is not written
    key: str = ""  # the key of the config that says whether attention has biases
    qkv: bool = False  # q, k and v alone
    no_o: bool = False
    o: bool = False
    mlp: bool = False
    head: bool = False
    router: bool = False


class NormRules(Struct, frozen=True, kw_only=True):
    """The norms of a model type: how many there are, and what they store."""

    layer_norm: bool = False  # with a bias, and the mean subtracted
    bare: bool = False  # without weights, and the mean subtracted
    centred: bool = False  # the mean is subtracted, no bias
    per_layer: int = 2  # with one, attention and MLP are in parallel
    one_if_parallel: bool = False
    head_qk: bool = False  # of the queries and keys of one head
    wide_qk: bool = False  # of the queries and keys of all heads at once
    embedding: bool = False


class Unwritten(Struct, frozen=True, kw_only=True):
    """The properties that a Hugging Face config leaves to the code of the model.

    A key of the config, where there is one, comes before what stands here.
    """

    biases: Biases = Biases()
    norms: NormRules = NormRules()
    ungated: bool = False  # the MLP is up, activation, down
    four_times: bool = False  # such an MLP is four times as wide as the stream, without a key
    adjusted_mlp: bool = False  # LFM2: two thirds of the width that is written
    shared_mlp: bool = False  # without routed experts, the width of the shared one is the MLP's
    tied: bool = False  # embedding and head, where the config does not say
    falcon_blocks: bool = False  # norms, parallel blocks and KV heads by Falcon's own keys
    parallel_residual: bool = False  # where `use_parallel_residual` is not written
    query_gate: bool = False  # q holds a gate of each output
    shared_gate: bool = False  # of the shared expert
    shared_expert: bool = False  # one as wide as a routed one, without a key for it
    sinks: bool = False  # a learnt logit for each head
    positions: tuple[str, int, int] | None = None  # a table: its key, its default, and extra rows
    window_pattern: int = 0  # every so many-th layer sees all keys
    mixer_code: str = ""  # a mixer whose sizes `mixer_configs` reads
    layers_code: str = ""  # layers that `hybrid_configs` rewrites in the keys of other configs
    encoder: bool = False  # where `is_decoder` is not written: all tokens attend to all
    parallel_mixer: bool = False  # the mixer runs in parallel with attention, in every layer

    @property
    def has_layer_norm(self) -> bool:
        """Whether norms have a scale and a bias."""
        return self.norms.layer_norm or self.biases.every

    @property
    def subtracts_mean(self) -> bool:
        """Whether norms subtract the mean."""
        return self.has_layer_norm or self.norms.bare or self.norms.centred


class Architecture(Struct, frozen=True, kw_only=True):
    """Properties of one or more Hugging Face model types, `ids`, beyond the common rules.

    `roles`: the role by the end of a module path, and `mark`: the name of a module by which those
    names are known if the model type is not. `qkv`: how a fused q, k, v orders its rows, "parts"
    (all queries, all keys, all values) or "groups" (a KV head's queries, its key, its value, and so
    on). `gate_up`: gate and up are one matrix. `widths`: attributes of an attention module that
    hold heads · head_dim. `mixer`: what runs in parallel with or in place of attention in some
    layers. `no_heads`: why heads cannot be cut. `no_maps`: why residuals cannot go through a map of
    their own, so that the stream has one basis for all junctions. `no_parts`: why its attention
    cannot be taken apart, for what is decided at run time. `windowed_rope`: layers that see the
    whole context do not rotate. `unwritten`: what its config leaves to its code.
    """

    ids: tuple[str, ...]
    title: str
    roles: Mapping[str, str] = field(default_factory=dict)
    mark: str = ""
    qkv: str = ""
    gate_up: bool = False
    widths: tuple[str, ...] = ()
    mixer: str = ""
    no_heads: str = ""
    no_maps: str = ""
    no_parts: str = ""
    windowed_rope: bool = False
    unwritten: Unwritten = Unwritten()


_AFTER = {"post_attention_layernorm": "attn_norm"}  # a norm of what attention puts out
_MARK = "post_feedforward_layernorm"

ARCHITECTURES = (
    Architecture(ids=("llama",), title="Llama"),
    Architecture(ids=("mistral",), title="Mistral"),
    Architecture(ids=("ministral3",), title="Ministral 3",
        no_parts="its queries are scaled by their position"),
    Architecture(ids=("qwen2",), title="Qwen2", unwritten=Unwritten(biases=Biases(qkv=True))),
    Architecture(ids=("qwen3",), title="Qwen3", unwritten=Unwritten(norms=NormRules(head_qk=True))),
    Architecture(ids=("gemma",), title="Gemma", unwritten=Unwritten(tied=True)),
    Architecture(ids=("gemma2",), title="Gemma 2", roles=_AFTER, mark=_MARK,
        unwritten=Unwritten(tied=True, window_pattern=2, norms=NormRules(per_layer=4))),
    Architecture(ids=("gemma3", "gemma3_text"), title="Gemma 3", roles=_AFTER, mark=_MARK,
        unwritten=Unwritten(tied=True, window_pattern=6,
            norms=NormRules(head_qk=True, per_layer=4))),
    Architecture(ids=("phi3",), title="Phi-3", qkv="parts", gate_up=True),
    Architecture(ids=("phi",), title="Phi",
        unwritten=Unwritten(ungated=True, biases=Biases(every=True, head=True),
            norms=NormRules(per_layer=1))),
    Architecture(ids=("gpt2",), title="GPT-2", qkv="parts", widths=("split_size", "embed_dim"),
        unwritten=Unwritten(four_times=True, tied=True, positions=("n_positions", 1024, 0),
            biases=Biases(every=True))),
    Architecture(ids=("gpt_neox",), title="GPT-NeoX, Pythia", qkv="groups",
        unwritten=Unwritten(ungated=True, parallel_residual=True, biases=Biases(every=True))),
    Architecture(ids=("olmo",), title="OLMo", unwritten=Unwritten(norms=NormRules(bare=True))),
    Architecture(ids=("olmo2", "olmo3"), title="OLMo 2", roles=_AFTER, mark=_MARK,
        unwritten=Unwritten(norms=NormRules(wide_qk=True))),
    Architecture(ids=("olmoe",), title="OLMoE", unwritten=Unwritten(norms=NormRules(wide_qk=True))),
    Architecture(ids=("granite",), title="Granite"),
    Architecture(ids=("granitemoe", "granitemoeshared"), title="Granite MoE"),
    Architecture(ids=("stablelm",), title="StableLM",
        unwritten=Unwritten(norms=NormRules(layer_norm=True, one_if_parallel=True))),
    Architecture(ids=("smollm3",), title="SmolLM3", unwritten=Unwritten(tied=True)),
    Architecture(ids=("starcoder2",), title="StarCoder2",
        unwritten=Unwritten(ungated=True, tied=True, biases=Biases(mlp=True, by_default=True),
            norms=NormRules(layer_norm=True))),
    Architecture(ids=("cohere",), title="Command R",
        unwritten=Unwritten(tied=True, norms=NormRules(centred=True, per_layer=1))),
    Architecture(ids=("cohere2",), title="Command R7B", windowed_rope=True,
        unwritten=Unwritten(tied=True, norms=NormRules(centred=True, per_layer=1))),
    Architecture(ids=("falcon",), title="Falcon", qkv="groups",
        unwritten=Unwritten(four_times=True, tied=True, falcon_blocks=True,
            norms=NormRules(layer_norm=True))),
    Architecture(ids=("bloom",), title="BLOOM", qkv="groups",
        no_heads="its positions are a slope for each head (ALiBi), counted from the first",
        no_maps="its sublayers add to the stream themselves",
        unwritten=Unwritten(four_times=True, tied=True, biases=Biases(every=True),
            norms=NormRules(embedding=True))),
    Architecture(ids=("opt",), title="OPT",
        unwritten=Unwritten(ungated=True, tied=True, positions=("max_position_embeddings", 2048, 2),
            biases=Biases(every=True, key="enable_bias"))),
    Architecture(ids=("mixtral",), title="Mixtral"),
    Architecture(ids=("qwen2_moe",), title="Qwen MoE",
        unwritten=Unwritten(shared_gate=True, biases=Biases(qkv=True))),
    Architecture(ids=("qwen3_moe",), title="Qwen MoE",
        unwritten=Unwritten(norms=NormRules(head_qk=True))),
    Architecture(ids=("gpt_oss",), title="gpt-oss",
        unwritten=Unwritten(sinks=True, window_pattern=2, biases=Biases(mlp=True, router=True))),
    Architecture(ids=("deepseek_v2", "deepseek_v3"), title="DeepSeek-V2, -V3"),
    Architecture(ids=("deepseek_v32", "glm_moe_dsa"), title="DeepSeek-V3.2, GLM-5",
        no_parts="an indexer of its own chooses the keys of each query",
        unwritten=Unwritten(layers_code="indexer")),
    Architecture(ids=("qwen3_next", "qwen3_5_moe_text"), title="Qwen3-Next",
        mixer="linear attention",
        unwritten=Unwritten(query_gate=True, shared_gate=True, mixer_code="delta net",
            norms=NormRules(head_qk=True))),
    Architecture(ids=("qwen3_5_text",), title="Qwen3-Next", mixer="linear attention",
        unwritten=Unwritten(query_gate=True, mixer_code="delta net",
            norms=NormRules(head_qk=True))),
    Architecture(ids=("falcon_h1",), title="Falcon-H1", mixer="state space",
        no_maps="where its multipliers are not 1, its layers scale attention and mixer before they "
        "add them",
        unwritten=Unwritten(parallel_mixer=True, mixer_code="mamba-2")),
    Architecture(ids=("granitemoehybrid",), title="Granite 4 hybrid", mixer="state space",
        unwritten=Unwritten(shared_mlp=True, mixer_code="mamba-2")),
    Architecture(ids=("bamba",), title="Granite 4 hybrid", mixer="state space",
        unwritten=Unwritten(mixer_code="mamba-2")),
    Architecture(ids=("lfm2",), title="LFM2", mixer="short convolution",
        unwritten=Unwritten(tied=True, adjusted_mlp=True, mixer_code="short convolution",
            norms=NormRules(head_qk=True))),
    Architecture(ids=("lfm2_moe",), title="LFM2", mixer="short convolution",
        unwritten=Unwritten(tied=True, mixer_code="short convolution",
            norms=NormRules(head_qk=True))),
    Architecture(ids=("nemotron_h",), title="Nemotron-H", mixer="state space",
        unwritten=Unwritten(layers_code="one sublayer each", ungated=True, mixer_code="mamba-2")),
    Architecture(ids=("jamba",), title="Jamba", mixer="state space",
        unwritten=Unwritten(layers_code="two periods", mixer_code="mamba-1")),
    Architecture(ids=("zamba2",), title="Zamba2", mixer="state space",
        no_heads="layers share their attention, which also reads the embedding",
        no_maps="layers share their attention, which also reads the embedding",
        unwritten=Unwritten(layers_code="shared blocks", tied=True, mixer_code="mamba-2")),
    Architecture(ids=("kimi_linear",), title="Kimi Linear", mixer="linear attention",
        unwritten=Unwritten(layers_code="counted from one", mixer_code="kimi delta")),
    Architecture(ids=("minimax",), title="MiniMax", mixer="linear attention",
        no_maps="its layers scale what they add to the stream",
        unwritten=Unwritten(layers_code="list of numbers", mixer_code="lightning")),
    Architecture(ids=("recurrent_gemma",), title="RecurrentGemma", mixer="recurrence",
        unwritten=Unwritten(layers_code="blocks in turns", tied=True, mixer_code="rg-lru",
            biases=Biases(o=True))),
    Architecture(ids=("gemma3n_text",), title="Gemma 3n", roles=_AFTER, mark=_MARK,
        no_maps="its stream is one of several, and layers have inputs of their own",
        no_heads="its last layers read the keys and values of earlier ones",
        unwritten=Unwritten(layers_code="several streams", tied=True, window_pattern=5,
            norms=NormRules(per_layer=4))),
    Architecture(ids=("gemma4_text",), title="Gemma 4", roles=_AFTER, mark=_MARK,
        no_maps="its layers scale the stream and may have inputs of their own",
        unwritten=Unwritten(layers_code="two sizes of heads", tied=True, window_pattern=6,
            norms=NormRules(per_layer=4))),
    Architecture(ids=("mamba", "falcon_mamba"), title="Mamba", mixer="state space",
        unwritten=Unwritten(mixer_code="mamba-1 alone")),
    Architecture(ids=("mamba2",), title="Mamba", mixer="state space",
        unwritten=Unwritten(mixer_code="mamba-2 alone")),
)  # fmt: skip

# Model types whose layers nobody read: what their configs leave unwritten is known, no more.
OTHERS: tuple[tuple[tuple[str, ...], Unwritten], ...] = (
    (("apertus", "arcee", "fuyu"), Unwritten(ungated=True)),
    (("bert", "camembert", "distilbert", "ernie", "roberta", "xlm-roberta"),
        Unwritten(ungated=True, tied=True, encoder=True,
            positions=("max_position_embeddings", 512, 0), biases=Biases(every=True),
            norms=NormRules(embedding=True))),
    (("biogpt",),
        Unwritten(ungated=True, tied=True, positions=("max_position_embeddings", 2048, 2),
            biases=Biases(every=True))),
    (("codegen", "gptj"),
        Unwritten(four_times=True, biases=Biases(mlp=True, head=True),
            norms=NormRules(layer_norm=True, per_layer=1))),
    (("exaone4", "qwen3_vl_text"), Unwritten(norms=NormRules(head_qk=True))),
    (("glm", "glm4_moe"), Unwritten(biases=Biases(no_o=True))),
    (("glm4",), Unwritten(biases=Biases(no_o=True), norms=NormRules(per_layer=4))),
    (("gpt_bigcode",),
        Unwritten(four_times=True, tied=True, positions=("n_positions", 1024, 0),
            biases=Biases(every=True))),
    (("gpt_neo",),
        Unwritten(four_times=True, tied=True, positions=("max_position_embeddings", 2048, 0),
            biases=Biases(mlp=True, o=True), norms=NormRules(layer_norm=True))),
    (("llama4", "llama4_text"), Unwritten(shared_expert=True)),
    (("minimax_text_01",), Unwritten(layers_code="list of numbers", mixer_code="lightning")),
    (("mpt",), Unwritten(four_times=True, tied=True)),
    (("nemotron",), Unwritten(ungated=True, norms=NormRules(layer_norm=True))),
    (("openai-gpt",), Unwritten(ungated=True, positions=("n_positions", 1024, 0))),
    (("persimmon",), Unwritten(ungated=True, biases=Biases(every=True))),
    (("qwen2_5_vl", "qwen2_vl"), Unwritten(biases=Biases(qkv=True))),
)  # fmt: skip

BY_ID = {name: entry for entry in ARCHITECTURES for name in entry.ids}
_OTHERS = {name: rules for names, rules in OTHERS for name in names}


def unwritten(model_type: str) -> Unwritten:
    """Return the properties that a config of this type leaves to its code.

    A type that nobody knows has the common rules.
    """
    entry = BY_ID.get(model_type)
    return entry.unwritten if entry else _OTHERS.get(model_type, Unwritten())


# Architectures of GGUF files whose header and tensors say all that a config does, and their types.
GGUF_TYPES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3": "gemma3_text", "deci": "nemotron-nas", "falcon-h1": "falcon_h1",
    "granitehybrid": "granitemoehybrid", "jamba": "jamba", "lfm2": "lfm2", "lfm2moe": "lfm2_moe",
    "mamba": "mamba", "mamba2": "mamba2", "nemotron_h": "nemotron_h",
    "nemotron_h_moe": "nemotron_h", "qwen35": "qwen3_5_text", "qwen35moe": "qwen3_5_moe_text",
    "qwen3next": "qwen3_next",
}  # fmt: skip
