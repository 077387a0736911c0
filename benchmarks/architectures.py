"""Every causal language model of transformers, tiny: which trace and analyse, dense and pruned.

    python benchmarks/architectures.py [--only NAME ...] [--budget SECONDS] [--rows FILE.jsonl]

One process runs them in turn and is replaced where a model takes too long or kills it. In: nothing.
Out: a table, a row a model type. It says what runs, not how fast: the sizes are toys.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

RUNS = ("dense", "static-m", "static-nk-mlp", "static-k-lowrank")
SECONDS_EACH = 300
# What a real device has does not matter here, and measuring it would take most of the time.
PEAKS = {"dense_flop_per_s": {"fp32": 1e11}, "byte_per_s": 1e10, "kernel_floor_ns": 1000}
NOT_BUILT = "not built"
OK = "ok"


def main() -> None:
    """Run all, or `--only` some, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--budget", type=float, default=7200, metavar="SECONDS")
    parser.add_argument("--rows", type=Path, metavar="FILE.jsonl",
                        help="keep rows here, and do not run again what it has")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "architectures.md")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    names = options.only or all_names()
    deadline = time.monotonic() + options.budget
    rows = run_all(names, deadline, kept=options.rows)
    done = {row["name"] for row in rows}
    text = table(rows, skipped=[name for name in names if name not in done])
    if options.only:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        sys.stderr.write(f"wrote {options.out}\n")


def all_names() -> list[str]:
    """Every key of transformers' own table of causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def run_all(names: list[str], deadline: float, *, kept: Path | None) -> list[dict[str, Any]]:
    """A row for each name, as far as the time goes; those in the file `kept` are taken from it."""
    old = kept.read_text(encoding="utf-8").splitlines() if kept and kept.exists() else []
    known = {row["name"]: row for row in map(json.loads, old)}
    rows: list[dict[str, Any]] = []
    worker: subprocess.Popen[str] | None = None
    for number, name in enumerate(names, 1):
        left = deadline - time.monotonic()
        if name in known:
            rows.append(known[name])
            continue
        if left <= 0:
            break
        if worker is None or worker.poll() is not None:
            command = [sys.executable, __file__, "--worker"]
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        row = ask(worker, name, seconds=min(SECONDS_EACH, left))
        rows.append(row)
        if kept:
            with kept.open("a", encoding="utf-8") as lines:
                lines.write(f"{json.dumps(row)}\n")
        sys.stderr.write(f"{number}/{len(names)} {name}: {row.get('dense')}\n")
    if worker is not None:
        worker.kill()
        worker.wait()
    return rows


def ask(worker: subprocess.Popen[str], name: str, *, seconds: float) -> dict[str, Any]:
    """The worker's row for a name; its end, or that it took too long, where it gives none."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(f"{name}\n")
    worker.stdin.flush()
    ready, _, _ = select.select([worker.stdout], [], [], seconds)
    line = worker.stdout.readline() if ready else ""
    if line:
        row: dict[str, Any] = json.loads(line)
        return row
    worker.kill()
    worker.wait()
    reason = "the process died" if ready else f"not done within {seconds:.0f} s"
    return {"name": name, "dense": f"crash: {reason}"}


