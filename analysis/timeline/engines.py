"""Steps that serving engines annotate: in, names of annotations; out, whether each is a step, and
of which phase and batch. vLLM: `execute_context_1(888)_generation_0(0)`, `execute_new_1_cached_3`;
SGLang: `execute_15360_context_15(sq15360...)_generation_0(...)`, `step[DECODE bs=32]`;
TensorRT-LLM: `[Executor] _forward_step 7: 1 ctx reqs, 3 gen reqs`; `iterations` of this room:
`execute_model#3 [decode]`.
"""

from __future__ import annotations

import re

PHASES = ("prefill", "decode", "mixed", "unknown")
_COUNTS = re.compile(r"execute_(?:\d{1,9}_)?context_(\d{1,9})\b.{0,400}_generation_(\d{1,9})\b")
_COUNTS_OLD = re.compile(r"execute_new_(\d{1,9})_cached_(\d{1,9})$")
_MODE = re.compile(r"step\[(EXTEND|DECODE|MIXED|PREFILL|IDLE|TARGET_VERIFY|DRAFT_EXTEND)\b")
_TRT = re.compile(
    r"(?:\[Executor\] )?_forward_step \d{1,12}: (\d{1,9}) ctx reqs, (\d{1,9}) gen reqs"
)
_FOUND = re.compile(r"\w{1,40}#\d{1,9} \[(prefill|decode|mixed|unknown)\]$")
_BATCH = re.compile(r"(?:_generation_|\bbs=)(\d{1,9})")
_NUMBERS = re.compile(r"(?<![\d.#/])\d{1,9}(?![\d./])")
_OF_MODE = {"EXTEND": "prefill", "PREFILL": "prefill", "DECODE": "decode", "MIXED": "mixed"}


def engine_step(name: str) -> str | None:
    """The phase of a step that a serving engine annotates, one of PHASES; None for other names."""
    counts = _COUNTS.match(name)
    if counts is not None:
        return _of_counts(int(counts[1]), int(counts[2]))
    counts = _COUNTS_OLD.match(name)
    if counts is not None:
        # A cached request may be one whose prompt goes on in pieces: its shapes show it.
        return "prefill" if int(counts[1]) and not int(counts[2]) else "unknown"
    counts = _TRT.match(name)
    if counts is not None:
        return _of_counts(int(counts[1]), int(counts[2]))
    if (found := _FOUND.match(name)) is not None:
        return found[1]
    mode = _MODE.match(name)
    return _OF_MODE.get(mode[1], "unknown") if mode is not None else None


def _of_counts(context: int, generation: int) -> str:
    if context and generation:
        return "mixed"
    return "prefill" if context else "decode" if generation else "unknown"


def decode_batch(name: str) -> int | None:
    """How many sequences a decode step runs, as a serving engine annotates it; None for others."""
    if engine_step(name) != "decode":
        return None
    found = _BATCH.search(name)
    return int(found[1]) if found is not None else None


def names_batch(name: str, batch: int) -> bool:
    """Whether an annotation (`capture_32_DECODE`, `step[DECODE bs=32]`) carries a batch: as a
    number of its own, not that of a step or a part of a version."""
    if engine_step(name) is not None:
        return decode_batch(name) == batch
    return str(batch) in _NUMBERS.findall(name)
