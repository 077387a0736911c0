"""One function takes secrets, mail addresses and paths out of strings; what looks alike stays."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.analysis.bundle.secrets import cleared
from prunescope.taxonomy.runs.run import Run
from prunescope.taxonomy.scrub import (
    holds_token,
    scrub,
    scrub_values,
    scrub_words,
    without_secrets,
)
from prunescope.taxonomy.scrubbed import scrubbed
from tests.taxonomy import secret_rules
from tests.taxonomy.secret_examples import OWNERS, SECRETS

TOKEN = "hf_" + "QyZ7planted0secret1token2abcd"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (TOKEN, "<secret>"),
        (f"key={TOKEN}", "key=<secret>"),
        (f"model-{TOKEN}-v2", "model-<secret>-v2"),
        ("ghp_" + "a1" * 18, "<secret>"),
        ("sk-proj-" + "Ab1" * 8, "<secret>"),
        ("AKIA" + "IOSFODNN7EXAMPLE", "<secret>"),
        ("HF_TOKEN=abcd1234", "HF_TOKEN=<secret>"),
        ("MY_KEY=abcd1234", "MY_KEY=<secret>"),
        ("export WANDB_API_KEY='two words'", "export WANDB_API_KEY='<secret>'"),
        ('{"api_key": "12345678"}', '{"api_key": "<secret>"}'),
        ("password: hunter22", "password: <secret>"),
        ("pwd=hunter22|password: hunter23", "pwd=<secret> <secret>"),
        ("Authorization: Bearer abcdefgh12345", "Authorization: <secret>"),
        ("postgres://ada:pw42@db.example/x", "<secret>"),
        ("git clone https://ada:pw@git.example/x.git now", "git clone <secret> now"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "<secret>"),
        ("mail ada.l@observatory.example.org", "mail <address>"),
        ("rsync ada@node17:/data/x", "rsync <address>"),
        ("on gpu-17.local now", "on <host> now"),
        ("heartofgold.corp.internal", "<host>"),
        ("/home/ada/models/x", "x"),
        ("/home/ada", "~"),
        ("at /home/ada/x and /tmp/a.json: no", "at x and a.json: no"),
        ("~ada/models/x", "x"),
        (r"C:\Users\ada\x.cu", "x.cu"),
        (r"\\server\share\ada\x", "x"),
        ("file:///home/ada/x/y.json", "y.json"),
        ("/home/ada/train.py(7): main", "train.py(7): main"),
        # Of a library what tells which one: serving engines are known by their frames.
        (
            "/usr/lib/python3/site-packages/vllm/worker.py(12): execute_model",
            "vllm/worker.py(12): execute_model",
        ),
        ("/opt/src/torch/_dynamo/x.py(3): g", "torch/_dynamo/x.py(3): g"),
    ],
)
def test_what_tells_is_taken_out(text: str, wanted: str) -> None:
    assert scrub(text) == wanted
    assert scrub(wanted) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "tokens_per_s", "tokens=512", "max_new_tokens=128", "pad_token=<|endoftext|>",
        "per token: 12.345 ms", "eos_token: 128001", "memcpy@GLIBC_2.14", "12 GFLOP/s",
        "/model/layers.0/mlp/gate_proj/MatMul", "nn.Module: model.layers.0.self_attn",
        "void at::native::foo<float, 4>(int, c10::Half*)", "ampere_sgemm_128x64_tn",
        "cutlass_80_tensorop_sk-splitk_f16_s16816gemm_f16", "https://arxiv.org/abs/2606.09080",
        "hf_quantizer", "hf_device_map", "meta-llama/Llama-3.1-8B", "s = 1/2", "1 / (2 / 3)",
        "model.layers.0.attn.local", "encoder.local", "a.lan", "monkey: 12345678",
        "ratio 3:4", "disk-of-somebody-with-a-long-name", "a -> b", "~3 ms",
    ],
)  # fmt: skip
def test_what_looks_alike_stays(text: str) -> None:
    assert scrub(text) == text


def test_messages_lose_secrets_and_keep_paths() -> None:
    assert without_secrets(f"no file /home/ada/{TOKEN}") == "no file /home/ada/<secret>"


def test_of_a_whole_string_that_is_a_path_the_name_stays() -> None:
    """With spaces in it, and below a folder that no list of usual ones has."""
    assert scrub_values("/lab-17/Ada Lovelace/model x") == "model x"
    assert scrub_values({"a": ["/lab-17/ada/x", 3, None, 0.5]}) == {"a": ["x", 3, None, 0.5]}


def test_values_under_the_name_of_a_secret_are_hidden() -> None:
    assert scrub_values({"api_key": "abc", "token": "abc", "pad_token": "abc"}) == {
        "api_key": "<secret>", "token": "<secret>", "pad_token": "abc",
    }  # fmt: skip


def test_keys_that_become_equal_are_numbered() -> None:
    second_token = "hf_" + "Another0secret1token2abcdefg"
    assert scrub_values({TOKEN: 1, second_token: 2}) == {"<secret>": 1, "<secret>-2": 2}


def test_a_command_line_names_no_folder() -> None:
    words = ["trace", "--model", "../ada/llama", "--out=/lab/run", "--set", f"key={TOKEN}",
             "--api-key", "abc", "--threads", "2", "meta-llama/Llama-3.1-8B"]  # fmt: skip
    wanted = ["trace", "--model", "<path>/llama", "--out=<path>/run", "--set", "key=<secret>",
              "--api-key", "<secret>", "--threads", "2", "meta-llama/Llama-3.1-8B"]  # fmt: skip
    scrubbed = scrub_words(words, public="meta-llama/Llama-3.1-8B")
    assert scrubbed == wanted
    assert scrub_words(scrubbed, public="meta-llama/Llama-3.1-8B") == wanted


def _manifest(**more: Any) -> dict[str, Any]:
    return {
        "variant": "pruned", "model": {"id": "x"}, "phases": {}, "dtype": "bf16", "device": {},
        "versions": {}, "seeds": {}, "argv": [], **more,
    }  # fmt: skip


def test_a_manifest_is_scrubbed_when_it_is_read_and_when_it_is_written() -> None:
    planted = _manifest(
        argv=["trace", f"--set=key={TOKEN}"], mine={"note": f"at /home/ada/{TOKEN}/x"}
    )
    run = Run.from_json(json.dumps(planted))
    assert run.argv == ["trace", "--set=key=<secret>"]
    assert run.as_read is not None and run.as_read["mine"] == {"note": "at x"}
    run.argv = ["trace", TOKEN]
    assert TOKEN not in run.to_json()


def test_where_a_baseline_lies_stays_readable() -> None:
    told = _manifest(twin={"path": f"../{TOKEN}/run.json", "sha256": "0"})
    run = Run.from_json(json.dumps(told))
    assert run.twin is not None and run.twin.path == f"../{TOKEN}/run.json"


@given(st.text(alphabet=f"/\\~:@=.- \"'<>ab1{TOKEN[:4]}", max_size=60))
def test_scrubbing_twice_changes_nothing_more(text: str) -> None:
    assert scrub(scrub(text)) == scrub(text)


@pytest.mark.parametrize(
    "piece",
    ["-----BEGIN A-----", "eyJ", "hf_", "token=", "a@a.", "a://b@", "/home/", "~a/", "C:\\",
     "\\\\a", "secret ", "TOKEN", "gpu-1.", "-----BEGIN A", "file://", "bearer ", "x.corp."],
)  # fmt: skip
def test_no_text_takes_long(piece: str) -> None:
    """300 kB: a name of a trace, or a string of a manifest, is a stranger's."""
    begun = time.process_time()
    scrub(piece * (300_000 // len(piece)))
    assert time.process_time() - begun < 20  # one that grows with the square takes minutes


@pytest.mark.parametrize("name", [*SECRETS, *(f"whose {name}" for name in OWNERS)])
def test_a_value_of_every_kind_is_in_no_text_that_is_written(name: str) -> None:
    """Plain or anonymous, in quotes, brackets and words of others."""
    text, value = {**SECRETS, **{f"whose {key}": kept for key, kept in OWNERS.items()}}[name]
    for around in ("{}", "void f<{}>(int)", "a={};b", "({})", "x {} y", "[{}]", "'{}'", 'é"{}"'):
        given = around.replace("{}", text)
        for clean in (scrub(given), cleared(given), str(scrub_values({"x": [given]}))):
            assert value not in clean, clean
        assert name.startswith("whose ") or value not in without_secrets(given)
        assert scrub(scrub(given)) == scrub(given)


def test_the_kept_patterns_are_those_of_the_package() -> None:
    pytest.importorskip("detect_secrets", reason="detect-secrets is not installed")
    assert secret_rules.text() == secret_rules.KEPT.read_text("utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "the key is model.layers.0.self_attn.k_proj", "key paged_attention_v2_kernel_fp8_e4m3",
        "token ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_tn", "keys: 0.123456789012",
        "/lm_head/MatMul", "/model/layers.0/self_attn/q_proj", "/encoder/layer.3/attention/Add_2",
        "https://huggingface.co/meta-llama/Llama-3.1-8B", "1/2/3", "(M)/N/K", "bytes/s/GPU",
        "100% of 3", "a &amp; b", "x%20y", "user-supplied", "users: 3", "kernel::host=3",
    ],
)  # fmt: skip
def test_names_of_kernels_nodes_and_pages_stay(text: str) -> None:
    assert scrub(text) == text


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(sorted({**SECRETS, **OWNERS})), min_size=1, max_size=4),
    around=st.lists(st.text(max_size=9), min_size=4, max_size=4),
    between=st.sampled_from(["  ", ",", ";", "|", "\n"]),
)
def test_what_one_value_hides_no_other_one_shows(
    pieces: list[str], around: list[str], between: str
) -> None:
    """Whatever stands beside it, and anonymous no more than plain."""
    chosen = [{**SECRETS, **OWNERS}[name] for name in pieces]
    text = between.join(
        x for pair in zip(around, chosen, strict=False) for x in (pair[0], pair[1][0])
    )
    plain, anonymous = scrub(text), cleared(text)
    for name, (_, value) in zip(pieces, chosen, strict=True):
        assert value not in anonymous or value in plain
        assert value not in plain or name in OWNERS, name


