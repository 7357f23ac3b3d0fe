"""How long the report of 10,000 utterances takes to open: python benchmarks/page.py [--utterances 10000] [--rounds 7] [--width 1400].

A fresh page in headless Chromium each round; painted is when the second frame after the end of loading is asked for. Of the utterances
one in twenty words is wrong (synthetic, as in score.py).
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from encodeonce.evaluate.report.page import write_report
from encodeonce.evaluate.scoring import ScoreOptions, score
from playwright.sync_api import sync_playwright
from score import synthetic

PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"


def main() -> None:
    """Make the page, open it, print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=1400)
    options = parser.parse_args()
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        hypotheses = synthetic(options.utterances, 100, 0.05, seed=1)
        path = write_report(Path(folder), score(hypotheses, ScoreOptions(leave_out=("bertscore",)), "synthetic"))
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        found = []
        for _ in range(options.rounds):
            page = browser.new_page(viewport={"width": options.width, "height": 900})
            begun = time.perf_counter()
            page.goto(path.as_uri())
            own = page.evaluate(PAINTED)
            found.append((time.perf_counter() - begun, own / 1000))
            page.close()
        print(f"{options.utterances:,} utterances, {path.stat().st_size / 1e6:.1f} MB, Chromium {browser.version}")
    for name, times in zip(
        ("from the request to painted", "by the page's own clock"), zip(*found, strict=True), strict=True
    ):
        print(f"{name}: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f}), first {times[0]:.2f}")


if __name__ == "__main__":
    main()
