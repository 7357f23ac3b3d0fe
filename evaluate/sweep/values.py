"""Values of a grid's file, each refused by its path where it is of another kind."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.train.configure import near


def mapping(path: str, value: Any) -> Mapping[str, Any]:
    """Names with values; null is none of them."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise EvaluationError(f"{path}={value}: take names with values")
    return value


def text(path: str, value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise EvaluationError(f"{path}={value}: take a text")
    return value


def texts(path: str, value: Any) -> tuple[str, ...]:
    """Texts, each once; one alone needs no list."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not found or not all(isinstance(one, str) and one for one in found):
        raise EvaluationError(f"{path}={value}: take a list of names, such as [dev-clean, dev-other]")
    once(path, found)
    return tuple(found)


def whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def once(path: str, values: Sequence[Any]) -> None:
    """Refuse a value that is there twice."""
    if double := [value for value in values if values.count(value) > 1]:
        raise EvaluationError(f"{path} has {double[0]} twice")


def check_known(path: str, values: Iterable[Any], known: Sequence[str]) -> None:
    """Refuse a key that there is not."""
    for key in values:
        if key not in known:
            place = f"{path}.{key}" if path else str(key)
            raise EvaluationError(
                f"{place}: no such key{near(str(key), known)}; there are {', '.join(known) or 'none'}"
            )
