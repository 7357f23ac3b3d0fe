"""Does it learn, and does it need the audio to? Every adapter on the demo's corpus: python benchmarks/learn.py --out learn.json.

Each training is the command train-adapter in a process of its own. The control is the same Q-Former on the same audio
with the texts of other utterances. Prints a Markdown table.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from encodeonce.train.demo import SPEECH
from machine import machine

ENCODER = "moonshine-tiny-onnx"
MISMATCHED = "mismatched"
CTC = "demo-bilstm-ctc"
VALIDATE_ONCE = "training.eval_steps=1000000"
"""At the end alone: a checkpoint that was picked by the sentences it is judged by would look better than it is."""


@dataclass(frozen=True)
class Row:
    """A training, and what is promised of the median of its seeds."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    most: float | None = None
    """WER on held-out sentences at most."""
    least: float | None = None
    """At least: the control."""
    seconds: float | None = None
    """Of training, on two quiet cores."""


ROWS = (
    Row("window Q-Former", "demo-window-qformer", most=0.05, seconds=60),
    Row("the same, audio and text mismatched", "demo-window-qformer", (f"data.train=[{MISMATCHED}]",), least=0.80),
    Row("Q-Former, 32 queries", "demo-qformer"),
    Row("window Q-Former from MiniLM", "demo-qformer-minilm"),
    Row(
        "segment Q-Former",
        "demo-window-qformer",
        (
            "adapter={name: segment-qformer, hidden: 192, layers: 2, heads: 4, window_frames: 56, queries_per_window: 8}",
        ),
    ),
    Row("concat-8 + MLP into SmolLM2, pre-aligned", "demo-smollm2", most=0.10, seconds=300),
    Row("the same, not pre-aligned", "demo-smollm2-no-alignment"),
    Row(
        "Perceiver into SmolLM2, not pre-aligned",
        "demo-smollm2-no-alignment",
        ("adapter={name: perceiver, latents: 24, layers: 2, hidden: 256, heads: 4, feed_forward: 1024}",),
    ),
    Row("BiLSTM, CTC", CTC),
    Row("BiLSTM on 500 k-means units, CTC", CTC, ("data.outputs=[units]",)),
    Row("Transformer, CTC", CTC, ("adapter={name: transformer, layers: 2, hidden: 192, feed_forward: 768}",)),
    Row("convolution + MLP, CTC", CTC, ("adapter={name: conv-mlp, strides: [2], kernel: 5, hidden: 256}",)),
    Row("concat-2 + MLP, CTC", CTC, ("adapter={name: concat-mlp, concat: 2, hidden: 512, layer_norm: true}",)),
    Row(
        "M-Adapter, CTC",
        CTC,
        (
            "adapter={name: m-adapter, layers: 1, hidden: 192, heads: 4, feed_forward: 768}",
            "objectives.ctc.emissions=2",
        ),
    ),
    Row(
        "BLSP, CTC",
        CTC,
        ("adapter={name: blsp, convolutions: 2, hidden: 256, bottleneck: 128}", "objectives.ctc.emissions=3"),
    ),
    Row(
        "CTC-compressed",
        CTC,
        ("adapter={name: ctc-compressed, encoder: {name: bilstm, hidden: 192}, layers: 1, feed_forward: 512}",),
    ),
)


@dataclass(frozen=True)
class Trained:
    """One training of a row."""

    row: str
    seed: int
    steps: int
    parameters: int
    """That are trained."""
    seconds: float
    """Of training, one validation included."""
    cpu_seconds: float
    """Of the whole process, loading included."""
    sentences: float
    """WER on held-out sentences by known voices."""
    voice: float
    """WER on held-out sentences by a held-out voice."""


