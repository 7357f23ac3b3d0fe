"""The JSON that read.py wrote, as the tables of docs/reading-speed.md: python benchmarks/table.py FILE."""

import json
import sys
from pathlib import Path
from typing import Any


def copying(results: list[dict[str, Any]]) -> list[str]:
    """A row a system, fastest first."""
    lines = ["| system | MB/s | of memmap | of preadv | cold MB/s | cold, of memmap |", "|---|---|---|---|---|---|"]
    measured = [r for r in results if r["of_memmap"] is not None]
    for r in sorted(measured, key=lambda r: -r["of_memmap"]):
        cold = (
            ("", "")
            if r["cold_of_memmap"] is None
            else (f"{r['cold_megabytes_per_second']:,.0f}", f"{r['cold_of_memmap']:.2f}")
        )
        cells = [
            r["system"],
            f"{r['megabytes_per_second']:,.0f}",
            f"{r['of_memmap']:.2f}",
            f"{r['of_preadv']:.2f}",
            *cold,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    absent = [r["system"] for r in results if r["missing"]]
    failed = [f"{r['system']} ({r['error']})" for r in results if r["error"]]
    lines += [f"\nNot installed: {', '.join(absent)}."] if absent else []
    return lines + ([f"\nFailed: {'; '.join(failed)}."] if failed else [])


def planning(results: list[dict[str, Any]]) -> list[str]:
    """A row a number of utterances."""
    rows = [
        f"| {r['utterances']:,} | {r['seconds']:.3f} s | {r['peak_megabytes']:,.0f} MB | {100 * r['padding']:.2f} % |"
        for r in results
    ]
    return ["| utterances | plan of an epoch | memory at most | padding |", "|---|---|---|---|", *rows]


def opening(r: dict[str, Any]) -> list[str]:
    """A line."""
    return [
        f"A store of {r['utterances']:,} utterances opened in {r['open_seconds']:.2f} s (after {r['import_seconds']:.2f} s of "
        f"imports), looked its first id up in {r['first_lookup_seconds']:.2f} s, and took {r['peak_megabytes']:,.0f} MB at most."
    ]


def consuming(r: dict[str, Any]) -> list[str]:
    """A line."""
    return [
        f"A consumer that sleeps {1000 * r['step_seconds']:g} ms a batch waited {100 * r['waiting']:.2f} % of its time over "
        f"{r['batches']} batches in {r['epochs']} epochs, with {r['threads']} threads reading."
    ]


def remote(r: dict[str, Any]) -> list[str]:
    """A row a system."""
    lines = ["| system | an utterance | requests |", "|---|---|---|"]
    for name, cells in r["rounds"][-1].items():
        lines.append(
            f"| {name} | {1000 * cells['seconds_an_utterance']:.0f} ms | {cells['requests_an_utterance']:.1f} |"
        )
    return [*lines, f"\n{r['times_as_fast']:.1f} times as fast (the median of {len(r['rounds'])} rounds)."]


def main() -> None:
    """Print the parts that the file has."""
    found = json.loads(Path(sys.argv[1]).read_text())
    for part in (copying, planning, opening, consuming, remote):
        if part.__name__ in found:
            print("\n".join(part(found[part.__name__])) + "\n")
    versions = ", ".join(f"{name} {number}" for name, number in found["machine"]["versions"].items() if number)
    print(f"{found['machine']['cores']} cores, Python {found['machine']['python']}; {versions}.")


if __name__ == "__main__":
    main()
