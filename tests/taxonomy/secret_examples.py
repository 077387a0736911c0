"""A secret of every kind that is taken out, each in a text around it: no real one among them.

They are drawn from a seed, so that no scanner of a forge takes this file for a leak.
"""

from __future__ import annotations

import string
from random import Random
from urllib.parse import quote

HEX, LOW = "0123456789abcdef", string.ascii_lowercase + string.digits
WORD = string.ascii_letters + string.digits
_random = Random(63)


def drawn(length: int, signs: str = WORD) -> str:
    """A value that looks random: digits and letters in turns."""
    digits = [sign for sign in signs if sign.isdigit()]
    letters = [sign for sign in signs if not sign.isdigit()]
    return "".join(_random.choice((letters, digits)[at % 3 == 2]) for at in range(length))


def _tokens() -> dict[str, str]:
    """A token of each issuer, by what issues it."""
    upper = string.ascii_uppercase + string.digits
    return {
        "hugging face": "hf_" + drawn(34),
        "hugging face organisation": "api_org_" + drawn(34),
        "github": "ghp_" + drawn(36),
        "github fine-grained": "github_pat_" + drawn(60),
        "gitlab": "glpat-" + drawn(20),
        "gitlab runner": "glrt-" + drawn(20),
        "gitlab old runner": "GR1348941" + drawn(20),
        "gitlab ci job": "glcbt-64_" + drawn(20),
        "openai": "sk-proj-" + drawn(40),
        "anthropic": "sk-ant-api03-" + drawn(80),
        "stripe": "sk_live_" + drawn(24),
        "stripe public": "pk_test_" + drawn(24),
        "aws key": "AKIA" + drawn(16, upper),
        "aws old key": "A3TX" + drawn(16, upper),
        "bedrock": "ABSK" + drawn(100),
        "google": "AIza" + drawn(35),
        "google oauth": "ya29." + drawn(40),
        "google refresh": "1//0" + drawn(60),
        "google client": "GOCSPX-" + drawn(28),
        "slack": "xoxb-" + "123456789012-123456789012-" + drawn(24, LOW),
        "slack app": "xapp-1-" + drawn(40),
        "slack hook": "https://hooks.slack.com/services/T"
        + drawn(8)
        + "/B"
        + drawn(8)
        + "/"
        + drawn(24),
        "alibaba": "LTAI" + drawn(20),
        "groq": "gsk_" + drawn(52),
        "nvidia": "nvapi-" + drawn(64),
        "npm": "npm_" + drawn(36),
        "pypi": "pypi-AgEIcHlwaS5vcmc" + drawn(80),
        "digitalocean": "dop_v1_" + drawn(64, HEX),
        "wandb": "wandb_v1_" + drawn(60),
        "replicate": "r8_" + drawn(37),
        "x.ai": "xai-" + drawn(80),
        "perplexity": "pplx-" + drawn(48),
        "langsmith": "lsv2_pt_" + drawn(32, HEX) + "_" + drawn(10, HEX),
        "tailscale": "tskey-auth-" + drawn(12) + "-" + drawn(30),
        "supabase": "sbp_" + drawn(40, HEX),
        "vault": "hvs." + drawn(90),
        "docker": "dckr_pat_" + drawn(27),
        "databricks": "dapi" + drawn(32, HEX),
        "sendgrid": "SG." + drawn(22) + "." + drawn(43),
        "mailgun": "key-" + drawn(32, HEX),
        "mailchimp": drawn(32, HEX) + "-us21",
        "age": "AGE-SECRET-KEY-1" + drawn(58, upper),
        "square": "sq0csp-" + drawn(43),
        "shopify": "shpat_" + drawn(32, HEX),
        "doppler": "dp.pt." + drawn(43),
        "grafana": "glsa_" + drawn(32) + "_" + drawn(8, HEX),
        "postman": "PMAK-" + drawn(24, HEX) + "-" + drawn(34, HEX),
        "pulumi": "pul-" + drawn(40, HEX),
        "figma": "figd_" + drawn(40),
        "notion": "ntn_" + drawn(46),
        "linear": "lin_api_" + drawn(40),
        "fly": "fo1_" + drawn(43),
        "new relic": "NRAK-" + drawn(27, upper),
        "planetscale": "pscale_tkn_" + drawn(43),
        "rubygems": "rubygems_" + drawn(48, HEX),
        "sentry": "sntryu_" + drawn(64, HEX),
        "atlassian": "ATATT3" + drawn(180),
        "bitbucket": "ATBB" + drawn(32),
        "1password": "ops_eyJ" + drawn(250),
        "circleci": "CCIPAT_" + drawn(22) + "_" + drawn(40, HEX),
        "buildkite": "bkua_" + drawn(40, HEX),
        "netlify": "nfp_" + drawn(36),
        "airtable": "pat" + drawn(14) + "." + drawn(64, HEX),
        "azure client": "abc8Q~" + drawn(34),
        "terraform": drawn(14) + ".atlasv1." + drawn(60),
        "jwt": "eyJ" + drawn(30) + ".eyJ" + drawn(40) + "." + drawn(43),
        "telegram": "1234567890:AA" + drawn(33),
        "discord": "M" + drawn(23) + "." + drawn(6) + "." + drawn(27),
        "discord hook": "https://discord.com/api/webhooks/123456789012345678/" + drawn(68),
        "twilio": "AC" + drawn(32, HEX),
        "artifactory": "AKC" + drawn(64),
        "softlayer": "https://api.softlayer.com/soap/v3.1/" + drawn(64, LOW),
    }


