"""The JSON that read.py or extract.py wrote, as the tables of docs/reading-speed.md and docs/speed.md: python benchmarks/table.py FILE."""

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


def extraction(found: dict[str, Any]) -> list[str]:
    """A row a way, fastest first; what could not run below."""
    ran = sorted((r for r in found["results"] if not r["failed"]), key=lambda r: -r["times_real_time"])
    lines = [
        "| times real time | first pass | later passes | inside the encoder | time over transformers' in memory | "
        "time over its encoder's in memory | of the matmul peak | relative error | least cosine | peak memory of the first pass |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in ran:
        last = r["passes"][-1]
        cells = [
            f"**{r['name']}**" if r["kind"] == "ours" else r["name"],
            f"{r['first_times_real_time']:,.1f}",
            later_passes(r, found["audio_seconds"]),
            cell(r["encoder_times_real_time"], ",.1f"),
            cell(r["of_bare"], ".3f"),
            cell(r["of_alone"], ".3f"),
            cell(r["of_peak"], ".0%").replace("%", " %"),
            f"{last['relative_error']:.1e}" + (" (wrong)" if r["wrong"] else ""),
            f"{last['least_cosine']:.6f}",
            f"{r['passes'][0]['peak_megabytes'] / 1e3:.1f} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\nwrong: {reason}." for reason in sorted({r["wrong"] for r in ran if r["wrong"]})]
    idle = [r for r in ran if r["gpu_idle_between_batches"] is not None]
    lines += [
        f"\n{r['name']}: {100 * r['gpu_idle_between_batches']:.1f} % of the time the GPU was idle between batches."
        for r in idle
    ]
    lines += [f"\n{r['name']} failed: {r['failed']}." for r in found["results"] if r["failed"]]
    peaks = ", ".join(f"{name} {rate:,.0f}" for name, rate in found["matmul_gigaflops_a_second"].items())
    work = found["gigaflops_an_audio_second"]
    lines.append(
        f"\n{found['checkpoint']} on {found['device']}, {found['utterances']} utterances ({found['audio_seconds']:.0f} s), "
        f"{found['rounds']} rounds; {f'{work:.1f} GFLOP an audio second; ' if work else ''}matmul peak in GFLOP/s: {peaks}."
    )
    return lines


def later_passes(r: dict[str, Any], audio_seconds: float) -> str:
    """Times real time after the first pass: by the median of the times, and the range of several; empty where there was one pass."""
    rates = [audio_seconds / each["seconds"] for each in r["passes"][1:]]
    if not rates:
        return ""
    return f"{r['times_real_time']:,.1f}" + (f" ({min(rates):,.1f} to {max(rates):,.1f})" if len(rates) > 1 else "")


def cell(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value, form)


def tables(found: dict[str, Any]) -> str:
    """The parts that a JSON has, as Markdown."""
    parts = [part for part in (copying, planning, opening, consuming, remote, extraction) if part.__name__ in found]
    text = "\n".join("\n".join(part(found[part.__name__])) + "\n" for part in parts)
    about = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    where = [about["date"], about.get("device"), about["processor"], f"{about['cores']} cores"]
    return f"{text}\n{', '.join(part for part in where if part)}, Python {about['python']}; {versions}."


def main() -> None:
    """Print the tables of a file."""
    print(tables(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
