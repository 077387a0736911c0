"""A plan of `allocate`, recovered, saved, and timed again by a plain loop in a new process.

    python benchmarks/exported.py --model FOLDER --work FOLDER      # nothing else running

The dense model is traced, a plan for `--speedup` is made from that run, pruned, trained, traced and
saved. A new process then loads both checkpoints with transformers alone, times them in turns, and
scores the same tokens. Its speedup and loss are held against the intervals of the card; then the
saved model is traced against the dense one, which closes the circle. Each stage is kept in the work
folder. Writes exported.json there, and prints it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch
from safetensors.torch import save_file

import prunescope
from prunescope.taxonomy.runs.run import read_run
from prunescope.tracer.capture.model_saving import phase_speed
from prunescope.tracer.model.load import load_model, load_tokenizer
from prunescope.tracer.quality.quality import text_passage

PHASE = "prefill"
# It knows of transformers alone: two folders, the tokens to score, and the prompt to time.
PLAIN = r"""
import json, math, random, statistics, sys, time
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

dense, saved, tokens, length, rounds, placements, threads = sys.argv[1:8]
torch.set_num_threads(int(threads))
ids = load_file(tokens)["ids"]
prompt = ids[: int(length)][None]
models = [AutoModelForCausalLM.from_pretrained(f).eval() for f in (dense, saved)]


def run(model):
    begun = time.perf_counter_ns()
    model(prompt, use_cache=True, logits_to_keep=1)
    return time.perf_counter_ns() - begun


with torch.inference_mode():
    logs, times = [], []
    for _ in range(int(placements)):
        for model in models:  # weights move in memory, as where they were first timed
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
        for model in models:
            run(model)
        taken = ([], [])
        for _ in range(int(rounds)):
            order = [0, 1]
            random.shuffle(order)
            for i in order:
                taken[i].append(run(models[i]))
        medians = [statistics.median(side) for side in taken]
        times.append(medians)
        logs.append(math.log(medians[0] / medians[1]))
    losses = []
    for model in models:
        nats, count = 0.0, 0
        for window in ids.split(1024):
            if len(window) > 1:
                logits = model(window[None], use_cache=False).logits[0, :-1].float()
                nats += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
                count += len(window) - 1
        losses.append(nats / count)
print("\nPLAIN " + json.dumps({
    "speedup": math.exp(statistics.fmean(logs)), "log_sd": statistics.stdev(logs) if len(logs) > 1 else None,
    "placements": len(logs), "median_ns": times, "nats_per_token": losses,
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


def _plain_loop(given: argparse.Namespace, saved: Path) -> dict[str, Any]:
    """Time and score both checkpoints in a new process, on the tokens that the card scored."""
    loaded = load_model(given.model, dtype="auto", device=torch.device("cpu"), attn="sdpa")
    longest = getattr(loaded.model.config, "max_position_embeddings", None)
    rows = loaded.model.get_input_embeddings().num_embeddings
    tokenizer = load_tokenizer(loaded)
    passage = text_passage(tokenizer, None, vocabulary=rows, longest=longest, seed=0)
    tokens = given.work / "tokens.safetensors"
    save_file({"ids": passage.ids.contiguous()}, tokens)
    rounds = max(1, given.repeats // given.placements)
    words = [given.prompt_len, rounds, given.placements, given.threads]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, given.model, str(saved), str(tokens), *map(str, words)],
        capture_output=True, text=True, check=True,
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
    plain = _plain_loop(given, saved)
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
        "speedup_in_interval": speed.ci95 and speed.ci95[0] <= plain["speedup"] <= speed.ci95[1],
        "loss_difference": plain["nats_per_token"][1] - (quality.nats_per_token or 0.0),
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    (given.work / "exported.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
