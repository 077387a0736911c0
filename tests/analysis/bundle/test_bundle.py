"""Bundles: the same bytes twice, verified on any checkout, and no byte can change unseen."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.bundle.archive import read_zip, zip_bytes
from prunescope.analysis.bundle.bundle import bundle, sums_text
from prunescope.analysis.bundle.trim import trim
from prunescope.analysis.bundle.verify import verify
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report, to_json
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.run_folder import write_pair
from tests.chrome import chrome, gap, k, module, op, save, step
from tests.hostile.case import TEXT_FORMATS

BF16 = "c10::BFloat16"


def trace(width: int) -> dict[str, Any]:
    wide = op("aten::mm", [512, 256], [256, width], dtype=BF16, kernels=[k(us=width / 16)])
    body = [module("model.layers.0.mlp.up_proj", wide), gap(us=4, launch=True)]
    return chrome(step(0, *body, wide), step(1, *body, wide))


def make(folder: Path) -> Path:
    fields = {"phase_fields": {"samples_ns": [90_000, 91_000, 92_000]}}
    pruning = {"method": "static-nk-mlp", "sparsity": 0.5, "selection": "random"}
    pruned = {"phase_fields": {"samples_ns": [60_000, 61_000, 62_000]}, "pruning": pruning}
    return write_pair(folder, trace(704), trace(352), dense_run=fields, pruned_run=pruned)


@cache
def _bundled(folder: Path) -> Path:
    folder.mkdir()
    return bundle([make(folder / "my run")], folder / "evidence.zip")


@pytest.fixture
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle beside the run that it is of, one for the tests of all modules."""
    return _bundled(tmp_path_factory.getbasetemp() / "evidence")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles without pictures, which take two thirds of the time of one."""
    monkeypatch.setattr("prunescope.analysis.bundle.bundle.FORMATS", TEXT_FORMATS)


def failed(path: Path) -> dict[str, str]:
    result = verify(path)
    assert result["ok"] is not bool(result["failed"])
    return {one["file"]: one["why"] for one in result["failed"]}


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sign(files: dict[str, bytes]) -> None:
    """Make the checksums of all files but run.json and traces anew, as a forger would."""
    index = json.loads(files["bundle.json"])
    index["outputs"] = {
        name: hashlib.sha256(files[name]).hexdigest()
        for name in sorted(files)
        if name not in (*index["inputs"], "bundle.json", "SHA256SUMS")
    }
    files["bundle.json"] = (json.dumps(index, indent=1) + "\n").encode()
    files["SHA256SUMS"] = sums_text(files).encode()


def rewritten(evidence: Path, out: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The bundle with changed files, and with sums in it and in bundle.json that know of it."""
    files = members(evidence)
    change(files)
    sign(files)
    out.write_bytes(zip_bytes(files))
    return out


def test_it_holds_what_an_artifact_needs(evidence: Path) -> None:
    files = members(evidence)
    assert {
        "README.md", "CITATION.cff", "SHA256SUMS", "bundle.json", "environment.json", "samples.csv",
        "runs/my-run/dense/run.json", "runs/my-run/pruned/run.json",
        "runs/my-run/dense/prefill.trace.json.gz", "runs/my-run/pruned/prefill.trace.json.gz",
        "reports/my-run/report.json", "reports/my-run/report.md", "reports/my-run/report.html",
        "reports/my-run/report.tex", "reports/my-run/ledger.csv", "reports/my-run/ladder.csv",
        "reports/my-run/gemms.csv", "reports/my-run/data-dictionary.csv",
        "reports/my-run/ledger-prefill.svg", "reports/my-run/ladder-prefill.png",
        "reports/my-run/trace-prefill.perfetto.json.gz",
    } <= set(files)  # fmt: skip
    assert b"my-run,pruned,prefill,0,60000" in files["samples.csv"]
    text = files["README.md"].decode()
    assert "`prunescope analyze runs/my-run --out rebuilt/my-run --format csv,md`" in text
    assert "1.49× realised" in text  # 91 over 61 us
    assert "speed, not quality" in text
    for line in files["SHA256SUMS"].decode().splitlines():
        digest, name = line.split("  ", 1)
        assert hashlib.sha256(files[name]).hexdigest() == digest


