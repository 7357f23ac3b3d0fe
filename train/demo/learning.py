"""The second half of the demo: a small Q-Former learns to write what the stored features say."""

from pathlib import Path

from encodeonce.store.reader import FeatureStore
from encodeonce.train.demo import SPEECH
from encodeonce.train.demo.features import ENCODER
from encodeonce.train.demo.score import word_error_rate
from encodeonce.train.demo.steps import expect, heading, run
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
    run(["train-adapter", RECIPE, f"data.store={store}", f"output_dir={output}"])
    show_curves(output)

    heading("9. What it does with speech that it has never heard")
    known, voice = (word_error_rate(output / "last", FeatureStore(store, split=split)) for split in SPLITS[1:])
    print(f"   {known:.1%} of the words wrong in held-out sentences by the voices it knows")
    print(f"   {voice:.1%} of the words wrong in held-out sentences by a voice that it does not")
    print(f"   {output / 'curves.png'}: the losses and error rates on the way")
    expect(known <= MOST_WRONG, f"{known:.1%} of the words are wrong, at most {MOST_WRONG:.0%} should be")


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
