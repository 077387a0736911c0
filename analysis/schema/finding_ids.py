"""The ids that a finding may have, and the severities: what rules and readers may ask for by name.

A test holds the list to the code of `analysis/findings/`: a finding without a line here is named.
"""

from __future__ import annotations

SEVERITIES = ("critical", "warning", "info")
FINDING_IDS = (
    "above-bound", "above-peak", "added-adapter", "added-estimator", "added-gather-scatter",
    "added-layout", "added-mask", "added-routing", "added-work", "below-break-even",
    "broken-propagation", "captured-launches", "captured-step", "clock-trouble",
    "coverage-limited", "cuda-cores", "decompressed", "dispatch-bound", "earlier-work",
    "fake-quantised", "graph-holes", "held-back", "host-lead", "host-waits", "host-work",
    "kernels-missing", "largest-cost", "launch-bound", "longer-communication", "masked-tokens",
    "nearest-dimension", "no-speedup", "nominal-differs", "not-comparable", "nothing-removed",
    "observer-effect", "outside-taxonomy", "reads-all-weights", "residual-map",
    "roofline-shift", "second-gemm", "skipped-layers-executed", "slower-kernels",
    "sparse-padded", "sparse-without-gain", "spill", "straggler", "timing-not-valid",
    "unaligned", "unaligned-operands", "unequal-steps", "unfused-attention", "wave-step",
    "weight-copied", "weights-remade", "wide-interval", "zeros-in-dense",
)  # fmt: skip
