"""The runtime calls of the host by what they do: launch, copy, wait, allocate, load code.

In: a trace. Out: the calls as columns (ns), and masks over names.
"""

from __future__ import annotations

import re

import numpy as np

from prunescope.analysis.trace.collector import Ints, Mask
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern

COPY = lazy_pattern(r"[Mm]emcpy")
SYNC = lazy_pattern(
    r"(?:Device|Stream|Event|Ctx|Context)Synchronize"
    r"|^synchronize(?:Stream|Event|Device)?$"  # MTIA
    r"|^ze\w+Synchronize|^ur(?:QueueFinish|EventWait)$"  # Level Zero and SYCL, on XPUs
)
# Memory of the device, and pinned memory of the host: cudaMalloc, hipFree, cudaMallocAsync,
# hipHostMalloc, cuMemAlloc_v2, cuMemMap (expandable segments), zeMemAllocDevice.
ALLOCATION = lazy_pattern(
    r"^(?:cuda|hip)(?:Ext)?(?:Host)?(?:Malloc|Free|Alloc)"
    r"|^(?:cuda|hip|cu)Mem(?:Host)?(?:Alloc|Free)"
    r"|^(?:cu|hip)Mem(?:Address(?:Reserve|Free)|Create|Release|Map|Unmap|SetAccess)"
    r"|^(?:cuda|hip|cu)\w*(?:GraphMemTrim|MemPoolTrim|GraphAddMem(?:Alloc|Free)|Host(?:Un)?[Rr]egister)"
    r"|^ze\w*Mem(?:Alloc|Free)|^urUSM\w*(?:Alloc|Free)"
)
# cudaLaunchKernelExC, hipModuleLaunchKernel.
LAUNCH = lazy_pattern(r"LaunchKernel|LaunchCooperative")


def match_names(trace: Trace, names: Ints, pattern: re.Pattern[str]) -> Mask:
    """Mark the names (ids) that match the pattern."""
    matches = np.zeros(len(trace.names), bool)
    for i in np.flatnonzero(np.bincount(names)).tolist():
        matches[i] = pattern.search(trace.names[i]) is not None
    return matches[names]


def runtime_calls(trace: Trace) -> dict[str, Ints]:
    """Return begin, duration, name and thread of all runtime calls, with launches first."""
    return {n: np.concatenate((trace.launches[n], c)) for n, c in trace.other_calls.items()}
