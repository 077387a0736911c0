"""Strings without secrets, mail addresses and paths: what is written, and what is read from others.

In: a string, any JSON value, or the words of a command line. Out: the same, where a token, a
password or an address with credentials has become `<secret>`, a mail address `<address>`, a host of
a private network `<host>`, and a path its last name. Scrubbing twice changes nothing more. A name
that identifies somebody only to those who know them stays: `bundle --anonymous` goes further.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

SECRET, ADDRESS, HOST, PATH = "<secret>", "<address>", "<host>", "<path>"
# Tokens are known by the prefixes that their issuers document. `hf_` also begins names in code.
TOKEN = re.compile(
    r"hf_(?:[A-Za-z0-9]{20,}|(?=[A-Za-z]*\d)[A-Za-z0-9]{8,})|api_org_[A-Za-z0-9]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{12,}"
    r"|(?<![A-Za-z0-9_])(?:sk-[A-Za-z0-9_-]{16,}|[sr]k_(?:live|test)_[A-Za-z0-9]{10,}"
    r"|A[KS]IA[0-9A-Z]{12,}|AIza[\w-]{20,}|ya29\.[\w-]{16,}|xox[abeoprs]-[\w-]{8,}"
    r"|gsk_[A-Za-z0-9]{20,}|nvapi-[\w-]{16,}|npm_[A-Za-z0-9]{20,}|pypi-[\w-]{20,}"
    r"|dop_v1_[0-9a-f]{16,}|wandb_v1_\w{16,}|r8_[A-Za-z0-9]{20,}"
    r"|GOCSPX-[\w-]{16,}|gl(?:rt|ft|dt|soat)-[\w-]{12,}|GR1348941[\w-]{12,}|hvs\.[\w-]{16,}"
    r"|dckr_pat_[\w-]{16,}|SG\.[\w-]{16,}\.[\w-]{16,}|AGE-SECRET-KEY-1[0-9A-Z]{16,}"
    r"|sq0csp-[\w-]{20,})"
    r"|(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
)
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]+-----[^-]*(?:-----END [A-Z ]+-----)?")
_CREDENTIALS = re.compile(r"(?i)\b[a-z][a-z0-9+.-]{1,20}://[^\s\"'<>/@]+@[^\s\"'<>)]*")
_BEARER = re.compile(r"(?i)\b(bearer|basic) +[\w.~+/-]{8,}=*")
# The rest of a header of HTTP that identifies somebody.
_HEADER = re.compile(
    r"(?i)\b((?:set-)?cookie|(?:proxy-)?authorization|x-(?:api-key|auth-token))(\s*:\s*)(?!<)\S[^\n\"']*"
)
# NAME=value, "name": "value", and `password: value`. A `token` of a tokenizer (`pad_token`) or of a
# count is none, and "per token: 12.3 ms" holds none.
_KEYED = (
    r"(?:secret(?:[_-]?key)?|pass(?:word|wd|phrase)|(?<![a-z])pwd|credentials?"
    r"|(?:api|access|private|secret|account|auth|ssh|encryption)[_-]?key"
    r"|(?:access|api|auth|bot|gh|git|github|gitlab|hf|hub|refresh|session|wandb)[_-]?token)"
)
_NAMED = rf"(?:{_KEYED}|(?<![A-Za-z0-9_])token)"
_ASSIGNED = re.compile(
    rf"(?i)({_NAMED}[\"']?\s*=\s*[\"']?|{_NAMED}[\"']\s*:\s*[\"']?|{_KEYED}\s*:\s+[\"']?)(?!<)"
    r"(?:(?<=[\"'])[^\"'\n]{4,}|[^\s\"'&,;<>{}\[\]()]{4,})"
)
# A value whose name is like that of an environment variable that holds a secret.
_EXPORTED = re.compile(
    r"(\b[A-Z][A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS)=)(?!<)[^\s\"'&,;<>]{4,}"
)
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")
# user@host:/path, and hosts that only a network of one's own knows: `gpu-17.local` and
# `x.corp.internal`, but no module `encoder.local`.
_REMOTE = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w.-]{1,255}:[~/][^\s\"'<>]*")
_HOST = re.compile(
    r"(?i)(?<![\w.@-])(?=[a-z0-9.-]*(?:[a-z]\d|[a-z0-9]-[a-z0-9]"
    r"|\.(?:corp|cluster|svc|compute|ec2|intra|lan|int)\.[a-z]))"
    r"(?:[a-z0-9][a-z0-9-]*\.)+(?:local|localdomain|lan|internal|corp|intra)(?![\w-])"
)
# A path in a text begins at one of the usual roots, at a user's home, or on a drive of Windows.
# What only looks like a path (`/model/layers.0/MatMul`, FLOP/s) stays.
_ROOTS = (
    "afs|app|bin|content|data|datasets|dbfs|dev|etc|export|fsx|gpfs|home|kaggle|lib|lustre|media"
    "|mnt|net|network|nfs|nix|opt|private|proc|project|projects|root|run|scratch|share|shared|srv"
    "|storage|sys|tmp|user|users|Users|usr|var|vol|Volumes|volume|work|workdir|workspace"
)
_PART = r"[^\s\\/\"'<>|:;,()\[\]{}=]"
_PATHS = re.compile(
    rf"(?:file://)?(?<![\w.:/\\>~-])(?:/(?:{_ROOTS})(?:/{_PART}*)+|~[\w.-]*(?:/{_PART}+)+)"
    rf"|file://(?:/{_PART}*)+"
    rf"|(?<![A-Za-z0-9])[A-Za-z]:(?:\\+|/(?!/)){_PART}*(?:[\\/]+{_PART}*)*"
    rf"|(?<![\w\\])\\\\{_PART}+(?:\\+{_PART}+)+"
)
# The library of a file shows after site-packages, or in the library's own folder.
_LIBRARIES = re.compile(
    r"[\\/](?:site|dist)-packages[\\/]+|[\\/]+(?=(?:torch|triton|transformers|vllm|sglang"
    r"|tensorrt_llm|megatron|deepspeed|accelerate)[\\/])"
)
_SHORT = 200  # characters of a text that is worth keeping
_NUMBERS = {int, float, bool, type(None)}
_HOMES = frozenset({"home", "Users", "users"})
# Every pattern needs one of these, in lower case; most texts have none.
_TRIGGERS = (
    "@", "~", "/", "\\", "token", "secret", "key", "passw", "passphrase", "pwd", "credential",
    "bearer", "basic ", "hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat", "glpat",
    "sk-", "k_live", "k_test", "akia", "asia", "aiza", "ya29", "xox", "gsk_", "nvapi", "npm_",
    "pypi-", "dop_v1", "wandb_v1", "r8_", "eyj", "api_org", "-----begin", ".local", ".lan",
    ".internal", ".corp", ".intra", "cookie", "authorization", "gocspx", "glrt-", "glft-", "gldt-",
    "glsoat-", "gr1348941", "hvs.", "dckr_pat", "sg.", "sq0csp",
)  # fmt: skip
# Options of a command line whose next word is a secret.
_SECRET_OPTION = re.compile(rf"(?i)--?(?:[\w-]*{_KEYED}|token)")
_SECRET_NAME = re.compile(rf"(?i)(?:[\w-]*{_KEYED}|token)")


def without_secrets(text: str) -> str:
    """Return the text without tokens, passwords, credentials and private keys; paths stay."""
    if not _may_hold(text):
        return text
    if "-----BEGIN" in text:
        text = PRIVATE_KEY.sub(SECRET, text)
    if "://" in text and "@" in text:
        text = _CREDENTIALS.sub(SECRET, text)
    text = TOKEN.sub(SECRET, text)
    if ":" in text:
        text = _HEADER.sub(rf"\1\2{SECRET}", text)
    if " " in text:
        text = _BEARER.sub(rf"\1 {SECRET}", text)
    if "=" in text:
        text = _EXPORTED.sub(rf"\1{SECRET}", text)
    if "=" in text or ":" in text:
        text = _ASSIGNED.sub(rf"\1{SECRET}", text)
    return text


def scrub(text: str) -> str:
    """Return the text without secrets and mail addresses, and with the last names of its paths.

    Of a file of an installed library, what follows `site-packages` stays.
    """
    return _known(text) if len(text) < _SHORT else _scrub(text)


def _scrub(text: str) -> str:
    """Scrub a text without the cache that short texts go through."""
    if not _may_hold(text):
        return text
    if "@" in text:
        text = _REMOTE.sub(ADDRESS, text)
    if "/" in text or "\\" in text:
        text = _PATHS.sub(_named, text)
    text = without_secrets(text)
    if "." in text:
        text = _HOST.sub(HOST, text)
    return _MAIL.sub(ADDRESS, text) if "@" in text else text


_known = lru_cache(maxsize=4096)(_scrub)  # most texts of a report are keys, and the same few


def scrub_all(texts: list[str]) -> list[str]:
    """Scrub each of many texts, most of which hold nothing."""
    return [scrub(text) for text in texts] if _may_hold("\n".join(texts)) else texts


def scrub_values(value: Any) -> Any:
    """Scrub each string and key of JSON values.

    A string that is an absolute path as a whole, with spaces perhaps, becomes its last name.
    """
    if isinstance(value, str):
        return scrub(_last_name(value) if _is_absolute(value) else value)
    if isinstance(value, dict):
        clean: dict[Any, Any] = {}
        for key, inner in value.items():
            if isinstance(key, str):
                if isinstance(inner, str) and inner and _SECRET_NAME.fullmatch(key):
                    inner = SECRET
                key = free_key(scrub(key), clean)
            clean[key] = scrub_values(inner)
        return clean
    if isinstance(value, (list, tuple)):
        if set(map(type, value)) <= _NUMBERS:
            return list(value)
        return [scrub_values(inner) for inner in value]
    return value


def scrub_words(words: Iterable[str], *, public: str | None = None) -> list[str]:
    """Scrub the words of a command line; any path, relative ones too, becomes <path>/NAME.

    `public`: a word that is not a path though it has a slash, such as the id of a model on the Hub.
    """
    scrubbed, hidden = [], False
    for word in words:
        if hidden and not word.startswith("-"):
            scrubbed.append(SECRET)
            hidden = False
            continue
        option, separator, value = word.partition("=") if "://" not in word else ("", "", word)
        if not separator:
            option, value = "", word
        is_path = value != public and "://" not in value and len(PurePath(value).parts) > 1
        is_path = is_path and not value.startswith(f"{PATH}/")
        shown = f"{PATH}/{_last_name(value)}" if is_path or _is_absolute(value) else value
        scrubbed.append(scrub(f"{option}{separator}{shown}"))
        hidden = not separator and bool(_SECRET_OPTION.fullmatch(word))
    return scrubbed


def free_key(key: str, taken: dict[Any, Any]) -> str:
    """Return a scrubbed key; numbered if another key of `taken` was scrubbed to the same."""
    number, free = 2, key
    while free in taken:
        free, number = f"{key}-{number}", number + 1
    return free


def _may_hold(text: str) -> bool:
    lower = text.lower()
    return any(trigger in lower for trigger in _TRIGGERS)


def _is_absolute(text: str) -> bool:
    """Return whether a text as a whole is an absolute path, of either system."""
    if not text.startswith(("/", "\\", "~")) and text[1:2] != ":":
        return False
    if "\n" in text or len(text) > 4096:
        return False
    return (
        PurePosixPath(text).is_absolute()
        or PureWindowsPath(text).is_absolute()
        or re.match(r"~[\w.-]*/", text) is not None
    )


def _last_name(path: str) -> str:
    """Return the last name of a path, of either system; of a home itself, `~`."""
    whole = PureWindowsPath(path)  # takes both kinds of slashes
    if whole.parent.name in _HOMES and whole.name:
        return "~"
    return whole.name or PurePosixPath(path).name or path


def _named(path: re.Match[str]) -> str:
    """Return the name that stands for a path: in a library, what follows the library's folder."""
    text = path[0]
    library = _LIBRARIES.split(text)
    return library[-1] if len(library) > 1 and library[-1] else _last_name(text)
