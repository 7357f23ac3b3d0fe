"""The table of --list-encoders."""

from dataclasses import asdict
from typing import Any

import click
from encodeonce.extract.encoders.registry import Listed
from rich.console import Console
from rich.table import Table

PIPED_WIDTH = 1000
"""Characters of a line where no terminal shows it: room for every column, so that nothing is folded."""
FOOT = """params: of the encoder. width: numbers in a frame, of a codec its codebooks. MB/h: an hour of audio, one layer in
float16 or all codes. Also: a folder in transformers' format, a hub id, onnx:FILE, units:FOLDER."""


def as_record(row: Listed) -> dict[str, Any]:
    """A row for --json."""
    return {**asdict(row.known), "bytes_an_hour": row.known.bytes_an_hour, "here": row.here}


def print_encoders(rows: list[Listed]) -> None:
    """Print the table on stdout: on a terminal in its width, which shortens sources and licences; elsewhere whole."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("name", "from", "params", "rate", "width", "layers", "MB/h", "licence", "here"):
        number = heading in ("params", "rate", "width", "layers", "MB/h")
        table.add_column(
            heading,
            justify="right" if number else "left",
            no_wrap=heading not in ("from", "licence"),
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*_cells(row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED_WIDTH)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
    click.echo(FOOT)


def _cells(row: Listed) -> list[str]:
    known = row.known
    return [
        known.name,
        known.source,
        f"{known.million_parameters:.1f}M" if known.million_parameters else "-",
        f"{known.frame_rate:.4g}/s",
        str(known.width),
        str(known.layers or "-"),
        f"{known.bytes_an_hour / 1e6:.1f}",
        known.licence,
        "yes" if row.here else "no",
    ]
