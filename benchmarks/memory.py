"""Whether a long run stays flat: the memory of the process in each hour of audio, over real files repeated under other ids.

    python benchmarks/memory.py DATA SPLIT [--hours 100] [--encoder fbank] [--shard-minutes 15] [--device cpu] [--json FILE]

Extracts in this process into a temporary store (TMPDIR has to have room for it: 80 mel bands take 58 MB an hour) and looks at
its resident memory five times a second. Shards are of 15 minutes, as those of
1,024 values a frame in float16 are by default: with shards of hours, as narrow features have them, the first hour does not fill the first.
Ends with status 1 where the peak of the last hour is more than 5 % above that of the first.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from encodeonce.extract.cache import FileCache
from encodeonce.extract.corpora import list_corpus
from encodeonce.extract.job import extract_split
from encodeonce.extract.progress import Progress
from encodeonce.extract.request import Request
from encodeonce.extract.run import Run
from encodeonce.extract.schedule import maker_of
from machine import machine

SAMPLE_SECONDS = 0.2
MOST_GROWTH = 1.05
PACKAGES = ("encodeonce", "torch", "torchaudio", "transformers", "numpy", "pyarrow", "zarr")


class Watch(Progress):
    """A quiet progress that notes how much memory the process has, by the hour of audio that it is at."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.seconds = 0.0
        self.peaks: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def advance(self, seconds: float, note: str = "") -> None:
        """So many seconds of audio more are done."""
        self._note()
        self.seconds += seconds

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._note()

    def _note(self) -> None:
        hour = int(self.seconds // 3600)
        self.peaks[hour] = max(self.peaks.get(hour, 0), resident_bytes())


def resident_bytes() -> int:
    """Of this process (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def rows(data: Path, split: str, hours: float) -> Iterator[dict[str, Any]]:
    """Rows of a manifest: the split again and again, under other ids, until there are so many hours of it."""
    import soundfile

    files = [
        (u.id, str(u.audio.absolute()), soundfile.info(u.audio).duration) for u in list_corpus(data, split).utterances
    ]
    seconds = 0.0
    for turn in count():
        for name, file, duration in files:
            if seconds >= 3600 * hours:
                return
            seconds += duration
            yield {"id": f"{name}-{turn:05}", "audio_filepath": file}


def main() -> None:
    """Run it, and say how the memory went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("split")
    parser.add_argument("--hours", type=float, default=100.0)
    parser.add_argument("--encoder", default="fbank")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shard-minutes", type=float, default=15.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "repeated.jsonl"
        with manifest.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(options.data, options.split, options.hours))
        cache, store = FileCache(Path(folder) / "cache"), Path(folder) / "store"
        request = Request(options.encoder, ("repeated",), manifest, store=store, device=options.device)
        samples = options.shard_minutes * 60 * 16000
        shard_frames = int(samples / Run(request, watch, cache).encoder.samples_per_frame)
        run = Run(replace(request, shard_frames=shard_frames), watch, cache)
        with maker_of(run) as maker:
            report = extract_split(run, "repeated", maker)
    watch.end()
    megabytes = [round(watch.peaks[hour] / 1e6, 1) for hour in sorted(watch.peaks)]
    whole = [watch.peaks[hour] for hour in range(int(report.audio_seconds // 3600))]
    if not whole:
        sys.exit(f"{report.audio_seconds:.0f} s of audio are no hour; give --hours 2 or more")
    growth = whole[-1] / whole[0]
    print(
        f"{options.encoder} on {options.device}: {report.encoded:,} utterances, {report.audio_seconds / 3600:.1f} h, at "
        f"{report.rtfx:,.0f} times real time\nfirst hour {whole[0] / 1e6:.0f} MB, last {whole[-1] / 1e6:.0f} MB, "
        f"ratio {growth:.3f}; most {max(watch.peaks.values()) / 1e6:.0f} MB"
    )
    if options.json:
        found = {"machine": machine(PACKAGES), "megabytes_by_hour": megabytes, "growth": growth, "hours": options.hours}
        options.json.write_text(json.dumps(found, indent=1))
    sys.exit(1 if growth > MOST_GROWTH else 0)


if __name__ == "__main__":
    main()
