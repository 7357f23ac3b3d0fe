"""From YAML and key=value to a TrainConfig, and back: what is not known, of another type or no choice is refused by its path."""

import difflib
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from encodeonce.train.adapters.base import AdapterConfig
from encodeonce.train.adapters.registry import find_adapter
from encodeonce.train.config import TrainConfig
from encodeonce.train.errors import TrainingError

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
"""YAML 1.1 wants a dot and a sign in 1.0e-3, and takes 1e-3 for text; here it is a number."""


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a YAML file, or of a recipe by its name, with `key=value` put over it.

    Raises:
        TrainingError: there is no such file or recipe, or something in it is wrong.
    """
    return parse_config(override(read_yaml(find_config(source)), overrides))


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("encodeonce.train.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(source: str | Path) -> Path:
    """The file that a user means: a path, or a recipe's name.

    Raises:
        TrainingError: neither; near names are told.
    """
    path, known = Path(source), recipes()
    if path.is_file():
        return path
    if str(source) in known:
        return known[str(source)]
    raise TrainingError(
        f"{source}: no such file, and no recipe of that name{near(str(source), known)}; --list-recipes shows them"
    )


def about(recipe: Path) -> str:
    """The first line of the comment that a recipe begins with."""
    return recipe.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def read_yaml(path: Path) -> dict[str, Any]:
    """What a YAML file says.

    Raises:
        TrainingError: it is no YAML, says a key twice, or holds no mapping.
    """
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise TrainingError(
            f"{path} holds no configuration: it should begin with keys such as data:, adapter:, objectives:"
        )
    return found


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if double := next((key for key in keys if isinstance(key, str) and keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{double!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def override(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Put `key=value` over a configuration: dots lead into sections, numbers into lists, values are YAML.

    Raises:
        TrainingError: no `=`, or a key that leads into a plain value.
    """
    changed: Any = _copied(values)
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise TrainingError(f"{word!r}: write key=value, for example training.learning_rate=1e-3")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise TrainingError(f"{word!r}: {text!r} is no YAML value: {error}") from error
        _put(changed, key.split("."), value, key)
    return changed


def _copied(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _copied(value) for key, value in values.items()}
    return [_copied(value) for value in values] if isinstance(values, list) else values


def _put(values: Any, names: Sequence[str], value: Any, key: str) -> None:
    """Put a value where the names lead, from a mapping or a list."""
    name, *rest = names
    place: Any = _place(values, name, key)
    if not rest:
        values[place] = value
        return
    below = values.get(place) if isinstance(values, dict) else values[place]
    if below is None:
        below = values[place] = {}
    elif isinstance(below, str) and name == "adapter":
        below = values[place] = {"name": below}
    _put(below, rest, value, key)


def _place(values: Any, name: str, key: str) -> str | int:
    if isinstance(values, dict):
        return name
    if isinstance(values, list) and name.isdecimal() and int(name) < len(values):
        return int(name)
    what = f"a list of {len(values)}: number them from 0" if isinstance(values, list) else f"the value {values!r}"
    raise TrainingError(f"{key}: before {name!r} there is {what}")


def parse_config(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration that nested mappings say.

    Raises:
        TrainingError: a key that is not known, a missing one, a value of another type, or none of the choices.
    """
    return _section(TrainConfig, values, "")


def _section(kind: type[Any], value: Any, path: str) -> Any:
    """A dataclass from its keys."""
    if not isinstance(value, Mapping):
        raise TrainingError(f"{path}: {value!r} where options belong; write {path}: {{}} for the defaults")
    hints, known = _hints(kind), {field.name: field for field in fields(kind)}
    for key in value:
        if key not in known:
            raise TrainingError(
                f"{_below(path, key)}={_shown(value[key])}: no such option{near(str(key), known)}; there are {', '.join(known) or 'none'}"
            )
    lacking = [
        _below(path, name)
        for name, field in known.items()
        if name not in value and field.default is MISSING and field.default_factory is MISSING
    ]
    if lacking:
        raise TrainingError(
            f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not given, and there is no default"
        )
    return kind(**{key: _value(hints[key], entry, _below(path, key)) for key, entry in value.items()})


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _value(hint: Any, value: Any, path: str) -> Any:
    """A value of the type that a field asks for."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _value(hint, value, path)
    if origin is Literal:
        value = "no" if value is False else value  # YAML 1.1 reads no as false
        if value not in arguments:
            raise TrainingError(
                f"{path}={_shown(value)}: take one of {', '.join(map(str, arguments))}{near(str(value), arguments)}"
            )
        return value
    if origin is tuple:
        return _tuple(arguments, value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TrainingError(f"{path}={_shown(value)}: take names with values, such as {{ctc: 1.0}}")
        return {
            _value(arguments[0], key, path): _value(arguments[1], entry, f"{path}.{key}")
            for key, entry in value.items()
        }
    if hint is AdapterConfig:
        return _adapter(value, path)
    if is_dataclass(hint):
        return _section(hint, value, path)
    return PLAIN[hint](value, path)


def _tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    entries = list(value) if isinstance(value, list | tuple) else [value]
    if arguments[-1] is Ellipsis:
        return tuple(_value(arguments[0], entry, f"{path}.{i}") for i, entry in enumerate(entries))
    if len(entries) != len(arguments):
        raise TrainingError(f"{path}={_shown(value)}: take a list of {len(arguments)}")
    return tuple(
        _value(hint, entry, f"{path}.{i}") for i, (hint, entry) in enumerate(zip(arguments, entries, strict=True))
    )


def _adapter(value: Any, path: str) -> AdapterConfig:
    """An adapter's options, told by their `name`; a name alone takes the defaults."""
    options = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise TrainingError(
            f"{path}={_shown(value)}: say which adapter, such as {path}: {{name: qformer}}; --list-adapters shows them"
        )
    return _section(find_adapter(name), options, path)


def _text(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    raise TrainingError(
        f"{path}={_shown(value)}: take a text; one that YAML reads as a number, a date or a truth value goes in quotes"
    )


def _truth(value: Any, path: str) -> bool:
    if isinstance(value, bool):
        return value
    raise TrainingError(f"{path}={_shown(value)}: take true or false")


def _real(value: Any, path: str) -> float:
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TrainingError(f"{path}={_shown(value)}: take a number")
    return float(value)


def _whole(value: Any, path: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    written = isinstance(value, float) or (isinstance(value, str) and NUMBER.fullmatch(value))
    number = float(value) if written else math.nan
    if not number.is_integer():
        raise TrainingError(f"{path}={_shown(value)}: take a whole number")
    return int(number)


PLAIN: dict[type[Any], Callable[[Any, str], Any]] = {str: _text, bool: _truth, float: _real, int: _whole}


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def near(name: str, known: Iterable[Any]) -> str:
    """A hint at the known name that is most like one that is not."""
    close = difflib.get_close_matches(name, list(map(str, known)), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def as_values(config: Any) -> Any:
    """A configuration as YAML can say it: every option, defaults too."""
    if is_dataclass(config):
        values = {field.name: as_values(getattr(config, field.name)) for field in fields(config)}
        return {"name": config.name, **values} if isinstance(config, AdapterConfig) else values
    if isinstance(config, dict):
        return {key: as_values(value) for key, value in config.items()}
    return [as_values(value) for value in config] if isinstance(config, tuple) else config


def to_yaml(config: TrainConfig) -> str:
    """The resolved configuration; reading it gives the same one."""
    return yaml.safe_dump(as_values(config), sort_keys=False, allow_unicode=True, width=120)