def test_analyze_of_a_bundle_names_the_command_that_reads_it(evidence: Path) -> None:
    with pytest.raises(PrunescopeError, match="is a bundle of runs") as error:
        analyze(evidence)
    assert f"prunescope verify {evidence.name}" in str(error.value.hint)


def test_it_verifies_and_the_unpacked_run_gives_the_same_report(
    evidence: Path, tmp_path: Path
) -> None:
    assert failed(evidence) == {}
    with zipfile.ZipFile(evidence) as archive:
        archive.extractall(tmp_path)
    rebuilt = to_json(analyze(tmp_path / "runs" / "my-run").report)
    assert rebuilt == (tmp_path / "reports" / "my-run" / "report.json").read_bytes()


@pytest.mark.usefixtures("no_figures")
def test_the_numbers_are_those_of_the_run_itself(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    own = analyze(folder).report
    files = members(bundle([folder], tmp_path / "e.zip"))
    told = json.loads(files["reports/run/report.json"])
    mine = json.loads(to_json(own))
    assert told["phases"] == mine["phases"]


def test_the_same_runs_give_the_same_bytes(evidence: Path, tmp_path: Path) -> None:
    first = evidence.read_bytes()
    pruned = evidence.parent / "my run" / "pruned"
    assert bundle([pruned], tmp_path / "b.zip").read_bytes() == first
    assert all(i.date_time == (1980, 1, 1, 0, 0, 0)
               for i in zipfile.ZipFile(io.BytesIO(first)).infolist())  # fmt: skip


@pytest.mark.usefixtures("no_figures")
def test_a_flipped_byte_anywhere_fails_with_the_name_of_its_file(tmp_path: Path) -> None:
    """A byte of every file's content, of its header, and of the directory behind all files."""
    evidence = bundle([make(tmp_path / "run")], tmp_path / "evidence.zip")
    data = evidence.read_bytes()
    with zipfile.ZipFile(evidence) as archive:
        infos, end = archive.infolist(), archive.start_dir
    target = tmp_path / "x.zip"

    def wrong(at: int) -> dict[str, str]:
        broken = bytearray(data)
        broken[at] ^= 1
        target.write_bytes(broken)
        return {**read_zip(target).failed} or failed(target)

    for info in infos:
        begin = info.header_offset + 30 + len(info.filename)
        assert info.filename in wrong(begin + info.file_size // 2)
        assert set(wrong(info.header_offset + 11)) & {info.filename, "x.zip"}
    for at in range(end, len(data), 7):
        assert wrong(at), at


def test_a_file_that_is_cut_off_or_no_zip(evidence: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes(evidence.read_bytes()[:-100])
    assert "cut.zip" in failed(tmp_path / "cut.zip")
    (tmp_path / "no.zip").write_text("hello")
    with pytest.raises(PrunescopeError, match="no readable zip"):
        verify(tmp_path / "no.zip")
    with pytest.raises(PrunescopeError, match="is a folder"):
        verify(tmp_path)
    with pytest.raises(PrunescopeError, match="no such file"):
        verify(tmp_path / "absent.zip")


def test_files_missing_from_and_added_to_the_sums(evidence: Path, tmp_path: Path) -> None:
    files = members(evidence)
    del files["samples.csv"]
    files["more.txt"] = b"x"
    (tmp_path / "x.zip").write_bytes(zip_bytes(files))
    wrong = failed(tmp_path / "x.zip")
    assert wrong["samples.csv"] == "listed in SHA256SUMS and missing"
    assert wrong["more.txt"] == "not listed in SHA256SUMS"


def test_numbers_edited_with_their_sums_are_seen_by_the_rebuild(
    evidence: Path, tmp_path: Path
) -> None:
    def faster(files: dict[str, bytes]) -> None:
        report = json.loads(files["reports/my-run/report.json"])
        report["phases"]["prefill"]["ladder"]["realised"] *= 1.01
        files["reports/my-run/report.json"] = json.dumps(report).encode()

    def told(files: dict[str, bytes]) -> None:
        text = files["reports/my-run/report.md"].replace(b"1.49", b"1.94")
        files["reports/my-run/report.md"] = text

    def renamed(files: dict[str, bytes]) -> None:
        old = files["reports/my-run/report.json"]
        files["reports/my-run/report.json"] = old.replace(b'"static-nk-mlp"', b'"static-nk"')

    wrong = failed(rewritten(evidence, tmp_path / "a.zip", faster))
    assert "ladder.realised" in wrong["reports/my-run/report.json"]
    assert failed(rewritten(evidence, tmp_path / "b.zip", told)) == {
        "reports/my-run/report.md": "not what its traces give"
    }
    wrong = failed(rewritten(evidence, tmp_path / "c.zip", renamed))
    assert list(wrong) == ["reports/my-run/report.json"]


EDITS = {
    "samples.csv": (b"61000", b"51000"),
    "README.md": (b"## Limitations", b"## No limitations"),
    "environment.json": (b'"dtype"', b'"type"'),
    "CITATION.cff": (b"The prunescope authors", b"A. N. Other"),
}
DRAWN = "reports/my-run/ledger-prefill.svg"


def test_files_beside_the_reports_edited_with_their_sums_are_seen(
    evidence: Path, tmp_path: Path
) -> None:
    def edited(files: dict[str, bytes]) -> None:
        for name, (old, new) in EDITS.items():
            assert old in files[name]
            files[name] = files[name].replace(old, new)

    def active(files: dict[str, bytes]) -> None:
        files[DRAWN] = files[DRAWN].replace(b"</svg>", b"<script>1</script></svg>")

    def named(files: dict[str, bytes]) -> None:
        old, new = b'"anonymous": false', b'"anonymous": true'
        assert old in files["bundle.json"]
        files["bundle.json"] = files["bundle.json"].replace(old, new)

    assert set(failed(rewritten(evidence, tmp_path / "a.zip", edited))) == set(EDITS)
    assert set(failed(rewritten(evidence, tmp_path / "c.zip", active))) == {DRAWN}
    # Whether it is anonymous, README.md says too.
    assert set(failed(rewritten(evidence, tmp_path / "b.zip", named))) == {"README.md"}


def test_a_bundle_that_was_zipped_again_is_named(evidence: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "re.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members(evidence).items():
            archive.writestr(name, data)
    wrong = failed(tmp_path / "re.zip")
    assert list(wrong) == ["re.zip"]
    assert "with compression" in wrong["re.zip"]
    assert "its content matches SHA256SUMS; ask for the zip as it was written" in wrong["re.zip"]
    with zipfile.ZipFile(tmp_path / "other.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members(evidence).items():
            archive.writestr(name, data + b" " * (name == "samples.csv"))
    assert (
        "match SHA256SUMS either (samples.csv: not the file"
        in failed(tmp_path / "other.zip")["other.zip"]
    )


def test_a_file_added_with_its_sum_is_no_part_of_it(evidence: Path, tmp_path: Path) -> None:
    files = members(evidence)
    files["SHA256SUMS"] = sums_text({**files, "a.csv": b"speedup,9"}).encode()
    path = tmp_path / "x.zip"
    path.write_bytes(zip_bytes(files))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo("a.csv"), b"speedup,9")
    found = verify(path)
    assert found["checked"] == len(files) + 1
    assert failed(path) == {"a.csv": "no part of the bundle: added to the zip after it was written"}


RUN = "runs/my-run/pruned/run.json"
TRACE = "runs/my-run/pruned/prefill.trace.json.gz"


def test_an_edited_run_or_trace_is_named_before_its_report(evidence: Path, tmp_path: Path) -> None:
    """The checksums were made anew; bundle.json and run.json hold hashes too."""

    def faster(files: dict[str, bytes]) -> None:
        files[RUN] = files[RUN].replace(b"61000", b"51000")

    def hidden(files: dict[str, bytes]) -> None:
        faster(files)
        index = json.loads(files["bundle.json"])
        index["inputs"][RUN] = hashlib.sha256(files[RUN]).hexdigest()
        files["bundle.json"] = json.dumps(index, indent=1).encode() + b"\n"

    def shorter(files: dict[str, bytes]) -> None:
        text = gzip.decompress(files[TRACE])
        assert b'"dur":22' in text
        files[TRACE] = gzip.compress(text.replace(b'"dur":22', b'"dur":11'), mtime=0)

    wrong = failed(rewritten(evidence, tmp_path / "a.zip", faster))
    assert list(wrong) == [RUN, "reports/my-run/report.json"]
    assert wrong[RUN] == (
        "edited: its SHA-256 is not the one in bundle.json; sample 1 of prefill is 51000 ns, in "
        "samples.csv 61000"
    )
    wrong = failed(rewritten(evidence, tmp_path / "b.zip", hidden))
    assert list(wrong) == ["reports/my-run/report.json"]
    assert f"{RUN} may be what was edited: sample 1 of" in wrong["reports/my-run/report.json"]
    wrong = failed(rewritten(evidence, tmp_path / "c.zip", shorter))
    assert list(wrong) == [TRACE, "reports/my-run/report.json"]
    assert wrong[TRACE] == "edited: its SHA-256 is not the one in bundle.json"


def evil(tmp_path: Path, name: str, *, data: bytes = b"x", **fields: Any) -> Path:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o100644 << 16
        for key, value in fields.items():
            setattr(info, key, value)
        archive.writestr(info, data)
    return path


@pytest.mark.parametrize(
    "name",
    ["../up.txt", "/etc/passwd", "a/../../b", "C:/x", "runs/./x", "a//b", ".hidden", "ü.txt"],
)
def test_paths_out_of_the_bundle_are_refused(tmp_path: Path, name: str) -> None:
    result = verify(evil(tmp_path, name))
    assert not result["ok"]
    assert "plain path" in result["failed"][0]["why"]
    assert {p.name for p in tmp_path.iterdir()} == {"evil.zip"}


def test_links_and_bombs_are_refused(tmp_path: Path) -> None:
    link = (stat.S_IFLNK | 0o777) << 16
    assert "a link" in failed(evil(tmp_path, "link", external_attr=link))["link"]
    bomb = evil(tmp_path, "bomb", data=b"\0" * 10_000_000, compress_type=zipfile.ZIP_DEFLATED)
    assert failed(bomb)  # it claims more bytes than the file has
    small = evil(tmp_path, "small", data=b"abc" * 9, compress_type=zipfile.ZIP_DEFLATED)
    assert "compression" in failed(small)["evil.zip"]


def test_a_trace_that_expands_without_end_is_refused(
    evidence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with 1 GiB, in a sixteenth of it."""
    monkeypatch.setattr("prunescope.analysis.bundle.same_files._LARGEST", 1 << 26)
    name = "runs/my-run/dense/prefill.trace.json.gz"

    def expand(files: dict[str, bytes]) -> None:
        files[name] = gzip.compress(b" " * (65 << 20), mtime=0)

    assert "1 GiB" in failed(rewritten(evidence, tmp_path / "x.zip", expand))[name]


def test_what_cannot_be_bundled(tmp_path: Path) -> None:
    bare = save(trace(704), tmp_path / "t.json")
    with pytest.raises(PrunescopeError, match="is a trace, not a run"):
        bundle([bare], tmp_path / "e.zip")
    (tmp_path / "notes.zip").write_text("mine")
    with pytest.raises(PrunescopeError, match="exists and is no zip"):
        bundle([make(tmp_path / "r")], tmp_path / "notes.zip")
    with pytest.raises(PrunescopeError, match="its folder .* does not exist"):
        bundle([tmp_path / "r"], tmp_path / "no" / "e.zip")
    (tmp_path / "r" / "pruned" / "prefill.trace.json.gz").unlink()
    with pytest.raises(PrunescopeError, match="lacks the trace"):
        bundle([tmp_path / "r"], tmp_path / "e.zip")
    assert not (tmp_path / "e.zip").exists()
    assert (tmp_path / "notes.zip").read_text() == "mine"


@pytest.mark.usefixtures("no_figures")
def test_a_bundle_that_exists_is_replaced_only_when_asked(tmp_path: Path) -> None:
    run, out = str(make(tmp_path / "run")), tmp_path / "e.zip"
    assert prunescope.main(["bundle", run, "-o", str(out)]) == 0
    out.write_bytes(zip_bytes({"mine.txt": b"x"}))
    with pytest.raises(PrunescopeError, match="e.zip exists"):
        bundle([tmp_path / "run"], out)
    assert list(members(out)) == ["mine.txt"]
    assert prunescope.main(["bundle", run, "-o", str(out), "--overwrite"]) == 0
    found = verify(out)
    assert found["ok"]
    # Samples that no trace holds: 22 + 4 + 22 of 61 us, and 44 + 4 + 44 of 91 us.
    (told,) = found["samples_on_trust"]
    ratios = told["profiled_over_unprofiled"]
    assert ratios == {"pruned": pytest.approx(48 / 61), "dense": pytest.approx(92 / 91)}
    # On a device the profiler slows no kernel: 88 us at least of dense, and of pruned 44 us.
    assert told["speedup"]["profiled"] == [pytest.approx(88 / 48), pytest.approx(92 / 44)]
    assert told["speedup"]["samples"] == pytest.approx(91 / 61)
    assert told["agree"] and found["samples_agree"]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("dense", "pruned", "agree", "says"),
    [
        (91, 33, False, "2.76×, more than 1.3 times of what the trace allows, 1.83× to 2.09×"),
        (91, 34, True, "2.68×, within 1.3 times of what the trace allows, 1.83× to 2.09×; a prof"),
        (61, 61, None, "are taken on trust: the samples claim no speedup"),
    ],
)
def test_samples_that_the_profiled_steps_do_not_allow(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dense: int,
    pruned: int,
    agree: bool | None,
    says: str,
) -> None:
    """Up to 1.3 times the largest speedup that the steps allow, 92 / 44 = 2.09."""
    sides = ({"samples_ns": [us * 1000 + i for i in range(3)]} for us in (dense, pruned))
    fields = [{"phase_fields": one} for one in sides]
    run = write_pair(
        tmp_path / "run", trace(704), trace(352), dense_run=fields[0], pruned_run=fields[1]
    )
    found = verify(prunescope.bundle(str(run), out=tmp_path / "e.zip"))
    assert found["ok"] and found["samples_agree"] is agree
    of_python = prunescope.verify(str(tmp_path / "e.zip"))
    assert of_python.to_dict() == found and of_python.passed == (agree is not False)
    assert says[:5] in of_python._repr_html_()
    code = prunescope.main(["verify", str(tmp_path / "e.zip")])
    assert code == (3 if agree is False else 0)
    told = capsys.readouterr().out
    assert told.startswith("failed: the unprofiled samples" if agree is False else "ok: ")
    assert says in " ".join(told.split())


def test_a_bundle_of_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="q.tar: a bundle is a zip") as error:
        bundle([make(tmp_path / "run")], tmp_path / "q.tar")
    assert error.value.hint == "for example -o q.zip"


def test_a_manifest_that_is_a_link_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "run")
    manifest = tmp_path / "run" / "pruned" / "run.json"
    manifest.rename(tmp_path / "other.json")
    manifest.symlink_to(tmp_path / "other.json")
    with pytest.raises(PrunescopeError, match="is a link"):
        bundle([tmp_path / "run"], tmp_path / "e.zip")
    assert not (tmp_path / "e.zip").exists()


@pytest.mark.parametrize(
    "name",
    ["h100_qwen1.5-0.5b_prefill.json.gz", "b200_eager.json.gz", "a100_legacy_flows.json.gz",
     "mi300x_sglang_qwen3-8b_prefilldecode.json.gz", "mi210_gpu_only.json.gz"],
)  # fmt: skip
def test_a_trimmed_trace_gives_the_same_report(
    real_trace: Callable[[str], Path],
    real_report: Callable[[str], Report],
    name: str,
    tmp_path: Path,
) -> None:
    path = real_trace(name)
    (tmp_path / name).write_bytes(trim(path))
    assert (tmp_path / name).stat().st_size < path.stat().st_size
    left, whole = (
        json.loads(to_json(report))
        for report in (analyze(tmp_path / name).report, real_report(name))
    )
    for report in (left, whole):
        for phase in report["phases"].values():
            # It names Python frames, which are a user's files: not carried.
            assert isinstance(phase["anatomy"].pop("idle"), list)
    assert left == whole


def test_a_cut_trace_is_no_evidence(tmp_path: Path) -> None:
    path = save(trace(704), tmp_path / "t.json")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(PrunescopeError, match="cut off"):
        trim(path)


@pytest.mark.usefixtures("no_figures")
def test_the_commands_write_check_and_exit_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "run")
    target = tmp_path / "e.zip"
    assert prunescope.main(["bundle", str(tmp_path / "run"), "-o", str(target)]) == 0
    assert prunescope.main(["verify", str(target), "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out.split("checks it\n", 1)[-1])
    assert told["ok"] and told["checked"] > told["rebuilt"] > 12 and told["failed"] == []
    broken = bytearray(target.read_bytes())
    broken[200] ^= 1
    target.write_bytes(broken)
    assert prunescope.main(["verify", str(target)]) == 3
    out = capsys.readouterr().out
    assert out.startswith("failed: 1 of ") and "CITATION.cff: " in out
    assert prunescope.main(["verify", str(tmp_path / "none.zip")]) == 2
    assert prunescope.main(["bundle", str(tmp_path / "none"), "-o", str(tmp_path / "n.zip")]) == 2


@pytest.mark.usefixtures("no_figures")
def test_the_card_of_a_saved_model_is_bundled_with_the_digests_of_its_weights(
    tmp_path: Path,
) -> None:
    """The weights are not: run.json and the card name them by SHA-256, and the two must agree."""
    run = make(tmp_path / "saved")
    manifest = run / "pruned" / "run.json"
    plain = json.loads(manifest.read_text())
    plain["pruning"]["saved"] = {"weights": {"model.safetensors": "ab" * 32}}
    manifest.write_text(json.dumps(plain))
    card = f"# pruned\n\n- sha256 of model.safetensors: {'ab' * 32}\n- by /home/me/model\n"
    (run / "pruned" / "model-card.md").write_text(card)
    files = members(bundle([run], tmp_path / "e.zip"))
    name = "runs/saved/pruned/model-card.md"
    assert b"ab" * 32 in files[name] and b"/home/me" not in files[name]
    assert not failed(tmp_path / "e.zip")

    def forge(files: dict[str, bytes]) -> None:
        """Let the card name other weights, with every checksum made anew."""
        files[name] = files[name].replace(b"ab" * 32, b"cd" * 32)
        index = json.loads(files["bundle.json"])
        index["inputs"][name] = hashlib.sha256(files[name]).hexdigest()
        files["bundle.json"] = json.dumps(index).encode()

    forged = failed(rewritten(tmp_path / "e.zip", tmp_path / "f.zip", forge))
    assert forged[name] == "names other weights than run.json"
    anonymous = bundle([run], tmp_path / "a.zip", anonymous=True)
    assert name not in members(anonymous)
