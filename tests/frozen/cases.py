"""The cases of the frozen results: the words of their commands, and the folders that they need.

The words name `traces/` (of the checkout), `data/` (the data beside the checkout) and `out/` (what
a command writes), all relative to the empty folder in which a case runs. What differs between two
runs of the same code is left out here, with the reason (`LEFT_OUT`), and never silently.
"""

from __future__ import annotations

import csv
import functools
import json
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.frozen.places import DATA, ROOT

FILES = "--jobs 1 --full --out out --format md,html,json,csv,tex"
LEFT_OUT = {
    "trace, sweep, calibrate, gemm, doctor, demo": "they measure the machine: no two runs agree",
    "allocate": "it runs a model, whose losses depend on the version of torch",
    "analyze --hta": "it needs a package that is not installed here, and takes a minute a trace",
    "png, pdf, svg, parquet, perfetto": "their bytes depend on the versions of libraries",
    "bundle, verify": "a zip holds figures, whose bytes depend on the version of matplotlib",
}


@dataclass(frozen=True)
class Case:
    """Commands whose results are frozen together.

    Attributes:
        name: The name of the digest's file.
        commands: The words of each command, without `prunescope`.
        needs_data: Whether the data beside the checkout is needed.
        prepare: A function that writes the input into the folder of the case and returns the
            commands for it; None where `commands` says all.
    """

    name: str
    commands: tuple[str, ...] = ()
    needs_data: bool = False
    prepare: Callable[[Path], list[list[str]]] | None = None

    def words(self, folder: Path) -> list[list[str]]:
        """Write the input into the folder, and return the words of each command."""
        commands = [shlex.split(command) for command in self.commands]
        return commands + (self.prepare(folder) if self.prepare is not None else [])


def _case(name: str, *commands: str) -> Case:
    return Case(name, commands, any("data/" in command for command in commands))


# Traces: each alone, and each pair in both orders.

_TRACES = {
    "traces": (
        "h100_owlv2-large", "a100_legacy_flows", "v100_legacy_graphs", "a100_training_graphs_nccl",
        "mi300x_sglang_qwen3-8b_prefilldecode", "mi300x_sglang_qwen3-8b_decode_capture_bs32",
        "h100_qwen1.5-0.5b_prefill", "b200_eager", "h100_vit", "mi300x_compile_triton",
        "mi300x_sglang_qwen3-8b_decode_graph", "mi210_gpu_only",
    ),
    "strangers": (
        "hta_a100_resnet_ddp_nccl", "kineto_v100_resnet50_train_workers0",
        "luatil_rtx3060_gpt_train_compile_graph_b4", "luatil_rtx3060_gpt_train_eager",
        "nanovllm_rtx4080l_decode_b3", "param_v100_dlrm_rank0", "param_v100_dlrm_rank5",
        "saf_a100_sam_bf16_compile_b", "tracelens_mi300x_timesformer", "truth_N4_gpt_forward_only",
        "truth_T14_mlp1536_gpt_fwd", "truth_T1_depth_timesformer_mi300", "truth_T9_lowrank_gpt_fwd",
        "wbing520_b200_tiny_decoder_train",
    ),
    "strangers2": (
        "hta_cpuonly_gloo", "hta_mtia_inference", "megatron_a100_tp8_rank0",
        "megatron_a100_tp8_rank6", "part_a100_bs128_1_cold", "part_a100_bs128_2_jit",
        "part_a100_bs128_3_warm", "part_a100_bs256_jit", "part_a100_bs512_cold", "switch_8b",
        "tracelens_gemm_03_compute_misaligned", "tracelens_mi300x_ddp_resnet18_no_pool",
        "tracelens_mi300x_flux_aiter", "tracelens_mi300x_flux_aiter_sage",
        "tracelens_sdpa_01_long_seq_low_eff", "truth_E1_layer5_minus_245us",
        "truth_E2b_no_layers_renumbered", "zoology_a100_host_only",
    ),
    "strangers3": (
        "R15b_dense", "R15b_pruned", "R48_dense", "R48_pruned", "R54_dense", "R54_pruned",
        "R60_dense", "R60_pruned", "S1_pruned", "S3_pruned", "S_dense", "aph_a4000_trace",
        "ascend_mstt_trace_view", "hta_cupti", "hta_gp100_ann", "kin_gpu_metrics",
        "kin_resnet_autograd", "stub_r50_schedule_active10", "stub_r50_without_stub",
        "tlc_test03_1", "tlc_test03_2",
    ),
    "edits": (
        "h100_qwen_activations_gathered", "h100_qwen_all_twice_as_fast", "h100_qwen_cut_off",
        "h100_qwen_qkv_fused", "h100_qwen_tp2",
    ),
}  # fmt: skip
_DENSE = "../traces/h100_qwen1.5-0.5b_prefill"
# Folder: candidate, baseline, and the sparsity that is claimed (0: none).
_PAIRS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "strangers": (
        ("truth_T1_depth_timesformer_mi300", "tracelens_mi300x_timesformer", "0.16666666666666666"),
        ("truth_T14_mlp1536_gpt_fwd", "truth_N4_gpt_forward_only", "0.1"),
        ("truth_T9_lowrank_gpt_fwd", "truth_N4_gpt_forward_only", "0.25"),
        ("truth_N4_gpt_forward_only", "luatil_rtx3060_gpt_train_eager", ""),
        ("luatil_rtx3060_gpt_train_compile_graph_b4", "luatil_rtx3060_gpt_train_eager", ""),
        ("param_v100_dlrm_rank5", "param_v100_dlrm_rank0", ""),
    ),
    "strangers2": (
        ("truth_E1_layer5_minus_245us", "switch_8b", ""),
        ("truth_E2b_no_layers_renumbered", "switch_8b", "0.2"),
        ("part_a100_bs256_jit", "part_a100_bs512_cold", ""),
        ("part_a100_bs128_2_jit", "part_a100_bs128_1_cold", ""),
        ("part_a100_bs128_3_warm", "part_a100_bs128_2_jit", ""),
        ("megatron_a100_tp8_rank6", "megatron_a100_tp8_rank0", ""),
        ("tracelens_mi300x_flux_aiter_sage", "tracelens_mi300x_flux_aiter", ""),
    ),
    "strangers3": (
        ("stub_r50_schedule_active10", "stub_r50_without_stub", ""),
        ("R15b_pruned", "R15b_dense", ""),
        ("R48_pruned", "R48_dense", "0.5"),
        ("R54_pruned", "R54_dense", ""),
        ("R60_pruned", "R60_dense", ""),
        ("S1_pruned", "S_dense", ""),
        ("S3_pruned", "S_dense", ""),
        ("tlc_test03_2", "tlc_test03_1", ""),
    ),
    "edits": tuple((name, _DENSE, "") for name in _TRACES["edits"]),
    "traces": (("v100_legacy_graphs", "a100_legacy_flows", ""),),
}


