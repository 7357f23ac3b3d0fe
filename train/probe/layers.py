"""Which outputs of a store are layers of its encoder: by what they hold, whatever they are called and kept in."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from encodeonce.store.errors import StoreError
from encodeonce.store.layout import Output
from encodeonce.store.reader import FeatureStore

LAYER = re.compile(r"hidden_states\[(\d+)\]")
"""What an output of one layer says it holds, cast to another dtype or not; what is made of a layer says so around it."""
EXACT_FIRST = ("float32", "float16", "int8")


@dataclass(frozen=True, slots=True, order=True)
class Wanted:
    """A layer, or the mean of several in a row; layers sort before means."""

    mean: bool
    first: int
    last: int

    @property
    def whats(self) -> list[str]:
        """What an output of it may say that it holds: the encoder made it, or it was derived."""
        if not self.mean:
            return [f"hidden_states[{self.first}]"]
        several = ", ".join(f"hidden_states[{number}]" for number in range(self.first, self.last + 1))
        return [f"mean(hidden_states[{self.first}-{self.last}])", f"mean({several})"]

    def __str__(self) -> str:
        return f"mean:{self.first}-{self.last}" if self.mean else f"layer {self.first}"


def layer_of(output: Output) -> int | None:
    """The number of the layer that an output holds; None: it holds something else, or something made of layers."""
    found = LAYER.fullmatch(output.what)
    return int(found[1]) if found else None


def stored_layers(store: FeatureStore) -> dict[int, str]:
    """The output of each stored layer, by number and in order: the encoder's own before a cast, then the more exact one."""
    found = {layer_of(store.spec(name)): name for name in reversed(_best_first(store))}
    return {number: found[number] for number in sorted(number for number in found if number is not None)}


def chosen_layers(store: FeatureStore, asked: str) -> list[str]:
    """The outputs that `--layers` names, numbered as extract-features does: `all`, `last`, `9,18-24`, `mean:18-24`.

    `all` and `last` are those that are stored. Layers come in order, means after them.

    Raises:
        StoreError: no layer, or one that is not stored.
    """
    layers = stored_layers(store)
    held = {store.spec(name).what: name for name in reversed(_best_first(store))}
    names = []
    for wanted in sorted({one for part in asked.split(",") for one in _parsed(asked, part.strip(), list(layers))}):
        name = next((held[what] for what in wanted.whats if what in held), None)
        if name is None:
            there = f"layers {', '.join(map(str, layers))}" if layers else f"no layers, but {', '.join(store.outputs)}"
            raise StoreError(f"--layers {asked}: no {wanted} in {store.path}; there are {there}")
        names.append(name)
    return names


def _parsed(asked: str, part: str, stored: Sequence[int]) -> Iterator[Wanted]:
    if part in ("all", "last"):
        # Of a store without layers, one that it lacks.
        for number in stored[0 if part == "all" else -1 :] or [0]:
            yield Wanted(False, number, number)
        return
    named = re.fullmatch(r"(mean:)?([0-9]{1,3})(?:-([0-9]{1,3}))?", part)
    if named is None or (named[1] and not named[3]):
        raise StoreError(
            f"--layers {asked}: {part!r} is no layer; give all, last, numbers such as 9,18-24, or mean:18-24"
        )
    first, last = int(named[2]), int(named[3] or named[2])
    if first > last:
        raise StoreError(f"--layers {asked}: {part} runs backwards; give the lower number first")
    if named[1]:
        yield Wanted(True, first, last)
    else:
        for number in range(first, last + 1):
            yield Wanted(False, number, number)


def _best_first(store: FeatureStore) -> list[str]:
    """The outputs, what the encoder made before what was derived of it, and more exact ones first."""

    def rank(name: str) -> tuple[bool, int]:
        output = store.spec(name)
        return output.derived_from is not None, EXACT_FIRST.index(output.dtype) if output.dtype in EXACT_FIRST else -1

    return sorted(store.outputs, key=rank)
