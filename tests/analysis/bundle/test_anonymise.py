"""Double-blind bundles: planted names, paths, hosts and keys never survive, numbers do."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.bundle.anonymise import Scrubber, local_names
from prunescope.analysis.bundle.bundle import bundle
from prunescope.analysis.bundle.secrets import cleared, names_in, suspicious
from prunescope.analysis.bundle.verify import verify
from prunescope.analysis.ops.call import MODELS
from prunescope.analysis.ops.kernel_kinds import OP_KINDS
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.escape import markdown
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import Placement, Run
from prunescope.taxonomy.runs.run_blocks import (
    DeviceEntry,
    MeasuredPeaks,
    MeasuredRates,
    ModelEntry,
    Pruning,
)
from tests.analysis.bundle.test_bundle import no_figures
from tests.analysis.run_folder import phase_run, write_pair
from tests.chrome import chrome, k, module, op, step

__all__ = ["no_figures"]  # a fixture

BF16 = "c10::BFloat16"
NAME, HOST = "carolineherschel", "comet-node17.slough.example.edu"
SECRETS = {
    "token": "hf" + "_AbCdEfGhIjKlMnOpQrStUv",
    "key": "sk-abcdefghijklmnopqrstuvwx",
    "mail": "c.herschel@observatory.example.org",
    "ip": "10.11.12.13",
    "mac": "de:ad:be:ef:00:01",
    "uuid": "GPU-8a3f2b1c-1234-5678-9abc-def012345678",
    "path": f"/home/{NAME}/secret/model.py",
    "windows": f"C:\\Users\\{NAME}\\secret\\x.cu",
    "scratch": f"/scratch/{NAME}/pruned",
    "host": HOST,
}


def trace(width: int) -> dict[str, Any]:
    """Strings of every field that a profiler fills, each with something that tells."""
    wide = op("aten::mm", [512, 256], [256, width], dtype=BF16,
              concrete=[SECRETS["path"], SECRETS["token"]],
              kernels=[k(us=width / 16, name=f"void gemm_kernel<{SECRETS['path']}>")])  # fmt: skip
    mine = op(f"{NAME}_lib::fused", [512, 256], dtype=BF16,
              kernels=[k(us=3, name=f"triton_{NAME}_fused_{SECRETS['mail']}")])  # fmt: skip
    body = [module("model.layers.0.mlp.up_proj", wide),
            module(f"model.layers.0.{NAME}_router", mine),
            module(SECRETS["key"]), module(f"upload to {SECRETS['host']}")]  # fmt: skip
    plain = chrome(step(0, *body), step(1, *body))
    plain["host_name"] = HOST
    plain["traceName"] = SECRETS["path"]
    plain["deviceProperties"][0]["uuid"] = SECRETS["uuid"]
    plain["traceEvents"] += [
        {"ph": "M", "name": "process_labels", "pid": 1, "args": {"labels": SECRETS["scratch"]}},
        {"ph": "X", "cat": "python_function", "name": SECRETS["path"], "pid": HOST, "tid": NAME,
         "ts": 1, "dur": 2, "args": {"Python id": 1, "file": SECRETS["windows"]}},
        {"ph": "X", "cat": "Trace", "name": SECRETS["ip"], "pid": 1, "tid": 1, "ts": 1, "dur": 1},
    ]  # fmt: skip
    return plain


def secrets_in_the_manifest() -> dict[str, Any]:
    return {
        "argv": ["trace", "--model", SECRETS["path"], "--sparsity", "0.5", f"--out={NAME}"],
        "model": {"id": f"{NAME}/secret-llama", "architecture": "LlamaForCausalLM", "shape": {},
                  "config": {"_name_or_path": SECRETS["path"], "hidden_size": 256,
                             "model_type": "llama", "auth_token": SECRETS["token"]},
                  "notes": [f"trained by {NAME}"], "source": SECRETS["scratch"]},
        "versions": {"torch": "2.13.0+cu126", NAME: "1.0", "transformers": SECRETS["path"],
                     "system": f"Linux {HOST}"},
        "unknown": {"user": NAME, "timing": {"cores": 2, "notes": [SECRETS["mail"]]},
                  "hook": SECRETS["ip"]},
        "seeds": {"inputs": 7},
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("anonymous")
    manifest = secrets_in_the_manifest()
    pruning = {"method": f"{NAME}.prune:fancy", "sparsity": 0.5, "knobs": {"who": NAME, "k": 3}}
    samples = {"phase_fields": {"samples_ns": [70_000, 71_000, 72_000]}}
    return write_pair(
        base / f"{NAME}-experiments", trace(704), trace(352),
        dense_run={**manifest, **samples},
        pruned_run={**manifest, **samples, "pruning": pruning, "census": census()},
    )  # fmt: skip


def census() -> dict[str, Any]:
    row = {"name": "model.layers.0.mlp.up_proj", "layer": 0, "role": "up", "shape": [352, 256],
           "zeros": 0.0, "owner": NAME}  # fmt: skip
    other = {**row, "name": f"model.layers.0.{NAME}_router.weight", "role": "router"}
    return {"matrices": [row, other], "by": SECRETS["mail"]}


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, bytes]:
    path = bundle([folder], folder.parent / "review.zip", anonymous=True)
    assert verify(path)["ok"]
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def texts(files: dict[str, bytes]) -> dict[str, str]:
    return {
        name: (gzip.decompress(data) if name.endswith(".gz") else data).decode("latin-1").lower()
        for name, data in files.items()
    }


@pytest.mark.parametrize("secret", [NAME, "herschel", "observatory", "slough", *SECRETS.values()])
def test_what_was_planted_is_in_no_file(files: dict[str, bytes], secret: str) -> None:
    for name, text in texts(files).items():
        assert secret.lower() not in text, name
        assert secret.lower().replace("\\", "\\\\") not in text, name


@pytest.mark.usefixtures("no_figures")
def test_the_plain_bundle_still_says_what_the_traces_say(folder: Path, tmp_path: Path) -> None:
    """The check above can fail: without --anonymous the kernel's name stays."""
    with zipfile.ZipFile(bundle([folder], tmp_path / "open.zip")) as archive:
        found = {n: archive.read(n) for n in archive.namelist()}
    assert any(NAME in text for text in texts(found).values())