def _of_data() -> Iterator[Case]:
    for folder, names in _TRACES.items():
        for name in names:
            yield _case(f"{folder}-{name}", f"analyze data/{folder}/{name}.json.gz {FILES}")
    for folder, pairs in _PAIRS.items():
        for candidate, baseline, sparsity in pairs:
            claimed = f" --sparsity {sparsity}" if sparsity else ""
            for first, second in ((candidate, baseline), (baseline, candidate)):
                yield _case(
                    f"{folder}-{_short(first)}-against-{_short(second)}",
                    f"analyze data/{folder}/{first}.json.gz"
                    f" --baseline data/{folder}/{second}.json.gz{claimed} {FILES}",
                )


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _of_data_with_options() -> Iterator[Case]:
    traces, qwen = "data/traces", "data/traces/h100_qwen1.5-0.5b_prefill.json.gz"
    graph = f"{traces}/mi300x_sglang_qwen3-8b_decode_graph.json.gz"
    eager = f"{traces}/mi300x_sglang_qwen3-8b_decode_capture_bs32.json.gz"
    sglang = f"{traces}/mi300x_sglang_qwen3-8b_prefilldecode.json.gz"
    nsys = "data/nsys/h100x2_video_before.sqlite"
    yield _case("nsys-video", f"analyze {nsys} {FILES}")
    yield _case("nsys-video-json", f"analyze {nsys} --jobs 1 --json -")
    for name, words in {
        "graph-eager-trace": f"{graph} --eager-trace {eager}",
        "graph-eager-trace-and-model": f"{graph} --eager-trace {eager} --model qwen3-8b",
        "graph-model": f"{graph} --model qwen3-8b --batch 32 --phase decode --device mi300x",
        "graph-wrong-batch": f"{graph} --model qwen3-8b --batch 8 --phase decode",
        "graph-eager-trace-of-another": f"{graph} --eager-trace {qwen}",
        "qwen-peak-bandwidth": f"{qwen} --peak bf16=700 --bandwidth 3000",
        "qwen-other-device": f"{qwen} --device a100-80gb-sxm",
        "qwen-model": f"{qwen} --model qwen1.5-0.5b --batch 16 --prompt-len 559",
        "qwen-model-auto": f"{qwen} --model auto",
        "qwen-against-itself": f"{qwen} --baseline {qwen} --sparsity 0.5",
        "qwen-phase-pattern": f"{qwen} --phase-pattern ProfilerStep",
        "qwen-unknown-device": f"{qwen} --device h1000",
        "sglang-model": f"{sglang} --model qwen3-8b --batch 15 --prompt-len 1024",
        "b200-model": f"{traces}/b200_eager.json.gz --model gpt-oss-120b --device b200",
        "triton-eager-trace": f"{traces}/mi300x_compile_triton.json.gz --eager-trace {qwen}",
        "mi210-model": f"{traces}/mi210_gpu_only.json.gz --model auto --device mi210",
        "sglang-against-graph": f"{sglang} --baseline {graph}",
        "vit-against-qwen": f"{traces}/h100_vit.json.gz --baseline {qwen}",
        "megatron-ranks": "data/strangers2/megatron_a100_tp8_rank0.json.gz"
        " data/strangers2/megatron_a100_tp8_rank6.json.gz",
    }.items():
        yield _case(f"options-{name}", f"analyze {words} {FILES}")
    tables = "--format md,html,json,csv,tex --out out"
    strangers3 = " ".join(f"data/strangers3/{name}.json.gz" for name in ("S1_pruned", "S3_pruned"))
    dense = "--baseline data/strangers3/S_dense.json.gz"
    for jobs in (1, 2):
        yield _case(
            f"compare-S-jobs-{jobs}", f"analyze {strangers3} {dense} --jobs {jobs} {tables}"
        )
    yield _case("predict-from-qwen",
                f"predict --from-run {qwen} --sparsity 0.5 --json out/r.json",
                f"predict --from-run {qwen} --method static-nk --explain")  # fmt: skip


