"""The costs of execution, and the constants of their models: one per mechanism, none per family.

TERMS are the costs that `predict` adds to the roofline, in order. TABLE has the constants, fitted
to published measurements, each with its range on other devices and its source. Constants has the
values in use. SPARSE has the rates of 2:4 kernels by device and library, and RUNTIMES the host work
of serving engines. `benchmarks/predict.md` prints the constants and the rates.
"""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.device.hardware import Device, MeasuredTimes, same_chip
from prunescope.taxonomy.lazy_pattern import lazy_pattern

PRO_6000, A100, H100, H100_PCIE, B200, MI300X, ADA = (
    "rtx-pro-6000-blackwell", "a100-80gb-sxm", "h100-sxm", "h100-pcie", "b200", "mi300x",
    "rtx-6000-ada",
)  # fmt: skip

LAUNCHES = ("graph", "eager")
_LLM_BENCH = "arXiv 2603.05232, appendix (vLLM 0.13)"


class Term(Struct, frozen=True):
    """A cost of execution and its cause."""

    name: str
    mechanism: str


TERMS = (
    Term("achievable", "the best GEMM and the best copy reach less than the data sheet's peaks"),
    Term("tile_wave", "a GEMM computes whole tiles in whole waves: the best of a few tiles"),
    Term("sparse_kernel", "2:4 kernels run below twice the dense rate"),
    Term("gathered", "kernels on rows chosen at run time run below the rate of contiguous rows"),
    Term("elementwise", "element-wise kernels read again what their neighbours wrote"),
    Term("eager", "modules run op by op: norms in float32, scores in memory, the cache copied"),
    Term("kernel", "each kernel ramps up and down"),
    Term("launch", "the device idles between kernels"),
    Term("added", "kernels that only pruning needs: gather, scatter, layout, estimator, cache"),
    Term("exchange", "all-reduces of tensor parallelism, sends between pipeline stages"),
    Term(
        "engine", "an engine works between steps; a prefill takes at least the engine's host time"
    ),
)
NAMES = tuple(term.name for term in TERMS)


class Constant(Struct, frozen=True):
    """A constant of one mechanism.

    It has a value, its range on other devices, the source that it is fitted to, and the devices
    measured there.
    """

    value: float
    low: float
    high: float
    unit: str
    term: str
    mechanism: str
    figure: str
    devices: tuple[str, ...] = ()
    desktop: float | None = None  # the value on a desktop's host, where it differs

    def ends(self, *, seen: bool) -> tuple[float, float]:
        """Return (low, high).

        Both are half as far from the value on a chip where it was measured (`seen`).
        """
        if not seen:
            return self.low, self.high
        return (self.low + self.value) / 2, (self.high + self.value) / 2


_FIGURE_6 = "arXiv 2606.09080, Fig. 6"
_FIGURE_2 = "arXiv 2606.09080, Fig. 2"