def _keyed() -> dict[str, tuple[str, str]]:
    """Values that their names tell: the text, and what must not stay of it."""
    examples = {}
    for name, text in {
        "pwd": "pwd={}", "password": "password: {}", "passwd": "db_passwd = '{}'",
        "private key of a name": "private_key={}", "environment": "HF_TOKEN={}",
        "aws": "aws_secret_access_key={}", "json": '{{"api_key": "{}"}}',
        "json in json": '{{\\"client_secret\\": \\"{}\\"}}', "any key": "MY_OWN_KEY={}",
        "service key": "service_key={}", "database": "db_pass={}", "option": "--api-key {} --x",
        "bearer": "Authorization: Bearer {}", "header of a bearer": "bearer {}",
        "basic": "authorization: Basic {}", "cookie": "Cookie: session={}",
        "set-cookie": "Set-Cookie: id={}; Path=/", "x-api-key": "x-api-key: {}",
        "x-vault": "X-Vault-Token: {}", "gitlab header": "PRIVATE-TOKEN: {}",
        "url": "postgres://ada:{}@db.example/x", "git": "https://x:{}@git.example/r.git",
        "curl": "curl -u ada:{} x", "azure": "AccountKey={}", "npmrc": "//r.example/:_authToken={}",
        "query": "https://x.example/a?access_token={}&b=1",
    }.items():  # fmt: skip
        value = drawn(24)
        examples[name] = (text.format(value), value)
    for name, text in {
        "a key in words": "the key is {}", "a signature": "https://x.example/a?sig={}",
        "a token in words": "token {}", "a session": "session_id: {}", "signed": "signature={}",
        "arrow": "'key' => '{}'",
    }.items():  # fmt: skip
        value = drawn(40)
        examples[name] = (text.format(value), value)
    value = "hunter2" + drawn(5)
    examples["percent"] = (quote(f"pwd={value}", safe=""), value)
    examples["percent twice"] = (quote(quote(f"password={value}", safe=""), safe=""), value)
    examples["entity"] = (f"pwd&#61;{value}", value)
    examples["hexadecimal"] = (f"password\\x3d{value}", value)
    examples["hexadecimal in a repr"] = (f"password\\\\x3d{value}", value)
    token = "hf_" + drawn(34)
    examples["percent in a token"] = ("%68f%5F" + token[3:], token[3:])
    for kind in ("RSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK", "CERTIFICATE"):
        value = drawn(64)
        text = f"-----BEGIN {kind}-----\nDEK-Info: AES-128-CBC,1\n{value}\n-----END {kind}-----"
        examples[kind.lower()] = (text, value)
    value = drawn(64)
    examples["key without an end"] = (f"-----BEGIN PRIVATE KEY-----\n{value}", value)
    value = drawn(64)
    examples["putty"] = (f"PuTTY-User-Key-File-2: ssh-rsa\n{value}\n", value)
    return examples


def _owners() -> dict[str, tuple[str, str]]:
    """Users, hosts and folders."""
    who = "adalovelace"
    return {
        name: (text.format(who), who)
        for name, text in {
            "user": "USER={}", "logname": "LOGNAME={}", "host": "HOSTNAME={}-gpu",
            "user in json": '"username": "{}"', "home": "/home/{}/x", "a home itself": "/home/{}",
            "anything": "/labs-17/{}/model.py", "deep": "/cluster/x/{}/runs/model",
            "nfs": "gpu17:/export/{}/x", "nfs home": "gpu17:/home/{}", "share": "//server/{}/x",
            "windows": "C:\\Users\\{}\\x", "unc": "\\\\server\\{}\\x", "tilde": "~{}/x",
            "file": "file:///srv/{}/x", "remote": "{}@gpu17:/data/x", "mail": "{}@host.example.org",
            "a path after a word": "error:/home/{}/x", "local host": "{}-17.local",
            "percent": "%2Fhome%2F{}%2Fx",
        }.items()
    }  # fmt: skip


# By name: the text, and what of it must be in no output.
SECRETS: dict[str, tuple[str, str]] = {
    **{name: (f"see {token} there", token) for name, token in _tokens().items()},
    **_keyed(),
}
OWNERS: dict[str, tuple[str, str]] = _owners()