# The traces of the checkout, and what is predicted without any.


def _of_checkout() -> Iterator[Case]:
    runs = ("tiny-static-k-mask", "tiny-static-m", "tiny-static-nk")
    for name in runs:
        run = f"traces/{name}"
        yield _case(f"run-{name}", f"analyze {run} {FILES}")
        yield _case(f"run-{name}-dense-alone", f"analyze {run}/dense {FILES}")
        yield _case(f"run-{name}-swapped",
                    f"analyze {run}/dense --baseline {run}/pruned {FILES}")  # fmt: skip
    nk = "traces/tiny-static-nk"
    yield _case("run-short-and-json", f"analyze {nk} --out out", f"analyze {nk} --out out --json -",
                f"analyze {nk} --out out --phase decode --json -")  # fmt: skip
    yield _case("run-other-sparsity", f"analyze {nk} --sparsity 0.25 {FILES}")
    yield _case("run-other-baseline",
                f"analyze traces/tiny-static-m --baseline {nk}/dense {FILES}")  # fmt: skip
    yield _case("run-label-prefix", f"analyze {nk} --out out --format tex --label-prefix one")
    stories = "traces/stories"
    pairs = [
        ("same-waves", "pruned.json.gz", "dense.json.gz"),
        ("same-waves", "whole-waves.json.gz", "dense.json.gz"),
        ("nsys", "pruned.sqlite", "dense.sqlite"),
        ("merged-tokens", "merged-1.json.gz", "dense-1.json.gz"),
        ("merged-tokens", "merged-64.json.gz", "dense-64.json.gz"),
        ("merged-tokens", "once-1.json.gz", "dense-1.json.gz"),
        ("merged-tokens", "once-64.json.gz", "dense-64.json.gz"),
        ("masks", "masked.json.gz", "dense.json.gz"),
        ("masks", "removed.json.gz", "dense.json.gz"),
        ("odd-width", "pruned.json.gz", "dense.json.gz"),
        ("odd-width", "rounded.json.gz", "dense.json.gz"),
    ]
    for folder, candidate, baseline in pairs:
        for first, second in ((candidate, baseline), (baseline, candidate)):
            names = "-against-".join(name.partition(".")[0] for name in (first, second))
            yield _case(f"story-{folder}-{names}",
                        f"analyze {stories}/{folder}/{first}"
                        f" --baseline {stories}/{folder}/{second} --sparsity 0.25"
                        f" {FILES}")  # fmt: skip
    slow = f"{stories}/slow-rank"
    ranks = f"analyze {slow}/pruned --baseline {slow}/dense --out out --format md,html,json,csv,tex"
    yield _case("story-slow-rank-jobs-1", f"{ranks} --jobs 1")
    yield _case("story-slow-rank-jobs-2", f"{ranks} --jobs 2")
    yield _case("story-slow-rank-swapped",
                f"analyze {slow}/dense --baseline {slow}/pruned {FILES}")  # fmt: skip
    tables = "--out out --format md,html,json,csv,tex"
    three = " ".join(f"traces/{name}" for name in runs)
    yield _case("compare-runs-jobs-1", f"analyze {three} --jobs 1 {tables}")
    yield _case("compare-runs-jobs-2", f"analyze {three} --jobs 2 {tables}")
    yield _case("compare-runs-json", f"analyze {three} --jobs 1 --out out --json -")
    masks = f"{stories}/masks"
    yield _case("compare-masks",
                f"analyze {masks}/masked.json.gz {masks}/removed.json.gz"
                f" --baseline {masks}/dense.json.gz --sparsity 0.5 --jobs 1 {tables}")  # fmt: skip
    yield _case("compare-one-is-missing", f"analyze {nk} traces/none --jobs 1 {tables}")
    yield _case("check-rules", *(
        f"check {nk} {rules} --junit out.xml --json -" for rules in (
            "-r 'prefill.realised >= 1.2' -r 'family == static-nk'",
            "-r 'decode.ledger.added_work <= 5%' -r 'findings.critical == 0' --strict",
            "-r 'prefill.realised >= 9'", "-r 'nothing >= 1'", "-r 'family == static-x'",
            "-r 'share_of_bound >= 0.5' -r 'wall <= 1' -r 'sparsity.flop >= 0.1'",
        )))  # fmt: skip
    yield _case("check-people", f"check {nk} -r 'prefill.realised >= 1.2' -r 'decode.wall <= 1'",
                f"check {masks}/removed.json.gz --baseline {masks}/dense.json.gz"
                " -r 'realised >= 1.1'")  # fmt: skip
    yield _case("lists-families", "families", "families --json -",
                "families --architecture qwen3-30b-a3b",
                "families --architecture opt-1.3b --json -")  # fmt: skip
    yield _case("lists-methods", *(f"families --method {name}" for name in (
        "StreamingLLM", "SliceGPT", "wanda-2:4", "FLAP", "REAP", "no-such-method")))  # fmt: skip
    yield _case("lists-devices", "devices", "devices --json -")
    yield _case("help", "", "--help", *(f"{name} --help" for name in (
        "analyze", "predict", "check", "pareto", "trace", "sweep", "allocate",
        "gemm")))  # fmt: skip
    yield _case("mistakes", "analyze", "analyze traces/none", "analyze traces/README.md",
                f"analyze {nk} --format docx --out out", f"analyze {nk} --out out --sparsity 2",
                "analyze traces/stories/masks/dense.json.gz --format md", "predict",
                "predict --model no-such-model --device h100-sxm",
                "predict --model llama-3.1-8b --device cuda", "pareto traces", "check traces -r x",
                "predict --model llama-3.1-8b --device h100-sxm --method static-x")  # fmt: skip


