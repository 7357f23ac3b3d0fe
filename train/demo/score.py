"""How many words of a split a trained adapter gets wrong."""

from pathlib import Path

import torch
from encodeonce.store.reader import FeatureStore
from encodeonce.train.checkpoint import load_checkpoint
from encodeonce.train.errors import TrainingError
from encodeonce.train.model import open_model
from encodeonce.train.validation import error_rates

FRAMES_PER_BATCH = 4000


def word_error_rate(checkpoint: Path, store: FeatureStore) -> float:
    """WER of the best (else the last) checkpoint of a training, on all utterances of a store that have a text.

    Raises:
        TrainingError: no checkpoint, or no utterance with a text.
    """
    found = load_checkpoint(checkpoint)
    names = found.fingerprints.outputs
    model = open_model(found, store)
    said: list[str] = []
    written: list[str] = []
    for batch in store.stream(frames_per_batch=FRAMES_PER_BATCH, outputs=list(names), shuffle="none", dtype="float32"):
        values = [torch.as_tensor(values) for values, _ in batch.outputs.values()]
        texts = model.transcribe(values, torch.as_tensor(batch.lengths))
        pairs = [(text, guess) for text, guess in zip(batch.text or (), texts, strict=True) if text]
        said += [text.lower() if found.config.data.lower else text for text, _ in pairs]
        written += [guess for _, guess in pairs]
    rate, _ = error_rates(said, written)
    if rate is None:
        raise TrainingError(f"no utterance of {store.path} has a text")
    return rate
