"""Our commands, run in this process as a user would run them, and speech to run them on."""

import io
import json
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from encodeonce.extract.cli import main as extract_main
from encodeonce.store.cli import main as store_main
from encodeonce.store.objects import StorePath

RATE = 16_000


@dataclass(frozen=True)
class Done:
    """What a command left behind: its exit status, what it printed, and the object that --json gave."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def split(self) -> dict[str, Any]:
        """The report of the one split."""
        (report,) = self.json["splits"]
        return report

    def counts(self) -> tuple[int, int, int, int]:
        """(encoded, copied, reused, failed) of the one split, which make up its utterances."""
        report = self.split
        found = tuple(report[word] for word in ("encoded", "copied", "reused", "failed"))
        assert sum(found) == report["utterances"]
        return found


def extract(data: Path, split: str, store: StorePath, *options: str, encoder: str = "fbank") -> Done:
    """extract-features --json."""
    places = ["--data", str(data), "--split", split, "--store", str(store)]
    return run(extract_main, ["--encoder", encoder, *places, "--json", *options])


def feature_store(*arguments: str | StorePath) -> Done:
    """feature-store."""
    return run(store_main, [str(argument) for argument in arguments])


def run(main: Any, arguments: list[str]) -> Done:
    """Run a command's entry point."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Done(status, out.getvalue(), err.getvalue())


def speech(seconds: float, seed: int) -> np.ndarray:
    """Noise whose loudness comes and goes, 16 kHz."""
    generator = np.random.default_rng(seed)
    samples = generator.standard_normal(round(seconds * RATE))
    swell = 0.55 + 0.45 * np.sin(np.arange(len(samples)) / RATE * 2 * np.pi * 1.7 + seed)
    return (0.1 * samples * swell).astype(np.float32)


def write_corpus(folder: Path, lengths: Iterable[float], first: int = 0) -> list[str]:
    """A folder of .wav with .txt beside them; their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, seconds in enumerate(lengths, first):
        name = f"utt-{number:03d}"
        soundfile.write(folder / f"{name}.wav", speech(seconds, number), RATE)
        (folder / f"{name}.txt").write_text(f"words of {number}")
        names.append(name)
    return names


def split_folder(store: Path, split: str) -> Path:
    """The split's folder in a store of one feature set."""
    (found,) = store.glob(f"*/{split}")
    return found


def contents(folder: Path, times: bool = False) -> dict[str, bytes]:
    """Every file below a folder; the commit records without their times, and without what runs said of themselves."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (times or path.parent.name != "runs"):
            data = path.read_bytes()
            if not times and path.parent.name == "commits":
                record = json.loads(data)
                record["made"].pop("time")
                data = json.dumps(record).encode()
            found[path.relative_to(folder).as_posix()] = data
    return found