def test_an_assignment_hides_no_option_behind_it() -> None:
    """The value of the key went on to the first blank, and the option lost its word."""
    shown = scrub("MY_OWN_KEY=lQ4zQ0YZ0iy8mP6GC4bw5Wt2|--api-key cB8Rm9bj1wP4rP3Pb3oV6Fn8 --x")
    assert shown == "MY_OWN_KEY=<secret>|--api-key <secret> --x"


@pytest.mark.parametrize(
    "header",
    ["X-Api-Key: zgWTs56mYZWuERE3", "Authorization: Bearer abcdefgh1", "Cookie: sid=a1b2c3;",
     "Proxy-Authorization: Basic aGVsbG8="],
)  # fmt: skip
@pytest.mark.parametrize(
    "behind", ['api_key="{}"', "token='{}'", '--password "{}" -v', 'password=\\"{}\\"', 'pwd="{}']
)
def test_a_header_hides_no_key_behind_it(header: str, behind: str) -> None:
    """The header took the key with it, and the value in quotes was left without its name."""
    value = "buRbNtGyGEITSzCY0L77SJQdIjZAx9Lb"
    assert value not in scrub(f"{header} {behind.format(value)}")


@pytest.mark.parametrize("text", ["<password>{}</password>", "password => {}", "'pwd' => '{}'"])
def test_a_value_in_a_tag_or_behind_an_arrow_is_hidden(text: str) -> None:
    assert scrub(text.format("R4tq8Zx1Lm")) == text.format("<secret>")


def test_what_stands_behind_a_hidden_value_is_no_value_of_it() -> None:
    """`<secret>` is no tag whose text is a secret."""
    shown = "hf_token=<secret>elsewhere and <secret>elsewhere"
    assert scrub(shown) == shown and not holds_token("in <secret>elsewhere")


def test_structs_are_scrubbed_as_values_are() -> None:
    """What a key tells of its value holds in a report, too."""
    told = {"api_key": "abc", "who": [{"hostname": "x1", "n": 3}, ("/home/ada/x", TOKEN)]}
    clean = {"api_key": "<secret>", "who": [{"hostname": "<name>", "n": 3}, ["x", "<secret>"]]}
    assert scrub_values(told) == clean
    clean["who"][1] = ("x", "<secret>")
    assert scrubbed(told) == clean
