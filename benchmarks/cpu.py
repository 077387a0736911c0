"""Predict the speedups of three models on this CPU, then measure them.

    python benchmarks/cpu.py --out traces/cpu         the same command resumes
    python benchmarks/evidence.py traces/cpu cpu      keeps its runs for `make pages`

In: the sweeps of benchmarks/cpu/*.yaml. Each model is predicted twice before any pruned one runs:
from the calibration of this machine (`--device cpu`) and from its dense run (`--from-run`).
Out: a folder with the calibration, and for each model its predictions, its dense run and its sweep.
Nothing else may run on that core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import msgspec
import yaml
from cpu_page import Calibration, DenseTime, Guess, Machine, Model, Point, Results, lines
from evidence import rounded

import prunescope
from prunescope.analysis.pareto.pareto import judge
from prunescope.taxonomy.processor import cpu_name
from prunescope.taxonomy.runs.run import read_run

SWEEPS = ROOT / "benchmarks" / "cpu"
RESULTS = SWEEPS.with_suffix(".json")
_PHASES = ("prefill", "decode")


def main() -> None:
    """Measure what is left of the models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "traces" / "cpu")
    parser.add_argument("--only", nargs="+", metavar="MODEL")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    sweeps = [(p, s) for p, s in _settings() if not options.only or p.stem in options.only]
    _calibrate(options.out / "calibration.json", sweeps[0][1]["threads"])
    for path, sweep in sweeps:
        _predict_and_measure(options.out / path.stem, path, sweep)


def write(runs: Path) -> None:
    """Write the numbers and the page from the folder of the measurement."""
    results = msgspec.json.encode(rounded(msgspec.to_builtins(_collect(runs))))
    RESULTS.write_bytes(msgspec.json.format(results, indent=1) + b"\n")
    RESULTS.with_suffix(".md").write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the text of the page, which follows from cpu.json."""
    results = msgspec.json.decode(RESULTS.read_bytes(), type=Results)
    return "\n".join(lines(results)) + "\n"


def _run(*words: object, threads: int, cwd: Path | None = None) -> None:
    """Run a command of prunescope with so many threads, in a folder."""
    sys.stderr.write(f"prunescope {' '.join(map(str, words))}\n")
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": _python_path()}
    subprocess.run(
        [sys.executable, "-m", "prunescope", *map(str, words)], env=env, cwd=cwd, check=True
    )


def _python_path() -> str:
    """Return the folders of imports, with this checkout first."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _calibrate(file: Path, threads: int) -> None:
    """Calibrate this machine once; the newest calibration is kept, and the runs hold it."""
    if not file.exists():
        _run("calibrate", "--device", "cpu", "--out", file, threads=threads)


def _predict_and_measure(folder: Path, path: Path, sweep: dict[str, Any]) -> None:
    """Trace a dense model, predict its prunings, and only then run them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = SWEEPS / path.stem / "config.json"
    is_saved = config.is_file()
    model = str(_saved(folder / path.stem, config)) if is_saved else sweep["model"]
    if not (folder / "dense").exists():
        _run("trace", "--model", model, "--prompt-len", sweep["prompt_lens"][0], "--decode-steps",
             sweep["decode_steps"], "--dtype", sweep["dtype"], "--seed", sweep["seed"],
             "--threads", sweep["threads"], "--out", folder / "dense",
             threads=sweep["threads"])  # fmt: skip
    predicted = folder / "predicted.json"
    if not predicted.exists():
        if (folder / "sweep").exists():
            raise SystemExit(f"{folder.name} ran before it was predicted: remove its sweep")
        guesses = {"device": _from_device(model, sweep), "from_run": _from_run(folder, sweep)}
        predicted.write_text(json.dumps(guesses, indent=1), encoding="utf-8")
    # A saved model by its place in the folder: evidence names no folder of a machine.
    settings = {**sweep, "model": f"./{path.stem}" if is_saved else model}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    _run("sweep", "sweep.yaml", "--out", "sweep", threads=sweep["threads"], cwd=folder)


def _saved(folder: Path, config: Path) -> Path:
    """Return the folder of a model of this config with random weights, made once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not folder.exists():
        torch.manual_seed(0)
        loaded = AutoConfig.from_pretrained(config.parent)
        AutoModelForCausalLM.from_config(loaded).eval().save_pretrained(folder)
    return folder