def test_numbers_roles_and_shapes_stay(folder: Path, files: dict[str, bytes]) -> None:
    own = analyze(folder).report.phases["prefill"]
    told = json.loads(files["reports/run-1/report.json"])["phases"]["prefill"]
    assert own.ladder is not None and own.ledger is not None
    assert told["ladder"]["realised"] == own.ladder.realised
    assert [r["ns"] for r in told["ledger"]] == [r.ns for r in own.ledger]
    assert told["kinds"] == own.kinds
    (up,) = (g for g in told["gemms"] if g["role"] == "up")
    assert (up["n"], up["dense_n"], up["axis"]) == (352, 704, "N")


def test_the_manifest_keeps_the_allow_list_only(files: dict[str, bytes]) -> None:
    run = json.loads(files["runs/run-1/pruned/run.json"])
    assert run["model"]["id"] == "LlamaForCausalLM"
    assert run["model"]["config"] == {"hidden_size": 256, "model_type": "llama"}
    assert run["argv"] == ["trace", "--model", "<removed>", "--sparsity", "0.5", "<removed>"]
    assert run["versions"] == {"torch": "2.13.0+cu126"}
    assert run["pruning"]["method"] == "custom"
    assert run["pruning"]["knobs"] == {"k": 3}
    assert run["seeds"] == {"inputs": 7}
    assert run["timing"] == {"cores": 2}
    assert [m["name"] for m in run["census"]["matrices"]] == [
        "model.layers.0.mlp.up_proj", "model.layers.0.module0.weight",
    ]  # fmt: skip
    assert run["device"]["name"] == "NVIDIA H100 80GB HBM3"
    assert run["phases"]["prefill"]["samples_ns"] == [70_000, 71_000, 72_000]


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("static-m", "static-m"),
        ("static-m:0.25+static-nk-mlp", "static-m:0.25+static-nk-mlp"),
        (f"static-m+{NAME}:0.5", "custom"),
        (f"static-m:{NAME}", "custom"),
    ],
)
def test_families_are_no_secret_joined_or_not(method: str, kept: str) -> None:
    run = Run(
        variant="pruned", model={}, phases={}, dtype="bf16", device={}, versions={}, seeds={},
        argv=["--method", method], pruning=Pruning(method=method),
    )  # fmt: skip
    told = Scrubber([NAME]).run(run)
    assert told.pruning is not None
    assert told.pruning.method == kept
    assert told.argv == ["--method", "<removed>" if kept == "custom" else kept]