_ON_H100 = "--model llama-3.1-8b --device h100-sxm"


def _of_predictions() -> Iterator[Case]:
    families = (
        "dynamic-m", "dynamic-nk", "static-k-24", "static-k-lowrank", "static-m", "static-nk",
        "static-nk-cross", "dynamic-depth", "dynamic-k", "dynamic-width", "kv-evict",
        "static-k-mask", "static-nk-heads", "static-nk-mlp", "token-drop",
    )  # fmt: skip
    for family in families:
        yield _case(f"predict-{family}",
                    f"predict {_ON_H100} --method {family} --sparsity 0.5 --explain",
                    f"predict {_ON_H100} --method {family} --sparsity 0.25,0.5 --batch 8"
                    " --prompt-len 2048 --json -")  # fmt: skip
    experts = "--model qwen3-30b-a3b --device h100-sxm"
    for name, words in {
        "experts": f"{experts} --method REAP --sparsity 0.5 --batch 16 --explain",
        "topk": f"{experts} --method static-topk --sparsity 0.5 --routing zipf:1 --explain",
        "experts-parallel": f"{experts} --method static-experts --sparsity 0.5 --tp 4 --ep 4",
        "dense": f"{_ON_H100} --batch 4",
        "grid": f"{_ON_H100} --method slicegpt,mixture-of-depths --sparsity 0.1:0.7:0.2 --out out",
        "request": f"{_ON_H100} --method wanda-2:4 --sparsity 0.5 --batch 8 --prompt-len 1024"
        " --new-tokens 256 --explain",
        "runtime": f"{_ON_H100} --method static-nk --runtime vllm --dtype fp8 --new-tokens 64",
        "pipeline": f"{_ON_H100} --method static-m --tp 2 --pp 2 --chunk 256 --new-tokens 16",
        "rank": f"--rank {_ON_H100} --workload chat",
        "rank-objectives": "--rank --model llama-3.3-70b --device h100-sxm --tp 8 --runtime vllm "
        "--dtype fp8 --prompt-len 8192 --new-tokens 256 --ttft-ms 2000 --tpot-ms 50",
        "rank-rag": "--rank --model qwen3-8b --device mi300x --workload rag",
        "rank-experts": f"--rank {experts} --workload batch",
        "peaks": "--model qwen3-4b --peak bf16=500 --bandwidth 2000 --method static-nk-mlp",
        "from-run": "--from-run traces/tiny-static-nk/dense --sparsity 0.5"
        " --method static-nk,static-m",
        "from-trace": "--from-run traces/stories/masks/dense.json.gz --sparsity 0.5",
        "pruned-model": "--model qwen3-8b --pruned-model qwen3-4b --device a100-80gb-sxm",
        "forward": "--model opt-1.3b --device rtx-4090 --phase forward --method static-nk",
        "without": f"{_ON_H100} --method static-nk --sparsity 0.3 --without tile_wave"
        " --without launch --launch eager --host-us-per-op 9",
    }.items():
        files = " --json out/r.json" if "--out" not in words else ""
        yield _case(f"predict-{name}", f"predict {words}{files}")
    published = ROOT / "benchmarks" / "published_commands.csv"
    with published.open(newline="") as file:
        for name, commands in _by_source(file, "options").items():
            yield _case(f"published-{name}", *(f"predict {words} --json -" for words in commands))


