"""Which scaling of a CPU ledger tells the truth: everything by W/wall, or the gaps alone?

    python benchmarks/scaling.py [--model NAME] [--captures N] [--out FILE]

Captures models whose loss is known: a layer that waits 2 ms (launch and idle +2 ms and no other
row), and a layer that is gone (of what is left nothing changed: kernel efficiency and launch and
idle are 0).
Writes scaling.md beside this file: each row under both scalings. Give it the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    import torch

WAIT_NS = 2_000_000
ROWS = ("kernel_efficiency", "launch_idle")
SCALINGS = {"everything by W/wall": False, "gaps alone": True}
# Of each case: the method, its sparsity, and ns that the rows should be.
CASES = {
    "a layer that waits 2 ms": ("scaling:waiting", 0.0, {"launch_idle": WAIT_NS}),
    "a layer that is gone": ("static-m", None, {}),
    "nothing": ("scaling:same", 0.0, {}),
}
Measured = dict[tuple[str, str, str, str], list[float]]  # case, phase, scaling, row


def same(model: torch.nn.Module, sparsity: float) -> torch.nn.Module:  # noqa: ARG001
    """A method that does nothing."""
    return model


def waiting(model: Any, sparsity: float) -> torch.nn.Module:  # noqa: ARG001
    """A method after which the first layer waits, in Python, before its MLP."""

    def wait(*_: Any) -> None:
        end = time.perf_counter_ns() + WAIT_NS
        while time.perf_counter_ns() < end:
            pass

    model.model.layers[0].mlp.register_forward_pre_hook(wait)
    return model  # type: ignore[no-any-return]


def main() -> None:
    """Capture, split under both scalings and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--captures", type=int, default=6)
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    found: Measured = {}
    for number in range(options.captures):
        for case, (method, sparsity, _) in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                _capture(options, method, sparsity, number, out)
                for phase in ("prefill", "decode"):
                    for key, ns in _rows(out, phase).items():
                        found.setdefault((case, phase, *key), []).append(ns)
    options.out.write_text(_page(options, found), encoding="utf-8")
    sys.stderr.write(f"wrote {options.out.name}\n")


def _capture(options: Any, method: str, sparsity: float | None, number: int, out: Path) -> None:
    import prunescope

    knobs = {} if sparsity is not None else {"layers": "3"}
    prunescope.trace(
        options.model,
        method=method,
        sparsity=0.05 if sparsity is None else sparsity,
        knobs=knobs,
        prompt_len=options.prompt_len,
        repeats=16,
        steps=8,
        seed=number,
        out=out,
    )


def _rows(run: Path, phase: str) -> dict[tuple[str, str], float]:
    """{(scaling, row): ns a step} of one capture."""
    from prunescope.analysis.inputs.subject import Options, open_side
    from prunescope.analysis.ledger.ledger import ratios
    from prunescope.analysis.ledger.noise import choose_domain, point
    from prunescope.analysis.ledger.pairing import pair
    from prunescope.analysis.ledger.samples import Samples

    sides = [open_side(run / name, Options(), eager=None) for name in ("dense", "pruned")]
    dense, pruned = (side.kernels(phase) for side in sides)
    entries = [side.run.phases[phase] for side in sides if side.run is not None]
    of = [Samples.of(e.samples_by_seating, [s.steps for s in e.seatings]) for e in entries]
    units = pair(dense, pruned, sides[1].run.layer_map if sides[1].run else None)
    ratio = ratios(units, None)
    out: dict[tuple[str, str], float] = {}
    for scaling, on_device in SCALINGS.items():
        ledger = point(units, ratio, choose_domain(units, *of, on_device=on_device))
        out |= {(scaling, row): float(ledger.total(row)[0]) for row in ROWS}
    return out


def _page(options: Any, found: Measured) -> str:
    lines = [
        "# Two scalings of a CPU ledger",
        "",
        f"`python benchmarks/scaling.py --model {options.model} --captures {options.captures} "
        f"--prompt-len {options.prompt_len}`. Rows in ms a step: mean and standard error over the "
        "captures; off: mean less what is known, in standard errors.",
        "",
        "| case | phase | row | known | " + " | ".join(f"{s} | off" for s in SCALINGS) + " |",
        "|---|---|---|---|" + "---|---|" * len(SCALINGS),
    ]
    for case, (_, _, known) in CASES.items():
        for phase in ("prefill", "decode"):
            for row in ROWS:
                true = known.get(row, 0)
                cells = [_cell(found[case, phase, s, row], true) for s in SCALINGS]
                head = f"| {case} | {phase} | {row.replace('_', ' ')} | {true / 1e6:.1f} | "
                lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], true: float) -> str:
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{mean / 1e6:+.3f} ± {error / 1e6:.3f} | {(mean - true) / error if error else 0:+.1f}"


if __name__ == "__main__":
    main()