def _request(sweep: dict[str, Any]) -> dict[str, Any]:
    """Return the options that both predictions share."""
    return {"method": sweep["families"], "sparsity": sweep["sparsities"]}


def _from_device(model: str, sweep: dict[str, Any]) -> dict[str, Any]:
    """Return what the calibration of this machine predicts, by phase: points and the dense ms."""
    predicted = prunescope.predict(
        model, device="cpu", dtype=sweep["dtype"], prompt_len=sweep["prompt_lens"][0], attn="sdpa",
        **_request(sweep),
    )  # fmt: skip
    phases: dict[str, Any] = {phase: {"points": []} for phase in _PHASES}
    for point in predicted["points"]:
        for phase, values in point["phases"].items():
            expected = values["predicted"]["execution"]
            phases[phase]["dense_ms"] = expected["dense_ns"] / 1e6
            phases[phase]["points"].append(
                [point["method"], point["sparsity"], expected["speedup"], *expected["range"]]
            )
    return phases


def _from_run(folder: Path, sweep: dict[str, Any]) -> dict[str, Any]:
    """Return what the dense run predicts, by phase."""
    predicted = prunescope.predict(from_run=folder / "dense", **_request(sweep))
    return {
        phase: {
            "points": [
                [row["id"], row["sparsity"], row["expected"], *row["range"]]
                for row in values["families"]
            ]
        }
        for phase, values in predicted["phases"].items()
    }


def _settings() -> list[tuple[Path, dict[str, Any]]]:
    """Return the file of each sweep and what it says."""
    paths = sorted(SWEEPS.glob("*.yaml"))
    return [(path, yaml.safe_load(path.read_text(encoding="utf-8"))) for path in paths]


def _collect(out: Path) -> Results:
    """Return the predictions and measurements of all models."""
    sweeps = _settings()
    first = next(iter(sorted((out / sweeps[0][0].stem / "sweep" / "runs").glob("*/dense"))))
    run = read_run(first)
    entry = json.loads((out / "calibration.json").read_bytes())
    measured = entry["measured"]
    return Results(
        machine=Machine(
            cpu=cpu_name(),
            isa=str(run.device.properties.get("isa")),
            cores=int(run.device.properties["cores"]),
            threads=run.device.threads or 0,
            versions={name: run.versions[name] for name in ("python", "torch", "transformers")},
        ),
        settings={k: v for k, v in sweeps[0][1].items() if k not in ("model", "dtype")},
        calibration=Calibration(
            flop_per_s=entry["dense_flop_per_s"],
            byte_per_s=entry["byte_per_s"],
            call_ns=measured["dispatch_ns"],
            op_ns=measured["op_ns"],
            forward_ns=measured["forward_ns"],
            disturbed=measured.get("disturbed", []),
        ),
        models=[_model_of(out / path.stem, path.stem, sweep) for path, sweep in sweeps],
    )


def _model_of(folder: Path, name: str, sweep: dict[str, Any]) -> Model:
    """Return the points of a model."""
    guesses = json.loads((folder / "predicted.json").read_bytes())
    dense = prunescope.analyze(folder / "dense")
    return Model(
        name=name,
        dtype=sweep["dtype"],
        dense={
            phase: DenseTime(
                predicted_ms=guesses["device"][phase]["dense_ms"],
                measured_ms=dense.phases[phase].unprofiled_ns.median / 1e6,
            )
            for phase in _PHASES
        },
        points=list(_points(folder, guesses)),
    )


def _points(folder: Path, guesses: dict[str, Any]) -> Iterator[Point]:
    """Yield each measured point with its predictions."""
    judged = judge(folder / "sweep")
    for phase in _PHASES:
        for point in judged.phases[phase].points:
            if point.realised_ci95 is None:
                continue
            key = [point.family, point.sparsity]
            low, high = point.realised_ci95
            yield Point(
                family=str(point.family),
                sparsity=float(point.sparsity or 0.0),
                phase=phase,
                from_run=_guess(guesses["from_run"][phase]["points"], key),
                device=_guess(guesses["device"][phase]["points"], key),
                measured=point.realised,
                ci95=(low, high),
                valid=point.timing_valid,
            )


def _guess(rows: list[list[Any]], key: list[Any]) -> Guess:
    """Return the prediction of a family at a sparsity."""
    row = next(row for row in rows if row[:2] == key)
    return Guess(speedup=row[2], range=(row[3], row[4]))


if __name__ == "__main__":
    main()