def _of_published_cells() -> Iterator[Case]:
    """One case a publication; where the data is absent, the names of cases are those of digests."""
    for folder in ("published2", "published3"):
        cells = DATA / folder / "cells.csv"
        if not cells.is_file():
            digests = Path(__file__).parent / "digests"
            for path in sorted(digests.glob(f"{folder}-*.json")):
                yield Case(path.stem, needs_data=True)
            continue
        with cells.open(newline="") as file:
            for name, commands in _by_source(file, "command").items():
                placed = [
                    words.replace("@configs/", f"data/{folder}/configs/") for words in commands
                ]
                yield Case(f"{folder}-{name}", tuple(placed), needs_data=True)


def _by_source(rows: Iterator[str] | csv.Any, column: str) -> dict[str, list[str]]:
    """Return the texts of a column by the publication, whose name fits into a file's name."""
    grouped: dict[str, list[str]] = {}
    for row in csv.DictReader(rows):
        words = "".join(c if c.isalnum() else " " for c in row["source"].lower()).split()
        grouped.setdefault("-".join(words[:4]), []).append(row[column])
    return grouped


# A sweep whose runs are the pairs of traces/, with losses that are made up.


def _sweep(folder: Path) -> None:
    results = []
    for number, (name, sparsity, loss) in enumerate(
        (("static-nk", 0.5, 0.31), ("static-m", 0.5, 0.12), ("static-k-mask", 0.5, 0.05),
         ("static-nk", 0.25, 0.08))
    ):  # fmt: skip
        shutil.copytree(ROOT / "traces" / f"tiny-{name}", folder / "sweep" / "runs" / f"r{number}")
        path = folder / "sweep" / "runs" / f"r{number}" / "pruned" / "run.json"
        manifest = json.loads(path.read_text())
        manifest["quality"] = {
            "perplexity_rel": loss, "perplexity_rel_ci95": [loss - 0.02, loss + 0.03],
            "kl": loss / 2, "agreement": 1 - loss, "perplexity": 10 * (1 + loss),
            "dense_perplexity": 10.0, "text": {"source": "a text", "tokens": 900},
        }  # fmt: skip
        manifest["pruning"]["sparsity"] = sparsity
        path.write_text(json.dumps(manifest))
        results += [
            {"id": f"r{number}-{phase}", "family": name, "sparsity": sparsity, "phase": phase,
             "batch": 1, "prompt_len": 64, "draw": 0, "state": "done", "error": None,
             "run": f"runs/r{number}/pruned"} for phase in ("prefill", "decode")
        ]  # fmt: skip
    results.append({**results[0], "id": "failed", "state": "failed", "error": "why", "run": None})
    text = json.dumps({"schema": 1, "results": results})
    (folder / "sweep" / "sweep.json").write_text(text)


