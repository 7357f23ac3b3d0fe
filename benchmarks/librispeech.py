"""Adapters on LibriSpeech's train-clean-5, two speakers held out: words wrong greedily, by beam search, and with a frozen language model.

    extract-features --encoder moonshine-tiny-onnx --split train-clean-5
    python benchmarks/librispeech.py features moonshine-bilstm-ctc runs/another

Every ADAPTER is a recipe or YAML file, which is trained first, or the folder of a training. Of a training the last checkpoint is
judged, not the best: that one was picked by the utterances it would be judged by. The language model's weight and the word bonus are
chosen on every 16th utterance of the other speakers, which are not trained on; for a training that saw them the defaults are taken,
and the table says so.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import torch
from encodeonce.evaluate.decoding.ctc_beam import BeamOptions, beam_text, greedy_text
from encodeonce.evaluate.decoding.fusion import Fusion, decode, prompt_lines, tune
from encodeonce.evaluate.decoding.posteriors import Posteriors, posteriors_of
from encodeonce.evaluate.metrics.intervals import bootstrap_interval
from encodeonce.evaluate.metrics.word_errors import ErrorRate, character_errors, word_errors
from encodeonce.store import FeatureStore
from encodeonce.train.checkpoint import LAST, Checkpoint, load_checkpoint
from encodeonce.train.corpus import Part, open_corpus
from encodeonce.train.llm.config import LLMConfig
from encodeonce.train.llm.frozen import FrozenLLM
from encodeonce.train.llm.load import load_llm
from encodeonce.train.metrics import read_metrics
from encodeonce.train.model import AdapterModel, open_model
from machine import machine

SPLIT = "train-clean-5"
HELD_OUT = ("1088", "4640")
TUNE_EVERY = 16
FRAMES_PER_BATCH = 4000


@dataclass(frozen=True)
class Rate:
    """An error rate, and its 95 % bootstrap interval over utterances."""

    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.rate:.1%} ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Row:
    """A way of decoding a trained adapter, and what came of it on the held-out utterances."""

    adapter: str
    parameters: int
    minutes: float | None
    """Of training, validations included."""
    threads: int
    decoding: str
    wer: Rate
    cer: Rate
    seconds: float
    """Of decoding."""
    texts: dict[str, str]

    def cells(self) -> list[str]:
        """Of its line in the table."""
        minutes = "" if self.minutes is None else f"{self.minutes:.1f} on {self.threads}"
        return [self.adapter, f"{self.parameters / 1e6:.2f} M", minutes, self.decoding, str(self.wer), str(self.cer)]


@dataclass(frozen=True)
class Utterances:
    """The store's utterances by what they are for."""

    store: FeatureStore
    held_out: dict[str, str]
    """What is said in those of the held-out speakers, by id."""
    tuning: dict[str, str]

    @classmethod
    def of(cls, path: Path) -> "Utterances":
        """Those of the split; every 16th of the other speakers', in the order of their ids, is for tuning."""
        store = FeatureStore(path, split=SPLIT)
        columns = store.columns(["id", "text", "speaker"]).to_pydict()
        texts = {
            name: " ".join(text.lower().split()) for name, text in zip(columns["id"], columns["text"], strict=True)
        }
        speakers = dict(zip(columns["id"], columns["speaker"], strict=True))
        others = sorted(name for name in texts if speakers[name] not in HELD_OUT)
        held_out = {name: text for name, text in texts.items() if speakers[name] in HELD_OUT}
        return cls(store, held_out, {name: texts[name] for name in others[TUNE_EVERY // 2 :: TUNE_EVERY]})


def train(config: str, overrides: Sequence[str], said: Utterances, store: Path, folder: Path) -> Path:
    """Train an adapter without what is held out or for tuning; a training that was killed goes on."""
    output = folder / Path(config).stem
    given = [
        f"data.store={store}",
        f"data.train=[{SPLIT}]",
        "data.dev=[]",
        f'data.dev_where="speaker in {HELD_OUT}"',
        f'data.train_where="id not in {tuple(said.tuning)}"',
        f"output_dir={output}",
        "resume_from_checkpoint=auto",
    ]
    command = Path(sys.executable).with_name("train-adapter")
    done = subprocess.run([command, config, *given, *overrides], stdout=sys.stderr)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return output


class Judge:
    """Decodes trained adapters, each in every way that it can be.

    Args:
        llm: the frozen language model that scores words; None: none.
        options: of the search.
        lines: of the language model's prompt, from what was trained on.
    """

    def __init__(self, said: Utterances, llm: FrozenLLM | None, options: Fusion, lines: int) -> None:
        self._said, self._llm, self._options, self._lines = said, llm, options, lines

    def rows(self, folder: Path) -> list[Row]:
        """All ways of a training."""
        found = load_checkpoint(folder / LAST if (folder / LAST).is_dir() else folder)
        learnt, outputs = self._learnt(found), found.fingerprints.outputs
        model = open_model(found, self._said.store)
        rows = []
        if model.writes in ("llm", "stg"):
            begun = perf_counter()
            texts = self._transcribe(model, outputs)
            rows.append(self._row(found, model, f"its own ({model.writes}), greedy", texts, perf_counter() - begun))
        if "ctc" in model.objectives and model.vocabularies.rows is None:
            where = f"id in {(*self._said.held_out, *self._said.tuning)}"
            posteriors = posteriors_of(model, self._said.store, outputs, where)
            for decoding, texts, seconds in self._by_ctc(posteriors, learnt):
                rows.append(self._row(found, model, decoding, texts, seconds))
        return rows

    def _by_ctc(self, found: Posteriors, learnt: Part) -> list[tuple[str, dict[str, str], float]]:
        held = found.of(list(self._said.held_out))
        begun = perf_counter()
        greedy = {name: greedy_text(frames, held.alphabet) for name, frames in held.frames.items()}
        after_greedy = perf_counter()
        beam = {name: beam_text(frames, held.alphabet, self._options.beam) for name, frames in held.frames.items()}
        ways = [("CTC, greedy", greedy, after_greedy - begun), ("CTC, beam", beam, perf_counter() - after_greedy)]
        if self._llm is not None:
            options, how = self._tuned(found, learnt, self._llm)
            begun = perf_counter()
            ways.append((f"CTC, beam and LLM ({how})", decode(held, self._llm, options), perf_counter() - begun))
        return ways

    def _tuned(self, found: Posteriors, learnt: Part, llm: FrozenLLM) -> tuple[Fusion, str]:
        """The language model's weights, and how they were come by."""
        options = replace(self._options, prompt=prompt_lines(learnt.texts, self._lines))
        if self._said.tuning.keys() & set(learnt.ids):
            return options, f"{options.weight:g}, {options.word_bonus:g}: defaults"
        options, trials = tune(found.of(list(self._said.tuning)), self._said.tuning, llm, options)
        for trial in trials:
            print(
                f"weight {trial.weight:g}, bonus {trial.word_bonus:g}: {trial.wer:.1%} WER in tuning", file=sys.stderr
            )
        return options, f"{options.weight:g}, {options.word_bonus:g}: tuned"

    def _learnt(self, checkpoint: Checkpoint) -> Part:
        """What was trained on, with the store where it is now."""
        config = checkpoint.config
        data = replace(config.data, store=str(self._said.store.path), encoder=None, train=(), dev=())
        learnt = open_corpus(replace(config, data=data)).train
        if leaked := self._said.held_out.keys() & set(learnt.ids):
            raise click.ClickException(
                f"{checkpoint.folder} was trained on {len(leaked)} of the held-out utterances, {min(leaked)} among them; "
                f'train with data.dev_where="speaker in {HELD_OUT}"'
            )
        return learnt

    def _transcribe(self, model: AdapterModel, outputs: Sequence[str]) -> dict[str, str]:
        texts: dict[str, str] = {}
        where = f"id in {tuple(self._said.held_out)}"
        options: dict[str, Any] = {"outputs": list(outputs), "where": where, "shuffle": "none", "dtype": "float32"}
        for batch in self._said.store.stream(frames_per_batch=FRAMES_PER_BATCH, **options):
            values = [torch.as_tensor(values) for values, _ in batch.outputs.values()]
            texts |= zip(batch.ids, model.transcribe(values, torch.as_tensor(batch.lengths)), strict=True)
        return texts

    def _row(self, found: Checkpoint, model: AdapterModel, decoding: str, texts: dict[str, str], seconds: float) -> Row:
        said = self._said.held_out
        training = found.config.training
        return Row(
            adapter=f"{found.folder.parent.name} ({found.config.adapter.name})",
            parameters=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
            minutes=minutes_of(found.folder.parent),
            threads=training.threads or torch.get_num_threads(),
            decoding=decoding,
            wer=rate(word_errors, said, texts),
            cer=rate(character_errors, said, texts),
            seconds=seconds,
            texts=texts,
        )


def rate(count: Any, said: Mapping[str, str], texts: Mapping[str, str]) -> Rate:
    """The error rate of a corpus, with its interval."""
    found: list[ErrorRate] = [count([text], [texts[name]]) for name, text in said.items()]
    edits, units = [one.edits for one in found], [one.reference_units for one in found]
    return Rate(sum(edits) / sum(units), *bootstrap_interval(edits, units))


def minutes_of(folder: Path) -> float | None:
    """How long a training took, over all its runs; None where it left no metrics."""
    done = before = 0.0
    for line in read_metrics(folder):
        if "loss" in line:
            done, before = done + (before if line["seconds"] < before else 0), line["seconds"]
    return (done + before) / 60 if before else None


def curve(folder: Path) -> list[dict[str, Any]]:
    """What each validation of a training found on the held-out utterances, greedily."""
    return [
        {name: line[name] for name in ("step", "dev_loss", "wer", "cer")}
        for line in read_metrics(folder)
        if line.get("wer") is not None
    ]


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown."""
    heads = ["adapter", "parameters", "minutes on threads", "decoding (weight, bonus)", "WER (95 %)", "CER (95 %)"]
    lines = [heads, ["---"] * len(heads), *(row.cells() for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


@click.command()
@click.argument("store", type=click.Path(exists=True, path_type=Path))
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change what is trained.")
@click.option("--folder", default="librispeech", type=click.Path(path_type=Path), help="For trainings.")
@click.option("--llm", default="smollm2-135m", help="The frozen language model; none: without one.")
@click.option("--beam", default=12, type=click.IntRange(1), help="Prefixes of the search.")
@click.option("--lines", default=10, type=click.IntRange(0), help="Training texts in the language model's prompt.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of decoding.  [default: torch's own choice]")
@click.option("--out", type=click.Path(path_type=Path), help="Write everything into this JSON file.")
def main(
    store: Path,
    adapters: Sequence[str],
    overrides: tuple[str, ...],
    folder: Path,
    llm: str,
    beam: int,
    lines: int,
    threads: int | None,
    out: Path | None,
) -> None:
    """Train adapters where they are not trained yet, decode what is held out, and print the table."""
    if threads:
        torch.set_num_threads(threads)
    said = Utterances.of(store)
    trainings = [
        Path(name) if Path(name).is_dir() else train(name, overrides, said, store, folder) for name in adapters
    ]
    words = None if llm == "none" else load_llm(LLMConfig(model=llm))
    judge = Judge(said, words, Fusion(beam=BeamOptions(width=beam)), lines)
    rows: list[Row] = []
    curves: dict[str, list[dict[str, Any]]] = {}
    for training in trainings:
        rows += judge.rows(training)
        curves[training.name] = curve(training)
        if out:
            told = {"machine": machine(["torch", "transformers"]), "rows": [asdict(r) for r in rows], "curves": curves}
            out.write_text(json.dumps(told, indent=1) + "\n")
    print("\n".join(table(rows)))
    for name, points in curves.items():
        print(f"{name}: " + ", ".join(f"step {p['step']:,} {p['wer']:.1%}" for p in points))


if __name__ == "__main__":
    main()
