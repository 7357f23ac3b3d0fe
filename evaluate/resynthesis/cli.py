"""evaluate-resynthesis: what is left of the words after a codec."""

import json
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.extract.corpora import LAYOUTS, CorpusError
from encodeonce.extract.encoders.base import EncoderError
from encodeonce.store.command import run_command
from encodeonce.store.devices import find_device
from encodeonce.store.errors import StoreError
from encodeonce.store.files import read_json
from encodeonce.store.find import splits_at
from encodeonce.store.objects import StorePath
from encodeonce.store.params import QuantizerRange, StorePathParam
from encodeonce.store.progress import progress
from encodeonce.store.reader import FeatureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for."""

    path: StorePath
    encoder: str | None
    split: str | None
    output: str | None
    asr: str
    codec: str | None
    quantizers: tuple[int, int] | None
    limit: int | None
    device: str
    language: str
    to: Path
    save_audio: bool
    original: bool
    data: Path
    corpus: str


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("path", metavar="STORE", default="features", type=StorePathParam())
@click.option("--encoder", help="Which feature set of a store.")
@click.option("--split", help="Which split.")
@click.option("--output", help="Codes or latents.  [default: those of most quantizers, codes before latents]")
@click.option(
    "--asr", required=True, help="The recogniser: a folder in transformers' or CTranslate2's format, or a hub id."
)
@click.option(
    "--codec", help="The codec that made the store: a name, a folder, a hub id.  [default: as the store says]"
)
@click.option("--quantizers", type=QuantizerRange(), help="Decode some alone, e.g. 0 or 0-3.  [default: all there are]")
@click.option("--limit", type=click.IntRange(1), help="The first so many utterances.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--language", default="en", help="Of the speech: for the recogniser, and for the normalisation of texts.")
@click.option(
    "--to", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder of the results."
)
@click.option("--save-audio", is_flag=True, help="Keep the decoded audio in the folder audio of --to.")
@click.option("--original", is_flag=True, help="Transcribe the original audio too, from --data.")
@click.option("--data", default="data", type=click.Path(path_type=Path), help="Where the corpora are.")
@click.option("--corpus", default="auto", type=click.Choice(["auto", *LAYOUTS]), help="The layout of the corpus.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")
def evaluate_resynthesis(as_json: bool, **options: Any) -> None:
    """Decode a store's codes or latents to audio, transcribe that, and count the errors.

    STORE is a split, or a feature set or store with --split and --encoder, whose utterances have transcripts. The same
    command goes on where a killed one ended.
    """
    failed = evaluate(Request(**options), as_json)
    sys.exit(1 if failed else 0)


def evaluate(request: Request, as_json: bool) -> dict[str, str]:
    """Run a request and report; the utterances that failed, with the reasons."""
    from encodeonce.evaluate import summary
    from encodeonce.evaluate.metrics.word_errors import word_errors
    from encodeonce.evaluate.normalise import find_normaliser
    from encodeonce.evaluate.recognise import find_recogniser
    from encodeonce.evaluate.report.results import RESULTS
    from encodeonce.evaluate.resynthesis.decoding import choose_output, find_codec
    from encodeonce.evaluate.resynthesis.originals import Originals
    from encodeonce.evaluate.resynthesis.report import write_resynthesis
    from encodeonce.evaluate.resynthesis.run import Resynthesiser, request_of, texted
    from encodeonce.evaluate.resynthesis.scores import score_audio
    from encodeonce.evaluate.resynthesis.transcripts import Transcripts
    from encodeonce.extract.cache import FileCache

    with closing(FileCache()) as cache, FeatureStore(request.path, request.encoder, request.split) as store:
        choice = choose_output(store, request.output, request.quantizers)
        positions = texted(store, request.limit)
        if not len(positions):
            raise EvaluationError(f"no utterance of {store.path} has a text, so there is nothing to compare with")
        normaliser, device = find_normaliser(request.language), find_device(request.device)
        word_errors([], [], normaliser)  # a library that is missing is better missed now than after a night
        feature_set, _ = next(splits_at(store.path))
        codec = find_codec(request.codec, feature_set, cache)
        originals = Originals(store, request.data, request.corpus) if request.original else None
        recogniser = find_recogniser(request.asr, device, request.language)
        asked = request_of(store, choice, recogniser, request.asr, request.language, cache)
        seconds = sum(map(round, store.columns(["duration"])["duration"].take(positions).to_pylist()))
        with Transcripts(request.to, asked) as transcripts, progress("Transcribing", seconds, "s of audio") as advance:
            work = Resynthesiser(
                store=store,
                choice=choice,
                codec=codec.load(device, "float32", []),
                recogniser=recogniser,
                transcripts=transcripts,
                originals=originals,
                audio_folder=request.to / "audio" if request.save_audio else None,
            )
            found = work.run(request.limit, lambda name, reason: click.echo(f"{name}: {reason}", err=True), advance)
        config = {
            **asked,
            "store": str(store.path),
            "encoder": store.encoder,
            "split": store.parts[0].attributes.split,
            "codec": codec.name,
            "decoded": choice.said,
            "asr": recogniser.name,
            "limit": request.limit,
            "device": device,
            "failed": len(found.failed),
            "without_text": found.without_text,
        }
    title = f"{codec.name}, {choice.said}, heard by {recogniser.name}"
    evaluations = score_audio(found.samples, request.language, title, config)
    written = write_resynthesis(request.to, found, evaluations)
    click.echo(title)
    for line in [*summary.table(evaluations), *summary.skipped(evaluations)]:
        click.echo(line)
    if written.comparison is not None:
        click.echo(summary.compared(written.comparison))
    click.echo(f"Report: {written.report}")
    if found.without_text:
        click.echo(f"{found.without_text} utterances without a text are left out", err=True)
    if found.failed:
        click.echo(f"{len(found.failed)} utterances failed and are not in the rates", err=True)
    if as_json:
        click.echo(json.dumps(read_json(request.to / RESULTS)))
    return found.failed


def main(arguments: list[str] | None = None) -> None:
    """The entry point; see `run_command`."""
    run_command(
        evaluate_resynthesis,
        arguments,
        (EvaluationError, EncoderError, CorpusError, StoreError),
        "everything transcribed so far is kept; run the same command again to go on",
    )


if __name__ == "__main__":
    main()
