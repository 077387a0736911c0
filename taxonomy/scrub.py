"""Strings without secrets, mail addresses and paths: what is written, and what is read from others.

In: a string, any JSON value, or the words of a command line. Out: the same, where a token, a
password or an address with credentials has become `<secret>`, a mail address `<address>`, a host of
a private network `<host>`, a user `<name>`, and a path its last name. Scrubbing twice changes
nothing more. What tells who somebody is only to those who know them stays: `bundle --anonymous`
goes further.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from prunescope.taxonomy.kept_patterns import KEPT_PATTERNS, KEPT_WORDS
from prunescope.taxonomy.lazy_pattern import lazy_pattern

SECRET, ADDRESS, HOST, PATH, NAME = "<secret>", "<address>", "<host>", "<path>", "<name>"
# Tokens are known by the prefixes that their issuers document. `hf_` also begins names in code.
TOKEN = lazy_pattern(
    r"hf_(?:[A-Za-z0-9]{20,}|(?=[A-Za-z]*\d)[A-Za-z0-9]{8,})|api_org_[A-Za-z0-9]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{12,}"
    r"|(?<![A-Za-z0-9_])(?:sk-[A-Za-z0-9_-]{16,}|[srp]k_(?:live|test)_[A-Za-z0-9]{10,}"
    r"|A[KS]IA[0-9A-Z]{12,}|ABSK[A-Za-z0-9+/]{40,}|AIza[\w-]{20,}|ya29\.[\w-]{16,}"
    r"|1//0[\w-]{30,}|xox[abceoprs]-[\w-]{8,}|xapp-\d-[\w-]{16,}|LTAI[A-Za-z0-9]{16,}"
    r"|gsk_[A-Za-z0-9]{20,}|nvapi-[\w-]{16,}|npm_[A-Za-z0-9]{20,}|pypi-[\w-]{20,}"
    r"|do[opr]_v1_[0-9a-f]{16,}|wandb_v1_\w{16,}|r8_[A-Za-z0-9]{20,}|xai-[\w-]{20,}"
    r"|pplx-[A-Za-z0-9]{20,}|lsv2_[ps][tk]_[\w-]{20,}|tskey-[\w-]{16,}|sbp_[0-9a-f]{20,}"
    r"|GOCSPX-[\w-]{16,}|gl(?:rt|ft|dt|soat|ptt|imt|agent|cbt|ffct)-[\w-]{12,}"
    r"|GR1348941[\w-]{12,}|hv[sbr]\.[\w-]{16,}|dckr_[op]at_[\w-]{16,}|dapi[0-9a-f]{32}"
    r"|SG\.[\w-]{16,}\.[\w-]{16,}|key-[0-9a-f]{32}|AGE-SECRET-KEY-1[0-9A-Z]{16,}"
    r"|sq0(?:csp|atp)-[\w-]{20,}|EAAA[\w-]{50,}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{16,}"
    r"|dp\.(?:pt|st|ct|sa|scim|audit)\.[\w-]{20,}|gl(?:c|sa)_[\w+/=-]{20,}|PMAK-[0-9a-f-]{24,}"
    r"|pul-[0-9a-f]{30,}|figd_[\w-]{20,}|(?:ntn|secret)_[A-Za-z0-9]{32,}|lin_api_[A-Za-z0-9]{20,}"
    r"|fo1_[\w-]{20,}|fm[12][ar]?_[\w+/=-]{30,}|NRAK-[A-Z0-9]{20,}|pscale_\w{2,6}_[\w.=-]{20,}"
    r"|rubygems_[0-9a-f]{30,}|sntry[su]_[\w+/=-]{20,}|ATATT3[\w=+/-]{30,}|ATBB[A-Za-z0-9]{20,}"
    r"|ops_eyJ[\w+/=-]{20,}|CCIPAT_\w{20,}|bkua_[0-9a-f]{20,}|rdme_[0-9a-z]{30,}|vc[apkri]_\w{20,}"
    r"|nfp_\w{20,}|AKC[A-Za-z0-9]{40,}|pat[A-Za-z0-9]{14}\.[0-9a-f]{40,}|[\w-]{3}[78]Q~[\w.~-]{30,})"
    r"|(?<![\w-])eyJ[\w-]{8,}\.[\w=-]{8,}(?:\.[\w=-]*)*|[\w-]{8,64}\.atlasv1\.[\w-]{30,}"
    r"|discord(?:app)?\.com/api/webhooks/\d{5,30}/[\w-]{20,}"
)
# All of a key in text, or what is left of one that has no end.
PRIVATE_KEY = lazy_pattern(
    r"(?:-----BEGIN [A-Z0-9 ]{1,60}-----|BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY|PuTTY-User-Key-File-\d)"
    r"[\s\S]*?(?:-{4,5} ?END [A-Z0-9 ]{1,60} ?-{4,5}|\Z)"
)
_CREDENTIALS = lazy_pattern(r"(?i)\b[a-z][a-z0-9+.-]{1,20}://[^\s\"'<>/@]+@[^\s\"'<>)]*")
_BEARER = lazy_pattern(r"(?i)\b(bearer|basic) +[\w.~+/-]{8,}=*")
# The rest of a header of HTTP that identifies somebody, with what stands in quotes behind a space,
# a colon or an equals sign: `X-Api-Key: … api_key="…"`.
_HEADER = lazy_pattern(
    r"(?i)\b((?:set-)?cookie2?|(?:proxy-)?authorization|(?:x-[\w-]{0,40}|private-|job-|api-)"
    r"(?:key|token|secret|signature|credential))(\s*:\s*)(?!<)\S"
    r"(?:(?<=[=:\s])(?:\\{0,4}\"[^\"\n]*\"?|\\{0,4}'[^'\n]*'?)|[^\n\"'])*"
)
# NAME=value, "name": "value", and `password: value`. A `token` of a tokenizer (`pad_token`) or of a
# count is none, and "per token: 12.3 ms" holds none.
_KEYED = (
    r"(?:secret(?:[_-]?key)?|pass(?:word|wd|phrase)|(?<![a-z])pwd|credentials?"
    r"|(?:api|access|private|secret|account|auth|ssh|encryption)[_-]?key"
    r"|(?:access|api|auth|bot|gh|git|github|gitlab|hf|hub|refresh|session|wandb)[_-]?token"
    rf"|(?<![a-z])(?:{'|'.join(KEPT_WORDS).replace('_?', '[_-]?')}))"
)
# A tag `<password>` has its value behind it; `<secret>` is no tag but what a value became.
_NAMED = rf"(?:{_KEYED}|(?<![A-Za-z0-9_])token)"
_QUOTE = r"\\{0,4}[\"']"
_ASSIGNED = lazy_pattern(
    rf"(?i)(?:{_NAMED}(?:{_QUOTE})?\s*=>?\s*(?:{_QUOTE})?"
    rf"|<(?!secret>)(?:\w{{1,20}}:)?{_KEYED}>|{_NAMED}{_QUOTE}\s*:\s*(?:{_QUOTE})?"
    rf"|{_KEYED}\s*:\s+(?:{_QUOTE})?|--[\w-]{{0,40}}(?:{_KEYED}|token)\s+(?!-))"
)
# A value without quotes ends before an option that a bar joins to it: `KEY=a|--token b`.
_VALUE = lazy_pattern(
    r"(?!<)(?:(?<=[\"'])[^\"'\\\n]{4,}"
    r"|(?:(?!\|--?[a-z][\w-]{0,40}[ =])[^\s\"'&,;<>{}\[\]()]){4,})"
)
# `curl -u name:password`.
_LOGIN = lazy_pattern(r"(?<![\w-])(-u|--user|--proxy-user)(\s+|=)[^\s:\"'<>]{1,200}:[^\s\"'<>]+")
# A value whose name is like that of an environment variable that holds a secret.
_EXPORTED = lazy_pattern(r"\b[A-Z][A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS)=")
# A value beside a word for secrets, which is one if it looks random.
_WORDS_OF_KEYS = (
    "key", "token", "secret", "passw", "pwd", "auth", "credential", "signature", "sig", "session",
    "webhook", "bearer", "cookie",
)  # fmt: skip
_BESIDE = lazy_pattern(
    rf"(?i)(?:{'|'.join(_WORDS_OF_KEYS)})(?:[a-z]{{0,10}}|[_ -]?id)(?:{_QUOTE})?[\])]?"
    rf"(?:\s{{0,3}}(?:=>|:=|==?|:|,)\s{{0,3}}|\s{{1,3}}(?:(?:is|was)\s{{1,3}})?)(?:{_QUOTE})?"
)
_DRAWN = lazy_pattern(r"[\w+/=~-]{16,}")
_RUN = lazy_pattern(r"[A-Za-z0-9+/=~]{12,}")
_RANDOM = 3.0  # bits a character; words of names have digits in short runs alone
# Whose machine it was: USER=ada, "hostname": "x".
_OWNERS = r"(?:user(?:_?name)?|host_?name|log_?name|login(?:_?name)?|node_?name|computer_?name)"
_OWNER = lazy_pattern(
    rf"((?i:(?<![a-z0-9]){_OWNERS}{_QUOTE}\s*:\s*|(?<![a-z0-9]){_OWNERS}=)(?:{_QUOTE})?"
    rf"|(?<![A-Za-z0-9])HOST=(?:{_QUOTE})?)(?=[^\W\d])[^\s\"'&,;<>{{}}\[\]()\\]+"
)
_MAIL = lazy_pattern(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")
# user@host:/path, and hosts that only a network of one's own knows: `gpu-17.local` and
# `x.corp.internal`, but no module `encoder.local`.
_REMOTE = lazy_pattern(r"(?<![\w.+-])[\w.+-]{1,64}@[\w.-]{1,255}:[~/][^\s\"'<>,;|]*")
_HOST = lazy_pattern(
    r"(?i)(?<![\w.@-])(?=[a-z0-9.-]*(?:[a-z]\d|[a-z0-9]-[a-z0-9]"
    r"|\.(?:corp|cluster|svc|compute|ec2|intra|lan|int)\.[a-z]))"
    r"(?:[a-z0-9][a-z0-9-]*\.)+(?:local|localdomain|lan|internal|corp|intra)(?![\w-])"
)
# A path in a text begins at one of the usual roots, at a user's home, on a drive of Windows, on a
# host, or has two names at least. What only looks like a path (FLOP/s) stays.
_ROOTS = (
    "afs|app|bin|content|data|datasets|dbfs|dev|etc|export|fsx|gpfs|home|kaggle|lib|lustre|media"
    "|mnt|net|network|nfs|nix|opt|private|proc|project|projects|root|run|scratch|share|shared|srv"
    "|storage|sys|tmp|user|users|Users|usr|var|vol|Volumes|volume|work|workdir|workspace"
)
_PART = r"[^\s\\/\"'<>|:;,()\[\]{}=]"
_PATHS = lazy_pattern(
    rf"(?<![\w.:/-])[A-Za-z][\w.-]{{1,255}}:(?:/(?:{_ROOTS})(?:/{_PART}*)*(?![\w/])"
    rf"|(?:/{_PART}+){{2,}}/?)"
    rf"|(?:file://)?(?<![\w.:/\\>~-])(?:/(?:{_ROOTS})(?:/{_PART}*)+|~[\w.-]*(?:/{_PART}+)+)"
    rf"|(?<![\w.:/\\>~)\]}}*-])/(?=[^\W\d]|[.@])(?:{_PART}+/)+{_PART}*"
    rf"|(?<![\w.:/\\>~)\]}}*-])/(?=/{_PART})(?:/{_PART}+){{2,}}/?"
    rf"|file://(?:/{_PART}*)+"
    rf"|(?<![A-Za-z0-9])[A-Za-z]:(?:\\+|/(?!/)){_PART}*(?:[\\/]+{_PART}*)*"
    rf"|(?<![\w\\])\\\\{_PART}+(?:\\+{_PART}+)+"
)
# A node of a graph that was exported: `/model/layers.0/mlp/down_proj/MatMul`.
_NODE = lazy_pattern(
    r"/(?:(?:[A-Za-z_]\w*\.\d+|model|transformer|decoder|encoder|backbone|language_model"
    r"|\w*(?:attn|attention|mlp|ffn|proj|norm|expert|embed|lm_head|rotary|router|moe)\w*)/)+"
    r"(?:[A-Z]\w*|\w+_proj)"
)
# The library of a file shows after site-packages, or in the library's own folder.
_LIBRARIES = lazy_pattern(
    r"[\\/](?:site|dist)-packages[\\/]+|[\\/]+(?=(?:torch|triton|transformers|vllm|sglang"
    r"|tensorrt_llm|megatron|deepspeed|accelerate)[\\/])"
)
_SHORT = 1000  # characters of a text that is worth keeping
_ROUNDS = 6  # of taking out, and of decoding: most texts need one, and none more than a few
NUMBERS = {int, float, bool, type(None)}
_HOMES = frozenset({"home", "Users", "users"})
# Options of a command line whose next word is a secret.
_SECRET_OPTION = lazy_pattern(rf"(?i)--?(?:[\w-]*{_KEYED}|token)")
_SECRET_NAME = lazy_pattern(rf"(?i)(?:[\w-]*{_KEYED}|token)")
_OWNER_NAME = lazy_pattern(rf"(?i){_OWNERS}")
_NAME_OF_KEY = lazy_pattern(rf"(?i)(?:^|[_ .-])(?:{'|'.join(_WORDS_OF_KEYS)})s?(?:[_ -]?id)?$")
_WORD = lazy_pattern(r"[^\s\"'<>]+")
_ESCAPE = lazy_pattern(r"\\{1,4}(?:x|u00)([0-9a-fA-F]{2})")  # once more escaped in a repr


def _hide(match: re.Match[str]) -> str:
    """Return a match of a kept pattern with its longest group hidden, or all of it."""
    value = max(filter(None, match.groups()), key=len, default="")
    value = value if len(value) > 15 else match[0].strip(" \t\n=:\"'")
    return match[0].replace(value, SECRET)


def _replace(pattern: re.Pattern[str], by: str, text: str) -> str:
    return pattern.sub(by, text)


def _hide_values(
    keys: re.Pattern[str], values: re.Pattern[str], is_value: Callable[[str], bool], text: str
) -> str:
    """Hide the value behind each key, also of a key that the value before it seems to hold."""
    pieces, done = [], 0
    for key in keys.finditer(text):
        value = values.match(text, key.end()) if key.end() >= done else None
        if value is not None and is_value(value[0]):
            pieces += [text[done : value.start()], SECRET]
            done = value.end()
    return "".join([*pieces, text[done:]])


def _is_random(value: str) -> bool:
    """Return whether a text looks drawn at random: a long run of digits among letters."""
    if not any(_mixes(run) for run in _RUN.findall(value)):
        return False
    counts = [value.count(sign) / len(value) for sign in set(value)]
    return -sum(share * math.log2(share) for share in counts) >= _RANDOM


def _mixes(run: str) -> bool:
    return any(sign.isdigit() for sign in run) and any(sign.isalpha() for sign in run)


def _kept_rules() -> Iterator[tuple[tuple[str, ...], Callable[[str], str]]]:
    """Yield the kept patterns. None begins inside a word, and each needs a text in lower case."""
    for name, flags, pattern in KEPT_PATTERNS:
        begin = "" if pattern.startswith(r"(?:\s") else "(?<![A-Za-z0-9])"
        # `re` compiles a pattern when a text needs it first, and keeps it.
        yield _KEPT_NEEDS[name], partial(re.sub, f"{begin}{pattern}", _hide, flags=flags)


_KEYS = ("key", "pwd", "pw", "pass", "token")
_KEPT_NEEDS = {
    "Artifactory": ("akc", "ap"), "AWSKey": ("a3t", "abia", "acca", "akia", "asia", "aws"),
    "AzureStorageKey": ("accountkey",), "BasicAuth": ("://",), "Cloudant": _KEYS,
    "DiscordBotToken": (".",), "GitHubToken": ("gh",), "GitLabToken": ("gl", "gr1348941"),
    "IbmCloudIam": _KEYS, "IbmCosHmac": ("secret",), "Mailchimp": ("-us",),
    "PypiToken": ("pypi-",), "SendGrid": ("sg.",), "Slack": ("xox", "hooks.slack"),
    "Softlayer": (*_KEYS, "softlayer"), "SquareOAuth": ("sq0csp",), "Stripe": ("k_live",),
    "TelegramBotToken": (":aa",), "TwilioKey": ("ac", "sk"),
}  # fmt: skip
_TOKENS = (
    "hf_", "api_org", "gh", "gl", "sk-", "k_live", "k_test", "akia", "asia", "absk", "aiza",
    "ya29", "1//0", "xox", "xapp-", "ltai", "gsk_", "nvapi", "npm_", "pypi-", "_v1_", "r8_",
    "xai-", "pplx-", "lsv2", "tskey", "sbp_", "gocspx", "gr1348941", "hvs.", "hvb.", "hvr.",
    "dckr_", "dapi", "sg.", "key-", "sq0", "eaaa", "shp", "dp.", "pmak", "pul-", "figd_", "ntn_",
    "secret", "lin_api", "fo1_", "fm", "nrak", "pscale", "rubygems", "sntry", "atatt3", "atbb",
    "ops_eyj", "ccipat", "bkua_", "rdme_", "vc", "nfp_", "pat", "q~", "eyj", "atlasv1", "discord",
    "akc",
)  # fmt: skip
# What is taken out, in this order: texts of which a text in lower case needs one, and how.
_RULES: tuple[tuple[tuple[str, ...], Callable[[str], str]], ...] = (
    (("begin", "putty"), partial(_replace, PRIVATE_KEY, SECRET)),
    (("://",), partial(_replace, _CREDENTIALS, SECRET)),
    (_TOKENS, partial(_replace, TOKEN, SECRET)),
    *_kept_rules(),
    (("cookie", "authorization", "key", "token", "secret", "signature", "credential"),
     partial(_replace, _HEADER, rf"\1\2{SECRET}")),
    (("bearer", "basic"), partial(_replace, _BEARER, rf"\1 {SECRET}")),
    (("-u", "-user"), partial(_replace, _LOGIN, rf"\1\2{SECRET}")),
    (("=",), partial(_hide_values, _EXPORTED, _VALUE, bool)),
    (("token", "secret", "key", "pass", "pwd", "credential", "contrase"),
     partial(_hide_values, _ASSIGNED, _VALUE, bool)),
    (_WORDS_OF_KEYS, partial(_hide_values, _BESIDE, _DRAWN, _is_random)),
)  # fmt: skip
_TEXTS = (
    *dict.fromkeys(text for texts, *_ in _RULES for text in texts),
    "@", "~", "/", "\\", "%", "&", "user", "host", "name", "login",
)  # fmt: skip


def without_secrets(text: str) -> str:
    """Return the text without tokens, passwords, credentials and private keys; paths stay."""
    return _repeated(text, lambda given: _decoded_words(_without_plain(given), _without_plain))


def _without_plain(text: str) -> str:
    """Take out the secrets of a text that hides none of its signs."""
    lower = text.lower()
    for texts, take_out in _RULES:
        if any(needed in lower for needed in texts):
            text = take_out(text)
    return text


def holds_token(text: str) -> bool:
    """Return whether a text holds a secret that shows by itself.

    That is a token, a private key, an address with credentials, or a random value beside its name.
    Code also assigns to names such as `token`, which tells nothing here.
    """
    for given in (text, _decode(text)):
        lower = given.lower()
        for texts, take_out in _RULES:
            if texts[0] in ("bearer", "token") or not any(needed in lower for needed in texts):
                continue
            if take_out(given) != given:
                return True
    return False


def _repeated(text: str, change: Callable[[str], str]) -> str:
    """Return a text that a change leaves as it is."""
    for _ in range(_ROUNDS):
        changed = change(text)
        if changed == text:
            break
        text = changed
    return text


def _decoded_words(text: str, clean: Callable[[str], str]) -> str:
    """Clean words as they read once decoded: `pwd%3Dx`, `pwd&#61;x`, `pwd\\x3dx`."""
    if "%" not in text and "&" not in text and "\\" not in text:
        return text

    def cleaned(word: re.Match[str]) -> str:
        plain = _repeated(word[0], _decode)
        done = clean(plain) if plain != word[0] else plain
        return word[0] if done == plain else done

    return _WORD.sub(cleaned, text)


def _decode(text: str) -> str:
    return _ESCAPE.sub(lambda sign: chr(int(sign[1], 16)), unquote(html.unescape(text)))


def scrub(text: str) -> str:
    """Return the text without secrets and mail addresses, and with the last names of its paths.

    Of a file of an installed library, what follows `site-packages` stays.
    """
    return _known(text) if len(text) < _SHORT else _scrub(text)


def scrub_to_kinds(text: str) -> str:
    """Return the text as `scrub` does, with `<path>` instead of the last name of a path."""
    return _scrub(text, lambda path: path[0] if _NODE.fullmatch(path[0]) else PATH)


def _scrub(text: str, name: Callable[[re.Match[str]], str] | None = None) -> str:
    """Scrub a text without the cache that short texts go through."""
    if not _may_hold(text):
        return text

    def plain(given: str) -> str:
        return _scrub_plain(given, name or _named)

    return _repeated(text, lambda given: _decoded_words(plain(given), plain))


def _scrub_plain(text: str, name: Callable[[re.Match[str]], str]) -> str:
    if "@" in text:
        text = _REMOTE.sub(ADDRESS, text)
    if "/" in text or "\\" in text:
        text = _PATHS.sub(name, text)
    text = _without_plain(text)
    if "." in text:
        text = _HOST.sub(HOST, text)
    if "=" in text or ":" in text:
        text = _OWNER.sub(rf"\1{NAME}", text)
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
            inner = value_under(key, inner)
            if isinstance(key, str):
                key = free_key(scrub(key), clean)
            clean[key] = scrub_values(inner)
        return clean
    if isinstance(value, (list, tuple)):
        if set(map(type, value)) <= NUMBERS:
            return list(value)
        return [scrub_values(inner) for inner in value]
    return value


def value_under(key: Any, value: Any) -> Any:
    """Return what stands for a value under a key: its kind, if the key is of a secret or owner."""
    if not (isinstance(key, str) and isinstance(value, str) and value):
        return value
    if _SECRET_NAME.fullmatch(key) or (_NAME_OF_KEY.search(key) and _is_random(value)):
        return SECRET
    return NAME if _OWNER_NAME.fullmatch(key) else value


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
    return any(needed in lower for needed in _TEXTS)


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
    if _NODE.fullmatch(text):
        return text
    library = _LIBRARIES.split(text)
    return library[-1] if len(library) > 1 and library[-1] else _last_name(text)
