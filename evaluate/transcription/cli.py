"""transcribe: audio files -> text, encoder and all."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.store.command import run_command
from encodeonce.store.errors import StoreError
from encodeonce.store.objects import StorePath
from encodeonce.store.params import StorePathParam
from encodeonce.train.errors import TrainingError

if TYPE_CHECKING:
    from encodeonce.evaluate.transcription.features import FeatureMaker
    from encodeonce.evaluate.transcription.run import Transcript
    from encodeonce.extract.progress import Progress
    from encodeonce.train.checkpoint import Fingerprints

STOPPED = "files whose text was printed are done; give the others again"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option(
    "--store", type=StorePathParam(), help="Audio that it holds is not encoded.  [default: the one trained on]"
)
@click.option("--encoder", help="Where the encoder is, if its name does not find it: a folder, a hub id, onnx:FILE.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--writer", type=click.Choice(["llm", "stg", "ctc"]), help="The objective that writes.")
@click.option(
    "--method", default="greedy", type=click.Choice(["greedy", "beam", "sample"]), help="How texts are sought."
)
@click.option("--beams", type=click.IntRange(1), help="Of beam.  [default: 4; of CTC 12]")
@click.option("--temperature", type=float, help="Of sample.  [default: 1]")
@click.option("--top-p", type=float, help="Of sample.  [default: 1]")
@click.option("--seed", type=int, help="Of sample.  [default: 0]")
@click.option(
    "--tokens-per-second", type=float, help="What may be written of the audio.  [default: 12; of characters 36]"
)
@click.option(
    "--language-model", help="Scores words beside CTC with --method beam: a name, folder, hub id or GGUF file."
)
@click.option("--language-model-weight", type=float, help="Its weight.  [default: 1]")
@click.option("--word-bonus", type=float, help="Nats a word beside it.  [default: 4]")
@click.option("--prompt", type=FILE, help="Lines of text that it reads first.")
@click.option("--language", help="Of the text, for what is flagged: en, zh ...  [default: of a translation its own]")
@click.option(
    "--segment-seconds", default=20.0, type=click.FloatRange(1), help="Longer audio is cut where it is quietest."
)
@click.option(
    "--frames-per-batch", default=2000, type=click.IntRange(1), help="Frames that the adapter reads at a time."
)
@click.option("--times", is_flag=True, help="A line a segment, with its times.")
@click.option("--words", is_flag=True, help="And a line a word; of checkpoints with CTC over characters.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write NAME.txt, .json and .srt there, with --words .ctm.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")
@click.option("--quiet", "-q", is_flag=True, help="Print texts and failures only.")
def transcribe(
    checkpoint: Path,
    files: tuple[Path, ...],
    store: StorePath | None,
    encoder: str | None,
    device: str,
    prompt: Path | None,
    language: str | None,
    segment_seconds: float,
    frames_per_batch: int,
    times: bool,
    words: bool,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    **decoding: Any,
) -> None:
    """Write what is said in audio files, by an adapter: in the language it was trained to write, which may be another.

    FILE is audio, or a folder of it. Nothing is trained or stored; audio of a store is read from there.
    """
    from encodeonce.evaluate.decoding.options import DecodeOptions, choose_writer
    from encodeonce.evaluate.decoding.transcriber import Transcriber
    from encodeonce.evaluate.formats.lines import read_lines
    from encodeonce.evaluate.transcription.run import find_audio, transcribe_files
    from encodeonce.evaluate.transcription.words import WordAligner, check_words
    from encodeonce.extract.progress import Progress
    from encodeonce.store.devices import find_device
    from encodeonce.train.checkpoint import load_checkpoint
    from encodeonce.train.model import restore_model

    lines = () if prompt is None else tuple(line.text for line in read_lines(prompt))
    options = DecodeOptions(prompt=lines, **decoding)
    progress = Progress(quiet)
    paths, chosen, trained = find_audio(files), find_device(device), load_checkpoint(checkpoint)
    choose_writer(options, trained.config)
    if words:
        check_words(trained.config)
    names = _names(paths, output)
    if output is not None:
        _make(output)
    features = _features(trained.fingerprints, progress, store, trained.config.data.store, encoder, chosen)
    model = restore_model(trained, features.outputs, chosen)
    progress.say(f"Opened {trained.folder.name} of {trained.folder.parent}, trained on {trained.fingerprints.encoder}")
    language = language or _language_of(trained.config.data.target)
    begun, found = perf_counter(), []
    with click.progressbar(length=len(paths), file=sys.stderr, hidden=quiet or not sys.stderr.isatty()) as bar:
        transcriber = Transcriber(model, options)
        aligner = WordAligner(model, features.frame_seconds) if words else None
        for one in transcribe_files(
            paths, features, transcriber, segment_seconds, frames_per_batch, chosen, language, aligner
        ):
            found.append(one)
            for about, reason in one.failures():
                progress.failure(about, reason)
            for line in _lines(one, times or words, several=len(paths) > 1):
                click.echo(line)
            if output is not None:
                _write(one, output, names[one.path], words)
            bar.update(1)
    spent, seconds = perf_counter() - begun, sum(one.seconds for one in found)
    stored = sum(segment.stored for one in found for segment in one.segments)
    known = f", {stored} segment{'s' * (stored != 1)} from the store" if stored else ""
    progress.say(f"Transcribed {seconds:.1f} s of audio in {spent:.1f} s, the loading of the encoder included{known}")
    if as_json:
        click.echo(json.dumps({"files": [one.to_json() for one in found], "seconds": spent}, ensure_ascii=False))
    sys.exit(1 if any(one.error for one in found) else 0)


def _features(
    trained: "Fingerprints",
    progress: "Progress",
    store: StorePath | None,
    trained_on: str | None,
    encoder: str | None,
    device: str,
) -> "FeatureMaker":
    from encodeonce.evaluate.transcription.features import FeatureMaker
    from encodeonce.extract.encoders.base import EncoderError

    try:
        features = FeatureMaker(trained, progress, store or _trained_on(trained_on), encoder, device)
    except EncoderError as error:
        raise EvaluationError(str(error)) from error
    if store is not None and features.feature_set is None:
        raise EvaluationError(
            f"{store} holds no features of {trained.encoder} that the checkpoint was trained on; give another --store, or none"
        )
    return features


def _language_of(target: str) -> str | None:
    """Of a translation; see `DataConfig.target`."""
    kind, _, language = target.partition(":")
    return language if kind == "translation" else None


def _trained_on(word: str | None) -> StorePath | None:
    """The store of the training, where it is at hand."""
    path = None if word is None or "://" in word else Path(word)
    return path if path is not None and path.is_dir() else None


def _names(paths: Iterable[Path], output: Path | None) -> dict[Path, str]:
    """What is written of each file begins so; equal names in different folders are refused."""
    names: dict[str, Path] = {}
    for path in paths:
        if output is not None and (other := names.setdefault(path.stem, path)) != path:
            raise EvaluationError(
                f"{other} and {path} would both become {output / path.stem}.txt; give them one by one"
            )
    return {path: path.stem for path in paths}


def _lines(found: "Transcript", times: bool, several: bool) -> list[str]:
    from encodeonce.evaluate.transcription.subtitles import with_times

    if found.error and not found.segments:
        return []
    if times:
        return [*([f"{found.path}:"] if several else []), *with_times(found)]
    return [f"{found.path}\t{found.text}" if several else found.text]


def _make(folder: Path) -> None:
    from encodeonce.store.files import explain, make_folder

    try:
        make_folder(folder)
    except OSError as error:
        raise explain(error, folder) from error


def _write(found: "Transcript", folder: Path, name: str, words: bool) -> None:
    from encodeonce.evaluate.transcription.subtitles import ctm, srt
    from encodeonce.store.files import atomic_write, write_json

    texts = {".txt": found.text + "\n", ".srt": srt(found.segments)}
    if words:
        texts[".ctm"] = ctm(name, found.segments)
    for suffix, text in texts.items():
        if found.error and not found.segments:  # an empty text would say that nothing was said
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
            continue
        with atomic_write(folder / f"{name}{suffix}") as file:
            file.write(text.encode())
    write_json(folder / f"{name}.json", found.to_json())


def main(arguments: list[str] | None = None) -> None:
    """The entry point; see `run_command`."""
    run_command(transcribe, arguments, (EvaluationError, TrainingError, StoreError), STOPPED)


if __name__ == "__main__":
    main()