def work() -> None:
    """Read names, write rows, until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch
    import transformers

    # All of our own code now, so that one version of it makes the whole table.
    importlib.import_module("prunescope.analysis.pipeline")
    for module in (
        "prunescope.tracer.capture.session",
        "transformers.models.llama",
        "transformers.cache_utils",
    ):
        importlib.import_module(module)
    # Before each timed loop the tracer collects garbage; the libraries are none.
    gc.freeze()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    for line in sys.stdin:
        answers.write(f"{json.dumps(one(line.strip()))}\n")
        answers.flush()


def one(name: str) -> dict[str, Any]:
    """The row of one model type: "ok" or a sentence for each of RUNS."""
    import torch
    from shrink import shrunk
    from transformers import AutoModelForCausalLM

    from prunescope.taxonomy.configs.architecture_table import BY_ID

    torch.manual_seed(0)
    row: dict[str, Any] = {"name": name}
    try:
        config = shrunk(name)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)  # noqa: FBT003
    except Exception as error:  # noqa: BLE001 - whatever transformers raises is the result
        return {**row, "dense": f"{NOT_BUILT}: {sentence(error)}"}
    kind = str(model.config.get_text_config(decoder=True).model_type)
    row["table"] = kind in BY_ID
    row["parameters"] = sum(p.numel() for p in model.parameters())
    for family in RUNS:
        row[family] = result(model, name, family, row)
        if family == "dense" and row[family] != OK:
            break
    return row


def result(model: Any, name: str, family: str, row: dict[str, Any]) -> str:
    """Trace and analyse one variant: "ok", or the sentence that it ends in."""
    from prunescope.analysis.pipeline import analyze
    from prunescope.taxonomy.errors import PrunescopeError

    try:
        with tempfile.TemporaryDirectory(prefix="architectures-") as folder:
            traced(model, name, family, Path(folder) / "run")
            report = analyze(Path(folder) / "run").report
    except PrunescopeError as error:
        return error.problem
    except Exception as error:  # noqa: BLE001 - a crash is what this table is to show
        return f"crash: {sentence(error)}"
    if family == "dense":
        shares = [phase.coverage.get("role") for phase in report.phases.values()]
        row["role"] = min((share for share in shares if share is not None), default=None)
    else:
        named = {phase.family.id for phase in report.phases.values() if phase.family}
        row[f"{family} named"] = sorted(named)
    return OK


def traced(model: Any, name: str, family: str, out: Path) -> None:
    """One capture of both phases: the dense model and, but for "dense", its pruned counterpart."""
    import copy

    import torch

    from prunescope.taxonomy.families import family as find_family
    from prunescope.tracer.calibration.point import Point
    from prunescope.tracer.capture.request import TraceRequest
    from prunescope.tracer.capture.trace import trace
    from prunescope.tracer.capture.variants import Prepared, Variant
    from prunescope.tracer.model.layers import decoder_layers, is_known
    from prunescope.tracer.model.load import Loaded
    from prunescope.tracer.model.logits import probe
    from prunescope.tracer.pruners import family_point, pruner

    if family == "dense":
        probe(model, "as it is")
    loaded = Loaded(model=model, id=name, source="preset", notes=["random weights, toy sizes"])
    variants = [Variant(name="dense", model=model, loaded=loaded)]
    method = None if family == "dense" else family
    sparsity = 0.5
    if method is not None:
        if find_family(method).skips_layers:
            sparsity = 1 / len(decoder_layers(model)[1])
        point = family_point(method, Point(sparsity=sparsity))
        with torch.no_grad():
            applied = pruner(method).prune(copy.deepcopy(model), point)
        if not is_known(applied.model):
            probe(applied.model, f"pruned with {method}")
        record = {"method": method, "sparsity": sparsity, **applied.record}
        variants.append(
            Variant(
                name="pruned",
                model=applied.model,
                loaded=loaded,
                pruning=record,
                layer_map=applied.layer_map,
            )  # fmt: skip
        )
    request = TraceRequest(
        model=name, out=out, method=method, sparsity=sparsity, prompt_len=16, decode_steps=2,
        warmup=1, repeats=2, steps=1, device="cpu",
    )  # fmt: skip
    trace(request, peaks=PEAKS, prepared=Prepared(variants=variants))


def sentence(error: Exception) -> str:
    """One line of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Checked configs put the reason on a second line.
    reason = lines[1] if len(lines) > 1 and lines[0].endswith(":") else "".join(lines[:1])
    text = f"{type(error).__name__}: {reason}"
    return text if len(text) <= 150 else f"{text[:147]}..."


def table(rows: list[dict[str, Any]], *, skipped: list[str]) -> str:
    """The page."""
    import platform

    import torch
    import transformers

    built = [row for row in rows if not row["dense"].startswith(NOT_BUILT)]
    lines = [
        "# Architectures",
        "",
        "Every causal language model type of transformers, built from its default config made tiny "
        "(`benchmarks/shrink.py`), random weights: does it trace and analyse, dense and pruned?",
        "",
        f"Command: `python benchmarks/architectures.py`. Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, CPU, 1 thread. "
        "Prefill of 16 tokens and 2 decoded, batch 1, float32.",
        "",
        *totals(rows, built, skipped),
        "",
        "`table`: has an entry in `taxonomy/configs/architecture_table.py`; the others are pruned "
        "by the generic rules, and checked against the masked model as they are pruned. `role`: "
        "the least share of busy time with a role, of both phases.",
        "",
        f"| model type | table | role | {' | '.join(RUNS)} |",
        f"|---|---|---|{'---|' * len(RUNS)}",
    ]
    lines += [line(row) for row in rows]
    return "\n".join([*lines, ""])


def totals(
    rows: list[dict[str, Any]], built: list[dict[str, Any]], skipped: list[str]
) -> list[str]:
    """Counts, and which parts of them are crashes."""
    found = [f"- {len(rows)} model types, {len(built)} built"]
    if skipped:
        found.append(f"- not reached within the time: {', '.join(skipped)}")
    whole = sum(all(row.get(run) == OK for run in RUNS) for row in built)
    share = f" ({whole / len(built):.0%})" if built else ""
    found.append(f"- all four runs: {whole} of {len(built)}{share}")
    for run in RUNS:
        count = Counter(outcome(row.get(run)) for row in built)
        parts = ", ".join(f"{name} {number}" for name, number in sorted(count.items()))
        found.append(f"- {run}: {parts}")
    shares = [row["role"] for row in built if row.get("role") is not None]
    if shares:
        high = sum(share >= 0.95 for share in shares)
        found.append(f"- a role for 95 % of busy time or more: {high} of {len(shares)}")
    return found


def outcome(text: str | None) -> str:
    """The outcome of a cell: "ok", "a sentence", "a crash", or "not tried" where dense did not
    run."""
    if text is None:
        return "not tried"
    if text == OK:
        return OK
    return "a crash" if text.startswith("crash") else "a sentence"


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    role = row.get("role")
    cells = [
        f"`{row['name']}`",
        "yes" if row.get("table") else "",
        "" if role is None else f"{role:.0%}",
        *(str(row.get(run) or "").replace("|", "/") for run in RUNS),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
