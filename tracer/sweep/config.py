"""Read a sweep file or a preset, every value checked before any work.

In: a path or a preset's name. Out: SweepConfigs. Paths in a file are relative to that file.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, get_args, get_origin

import yaml

from prunescope.taxonomy.arguments import home_path
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.keep import check_sparsity
from prunescope.taxonomy.option import MOST, NamedOption, as_path, options_of
from prunescope.taxonomy.own_files import refuse_own_file
from prunescope.tracer.calibration.named_texts import is_named_text
from prunescope.tracer.recovery.settings import Recovery, read_recovery
from prunescope.tracer.sweep.plan import SweepConfig, is_file, settable

_MAPPING = Path("the sweep")  # named in messages about keys that come from no file
_MAX_BYTES = 1 << 20
_MOST_BITS = 1000  # of a number that is quoted; Python spells out 14,000 of them
_KEYS = tuple(named.name for named in options_of(SweepConfig))


@dataclass(frozen=True)
class _Preset:
    """`about`: a line on each of its sweeps; `also`: the text above them."""

    sweeps: tuple[SweepConfig, ...]
    about: tuple[str, ...]
    also: str


@cache
def _presets() -> dict[str, _Preset]:
    text = resources.files(__package__).joinpath("presets.yaml").read_text(encoding="utf-8")
    return {name: _preset(**listed) for name, listed in yaml.safe_load(text).items()}


def _preset(sweeps: list[dict[str, Any]], also: str) -> _Preset:
    values = [
        {key: _READ[key](key, value) for key, value in plain.items() if key != "about"}
        for plain in sweeps
    ]
    about = tuple(plain["about"] for plain in sweeps)
    return _Preset(tuple(SweepConfig(**one) for one in values), about, also)


def presets() -> dict[str, tuple[SweepConfig, ...]]:
    """The sweeps of presets.yaml by name."""
    return {name: one.sweeps for name, one in _presets().items()}


def read_configs(
    config: Path | Mapping[str, Any] | None, preset: str | None
) -> tuple[SweepConfig, ...]:
    """The configurations of a file, of its keys as a mapping, or of a preset; of both, those of the
    preset with the keys of the file in place of its own. Paths are relative to the file; those of a
    mapping, to the working directory. Raises PrunescopeError on the first mistake."""
    if config is None and preset is None:
        raise PrunescopeError(
            "a sweep takes a CONFIG.yaml, --preset, or both",
            hint=f"presets: {', '.join(presets())}",
        )
    if preset is not None and preset not in presets():
        raise PrunescopeError(
            f"no sweep preset is called {preset!r}", hint=f"one of {', '.join(presets())}"
        )
    if config is None:
        return presets()[str(preset)]
    if isinstance(config, Mapping):
        path, found = _MAPPING, [_with_todays_keys(dict(config))]
    else:
        refuse_own_file(config)
        path, found = config, _read_yaml(config)
    if preset is None:
        return tuple(SweepConfig(**_from_plain(plain, path)) for plain in found)
    if len(found) > 1:
        raise PrunescopeError(
            f"{path.name} holds {len(found)} sweeps, and --preset takes the keys of one",
            hint="remove the lines from `---` on, or leave --preset out",
        )
    own = _from_plain(found[0], path, whole=False)
    return tuple(dict.fromkeys(_scaled(one, own) for one in presets()[preset]))


def _scaled(config: SweepConfig, own: Mapping[str, Any]) -> SweepConfig:
    """A sweep of a preset with keys in place of its own. Where the families are others, what none
    of them has of the options that the preset sets is not asked of them."""
    found = dataclasses.replace(config, **own)
    if "families" not in own or "set" in own:
        return found
    known = settable(found.families)
    return dataclasses.replace(found, set={k: v for k, v in found.set.items() if k in known})


def _read_yaml(path: Path) -> list[dict[str, Any]]:
    """The documents of a file, each a sweep."""
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > _MAX_BYTES):
            raise PrunescopeError(
                f"{path.name} is no sweep file of at most 1 MiB", hint="give a YAML file"
            )
        found = list(yaml.load_all(path.read_text(encoding="utf-8"), _Loader))
    except (OSError, UnicodeDecodeError) as error:
        raise PrunescopeError(
            f"the sweep file {path} cannot be read ({type(error).__name__})",
            hint="give a YAML file, or --preset paper",
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise PrunescopeError(
            f"{path.name} is not YAML{where} ({getattr(error, 'problem', None) or 'malformed'})",
            hint="one `key: value` a line, lists as [a, b]",
        ) from error
    if not found or not all(isinstance(plain, dict) for plain in found):
        raise PrunescopeError(f"{path.name} holds no keys", hint="at least model and families")
    return [_with_todays_keys(plain) for plain in found]


def _with_todays_keys(plain: dict[str, Any]) -> dict[str, Any]:
    for old, new in OLD_KEYS.items():
        if old in plain:
            plain.setdefault(new, plain.pop(old))
    return plain


_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[+-]?(?:0|[1-9][0-9]*)", re.ASCII),
    "tag:yaml.org,2002:float": re.compile(
        r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][+-]?[0-9]+)?"
        r"|[+-]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        re.ASCII,
    ),
}
# Keys as versions before 0.2 named them; sweep.json of those versions holds them too.
OLD_KEYS = {"seatings": "placements"}


class _Loader(yaml.SafeLoader):
    """YAML, with each key of the file once: of two, the first would be lost without a word. Numbers
    are decimal digits: YAML 1.1 reads 0.1_5 as 0.15, 1:30 as 90 and 010 as 8."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {
        first: [(tag, form) for tag, form in forms if tag not in _NUMBERS]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """A mapping. Raises PrunescopeError where a key is in it twice."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise PrunescopeError(
                    f"the sweep file gives {key.value[:40]} twice, the second time in line "
                    f"{key.start_mark.line + 1}",
                    hint="keep one of the two; several values are a list, as [a, b]",
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


for _tag, _form in _NUMBERS.items():
    _Loader.add_implicit_resolver(
        _tag, re.compile(f"(?:{_form.pattern})$", re.ASCII), list("+-.0123456789")
    )


def _from_plain(plain: dict[str, Any], path: Path, *, whole: bool = True) -> dict[str, Any]:
    """The values of the keys, paths relative to the file. `whole`: with those that a sweep needs;
    else a key without a value has the default of a sweep, in place of that of a preset."""
    for key in plain:
        if key not in _KEYS:
            raise PrunescopeError(
                f"{path.name} has an unknown key {reprlib.repr(key)}",
                hint=f"nearest: {nearest(str(key)[:99], _KEYS)}; known: {', '.join(_KEYS)}",
            )
    for key in ("model", "families") if whole else ():
        if plain.get(key) in (None, []):
            raise PrunescopeError(f"{path.name} has no {key}", hint=f"add `{key}: ...`")
    values = {
        key: _DEFAULTS[key] if value is None else _READ[key](key, value)
        for key, value in plain.items()
        if value is not None or (not whole and key in _DEFAULTS)
    }
    if "tasks_path" in values and "tasks" not in values:
        raise PrunescopeError(
            "tasks_path was given without tasks", hint="tasks: [NAME, ...], as its files say"
        )
    return {key: _located(key, value, path) for key, value in values.items()}


def _located(key: str, value: Any, path: Path) -> Any:
    """A value that names a file or folder, relative to the sweep file; any other as it is."""
    if value is None:
        return None
    if key == "model":
        return _path_from_file(value, path, when=True)
    if key == "families":
        return tuple(_path_from_file(name, path, when=is_file(name)) for name in value)
    if key in ("text", "other_text"):
        return _text(value, path)
    if key == "recover" and value.text is not None:
        return dataclasses.replace(value, text=_text(value.text, path))
    if key == "tasks_path":
        return _folder(path.parent / home_path(str(value)))
    return value


def _text(value: Path | str, path: Path) -> Path:
    """A text file next to the sweep file, or the name of a data set."""
    there = path.parent / home_path(str(value))
    return Path(value) if is_named_text(value) and not there.exists() else there


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise PrunescopeError(
            f"tasks_path: there is no folder {path.name}",
            hint="a folder of task files of lm-evaluation-harness, next to the sweep file",
        )
    return path.resolve()  # the harness works inside it, and a worker may stand elsewhere


def _path_from_file(name: str, path: Path, *, when: bool) -> str:
    """`name` as a path relative to the sweep file, where there is such a folder or file."""
    there = path.parent / home_path(name)
    try:
        found = str(there) if when and there.exists() else name
    except OSError:  # no name that a file can have
        return name
    return f"./{found}" if found != name and "/" not in found else found  # still a path


def _wrong(key: str, value: Any, wanted: str) -> PrunescopeError:
    # Not its repr: aliases in YAML make a value of a few lines as long as the disk.
    huge = isinstance(value, int) and value.bit_length() > _MOST_BITS
    shown = "a number of hundreds of digits" if huge else reprlib.repr(value)
    return PrunescopeError(f"{key}: {shown} is not {wanted}", hint=f"give {key} as {wanted}")


def _path(key: str, value: Any) -> Path:
    return Path(_word(key, value))


def _word(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(key, value, "a word")
    return value


def _count(key: str, value: Any, *, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        wanted = "a whole number above zero" if least else "a whole number, 0 or more"
        raise _wrong(key, value, f"{wanted}, {most} at most")
    return value


def _share(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MOST:
        raise _wrong(key, value, "a number from 0 to 1")
    return check_sparsity(value)


def _choice(key: str, value: Any, *, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise _wrong(key, value, " or ".join(choices))
    return str(value)


def _many(read_one: Callable[[str, Any], Any]) -> Callable[[str, Any], tuple[Any, ...]]:
    """A list of values without repeats; a single value is a list of one."""

    def read(key: str, value: Any) -> tuple[Any, ...]:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise _wrong(key, value, "one value or more")
        return tuple(dict.fromkeys(read_one(key, item) for item in values))

    return read


def _selection(key: str, value: Any) -> str | tuple[str, ...]:
    """One selection, or several, which are points of their own."""
    found = _many(_word)(key, value)
    return str(found[0]) if len(found) == 1 else found


def _switch(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(key, value, "true or false")
    return value


def _knobs(key: str, value: Any) -> dict[str, tuple[str, ...]]:
    """{KNOB: values} of a mapping whose values are numbers or words, or lists of them."""
    if not isinstance(value, dict) or not all(isinstance(knob, str) for knob in value):
        raise _wrong(key, value, "options with their values, as {align: [1, 16]}")

    def one(_key: str, item: Any) -> str:
        if not isinstance(item, str | int | float) or not str(item):
            raise _wrong(f"{key}: {_key}", item, "a number or a word")
        return str(item).lower() if isinstance(item, bool) else str(item)

    return {knob: _many(one)(knob, values) for knob, values in value.items()}


def _reader(named: NamedOption) -> Callable[[str, Any], Any]:
    """The function that reads and checks a value of a key, by the type and the limits of its
    option."""
    if named.name in _OF_THEIR_OWN:
        return _OF_THEIR_OWN[named.name]
    kind = next((k for k in get_args(named.type) if k is not NoneType), named.type)
    if get_origin(named.type) is tuple:
        kind = get_args(named.type)[0]
    read: Callable[[str, Any], Any] = _word
    if kind is float:
        read = _share
    elif kind is int:
        least, most = named.option.least or 0, named.option.most or MOST
        read = partial(_count, least=int(least), most=int(most))
    elif kind is bool:
        read = _switch
    elif kind is Path:
        read = _path
    elif get_origin(kind) is Literal:
        read = partial(_choice, choices=get_args(kind))
    return _many(read) if get_origin(named.type) is tuple else read


_OF_THEIR_OWN: dict[str, Callable[[str, Any], Any]] = {
    "select": _selection,
    "recover": lambda key, value: read_recovery(value, where=key),
    "set": _knobs,
}
_READ = {named.name: _reader(named) for named in options_of(SweepConfig)}
_DEFAULTS = {
    named.name: named.default
    for named in options_of(SweepConfig)
    if named.default is not dataclasses.MISSING
}


def example() -> str:
    """A sweep file with every key: its default, or a value that it may have, and what it does."""
    lines = [
        "# A sweep: every family at every sparsity, in every phase, batch and length.",
        "#   prunescope sweep sweep.yaml --out traces/sweep --dry-run",
        "# Keys after a # show their default, or an example. Paths are relative to this file.",
    ]
    for named in options_of(SweepConfig):
        is_required = named.default is dataclasses.MISSING
        value = named.option.example or _yaml(named.default)
        line = f"{'' if is_required else '# '}{named.name}: {value}"
        lines.append(f"{line:<40} # {named.option.help}")
    return "\n".join(lines) + "\n"


def preset_text(name: str | None, config: Path | str | Mapping[str, Any] | None = None) -> str:
    """A preset as YAML, with the keys of `config` in place of its own: a document for each of its
    sweeps, with the keys that list values and those that differ from their default; of a preset as
    it is, with comments on what each shows, and the commands for the rest. Raises PrunescopeError
    for a preset that there is not."""
    documents = []
    own = config if isinstance(config, Mapping) else as_path(config)
    preset = _presets().get(str(name))
    whole = preset is not None and config is None  # scaled sweeps show other things
    for number, one in enumerate(read_configs(own, name)):
        lines = [f"# {preset.about[number]}"] if preset and whole else []
        lines += [
            f"{named.name}: {_yaml(value)}"
            for named in options_of(SweepConfig)
            if (value := getattr(one, named.name)) != named.default
            or (named.option.lists and value)
        ]
        documents.append("\n".join(lines) + "\n")
    also = preset.also.splitlines() if preset and whole else []
    above = "".join(f"# {line}\n" for line in also)
    return (above + "\n" if above else "") + "---\n".join(documents)


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, Recovery):
        value = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        }
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_yaml(one)}' for key, one in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)
