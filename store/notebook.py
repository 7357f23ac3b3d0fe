"""A store as a notebook shows it: a line, and the rest to unfold."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from encodeonce.store.reader import FeatureStore

SHOWN = 5


def store_html(store: "FeatureStore") -> str:
    """HTML without scripts; everything that comes from the store is escaped."""
    seconds = float(store.frames.sum()) / store.frame_rate
    head = f"{len(store):,} utterances, {seconds / 3600:.2f} h, {store.encoder}, {store.frame_rate:g} frames a second"
    places = "<br>".join(escape(str(part.path)) for part in store.parts)
    specs = [store.spec(name) for name in store.outputs]
    default = {store.output: " (default)"}
    outputs = [(f"{o.name}{default.get(o.name, '')}", f"[T, {o.width}]", o.dtype, o.what) for o in specs]
    few = [store[i] for i in range(min(SHOWN, len(store)))]
    utterances = [(u.id, str(u.frames), f"{u.duration:.2f} s", u.speaker or "", u.text or "") for u in few]
    return (
        f"<div><b>FeatureStore</b> {escape(head)}<br><small>{places}</small>"
        f"{_folded(f'Outputs ({len(outputs)})', ('name', 'shape', 'dtype', 'what'), outputs, True)}"
        f"{_folded(f'Utterances (the first {len(few)})', ('id', 'frames', 'length', 'speaker', 'text'), utterances, False)}</div>"
    )


def _folded(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], is_open: bool) -> str:
    head = "".join(f"<th style='text-align:left'>{name}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    opened = " open" if is_open else ""
    return f"<details{opened}><summary>{escape(title)}</summary><table><tr>{head}</tr>{body}</table></details>"
