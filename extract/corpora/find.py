"""From DATA and a split's name to its listing: which layout it is, and what to say when nothing is there."""

import difflib
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import commonvoice, folder, kaldi, lhotse, librispeech, manifest, mustc
from .base import CorpusError, Listing
from .download import LIBRISPEECH_SPLITS
from .layout import Layout

# The most specific marks first: a LibriSpeech split is a folder of audio files too, a Common Voice table a TSV file.
_LAYOUTS: dict[str, Layout] = {
    module.LAYOUT.name: module.LAYOUT for module in (librispeech, mustc, commonvoice, kaldi, lhotse, manifest, folder)
}
LAYOUTS: tuple[str, ...] = tuple(_LAYOUTS)


def list_corpus(data: Path, split: str, layout: str = "auto") -> Listing:
    """List the split `split` of the corpus at `data`, a folder or a manifest file.

    With "auto" the first of LAYOUTS whose marks are found reads it; the listing says which it was and where.
    Raises CorpusError where there is no such split, or more than one, or no usable utterance in it.
    """
    data = Path(data)
    if layout != "auto" and layout not in _LAYOUTS:
        raise CorpusError(
            f"no corpus layout {layout!r}{_near(layout, LAYOUTS)}; expected auto or one of {', '.join(LAYOUTS)}"
        )
    check_split_name(split)
    if not data.exists():
        raise CorpusError(
            f"no data folder {str(data)!r}: give the folder that holds the corpus with --data{_fetch(split)}"
        )
    try:
        for candidate in _LAYOUTS.values() if layout == "auto" else [_LAYOUTS[layout]]:
            place = candidate.find(data, split)
            if place is not None:
                with _no_garbage_collection():
                    listing = candidate.read(place, split)
                if not listing.utterances:
                    raise CorpusError(_nothing_usable(listing, split))
                return listing
        raise CorpusError(_not_found(data, split, layout))
    except OSError as error:
        raise CorpusError(f"cannot read {error.filename or data}: {error.strerror or error}") from error


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Listing makes many objects and no cycles; looking for cycles among them takes as long as the listing itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_split_name(split: str) -> None:
    """A split is a name or a path below DATA ("en-de/dev"); it never leads out of it."""
    parts = split.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in split or not split.isprintable():
        raise CorpusError(
            f"split {split!r} is no name of a split: expected a name such as 'dev' or a path below the data folder "
            "such as 'en-de/dev', without '..' and not absolute; choose the folder with --data"
        )


def _nothing_usable(listing: Listing, split: str) -> str:
    said = f"split {split!r} ({listing.layout} at {listing.root}) has no usable utterance"
    if not listing.problems:
        return f"{said}: no entry was found in it"
    first = listing.problems[0]
    place = f"{first.where}: " if first.where else ""
    return f"{said}: {len(listing.problems)} problems, the first one {place}{first.reason}"


def _not_found(data: Path, split: str, layout: str) -> str:
    if data.is_file():
        return (
            f"{data} is no manifest that can be read{'' if layout == 'auto' else f' as {layout}'}: "
            f"expected a name that ends in {', '.join(manifest.SUFFIXES)}"
        )
    chosen = list(_LAYOUTS.values()) if layout == "auto" else [_LAYOUTS[layout]]
    kind = "" if layout == "auto" else f" in {layout} layout"
    there = sorted(set().union(*(candidate.splits(data) for candidate in chosen)))
    near = _near(split, there)
    lines = [f"no split {split!r}{kind} under {str(data)!r}{near}"]
    if (data / split).is_dir():
        lines.append(f"the folder {str(data / split)!r} is there, but holds none of what was looked for")
    if layout != "auto" and (other := _layout_there(data, split)):
        lines.append(f"it is there in {other} layout: leave --corpus out")
    if there:
        lines.append(f"splits there: {', '.join(there[:12])}{', ...' if len(there) > 12 else ''}")
    lines.append(
        f"give the folder that holds it with --data{'' if near and split not in LIBRISPEECH_SPLITS else _fetch(split)}"
    )
    looked_for = (mark.format(split=split) for candidate in chosen for mark in candidate.marks)
    lines.append(f"looked there for {', '.join(looked_for)}")
    return "\n  ".join(lines)


def _layout_there(data: Path, split: str) -> str | None:
    return next((name for name, candidate in _LAYOUTS.items() if candidate.find(data, split) is not None), None)


def _near(name: str, names: list[str] | tuple[str, ...]) -> str:
    """A question for what was probably meant; upper and lower case and "_" for "-" do not count."""
    plain = {known.lower().replace("_", "-"): known for known in names}
    wanted = name.lower().replace("_", "-")
    close = [wanted] if wanted in plain else difflib.get_close_matches(wanted, plain, n=2, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(plain[match]) for match in close)}?)" if close else ""


def _fetch(split: str) -> str:
    if split in LIBRISPEECH_SPLITS:
        return ", or let --download fetch it from OpenSLR"
    near = _near(split, LIBRISPEECH_SPLITS)
    return f"; --download fetches LibriSpeech's splits by name{near}" if near else ""