@pytest.mark.usefixtures("no_figures")
def test_something_suspicious_that_is_left_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scrubber, "kernel", lambda _self, name: name)
    with pytest.raises(PrunescopeError, match="not anonymous, so not written") as error:
        bundle([folder], tmp_path / "x.zip", anonymous=True)
    assert "runs/run-1/dense/prefill.trace.json.gz (" in error.value.problem
    assert NAME not in error.value.problem
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize("text", SECRETS.values())
def test_each_kind_is_seen_and_cleared_wherever_it_stands(text: str) -> None:
    for around in ("{}", "see {} there", "void f<{}>(int)", '{{"x": "{}"}}', "a={};b", "({})"):
        planted = around.format(text)
        assert suspicious("x.json", planted), planted
        assert text not in cleared(planted)
        assert not suspicious("x.json", cleared(planted)), cleared(planted)


@pytest.mark.parametrize(
    "text",
    [
        "void at::native::(anonymous namespace)::elementwise_kernel<128, 4, at::BFloat16>",
        "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_tn", "989.4 TFLOP/s, 3,350 GB/s",
        "cutlass::Kernel2<cutlass_80_tensorop_bf16>", "model.layers.3.self_attn.q_proj",
        "dense ÷ pruned; 1.33× of 2.00×, 12:30:45", "../dense/run.json", "reports/run-1/ledger.csv",
        "https://www.nvidia.com/en-us/data-center/h100/", "http://www.w3.org/2000/svg",
        '{"tokens_per_s": 4231.4, "pad_token_id": 128001}', "torch 2.13.0+cu126",
        "at::Token::something_long_enough", "<td></tr></tbody></table>", "bytes/s and FLOP/s",
        "routing/gather/scatter", "AMD EPYC 7B13", "62590122a1ab7f74cc077dfc6a1c358dce3c5d69",
    ],
)  # fmt: skip
def test_what_reports_and_traces_are_full_of_is_not_suspicious(text: str) -> None:
    assert suspicious("x.json", text) == []
    assert cleared(text) == text


def test_text_escaped_for_markdown_is_judged_as_it_reads() -> None:
    """An op in place is no path for its underscores; a path is one, escaped or not."""
    assert suspicious("report.md", markdown("aten::_index_put_impl_ and aten::_foreach_add_")) == []
    for path in (r"C:\Users\ada\_runs_", "/home/ada/_runs_"):
        assert suspicious("report.md", markdown(path)), path


def test_names_come_from_homes_addresses_and_fields() -> None:
    assert names_in("/home/ada.lovelace/x") == {"ada.lovelace", "ada"}
    assert names_in("C:\\\\Users\\\\Grace\\\\x") == {"grace"}
    assert names_in('{"host_name": "gpu-box"}') == {"gpu-box"}
    assert names_in("/home/user/x, /home/ubuntu/y, /home/gemm/z, /home/ab/z") == set()
    assert suspicious("x.txt", "kernel_of_ADA_2", {"ada"}) == ["name: AD…"]
    assert cleared("kernel_of_Ada_2, adage", {"ada"}) == "kernel_of_anon_2, adage"


