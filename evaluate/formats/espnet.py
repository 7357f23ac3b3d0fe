"""ESPnet's table of results: counts and shares in its columns, as Markdown."""

from collections.abc import Sequence

from encodeonce.evaluate.evaluation import Edits, Evaluation

COLUMNS = ("dataset", "Snt", "Wrd", "Corr", "Sub", "Del", "Ins", "Err", "S.Err")


def espnet_tables(evaluations: Sequence[tuple[str, Evaluation]]) -> str:
    """A table of words and one of characters, a row for each named test set; shares are percentages of the reference's units."""
    tables = []
    for title, kind in (("WER", "words"), ("CER", "characters")):
        rows = [_row(name, [getattr(one, kind) for one in found.utterances]) for name, found in evaluations]
        lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
        tables.append(f"### {title}\n\n" + "".join(f"|{'|'.join(cells)}|\n" for cells in lines))
    return "\n".join(tables)


def _row(name: str, edits: Sequence[Edits]) -> list[str]:
    units = sum(one.units for one in edits)
    hits, subs, dels, ins = (
        sum(getattr(one, kind) for one in edits) for kind in ("hits", "substitutions", "deletions", "insertions")
    )
    wrong = sum(one.errors > 0 for one in edits)
    shares = [_percent(count, units) for count in (hits, subs, dels, ins, subs + dels + ins)]
    return [name, str(len(edits)), str(units), *shares, _percent(wrong, len(edits))]


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.1f}" if of else "-"