def _of_sweep(*commands: str) -> Callable[[Path], list[list[str]]]:
    def prepare(folder: Path) -> list[list[str]]:
        _sweep(folder)
        return [shlex.split(command) for command in commands]

    return prepare


def _of_sweeps() -> Iterator[Case]:
    for name, command in {
        "pareto": "pareto sweep --out out --json out/pareto.json",
        "pareto-paper": "pareto sweep --out out --figures paper",
        "reproduce-sweep": "reproduce sweep --out out --json out/r.json",
        "rank-at-equal-loss": "predict --rank --model tiny-llama --device h100-sxm --prompt-len 64"
        " --losses sweep --loss 0.2 --json out/r.json",
        "compare-sweep": "analyze sweep --jobs 1 --out out --format md,html,json,csv,tex",
    }.items():
        yield Case(f"sweep-{name}", prepare=_of_sweep(command))
    yield _case("reproduce-paper", "reproduce --against paper --json out/r.json")


# Hostile files: few of each kind.

_HOSTILE = {
    "cuts": ("cut at byte 1", "cut at byte 1009", "cut at byte 4846", "cut at byte 12511",
             "gzip cut at byte 300", "zip cut at byte 726", "gzip with byte 654 flipped"),
    "not-traces": ("not a trace: empty", "not a trace: a list", "not a trace: events null",
                   "not a trace: html", "not a trace: lfs pointer", "not a trace: deep lists",
                   "not a trace: two documents"),
    "zips": ("zip holds '../../evil.json'", "zip without traces", "zip of two",
             "zip lies about its crc", "zip with a link"),
    "places": ("a folder called t.json", "a link to nothing", "a link to a folder",
               "a folder of odd traces", "an empty folder", "a pipe"),
    "ids": ("all kernels have one correlation", "all ops have one External id",
            "no kernel has a launch", "kernels on ten streams", "kernels on ten devices",
            "ids are texts", "flows in a circle"),
    "clocks": ("every event at once", "every event without length", "the clock runs back",
               "the order is turned", "every event twice", "no step", "steps in steps",
               "a gap of 70 years"),
    "dims": ("dims of aten::mm are zeros", "dims of aten::mm are negative",
             "dims of aten::mm are huge", "dims of aten::silu are none",
             "dims of aten::mm are texts", "a grid is zero"),
    "devices": ("deviceProperties are null", "deviceProperties are of an unknown name",
                "deviceProperties are of no SMs"),
    "names": ("names of a trace: everything", "names of a trace: html", "names of a trace: latex",
              "names of a trace: markdown", "names of a trace: a path", "names of modules",
              "half surrogates in names"),
    "manifests": ("run.json is empty", "run.json is another schema", "run.json: loss is NaN",
                  "texts of run.json, name of a phase: everything", "a map to one layer",
                  "run.json: phases.prefill.positions.0 is a half",
                  "run.json: census is a list of texts"),
    "ways-out": ("trace is '/etc/passwd'", "trace is 'a/b'", "the twin is '/etc/run.json'",
                 "the trace is a link to /etc/passwd", "run.json is a link to run.json"),
}  # fmt: skip


def _of_hostile(names: tuple[str, ...]) -> Callable[[Path], list[list[str]]]:
    def prepare(folder: Path) -> list[list[str]]:
        from tests.hostile.corpus import QUICK

        commands = []
        for number, name in enumerate(names):
            place = folder / f"input-{number}"
            place.mkdir()
            subject = QUICK[name].write(place)
            commands.append(["analyze", str(subject.relative_to(folder)), *FILES.split()])
        return commands

    return prepare


@functools.cache
def cases() -> dict[str, Case]:
    """Return all cases by name, those that take longest first."""
    hostile = (
        Case(f"hostile-{name}", prepare=_of_hostile(inputs)) for name, inputs in _HOSTILE.items()
    )
    listed = [
        *_of_data(), *_of_data_with_options(), *_of_published_cells(), *_of_predictions(),
        *_of_sweeps(), *hostile, *_of_checkout(),
    ]  # fmt: skip
    named = {case.name: case for case in listed}
    twice = [name for name, number in Counter(case.name for case in listed).items() if number > 1]
    assert not twice, f"several cases have one name: {twice}"
    return named
