"""What scoring LibriSpeech's 960 hours takes: 281,241 synthetic hypotheses to numbers, intervals, a comparison and the report.

    python benchmarks/score.py [--utterances 281241] [--speakers 2338] [--processes N] [--task recognition] [--json FILE]

References are in capitals without punctuation, as LibriSpeech's are; hypotheses are written with both, and have 5 % of their words
wrong, so that the raw rates have almost every letter to change. BERTScore is left out: it is a neural network's time.
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from encodeonce.evaluate.hypotheses import Hypothesis, read_hypotheses, write_hypotheses
from encodeonce.evaluate.metrics.counts import count_pairs
from encodeonce.evaluate.metrics.significance import compare
from encodeonce.evaluate.report.page import write_report
from encodeonce.evaluate.scoring import ScoreOptions, score
from machine import machine

WORDS = 33
"""In an utterance, on the average."""
PACKAGES = ("encodeonce", "rapidfuzz", "transformers", "numpy")
COMMON = "the and of to a in he that was i it his had with as for you is but not at her she be on him my they have said this from".split()  # noqa: SIM905
SPECIAL = "it's don't he'd one two first twenty hundred mr mrs colour honour oh i'm that's seven been".split()  # noqa: SIM905


def main() -> None:
    """Make the texts, time each part, print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=281_241)
    parser.add_argument("--speakers", type=int, default=2338)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--task", default="recognition", choices=("recognition", "translation", "labels"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    first = synthetic(options.utterances, options.speakers, 0.05, seed=1)
    second = synthetic(options.utterances, options.speakers, 0.051, seed=2)
    how = ScoreOptions(task=options.task, leave_out=("bertscore",), processes=options.processes)
    parts: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hypotheses.jsonl"
        write_hypotheses(path, first)
        with timed(parts, "reading the JSON lines"):
            first = read_hypotheses(path)
        with timed(parts, "normalising and counting (part of scoring)"):
            count_pairs([(one.text or "", one.pred_text) for one in first], "en", options.processes)
        with timed(parts, "scoring, intervals included"):
            evaluation = score(first, how, "first")
        with timed(parts, "report"):
            write_report(Path(folder) / "report", evaluation)
        page = (Path(folder) / "report" / "report.html").stat().st_size
        if options.task == "recognition":
            other = score(second, how, "second")
            with timed(parts, "comparing with a second system"):
                found = compare(evaluation, other)
            print(
                f"first {found.first_wer:.3%}, second {found.second_wer:.3%}, p {found.p_value:.4f}, over {found.over}"
            )
    for one in evaluation.scores.values():
        print(f"{one.name:12} {one.value:8.4f} {one.interval}")
    print(f"\n| {len(first):,} utterances | seconds | of processors |\n|---|---|---|")
    for name, (seconds, worked) in parts.items():
        print(f"| {name} | {seconds:.1f} | {worked:.1f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nThis process held at most {peak:.1f} GiB; the page has {page / 1e6:.1f} MB.")
    if options.json:
        results = {"machine": machine(PACKAGES), "seconds": parts, "peak_gib": peak, "page_bytes": page}
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def synthetic(utterances: int, speakers: int, wrong: float, seed: int) -> list[Hypothesis]:
    """The same references for any seed; words are as frequent as Zipf says, behind English's most frequent ones."""
    said, draw = random.Random(0), random.Random(seed)
    rare = ["".join(said.choices("etaoinshrdlucmfwypvbgk", k=said.randint(3, 10))) for _ in range(60_000)]
    words = [*COMMON, *SPECIAL, *rare]
    ends = weights_of(len(words))
    found = []
    for number in range(utterances):
        text = said.choices(words, cum_weights=ends, k=max(1, round(said.gauss(WORDS, 10))))
        heard = [
            draw.choice(words) if draw.random() < wrong * 0.8 else word for word in text if draw.random() > wrong * 0.2
        ]
        if heard:
            heard[0] = heard[0].capitalize()
            heard[len(heard) // 2] += ","
            heard[-1] += "."
        seconds = 0.37 * len(text)
        found.append(
            Hypothesis(
                f"u{number:06d}", " ".join(heard), " ".join(text).upper(), seconds, f"s{number % speakers}", "en", 0.05
            )
        )
    return found


def weights_of(count: int) -> list[float]:
    """Zipf's, cumulated."""
    total, ends = 0.0, []
    for rank in range(1, count + 1):
        total += 1 / (rank + 2.7)
        ends.append(total)
    return ends


@contextmanager
def timed(parts: dict[str, tuple[float, float]], name: str) -> Iterator[None]:
    """Put down how long it took, and how long processors worked at it, those of other processes among them."""
    begun, worked = time.perf_counter(), cpu_seconds()
    yield
    parts[name] = time.perf_counter() - begun, cpu_seconds() - worked


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
