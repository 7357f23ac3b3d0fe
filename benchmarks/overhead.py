"""What extraction costs beyond the encoder: pipeline_seconds against a bare loop over the same, already decoded audio.

    python benchmarks/overhead.py CHECKPOINT DATA SPLIT [--rounds 3] [--limit N]

The bare loop is transformers alone, one utterance at a time with torch's own number of threads, on audio that lies in
memory; nothing of encodeonce is in it. Rounds alternate, so that a machine that drifts drifts for both. Prints a table
and one JSON object.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import soundfile
import torch
from encodeonce.extract.cache import FileCache
from encodeonce.extract.corpora import list_corpus
from encodeonce.extract.job import extract_split
from encodeonce.extract.progress import Progress
from encodeonce.extract.request import Request
from encodeonce.extract.run import Run
from transformers import AutoConfig, AutoModel


def load_bare(folder: str) -> torch.nn.Module:
    """The encoder by transformers."""
    if AutoConfig.from_pretrained(folder).model_type == "moonshine":
        from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder

        return MoonshineEncoder.from_pretrained(folder, dtype=torch.float32).eval()
    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def bare_loop(model: torch.nn.Module, audio: list[torch.Tensor]) -> float:
    """Seconds that the encoder alone takes."""
    begun = time.perf_counter()
    with torch.inference_mode():
        for samples in audio:
            model(samples[None]).last_hidden_state.numpy()
    return time.perf_counter() - begun


def pipeline(folder: str, data: Path, split: str, limit: int | None) -> dict:
    """The report of a whole run into a new store."""
    with tempfile.TemporaryDirectory() as store:
        request = Request(encoder=folder, splits=(split,), data=data, store=Path(store), limit=limit)
        report = extract_split(Run(request, Progress(quiet=True), FileCache(Path(store) / "cache")), split)
    return {"pipeline": report.pipeline_seconds, "encoder": report.encoder_seconds, "audio": report.audio_seconds}


def main() -> None:
    """Run the rounds and print what they gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data", type=Path)
    parser.add_argument("split")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    utterances = list_corpus(options.data, options.split).utterances[: options.limit]
    audio = [torch.from_numpy(soundfile.read(u.audio, dtype="float32")[0]) for u in utterances]
    model = load_bare(options.checkpoint)
    bare_loop(model, audio[:10])
    pipeline(options.checkpoint, options.data, options.split, 10)
    rounds = []
    print(
        f"{len(audio)} utterances, {torch.get_num_threads()} threads\n{'bare loop':>12} {'pipeline':>12} {'ratio':>8}"
    )
    for _ in range(options.rounds):
        bare = bare_loop(model, audio)
        ours = pipeline(options.checkpoint, options.data, options.split, options.limit)
        rounds.append({"bare": bare, **ours, "ratio": ours["pipeline"] / bare})
        print(f"{bare:10.2f} s {ours['pipeline']:10.2f} s {rounds[-1]['ratio']:8.3f}", flush=True)
    ratio = statistics.median(r["ratio"] for r in rounds)
    seconds = rounds[0]["audio"]
    fastest = min(r["pipeline"] for r in rounds)
    print(f"median ratio {ratio:.3f}; best pipeline {seconds / fastest:.0f} times real time")
    print(json.dumps({"cores": os.cpu_count(), "utterances": len(audio), "median_ratio": ratio, "rounds": rounds}))


if __name__ == "__main__":
    main()