def make_store(folder: Path) -> Path:
    """The demo's corpus and its mismatched twin, encoded, with units; at once where that has been done."""
    corpus, store = folder / "corpus", folder / "features"
    corpus.mkdir(parents=True, exist_ok=True)
    for path in SPEECH.iterdir():
        if not (corpus / path.name).exists():
            (corpus / path.name).symlink_to(path)
    rows = [json.loads(line) for line in (SPEECH / "train.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in rows]
    texts = [*texts[len(texts) // 2 :], *texts[: len(texts) // 2]]  # no text stays where it was, and none comes twice
    mismatched = (json.dumps({**row, "text": text}) + "\n" for row, text in zip(rows, texts, strict=True))
    (corpus / f"{MISMATCHED}.jsonl").write_text("".join(mismatched))
    splits = f"train,{MISMATCHED},sentences,voice"
    _run(["extract-features", "--encoder", ENCODER, "--data", corpus, "--split", splits, "--store", store])
    _run(["train-kmeans", store, "--split", "train", "--clusters", "500", "--to", folder / "km500"])
    _run(["feature-store", "derive", "units", store, "--kmeans", folder / "km500"])
    return store


def train(row: Row, seed: int, store: Path, output: Path) -> Trained:
    """One training, and what came of it."""
    chosen = [f"data.store={store}", f"output_dir={output}", f"seed={seed}", VALIDATE_ONCE, *row.overrides]
    before = _children_seconds()
    lines = _run(["train-adapter", row.recipe, *chosen, "--json", "--quiet"])
    spent = _children_seconds() - before
    found = json.loads(lines[-1])
    return Trained(
        row=row.name,
        seed=seed,
        steps=found["steps"],
        parameters=sum(found["parameters"]["trained"].values()),
        seconds=found["seconds"],
        cpu_seconds=spent,
        sentences=found["wer"],
        voice=_word_error_rate(output, store, "voice"),
    )


def _word_error_rate(checkpoint: Path, store: Path, split: str) -> float:
    to = ["--output", checkpoint / split, "--no-report", "--leave-out", "bertscore", "--attention", "0"]
    lines = _run(["evaluate-adapter", checkpoint, "--store", store, "--split", split, *to, "--quiet", "--json"])
    return json.loads(lines[-1])["splits"][0]["scores"]["wer_raw"]["value"]


def table(rows: Sequence[Row], found: Sequence[Trained]) -> list[str]:
    """Markdown: medians over the seeds, with the least and the most where there are several."""
    lines = [
        "| | parameters | steps | seconds | held-out sentences | held-out voice | required |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if runs := [run for run in found if run.row == row.name]:
            seconds = median(run.seconds for run in runs)
            cells = [
                row.name,
                f"{runs[0].parameters / 1e6:.2f} M",
                f"{runs[0].steps:,}",
                f"{seconds:.0f}",
                _spread([run.sentences for run in runs]),
                _spread([run.voice for run in runs]),
                _verdict(row, median(run.sentences for run in runs), seconds),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _spread(rates: Sequence[float]) -> str:
    around = f" ({min(rates):.1%} to {max(rates):.1%})" if len(rates) > 1 else ""
    return f"{median(rates):.1%}{around}"


def _verdict(row: Row, rate: float, seconds: float) -> str:
    wanted = []
    if row.most is not None:
        wanted.append((f"<= {row.most:.0%}", rate <= row.most))
    if row.least is not None:
        wanted.append((f"> {row.least:.0%}", rate > row.least))
    if row.seconds is not None:
        wanted.append((f"<= {row.seconds:.0f} s", seconds <= row.seconds))
    return ", ".join(f"{what}: {'yes' if holds else 'NO'}" for what, holds in wanted)


def _run(command: Sequence[str | Path]) -> list[str]:
    executable = Path(sys.executable).with_name(str(command[0]))
    done = subprocess.run([executable, *command[1:]], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


def _children_seconds() -> float:
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@click.command()
@click.option("--folder", default="learn", type=click.Path(path_type=Path), help="For features and checkpoints.")
@click.option("--out", type=click.Path(path_type=Path), help="Write every run into this JSON file.")
@click.option("--seeds", default=3, help="Trainings of each row.")
@click.option(
    "--only", multiple=True, type=click.Choice([row.name for row in ROWS]), help="Rows to train.  [default: all]"
)
def main(folder: Path, out: Path | None, seeds: int, only: tuple[str, ...]) -> None:
    """Train the rows and print their table."""
    store = make_store(folder)
    rows = [row for row in ROWS if not only or row.name in only]
    found: list[Trained] = []
    for row in rows:
        for seed in range(seeds):
            name = f"{row.name.replace(' ', '-').replace(',', '')}-{seed}-{int(time.time())}"
            found.append(train(row, seed, store, folder / "runs" / name))
            run = found[-1]
            print(
                f"{run.row}, seed {run.seed}: {run.sentences:.1%}, {run.voice:.1%}, {run.seconds:.0f} s",
                file=sys.stderr,
            )
            if out:
                told: dict[str, Any] = {"machine": machine(["torch", "numpy"]), "runs": [asdict(run) for run in found]}
                out.write_text(json.dumps(told, indent=1) + "\n")
    print("\n".join(table(rows, found)))


if __name__ == "__main__":
    main()
