"""The second half of the demo: a small Q-Former learns to write what the stored features say, is evaluated, and hears new audio."""

import json
from pathlib import Path

from encodeonce.train.demo import SPEECH
from encodeonce.train.demo.features import ENCODER
from encodeonce.train.demo.steps import expect, heading, run, run_json
from encodeonce.train.metrics import read_metrics

RECIPE = "demo-window-qformer"
SPLITS = ("train", "sentences", "voice")
MOST_WRONG = 0.10
"""Of the words of held-out sentences. The median of three seeds is to be half of it."""


def train_adapter(folder: Path) -> None:
    """Encode the corpus, train on it, and show that the loss falls and held-out sentences are understood."""
    store, output = folder / "commands", folder / "adapter"
    heading("7. Encode a corpus to learn from: 400 spoken commands in five synthetic voices, and two held-out sets")
    corpus = ["--data", str(SPEECH), "--split", ",".join(SPLITS), "--store", str(store)]
    run(["extract-features", "--encoder", ENCODER, *corpus])

    heading("8. Train a window Q-Former on the stored features; the encoder is not there any more")
    # One thread: two gain little with a model so small, and lose all of it when another process wants one of their cores.
    run(["train-adapter", RECIPE, f"data.store={store}", f"output_dir={output}", "training.threads=1"])
    show_curves(output)

    heading("9. Evaluate: sentences that it has never heard, by the voices it knows and by one that it does not")
    evaluate(output / "last", store, folder / "evaluation")

    heading("10. New audio to text: a file, the encoder, the adapter")
    said, recording = cut_recording(folder)
    run(["transcribe", str(output / "last"), str(recording), "--quiet"])
    print(f"   said: {said}")


def evaluate(checkpoint: Path, store: Path, folder: Path) -> None:
    """Score and report the held-out splits."""
    splits = [part for split in SPLITS[1:] for part in ("--split", split)]
    shown = ["--attention", "1", "--audio", str(SPEECH)]
    asked = ["evaluate-adapter", str(checkpoint), "--store", str(store), *splits, "--output", str(folder), *shown]
    found = {split["split"]: split for split in run_json(asked)["splits"]}
    known = found["sentences"]["scores"]["wer"]["value"]
    pictures = sorted(
        (folder / "sentences" / "attention").glob("attention-sentences-*.png"), key=lambda path: len(path.name)
    )
    expect(bool(pictures), "no attention was drawn")
    print(f"   {pictures[0]}: what the queries read")
    expect(known <= MOST_WRONG, f"{known:.1%} of the words are wrong, at most {MOST_WRONG:.0%} should be")


def cut_recording(folder: Path) -> tuple[str, Path]:
    """A sentence of the voice that was not trained on as a file of its own, and what is said in it."""
    import soundfile

    entry = json.loads((SPEECH / "voice.jsonl").read_text().splitlines()[0])
    with soundfile.SoundFile(SPEECH / entry["audio_filepath"]) as file:
        file.seek(int(entry["offset"] * file.samplerate))
        samples, rate = file.read(int(entry["duration"] * file.samplerate)), file.samplerate
    path = folder / "new.wav"
    soundfile.write(path, samples, rate)
    return entry["text"], path


def show_curves(output: Path) -> None:
    """The loss that was trained on and the held-out error rate, at each validation."""
    losses = [line for line in read_metrics(output) if "loss" in line]
    rates = {line["step"]: line for line in read_metrics(output) if "dev_loss" in line}
    print(f"   {'step':>6}{'seconds':>9}{'loss':>8}{'dev loss':>10}{'wrong words':>13}")
    for line in losses:
        if line["step"] in (1, *rates):
            dev = rates.get(line["step"])
            held_out = f"{dev['dev_loss']:10.3f}{dev['wer']:13.1%}" if dev else ""
            print(f"   {line['step']:6,}{line['seconds']:9.0f}{line['loss']:8.3f}{held_out}")
    first, last = losses[0]["loss"], losses[-1]["loss"]
    expect(last < first / 2, f"the loss went from {first:.3f} to {last:.3f} only")
