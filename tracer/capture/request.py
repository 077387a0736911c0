"""What `prunescope trace` was asked for. Same names and defaults as the command's options.

Inert: `check` looks at the values alone and at no model, so that a mistake is named at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import check_sparsity
from prunescope.tracer.pruners.method import SELECTIONS, MethodPart, read_method
from prunescope.tracer.recovery.settings import Recovery, check_installed, read_recovery

_CHOICES = {
    "phase": ("prefill", "decode", "both"),
    "logits": ("last", "all"),
    "select": SELECTIONS,
    "mode": ("eager", "compile", "graph"),
}
_AT_LEAST = {
    "batch": 1,
    "prompt_len": 1,
    "decode_steps": 1,
    "warmup": 0,
    "repeats": 1,
    "steps": 1,
    "placements": 1,
}
_JUDGED = 6  # placements from which on the width of an interval says something
# torch's generators take 64 bits.
_MAX_SEED = 2**63
MOST = 2**31  # of anything that is counted
# More threads than this are a slip of the finger, and the libraries of a CPU die of too many.
_MOST_THREADS, _THREADS_A_CORE = 256, 8
# Tokens of all sequences together: their ids alone are 128 GiB, keys and values a thousand times.
_MOST_TOKENS = 2**34


@dataclass(kw_only=True)
class TraceRequest:
    """One capture: a model, at most one pruning method, and how to run and time it."""

    # Whether every placement profiles a step, however few `steps` are: the unit of rows' intervals.
    seated_steps: ClassVar[bool] = True

    model: str
    out: Path
    method: str | None = None
    sparsity: float = 0.25
    knobs: dict[str, str] = field(default_factory=dict)
    phase: str = "both"
    batch: int = 1
    prompt_len: int = 512
    decode_steps: int = 8
    logits: str = "last"
    attn: str = "sdpa"
    dtype: str = "auto"
    device: str = "auto"
    select: str = "random"
    text: Path | None = None
    recover: Recovery | str | Mapping[str, Any] | None = None
    mode: str = "eager"
    warmup: int = 3
    repeats: int = 20
    steps: int = 5
    placements: int = 8
    max_placements: int | None = None
    seed: int = 0
    baseline: Path | None = None
    baseline_model: str | None = None
    no_baseline: bool = False
    overwrite: bool = False
    threads: int | None = None
    argv: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recover = read_recovery(self.recover)

    @property
    def recovery(self) -> Recovery | None:
        """The training after pruning, None for none. It reads the text that calibrates, unless it
        has one of its own."""
        assert self.recover is None or isinstance(self.recover, Recovery)
        if self.recover is None or self.recover.text is not None:
            return self.recover
        return replace(self.recover, text=self.text)

    @property
    def first_placements(self) -> int:
        """How many placements there are in any case: none without a sample."""
        return min(self.placements, self.repeats, self.max_placements or self.placements)

    @property
    def most_placements(self) -> int:
        """How many there are where intervals stay wide: twice as many unless something else was
        said; those of a quick look are what they are."""
        first = self.first_placements
        if self.max_placements is not None:
            return max(first, self.max_placements)
        return 2 * first if first >= _JUDGED else first

    @property
    def may_go_on(self) -> bool:
        """Whether more is measured than was asked for where intervals are wide."""
        return self.most_placements > self.first_placements

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases to run, in order."""
        return ("prefill", "decode") if self.phase == "both" else (self.phase,)

    @cached_property
    def parts(self) -> list[MethodPart] | None:
        """The families of the method, read once; empty without a method, None where it is a
        function of the user's own. Raises PrunescopeError on the first thing that cannot be."""
        if self.method is None:
            return []
        return read_method(
            self.method, sparsity=self.sparsity, knobs=self.knobs, select=self.select
        )

    def check(self) -> None:
        """Raises PrunescopeError on the first value that no capture can have."""
        check_sparsity(self.sparsity)
        for name, choices in _CHOICES.items():
            _check_choice(name, str(getattr(self, name)), choices)
        for name, least in _AT_LEAST.items():
            _check_count(name, getattr(self, name), least, MOST)
        if self.max_placements is not None:
            _check_count("max_placements", self.max_placements, 1, MOST)
        if self.threads is not None:
            most = max(_MOST_THREADS, _THREADS_A_CORE * (os.cpu_count() or 1))
            _check_count("threads", self.threads, 1, most)
        if not 0 <= self.seed < _MAX_SEED:
            raise PrunescopeError(f"--seed{_said(self.seed)} is out of range", hint="0 is fine")
        self._check_tokens()
        if self.dtype != "auto" and dtype_name(self.dtype) not in ("fp32", "bf16", "fp16", "fp64"):
            raise PrunescopeError(
                f"--dtype {self.dtype!r} is not a format that a model can be run in",
                hint="auto, float32, bfloat16 or float16",
            )
        self._check_baseline()
        self._check_method()

    def _check_tokens(self) -> None:
        length = self.prompt_len + (self.decode_steps if self.phase != "prefill" else 0)
        if self.batch * length > _MOST_TOKENS:
            raise PrunescopeError(
                f"{self.batch} sequences of {length} tokens: no memory holds them",
                hint="use a smaller --batch, --prompt-len or --decode-steps",
            )

    def _check_baseline(self) -> None:
        given = (self.baseline is not None, self.baseline_model is not None, self.no_baseline)
        if sum(given) > 1:
            raise PrunescopeError(
                "more than one of --baseline, --baseline-model and --no-baseline was given",
                hint="leave all out to capture the dense baseline beside the pruned model",
            )

    def _check_recovery(self) -> None:
        if self.method is None:
            raise PrunescopeError(
                "--recover was given without --method", hint="what is not pruned lacks nothing"
            )
        check_installed()

    def _check_method(self) -> None:
        if self.recover is not None:
            self._check_recovery()
        if self.method is None:
            if self.knobs:
                raise PrunescopeError(
                    "--set was given without --method", hint="knobs belong to a pruning method"
                )
            return
        families = self.parts
        if families is None and self.select != "random":
            raise PrunescopeError(
                f"--select {self.select} is not available for {self.method}",
                hint="use --select random: a function of your own chooses as it likes",
            )
        trains = self.recover is not None
        if self.text is None or trains or any(part.reads_text for part in families or ()):
            return
        if "calibrated" in {part.select for part in families or ()}:
            raise PrunescopeError(
                f"--text was given, and {self.method} reads no text",
                hint="leave it out: calibrated, the attention of the input itself chooses",
            )
        raise PrunescopeError(
            "--text was given without --select calibrated", hint="a random choice reads no text"
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise PrunescopeError(
            f"--{name} {value!r} is not one of its values", hint=f"one of {', '.join(choices)}"
        )


def _check_count(name: str, value: int, least: int, most: int) -> None:
    option = f"--{name.replace('_', '-')}{_said(value)}"
    if value < least:
        raise PrunescopeError(
            f"{option} is too small", hint=f"{least} is the least that makes sense"
        )
    if value > most:
        raise PrunescopeError(f"{option} is too large", hint=f"{most} is the most")


def _said(value: int) -> str:
    """A number after the name of its option; nothing where Python itself will not spell it out."""
    return f" {value}" if value.bit_length() < 256 else ""