TABLE: dict[str, Constant] = {
    "gemm_share": Constant(
        0.80, 0.51, 0.87, "of the data sheet", "achievable",
        "the best GEMM, on silicon without a published ceiling",
        "published ceilings: A100 0.87, H100 0.80, B200 0.78, RTX Pro 6000 0.69, MI300X 0.51",
        (A100, H100, B200, PRO_6000, MI300X)),
    "idle_share": Constant(
        0.0, 0.0, 0.5, "of the idle part", "tile_wave",
        "what whole tiles in whole waves leave idle, where a library evens it out; all "
        "of it counts on an RTX Pro 6000",
        "GEMMs of Qwen2.5-7B in bf16 on an A100 by cuBLASLt (github.com/bcacdwk/vllmbench, the "
        "kernel tables of arXiv 2603.05232): 1.04, 1.33, 2.07 and 4.15 waves of 128 x 256 run at "
        "0.88, 0.92, 0.90 and 0.94 of the rate of many", (A100,)),
    "stream_share": Constant(
        0.85, 0.75, 0.92, "of the data sheet", "achievable",
        "a kernel that streams from memory",
        f"{_FIGURE_2}, decode: lm_head reads 1.05 GB in 4.6 % of 14.97 ms, 1,525 of 1,792 GB/s",
        (PRO_6000,)),
    "gathered_kernel": Constant(
        1.22, 1.0, 1.4, "x the time of contiguous rows", "gathered",
        "a kernel on rows that are chosen at run time",
        f"{_FIGURE_6}, prefill, dynamic M: 44.32 of 67.32 ms, less gather, scatter and what is "
        "kept", (PRO_6000,)),
    "unfused": Constant(
        2.0, 1.0, 3.0, "x the traffic of fused ones", "elementwise",
        "element-wise kernels read again what their neighbours wrote",
        f"{_FIGURE_2}, prefill: element-wise 10.8 % of 2.19 s", (PRO_6000,)),
    "ramp_clocks": Constant(
        6800, 3900, 10500, "clocks a kernel, at boost", "kernel",
        "a kernel fills the device and drains it",
        f"{_FIGURE_2}, decode: element-wise 3.4 % of 14.97 ms over 6 kernels of 32 layers, 2.6 us "
        "at 2.617 GHz", (PRO_6000,)),
    "launch_ns": Constant(
        1700, 800, 2500, "ns a kernel", "launch",
        "the device idles between two kernels of a replayed graph",
        f"{_FIGURE_2}, decode: graph launch 5.2 % of 14.97 ms; {_FIGURE_6}, decode: 7 more kernels "
        "of low rank are +31 % of what is not GEMM or attention. Gaps between queued kernels in "
        "public traces: H100 1.0, A100 1.3-2.0, B200 2.1, RTX 3060 0.7 us; they do not follow the "
        "clock", (PRO_6000, H100, A100, B200)),
    "dispatch_ns": Constant(
        20000, 5000, 27000, "ns an op that launches", "launch",
        "the host dispatches one op in eager mode; a device does not determine its host",
        "arXiv 2406.15786, Tables 1-2: 8 of 32 MLPs gone gain 1.06, so the host sets the pace of a "
        "step of more than 26 ms; upper end: Llama-2-7B in eager PyTorch at 25.5 token/s on an "
        "A100 (pytorch.org, Accelerating Generative AI II), 1,450 ops; lower end: 7-8B models in "
        "eager transformers on an A100 take 19 to 39 ms a token, and one card takes 2.2 to 2.4 "
        "times as long a token on a server's CPU as on a desktop's (github.com/mit-han-lab/llm-awq,"
        " issue 61): behind the cards of desktops the upper end over 2.3", desktop=27000 / 2.3),
    "module_share": Constant(
        0.5, 0.25, 1.0, "of a dispatch", "launch",
        "the call of an nn.Module around its ops; a view of a tensor takes half of that",
        "arXiv 2406.15786, Tables 1-2: attention takes 73-76 %, the MLP 23-25 % of an eager step",
        (ADA,)),
    "gather_rate": Constant(
        0.32, 0.15, 0.85, "of a streaming kernel", "added",
        "rows gathered and scattered by index",
        f"{_FIGURE_6}, prefill, dynamic M: +42 % of what is not GEMM or attention", (PRO_6000,)),
    "cache_passes": Constant(
        1.0, 0.0, 1.5, "passes over the KV cache", "added",
        "attention on rows chosen at run time prepares its cache in every layer, skipped or not",
        f"{_FIGURE_6}, decode, dynamic M: 597.93 and, skipped, 184.97 us: both about 100 us above "
        "their parts; one pass over 134 MB is 88 us", (PRO_6000,)),
    "attention_rate": Constant(
        1.0, 0.8, 1.15, "x the rate of its generation", "achievable",
        "a fused attention kernel on a prompt, by generation, head size and length",
        "two libraries on one chip differ by 1.05, libraries of two generations by 1.8 "
        "(attention_rates.py has the sources)", (A100, H100, B200)),
    "unpack_rate": Constant(
        0.8, 0.6, 1.0, "of the rate of a 16-bit GEMM", "achievable",
        "a kernel that unpacks weights of 4 or 8 bits before it multiplies (Marlin)",
        "A100: 141 TFLOP/s from 128 rows on, 0.60 to 0.74 of 16 bits (github.com/vllm-project/vllm,"
        " pull 2497); RTX 6000 Ada: 0.82 at 16,384 rows (github.com/IST-DASLab/marlin, issue 21); "
        "arXiv 2408.11743: about 0.9 from 1,024 rows on, A10", (A100,)),
    "allreduce_ns": Constant(
        10000, 5000, 30000, "ns a sublayer", "exchange",
        "devices that share a layer, or send to the next stage, synchronise before any byte "
        "moves",
        "a guess: no published measurement is used", ()),
    "engine_step_ns": Constant(
        1.6e6, 0.3e6, 4e6, "ns a step", "engine",
        "scheduler, inputs, sampler and outputs of a step, for which the device waits",
        f"{_LLM_BENCH}: decode steps of Llama-3.2-1B at batch 64 and 256, 4.6 and 8.7 ms on an "
        "H100, 6.1 and 11.8 ms on an A100, less the forward; an 8B model at batch 32 leaves an "
        "H200 idle for 24 % of the time (huggingface.co, asynchronous continuous batching)"),
    "engine_sequence_ns": Constant(
        20e3, 5e3, 30e3, "ns a sequence and step", "engine",
        "what a sequence adds to that", f"{_LLM_BENCH}: the same four steps"),
    "prompt_ns": Constant(
        21e6, 10e6, 36e6, "ns a prefill step", "engine",
        "a prompt's way through the host, while the device works",
        f"{_LLM_BENCH}: prefill is never below 21 ms (B200), 25 (H100), 43 (A100), 53 (RTX 4090), "
        "however short, with 16 layers; less what the layers add"),
    "uncaptured_ns": Constant(
        30e3, 10e3, 45e3, "ns a kernel that no graph holds", "engine",
        "the host launches the kernels of a prefill one by one, while the device works",
        f"{_LLM_BENCH}: prefill of 28 layers is never below 28 to 36 ms where that of 16 is "
        "never below 25 to 28 (H100), 53 and 43 (A100)"),
    "sparse_rate": Constant(
        1.0, 0.72, 1.38, "x the rate of SPARSE", "sparse_kernel",
        "a compute-bound 2:4 GEMM, over the rate of its library and device",
        "two papers on the A100 differ by 1.16 for one library, cells of one paper by 7 %: one "
        "predicts the other with a standard deviation of 0.16 of the logarithm, and the ends are "
        "two of these away. So it counts as not measured there", (PRO_6000,)),
}  # fmt: skip


