"""The forwards of generated text: a prompt, and the tokens after it, each a step of its own.

In: a Trace and its work in order. Out: windows of the steps, each named after its phase
(`generate#3 [decode]`), or None where they are not prompts and tokens. The encoder of an
encoder–decoder and the decoder's pass for the first token, which multiplies what the encoder made,
are the prompt together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
from msgspec.structs import replace

from prunescope.analysis.ops.kernel_kinds import MATMUL_KINDS
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.timeline.engine_steps import PROMPT_OVER_TOKENS, phases_of_windows
from prunescope.analysis.timeline.intervals import GENERATION, Windows
from prunescope.analysis.timeline.work_sequence import NEARLY_ALL, WorkSequence, host_span
from prunescope.analysis.trace.collector import Ints, unique_ids
from prunescope.analysis.trace.trace_columns import Trace

_LINEARS = ("aten::linear", "aten::addmm", "aten::mm")
_GROUP = 16  # heads that share a key, at most: their queries may be taken together
_ATTENTION = "attention"
_BACKWARD = "autograd::engine::evaluate_function"


def may_generate(trace: Trace) -> bool:
    """Return whether a weight is multiplied by few and by many rows, and nothing is trained.

    A token has few rows, and a prompt has many.
    """
    if any(name.startswith(_BACKWARD) for name in trace.names):
        return False
    rows: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for call in trace.calls:
        work = work_of(call) if call.name in _LINEARS else None
        if work is not None and work.gemms:
            gemm = work.gemms[0]
            rows[call.name, gemm.n, gemm.k].add(int(gemm.m))
    return any(max(m) >= PROMPT_OVER_TOKENS * min(m) for m in rows.values())


def prompts_and_tokens(
    trace: Trace, work: WorkSequence, parts: Iterable[Windows]
) -> Windows | None:
    """Return the first of `parts` that splits the work into prompts and tokens; None if none does.

    The result has steps of two phases. Work that precedes every prompt and no token belongs to the
    prompt; if there is only one prompt, all work before it does.
    """
    for passes in parts:
        if not work.are_mostly_alike(passes):  # tokens are; what follows reads all kernels
            continue
        windows = _with_first(trace, work, passes)
        phases = phases_of_windows(trace, windows)
        prompts, tokens = (
            np.flatnonzero(np.array(phases) == phase) for phase in ("prefill", "decode")
        )
        if (
            len(prompts) * len(tokens) > 0
            and len(prompts) + len(tokens) == len(windows)
            and work.are_alike(windows, prompts)
            and work.are_alike(windows, tokens)
            and _has_one_query(trace, windows, phases)
        ):
            return _name_steps(work, _with_encoders(work, windows, prompts, tokens))
    return None


def _with_first(trace: Trace, work: WorkSequence, passes: Windows) -> Windows:
    """Add the work before the passes as the first one, if they cover too little of the trace.

    Encoders of audio or images begin with work of another kind.
    """
    if work.share_of_time(passes) >= NEARLY_ALL:
        return passes
    begin = host_span(trace)[0]
    if begin >= passes.start[0]:
        return passes
    start = np.append(begin, passes.start)
    end = np.append(passes.start[0], passes.end)
    return replace(passes, start=start, end=end, names=["step", *passes.names])


def _with_encoders(work: WorkSequence, windows: Windows, prompts: Ints, tokens: Ints) -> Windows:
    """Name the windows after their phase, and join each encoder with the pass that follows it.

    An encoder makes no token. If the work of a prompt is not that of a token, it is one step with
    the next pass, which makes the first token.
    """
    is_prompt = np.zeros(len(windows), bool)
    is_prompt[prompts] = True
    joined = np.zeros(len(windows), bool)  # with the window before
    for prompt in prompts[prompts < len(windows) - 1].tolist():
        joined[prompt + 1] = not work.is_usual(windows, prompt, tokens)
    first = np.flatnonzero(~joined)
    last = np.append(first[1:] - 1, len(windows) - 1)
    names = ["prefill" if is_prompt[index] else "decode" for index in first]
    return replace(windows, start=windows.start[first], end=windows.end[last], names=names)


def _name_steps(work: WorkSequence, windows: Windows) -> Windows:
    """Give the windows their final names, and add to each prompt what is called before it."""
    phases = windows.names
    names = [f"generate#{i} [{phase}]" for i, phase in enumerate(phases)]
    prompts = np.flatnonzero(np.array(phases) == "prefill")
    start, end = windows.start.copy(), windows.end.copy()
    at = np.searchsorted(work.begin, start[prompts])
    if len(prompts) > 1:
        before = work.equal_before(at)
    else:
        before = int(at[0]) if phases[0] == "prefill" else 0
    start[prompts] = work.begin[at - before]
    end[:-1] = np.minimum(end[:-1], start[1:])
    return replace(windows, start=start, end=end, source=GENERATION, names=names)


def _has_one_query(trace: Trace, windows: Windows, phases: list[str]) -> bool:
    """Return whether attention has one query per sequence for tokens, and more for prompts.

    It is True where the shapes of attention are unknown. A smaller batch of images is no token.
    """
    queries: dict[str, set[int]] = {"prefill": set(), "decode": set()}
    for call, m in _rows_of_attention(trace):
        ops = trace.ops["ts"][trace.ops["call"] == call]
        for step in unique_ids(windows.step_of(ops)):
            if step >= 0:
                queries[phases[step]].add(m)
    if not queries["decode"]:
        return True
    return max(queries["decode"]) <= _GROUP and max(queries["prefill"]) > max(queries["decode"])


def _rows_of_attention(trace: Trace) -> Iterator[tuple[int, int]]:
    """Yield the distinct calls of attention and of batched GEMMs, with their M."""
    for number, call in enumerate(trace.calls):
        work = work_of(call)
        if work is None or not work.gemms:
            continue
        gemm = work.gemms[0]
        if work.kind == _ATTENTION or (work.kind in MATMUL_KINDS and gemm.batch > 1):
            yield number, int(gemm.m)
