"""Serving engines: host work per forward, and weight formats.

RUNTIMES are the engines of `--runtime` by name. Shares multiply the constants of the term "engine"
(TABLE in constants.py), which are those of vLLM. An engine that nobody measured in that respect
says so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The host work of a serving engine, apart from the kernels of a forward.

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


_ROWS = (
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
RUNTIMES = {row.name: row for row in _ROWS}