class SparseRate(Struct, frozen=True):
    """The time of a compute-bound 2:4 GEMM over half of the dense time.

    The first row of a library, a chip and a format holds. Empty devices or formats stand for all
    that have no row.
    """

    libraries: tuple[str, ...]
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    value: float
    figure: str


# The values of `--set kernel=`, and whether the library makes its caller copy layouts.
SPARSE_LIBRARIES = {
    "torch": True,
    "cusparselt": False,
    "cutlass": False,
    "tensorrt": False,
    "marlin": False,
}
MARLIN = "marlin"  # W4A16, and also the kernel of linear layers that are not 2:4
# Libraries whose 2:4 kernels split K for few rows: cuSPARSELt does in three or four parts at 64
# rows on an A100 (_KERNEL_TABLES), PyTorch's kernel never does, the others are assumed to.
SPLITTING_LIBRARIES = frozenset({"cusparselt", "cutlass", "tensorrt", "marlin"})
_HALF, _BYTE = ("bf16", "fp16"), ("fp8", "int8")
_ALL_BUT_TENSORRT = ("torch", "cutlass", "cusparselt")
_KERNEL_TABLES = (
    "GEMMs of a layer of Qwen2.5-7B by cuSPARSELt 0.8 over cuBLASLt, 8,192 and 16,384 rows, the "
    "best kernel of each (github.com/bcacdwk/vllmbench, kernel tables of arXiv 2603.05232)"
)
SPARSE = (
    SparseRate(
        (MARLIN,), (), (), 1.0,
        "twice the rate of dense kernels in 16 bits from large batches on, RTX 3090 "
        "(github.com/IST-DASLab/Sparse-Marlin)"),
    SparseRate(
        _ALL_BUT_TENSORRT, (PRO_6000,), _HALF, 1.68,
        f"{_FIGURE_6}, prefill, 2:4: 64.11 of 67.32 ms, less its layout copies"),
    SparseRate(
        _ALL_BUT_TENSORRT, (A100,), _HALF, 1.32,
        "arXiv 2301.00774, Table 8, GEMMs of OPT-175B: 1.79, 1.67, 1.54 x; arXiv 2401.15024, "
        "Table 12, layers of Llama-2: 1.48, 1.50, 1.32 x; the kernel tables below give 1.48 for a "
        "layer of Qwen2.5-7B, of which N = 37,888 gains 1.18 and the others 1.67"),
    SparseRate(_ALL_BUT_TENSORRT, (A100,), ("int8",), 0.98,
        f"{_KERNEL_TABLES}: 33.4 and 16.3 ms, A100 PCIe: dense int8 reaches 57 % of its peak"),
    SparseRate(_ALL_BUT_TENSORRT, (H100, H100_PCIE), _HALF, 1.25,
        f"{_KERNEL_TABLES}: 9.25 and 5.78 ms, H100 PCIe"),
    SparseRate(_ALL_BUT_TENSORRT, (H100, H100_PCIE), _BYTE, 1.17,
        f"{_KERNEL_TABLES}: fp8 5.27 and 3.09 ms, int8 4.60 and 2.89, 11.23 and 6.08 ms, H100 "
        "PCIe"),
    SparseRate(_ALL_BUT_TENSORRT, ("rtx-4090",), ("fp8",), 0.98,
        f"{_KERNEL_TABLES}: 12.39 and 6.04 ms, RTX 4090"),
    SparseRate(_ALL_BUT_TENSORRT, ("rtx-5080",), ("fp8",), 1.16,
        f"{_KERNEL_TABLES}: 16.00 and 9.32 ms, RTX 5080"),
    SparseRate(_ALL_BUT_TENSORRT, ("gb10",), ("fp8",), 1.54,
        f"{_KERNEL_TABLES}: 22.34 and 17.19 ms, GB10"),
    SparseRate(
        tuple(SPARSE_LIBRARIES), (), _BYTE, 1.20,
        "not measured on this device: the middle of the others in 8 bits"),
    SparseRate(
        tuple(SPARSE_LIBRARIES), (), (), 1.40,
        "not measured on this device: the middle of the others in 16 bits"),
)  # fmt: skip


