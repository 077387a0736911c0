"""Which family could be faster, before you prune: from shapes and peaks alone, without a GPU.

python examples/before_you_prune.py
"""

from __future__ import annotations

import prunescope

FAMILIES = ("static-m", "static-nk", "static-k-24", "dynamic-m")


def main() -> None:
    """Expected speedups of Llama 3.1 8B on an H100 at half the work, in both phases."""
    print("family        phase    promised  roofline  expected")
    for method in FAMILIES:
        found = prunescope.predict(
            "llama-3.1-8b", device="h100-sxm", method=method, sparsity=0.5, batch=8,
            prompt_len=1024,
        )  # fmt: skip
        for name, phase in found["phases"].items():
            ladder, expected = phase["ladder"], phase["predicted"]["execution"]["speedup"]
            print(f"{method:13} {name:8} {ladder['nominal']:7.2f}× {ladder['roofline']:8.2f}× "
                  f"{expected:8.2f}×")  # fmt: skip


if __name__ == "__main__":
    main()
