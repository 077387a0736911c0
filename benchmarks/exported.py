"""A plan of `allocate`, recovered, saved, and timed again by a plain loop in a new process.

    python benchmarks/exported.py --model FOLDER --work FOLDER      # nothing else running

The dense model is traced, a plan for `--speedup` is made from that run, pruned, trained, traced and
saved. New processes, one for each placement of the weights in memory, then load both checkpoints
with transformers alone, time them in turns, and score the same tokens. Their speedup and loss are
held against the intervals of the card; then the saved model is traced against the dense one, which
closes the circle. The processes keep the memory that they free, as one that serves for long does:
with glibc's defaults each step of a new one waits for its pages. Each stage is kept in the work
folder. Writes exported.json there, and prints it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch
from safetensors.torch import save_file
from scipy.stats import t as student

import prunescope
from prunescope.taxonomy.runs.run import read_run
from prunescope.tracer.capture.model_saving import phase_speed
from prunescope.tracer.model.load import load_model, load_tokenizer
from prunescope.tracer.quality.quality import text_passage

PHASE = "prefill"
# Of glibc: blocks of up to 32 MB lie on its heap, of which up to 8 GiB stay when they are freed.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
# It knows of transformers alone: two folders, the tokens to score, and the prompt to time. A
# checkpoint whose layers differ brings its modeling file.
PLAIN = r"""
import json, random, resource, statistics, sys, time
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

dense, saved, tokens, length, rounds, threads, is_scored = sys.argv[1:8]
torch.set_num_threads(int(threads))
ids = load_file(tokens)["ids"]
prompt = ids[: int(length)][None]
load = AutoModelForCausalLM.from_pretrained
models = [load(dense).eval(), load(saved, trust_remote_code=True).eval()]
faults = []


def run(model):
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    begun = time.perf_counter_ns()
    model(prompt, use_cache=True, logits_to_keep=1)
    took = time.perf_counter_ns() - begun
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages)
    return took


with torch.inference_mode():
    for model in models * 2:
        run(model)
    faults.clear()
    taken = ([], [])
    for _ in range(int(rounds)):
        order = [0, 1]
        random.shuffle(order)
        for i in order:
            taken[i].append(run(models[i]))
    losses = []
    for model in models if int(is_scored) else ():
        nats, count = 0.0, 0
        for window in ids.split(1024):
            if len(window) > 1:
                logits = model(window[None], use_cache=False).logits[0, :-1].float()
                nats += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
                count += len(window) - 1
        losses.append(nats / count)
print("\nPLAIN " + json.dumps({
    "median_ns": [statistics.median(side) for side in taken], "page_faults": statistics.median(faults),
    "nats_per_token": losses,
    "prunescope": any(name.split(".")[0] == "prunescope" for name in sys.modules),
}))
"""  # noqa: E501 - a script of its own


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--speedup", type=float, default=1.3)
    parser.add_argument("--recover", default="steps=100,rank=16")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--placements", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8, help="samples in a new process")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def _trace(given: argparse.Namespace, folder: Path, **options: Any) -> None:
    """Trace a request into a folder, unless it is there."""
    if folder.exists():
        return
    prunescope.trace(
        out=folder, phase=PHASE, prompt_len=given.prompt_len, repeats=given.repeats,
        placements=given.placements, threads=given.threads, **options,
    )  # fmt: skip


def _plain_loops(given: argparse.Namespace, saved: Path) -> dict[str, Any]:
    """Time both checkpoints in new processes, and score them on the tokens that the card scored."""
    loaded = load_model(given.model, dtype="auto", device=torch.device("cpu"), attn="sdpa")
    longest = getattr(loaded.model.config, "max_position_embeddings", None)
    rows = loaded.model.get_input_embeddings().num_embeddings
    tokenizer = load_tokenizer(loaded)
    passage = text_passage(tokenizer, None, vocabulary=rows, longest=longest, seed=0)
    tokens = given.work / "tokens.safetensors"
    save_file({"ids": passage.ids.contiguous()}, tokens)
    words = [given.model, saved, tokens, given.prompt_len, given.rounds, given.threads]
    loops = [_plain_loop([*words, int(number == 0)]) for number in range(given.placements)]
    logs = [math.log(dense / pruned) for dense, pruned in (loop["median_ns"] for loop in loops)]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    width = float(student.ppf(0.975, len(logs) - 1)) * error
    return {
        "speedup": math.exp(mean), "ci95": [math.exp(mean - width), math.exp(mean + width)],
        "nats_per_token": loops[0]["nats_per_token"], "processes": loops,
    }  # fmt: skip


def _plain_loop(words: list[Any]) -> dict[str, Any]:
    """Return what one new process measured."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *map(str, words)],
        capture_output=True, text=True, check=True, env={**os.environ, **KEPT},
    )  # fmt: skip
    values: dict[str, Any] = json.loads(done.stdout.rpartition("\nPLAIN ")[2])
    return values


def _phase(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(prunescope.analyze(folder).to_json())["phases"][PHASE]
    keys = ("role", "m", "n", "k", "count")
    gemms = sorted(str([gemm.get(key) for key in keys]) for gemm in report.get("gemms", ()))
    return {
        "family": (report["family"] or {}).get("id"),
        "flop": report["ladder"]["flop"],
        "gemms": gemms,
    }


def main() -> None:
    """Run what is not there yet, and hold the second measurement against the card."""
    given = _arguments()
    given.work.mkdir(parents=True, exist_ok=True)
    plan, saved = given.work / "plan.json", given.work / "saved"
    _trace(given, given.work / "dense", model=given.model)
    if not plan.exists():
        prunescope.allocate(
            given.model, from_run=given.work / "dense", speedup=given.speedup, phase=PHASE,
            prompt_len=given.prompt_len, out=plan,
        )  # fmt: skip
    planned = given.work / "planned"
    method = {"method": str(plan), "recover": given.recover, "save_model": saved}
    _trace(given, planned, model=given.model, allow_code=True, **method)
    plain = _plain_loops(given, saved)
    circle = given.work / "circle"
    _trace(given, circle, model=str(saved), baseline_model=given.model, perplexity=True)
    runs = {name: read_run(planned / name) for name in ("dense", "pruned")}
    speed = phase_speed(
        PHASE, runs["dense"].phases[PHASE], runs["pruned"].phases[PHASE], runs["pruned"]
    )
    quality, again = runs["pruned"].quality, read_run(circle / "pruned").quality
    assert quality is not None and again is not None
    own = [_phase(folder) for folder in (planned, circle)]
    result = {
        "target": given.speedup,
        "card": {
            "speedup": speed.speedup, "ci95": speed.ci95, "trouble": speed.trouble,
            "nats_per_token": quality.nats_per_token, "perplexity_ci95": quality.perplexity_ci95,
        },
        "plain": plain,
        "circle": {
            "nats_per_token": again.nats_per_token,
            "same_family": own[0]["family"] == own[1]["family"],
            "same_shapes": own[0]["gemms"] == own[1]["gemms"],
            "family": own[0]["family"],
        },
        "intervals_overlap": speed.ci95
        and speed.ci95[0] <= plain["ci95"][1]
        and plain["ci95"][0] <= speed.ci95[1],
        "loss_difference": plain["nats_per_token"][1] - (quality.nats_per_token or 0.0),
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    (given.work / "exported.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