class ModelError(Struct, frozen=True):
    """The model's own error, as standard deviations of the logarithm of a speedup.

    `common`: two measurements of the same speedup. `waits`: the part of a step in which an engine's
    host sets the pace on both sides. `reshaped`: a kernel at a shape that the dense model does not
    run, of a single wave of tiles, where the library's choice of a tile decides; it is divided by w
    to the `power` for w waves. `added`: kernels that only pruning needs, whose number and traffic
    are those of one implementation. `unseen` multiplies all of them on a chip without measurements;
    `scale` makes the range hold 90 %.
    """

    common: float
    reshaped: float
    power: float
    added: float
    waits: float
    unseen: float
    scale: float


# benchmarks/predict_calibration.py fits the error to published measurements, and tests the fit on
# measurements that were left out.
ERROR = ModelError(0.06, 0.08, 1 / 2, 0.5, 0.12, 1.25, 1.354)
MEASURED_ON = (PRO_6000, A100, ADA)
# Routing is random in each step; papers give the mean of three samples (arXiv 2606.09080).
ROUTING_SAMPLES = 3

# Byte/s between the devices of a server, in one direction, by data sheet: NVLink and xGMI. Other
# devices have PCIe 4 with 16 lanes.
LINKS = {
    300e9: ("a100-40gb-sxm", "a100-80gb-sxm"), 200e9: ("a800-80gb-sxm", "h800-sxm"),
    450e9: ("h100-sxm", "h200-sxm", "h20", "mi300x", "mi325x"), 150e9: ("v100-sxm2",),
    900e9: ("b200", "gb200"), 540e9: ("mi350x", "mi355x"),
}  # fmt: skip
OTHER_LINK = 32e9


