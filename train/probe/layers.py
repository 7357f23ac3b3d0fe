"""Which outputs of a store are layers of its encoder: by what they hold, whatever they are called and kept in."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from encodeonce.store.errors import StoreError
from encodeonce.store.layout import Output
from encodeonce.store.reader import FeatureStore

LAYER = re.compile(r"hidden_states\[(\d+)\]")
"""What an output of one layer says it holds, cast to another dtype or not; what is made of a layer says so around it."""
ENCODED_MEAN = re.compile(r"mean\(hidden_states\[(\d+)-(\d+)\]\)")
DERIVED_MEAN = re.compile(r"mean\((.+)\)")
EXACT_FIRST = ("float32", "float16", "int8")


@dataclass(frozen=True, slots=True, order=True)
class Layers:
    """A layer, or the mean of several in a row, as `--layers` names it; layers sort before means."""

    mean: bool
    first: int
    last: int

    def __str__(self) -> str:
        return f"mean:{self.first}-{self.last}" if self.mean else str(self.first)


def held_by(output: Output) -> Layers | None:
    """The layer or the mean of layers that an output holds; None: it holds something else, or something made of layers otherwise."""
    if span := ENCODED_MEAN.fullmatch(output.what):
        return Layers(True, int(span[1]), int(span[2]))
    mean = DERIVED_MEAN.fullmatch(output.what)
    parts = [LAYER.fullmatch(part) for part in (mean[1] if mean else output.what).split(", ")]
    numbers = [int(part[1]) for part in parts if part]
    if len(numbers) < len(parts) or numbers != [*range(numbers[0], numbers[-1] + 1)]:
        return None
    return Layers(mean is not None, numbers[0], numbers[-1])


def layer_of(output: Output) -> int | None:
    """The number of the layer that an output holds; None: it holds something else, or something made of layers."""
    held = held_by(output)
    return held.first if held and not held.mean else None


def stored(store: FeatureStore) -> dict[Layers, str]:
    """The output of each stored layer and mean, in order: the encoder's own before a cast, then the more exact one."""
    found = {held_by(store.spec(name)): name for name in reversed(_best_first(store))}
    return {layers: found[layers] for layers in sorted(layers for layers in found if layers is not None)}


def stored_layers(store: FeatureStore) -> list[str]:
    """The output of each stored layer, in order."""
    return [name for layers, name in stored(store).items() if not layers.mean]


def chosen_layers(store: FeatureStore, asked: str) -> list[str]:
    """The outputs that `--layers` names, numbered as extract-features does: `all`, `last`, `9,18-24`, `mean:18-24`, `mean:all`.

    All and the last layer are those that are stored, by themselves or in a mean. Layers come in order, means after them.

    Raises:
        StoreError: no layer, or one that is not stored.
    """
    held = stored(store)
    names = []
    for wanted in sorted({one for part in asked.split(",") for one in _parsed(asked, part.strip(), list(held))}):
        if wanted not in held:
            there = f"layers {', '.join(map(str, held))}" if held else f"no layers, but {', '.join(store.outputs)}"
            what = f"{'' if wanted.mean else 'layer '}{wanted}"
            raise StoreError(f"--layers {asked}: no {what} in {store.path}; there are {there}")
        names.append(held[wanted])
    return names


def _parsed(asked: str, part: str, held: Sequence[Layers]) -> Iterator[Layers]:
    if part == "mean:all":
        yield Layers(True, 0, max((layers.last for layers in held), default=0))
        return
    if part in ("all", "last"):
        # Of a store without layers, one that it lacks.
        single = [layers for layers in held if not layers.mean] or [Layers(False, 0, 0)]
        yield from single[0 if part == "all" else -1 :]
        return
    named = re.fullmatch(r"(mean:)?([0-9]{1,3})(?:-([0-9]{1,3}))?", part)
    if named is None or (named[1] and not named[3]):
        raise StoreError(
            f"--layers {asked}: {part!r} is no layer; give all, last, numbers such as 9,18-24, mean:18-24 or mean:all"
        )
    first, last = int(named[2]), int(named[3] or named[2])
    if first > last:
        raise StoreError(f"--layers {asked}: {part} runs backwards; give the lower number first")
    if named[1]:
        yield Layers(True, first, last)
    else:
        for number in range(first, last + 1):
            yield Layers(False, number, number)


def _best_first(store: FeatureStore) -> list[str]:
    """The outputs, what the encoder made before what was derived of it, and more exact ones first."""

    def rank(name: str) -> tuple[bool, int]:
        output = store.spec(name)
        return output.derived_from is not None, EXACT_FIRST.index(output.dtype) if output.dtype in EXACT_FIRST else -1

    return sorted(store.outputs, key=rank)
