"""I dropped half of the experts. Where is my speedup? From shapes and peaks alone, without a GPU.

python examples/dropped_experts.py, or with a model and a device of your own:
python examples/dropped_experts.py --model glm-4.5-air --device h200-sxm
"""

from __future__ import annotations

import argparse
from typing import Any

import prunescope

BATCHES = (1, 4, 16, 64, 256)


def main() -> None:
    """A decode step at 1,024 keys, by batch: what is read, and what that gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen3-30b-a3b")
    parser.add_argument("--device", default="h100-sxm")
    options, _ = parser.parse_known_args()
    for method, said in (
        ("static-experts", "half of the experts dropped"),
        ("static-topk", "half of the experts a token goes to"),
    ):
        print(f"{options.model} on {options.device}: {said}")
        print("batch  experts read of a layer   roofline  expected  range")
        phase: dict[str, Any] = {}
        for batch in BATCHES:
            try:
                found = prunescope.predict(
                    options.model, device=options.device, method=method, sparsity=0.5,
                    phase="decode", batch=batch, prompt_len=1024,
                )  # fmt: skip
            except prunescope.PrunescopeError as error:  # one expert a token cannot be fewer
                print(f"{error}\n")
                break
            phase = found["phases"]["decode"]
            before, after = phase["baseline"]["experts"], phase["experts"]
            expected = phase["predicted"]["execution"]
            low, high = expected["range"]
            print(f"{batch:5}  {before['distinct']:6.1f} of {before['count']:3} → "
                  f"{after['distinct']:6.1f} of {after['count']:3}  "
                  f"{phase['ladder']['roofline']:7.2f}× {expected['speedup']:8.2f}×  "
                  f"{low:.2f}–{high:.2f}")  # fmt: skip
        else:
            dense, pruned = phase["baseline"]["weight_bytes"], phase["weight_bytes"]
            print(
                f"weights {dense / 1e9:.1f} GB → {pruned / 1e9:.1f} GB; {expected['notes'][-1]}\n"
            )


if __name__ == "__main__":
    main()