def link_byte_per_s(device: Device) -> float:
    """Return the byte/s from one device of a server to the others, in one direction."""
    return next((rate for rate, names in LINKS.items() if device.name in names), OTHER_LINK)


# A CUDA context, workspaces of libraries and losses of the allocator take 0.5 to 1 GB under PyTorch
# on A100 and H100.
OVERHEAD_BYTES = 1_000_000_000

# The chips on which whole waves were measured: on the RTX Pro 6000 nothing is won with N from 4,096
# to 2,867 (M = K = 4,096), arXiv 2606.09080.
WHOLE_WAVES = (PRO_6000,)

# For chips whose boost clock is not in the device table: the median of the others.
TYPICAL_HZ = 1.83e9


class Constants(Struct, frozen=True, kw_only=True):
    """The values in use, by name; units are those of TABLE."""

    gemm_share: float = TABLE["gemm_share"].value
    idle_share: float = TABLE["idle_share"].value
    stream_share: float = TABLE["stream_share"].value
    gathered_kernel: float = TABLE["gathered_kernel"].value
    unfused: float = TABLE["unfused"].value
    ramp_clocks: float = TABLE["ramp_clocks"].value
    launch_ns: float = TABLE["launch_ns"].value
    dispatch_ns: float = TABLE["dispatch_ns"].value
    module_share: float = TABLE["module_share"].value
    gather_rate: float = TABLE["gather_rate"].value
    cache_passes: float = TABLE["cache_passes"].value
    attention_rate: float = TABLE["attention_rate"].value
    unpack_rate: float = TABLE["unpack_rate"].value
    allreduce_ns: float = TABLE["allreduce_ns"].value
    engine_step_ns: float = TABLE["engine_step_ns"].value
    engine_sequence_ns: float = TABLE["engine_sequence_ns"].value
    prompt_ns: float = TABLE["prompt_ns"].value
    uncaptured_ns: float = TABLE["uncaptured_ns"].value
    sparse_rate: float = TABLE["sparse_rate"].value

    def idle_share_on(self, device: Device) -> float:
        """Return the share of idle tiles and waves that costs time on a device."""
        whole = any(same_chip(device, name) for name in WHOLE_WAVES)
        return 1.0 if whole else self.idle_share

    def ramp_ns(self, device: Device) -> float:
        """Return the ns of a ramp, which is a number of clocks, at the device's boost clock."""
        return self.ramp_clocks / (device.boost_hz or TYPICAL_HZ) * 1e9


DEFAULT = Constants()
# The cards of desktops (GeForce 2060 to 5090, not RTX 6000): their hosts clock higher than those of
# servers.
_OF_DESKTOPS = lazy_pattern(r"(rtx|gtx)-\d{2}[5-9]0(-|$)")


def defaults_on(device: Device) -> Constants:
    """Return the constants in use on a device, where a request gives none."""
    if device.times is not None:
        return _calibrated(device, device.times)
    host = TABLE["dispatch_ns"].desktop
    if host is None or not _OF_DESKTOPS.match(device.name):
        return DEFAULT
    return replace(DEFAULT, dispatch_ns=host)


def _calibrated(device: Device, times: MeasuredTimes) -> Constants:
    """Return the constants of a device whose times were measured by size.

    These hold the traffic of unfused ops. Each op adds a bare call, in place of the ramp of a
    kernel, and what Python and modules take around it, in place of a dispatch.
    """
    return Constants(
        ramp_clocks=times.call_ns * (device.boost_hz or TYPICAL_HZ) / 1e9,
        launch_ns=0.0,
        dispatch_ns=times.op_ns - times.call_ns,
        module_share=0.0,
        unfused=1.0,
        gathered_kernel=1.0,
        gather_rate=1.0,
    )