def test_a_public_model_keeps_its_name() -> None:
    scrub = Scrubber(set())

    def kept(name: str) -> str:
        return str(scrub._model({"id": name, "architecture": "X"})["id"])

    assert kept("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
    assert kept("tiny-llama") == "tiny-llama"
    assert kept("smollm2-135m-instruct") == "smollm2-135m-instruct"
    assert kept("somebody/Llama-3.1-8B-pruned") == "model"
    assert kept("our-secret-model") == "model"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("LlamaForCausalLM", "LlamaForCausalLM"),
        ("GPT2LMHeadModel", "GPT2LMHeadModel"),
        ("Gemma3TextModel", "Gemma3TextModel"),
        ("AnnaSecretMLP", None),
        ("LlamaOfAnna", None),
        (None, None),
    ],
)
def test_a_class_of_the_authors_own_is_not_kept(name: str | None, kept: str | None) -> None:
    model = Scrubber(set())._model({"id": name, "architecture": name})
    assert model["architecture"] == kept
    assert model["id"] == (kept or "model")


def test_what_disturbed_a_run_stays_and_says_no_more() -> None:
    """Of samples, of profiled steps, and of the peaks, on which a warning of the report rests."""
    said = ["waits", SECRETS["path"], f"other processes of {NAME}"]
    placement = Placement(samples=1, steps=1, reasons=said, steps_disturbed=said, switches=7)
    rates = MeasuredRates(byte_per_s=1e9, disturbed=said)
    peaks = MeasuredPeaks(disturbed=said, before=rates, measurements=[rates])
    run = Run(
        variant="dense", model=ModelEntry(id="m"), device=DeviceEntry(name="a CPU", peaks=peaks),
        phases={"prefill": phase_run(placements=[placement])}, dtype="bf16", versions={}, seeds={},
        argv=[],
    )  # fmt: skip
    told = Scrubber([NAME]).run(run)
    (kept,) = told.phases["prefill"].placements
    assert (kept.reasons, kept.steps_disturbed, kept.switches) == (["waits"], ["waits"], 7)
    found = told.device.peaks
    assert found is not None and found.before is not None
    every = [
        found.disturbed,
        found.before.disturbed,
        *(one.disturbed for one in found.measurements),
    ]
    assert every == [["waits"]] * 3


def test_namespaces_of_ops_that_no_library_has_are_counted() -> None:
    scrub = Scrubber(())
    names = ["alicelib::silu", "aten::mm", "lab::fused.out", "alicelib::gate", "vllm::all_reduce",
             "void at::native::fill<float>(int)"]  # fmt: skip
    assert [scrub.kernel(name) for name in names] == [
        "op1::silu", "aten::mm", "op2::fused.out", "op1::gate", "vllm::all_reduce",
        "void at::native::fill<float>(int)",
    ]  # fmt: skip
    assert scrub.kernel("prunescope::x") == "prunescope::x"


def test_every_namespace_that_a_work_model_knows_stays() -> None:
    spaces = {name for name in {**MODELS, **OP_KINDS} if "::" in name}
    assert all(Scrubber(()).kernel(name) == name for name in spaces)


def test_names_that_an_anonymous_bundle_keeps_are_listed(tmp_path: Path) -> None:
    names = ["nn.Module: AliceRouter_3", "nn.Module: LlamaMLP_0", "nn.Module: Linear_2",
             "op1::silu", "aten::mm", "alice_prune_kernel", "triton_poi_fused_add_0"]  # fmt: skip
    trace = {"traceEvents": [{"name": name} for name in names]}
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("runs/run-1/p.trace.json.gz", gzip.compress(json.dumps(trace).encode()))
        archive.writestr("README.md", '"nn.Module: Elsewhere_0"')
    assert local_names(tmp_path / "b.zip") == {
        "module classes": ["AliceRouter"],
        "ops": ["silu"],
        "kernels": ["alice_prune_kernel"],
    }