def is_measured_on(device: Device) -> bool:
    """Return whether the model is fitted to published speedups of this chip."""
    return any(same_chip(device, name) for name in MEASURED_ON)


def constants_at_ends(
    terms: frozenset[str], device: Device, now: Constants = DEFAULT
) -> tuple[tuple[str, Constants, Constants], ...]:
    """Return (name, low, high) of every constant of `terms`.

    low and high are the constants in use with that one at its ends. A constant that was given is
    known within a tenth.
    """
    seen = tuple(
        name for name, row in TABLE.items() if any(same_chip(device, d) for d in row.devices)
    )
    return _constants_at_ends(terms, seen, now)


@lru_cache(maxsize=256)
def _constants_at_ends(
    terms: frozenset[str], seen: tuple[str, ...], now: Constants
) -> tuple[tuple[str, Constants, Constants], ...]:
    """Return the same, where `seen` names the constants that were measured on the device's chip."""
    changed = []
    for name, row in TABLE.items():
        if row.term in terms:
            low, high = row.ends(seen=name in seen)
            value = getattr(now, name)
            if value not in (row.value, row.desktop):  # it was given
                low, high = 0.9 * value, 1.1 * value
            changed.append((name, replace(now, **{name: low}), replace(now, **{name: high})))
    return tuple(changed)


class Runtime(Struct, frozen=True, kw_only=True):
    """The host work of a serving engine, apart from the kernels of a forward.

    Its shares multiply the constants of the term "engine", which are those of vLLM. An engine that
    nobody measured in that respect says so.

    `step` is the share of a step's scheduler, sampler and outputs that the device waits for.
    `prompt` and `uncaptured` are the shares of the host's work for a prompt and for each kernel
    that no graph holds, below which no prefill falls. `mixed`: with weights of 8 bits or fewer,
    lm_head, attention, its cache and what lies between GEMMs stay in 16 bits. `library` has its 2:4
    kernels. `absorbs`: decode of latent attention multiplies queries into the cached latents.
    `loops_experts`: the experts of a layer that got a token are called one after another, not all
    of them by one grouped kernel.
    """

    name: str
    versions: str
    launch: str
    library: str
    mixed: bool = True
    absorbs: bool = True
    loops_experts: bool = False
    step: float = 0.0
    prompt: float = 0.0
    uncaptured: float = 0.0
    figure: str

    @property
    def assumed(self) -> str:
        """The assumption behind a prediction, in a sentence."""
        return f"{self.name} {self.versions}: {self.figure}"


_RUNTIMES = (
    Runtime(
        name="hf", versions="transformers 4.x, PyTorch eager", launch="eager", library="torch",
        absorbs=False, loops_experts=True,
        figure="modules run op by op, and nothing is captured; 8-bit formats replace the "
        "linear layers of the blocks alone"),
    Runtime(
        name="vllm", versions="0.8 to 0.13 (V1)", launch="graph", library="cutlass",
        step=1.0, prompt=1.0, uncaptured=1.0,
        figure="graphs hold decode steps, not prompts of more than 512 tokens "
        "(docs.vllm.ai, design/cuda_graphs); lm_head, attention and its cache stay in 16 bits"),
    Runtime(
        name="sglang", versions="0.4 to 0.5", launch="graph", library="cutlass",
        step=0.2, prompt=0.2, uncaptured=1.0,
        figure="graphs hold decode steps; the scheduler runs one batch ahead, nearly without "
        "idle time (SGLang 0.4, zero-overhead batch scheduler); its prefill floor is a guess"),
    Runtime(
        name="trtllm", versions="0.17 to 1.2", launch="graph", library="tensorrt",
        step=0.2, prompt=0.2, uncaptured=0.3,
        figure="graphs hold decode steps; the scheduler overlaps with the device (TensorRT-LLM "
        "docs, overlap scheduler); its prefill floor is a guess"),
)  # fmt: skip
RUNTIMES = {row.name: row for row in _RUNTIMES}  # by the name that `--runtime` takes
