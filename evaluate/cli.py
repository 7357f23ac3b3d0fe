"""evaluate-adapter: a checkpoint, or texts from anywhere -> numbers, tables, report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.store.command import run_command
from encodeonce.store.errors import StoreError
from encodeonce.store.params import StorePathParam
from encodeonce.train.errors import TrainingError

if TYPE_CHECKING:
    from encodeonce.evaluate.finish import Finished, Wanted
    from encodeonce.evaluate.progress import EvaluationProgress
    from encodeonce.evaluate.scoring import Task

GO_ON = "what is decoded and what BERTScore has computed is kept; run the same command again to go on"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
DECODING = (
    "writer",
    "method",
    "beams",
    "length_penalty",
    "temperature",
    "top_p",
    "seed",
    "no_repeat_ngram",
    "tokens_per_second",
    "frames_per_batch",
    "precision",
    "language_model",
    "language_model_weight",
    "word_bonus",
)
"""Options that are those of `DecodeOptions`, beside --prompt."""
OF_A_CHECKPOINT = ("store", "encoder", "where", "limit", "target", "attention", "word_times", "prompt", *DECODING)
OF_TEXTS = ("references", "format", "allow_missing", "allow_extra")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--store", type=StorePathParam(), help="The cached features.  [default: the store it was trained on]")
@click.option("--encoder", help="Which feature set of a store.  [default: the one it was trained on]")
@click.option("--split", multiple=True, help="What to evaluate on; may be given several times.")
@click.option("--where", help="A condition on the table's columns, e.g. duration < 15.")
@click.option("--limit", type=click.IntRange(1), help="So many utterances of a split, the same ones each time.")
@click.option("--target", help="What to compare with: text, translation:de, metadata:KEY.  [default: as trained]")
@click.option(
    "--output", type=FOLDER, help="The folder of the results.  [default: evaluation/STEP/SPLIT beside the checkpoint]"
)
@click.option("--hypotheses", type=FILE, help="Score this file of texts instead of a checkpoint.")
@click.option("--references", type=FILE, help="What was said, where the hypotheses' file does not have it.")
@click.option("--format", type=click.Choice(["json", "icefall", "trn", "kaldi", "plain"]), help="Of these files.")
@click.option("--allow-missing", is_flag=True, help="References without a hypothesis count as ones of no words.")
@click.option("--allow-extra", is_flag=True, help="Leave out hypotheses without a reference.")
@click.option("--writer", type=click.Choice(["llm", "stg", "ctc"]), help="The objective that writes.")
@click.option(
    "--method", default="greedy", type=click.Choice(["greedy", "beam", "sample"]), help="How texts are sought."
)
@click.option("--beams", type=click.IntRange(1), help="Of beam.  [default: 4; of CTC 12]")
@click.option("--length-penalty", type=float, help="Of beam over tokens.  [default: 1]")
@click.option("--temperature", type=float, help="Of sample.  [default: 1]")
@click.option("--top-p", type=float, help="Of sample.  [default: 1]")
@click.option("--seed", type=int, help="Of sample.  [default: 0]")
@click.option("--no-repeat-ngram", type=click.IntRange(1), help="Never write the same so many tokens twice.")
@click.option(
    "--tokens-per-second", type=float, help="What may be written of the audio.  [default: 12; of characters 36]"
)
@click.option("--frames-per-batch", default=20_000, type=click.IntRange(1), help="Frames decoded at a time.")
@click.option("--precision", default="auto", type=click.Choice(["auto", "float32", "bfloat16"]), help="Of the adapter.")
@click.option(
    "--language-model", help="Scores words beside CTC with --method beam: a name, folder, hub id or GGUF file."
)
@click.option("--language-model-weight", type=float, help="Its weight.  [default: 1]")
@click.option("--word-bonus", type=float, help="Nats a word beside it.  [default: 4]")
@click.option("--prompt", type=FILE, help="Lines of text that it reads first.")
@click.option(
    "--task",
    type=click.Choice(["recognition", "translation", "labels"]),
    help="What is scored.  [default: as --target is: text, translation:..., metadata:...]",
)
@click.option("--language", help="Of the texts, for normalisation: en, de, ...  [default: as the data say]")
@click.option("--bert", help="For BERTScore: a folder, a name or a hub id.  [default: what is at hand]")
@click.option("--leave-out", multiple=True, help="A metric not to compute, e.g. bertscore.")
@click.option(
    "--compare", type=FOLDER, help="Test against an earlier evaluation in this folder, utterance by utterance."
)
@click.option("--attention", type=click.IntRange(0), help="Utterances whose attention is drawn.  [default: 3]")
@click.option(
    "--word-times",
    type=click.Path(exists=True, path_type=Path),
    help="When words are said, to hold attention against: a CTM file, a TextGrid, or a folder of them.",
)
@click.option("--audio", type=FOLDER, help="Where the corpora are: the report plays what it shows.")
@click.option(
    "--resynthesis", multiple=True, type=FOLDER, help="What evaluate-resynthesis wrote: the report shows its rates."
)
@click.option("--also", multiple=True, type=click.Choice(["icefall", "sclite", "espnet"]), help="Their files too.")
@click.option("--report/--no-report", default=True, help="Write the page; the numbers are always written.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")
@click.option("--quiet", "-q", is_flag=True, help="Print the results only.")
@click.option("--verbose", "-v", is_flag=True, help="Print signatures too.")
@click.pass_context
def evaluate_adapter(context: click.Context, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Decode cached features with an adapter, score what it writes, and report.

    CHECKPOINT is a checkpoint's folder, or a training's: its best one, else its last. With --hypotheses, texts of any
    system are scored: JSON lines, plain lines, Kaldi's text, sclite's trn, icefall's recogs. The same command goes on where
    a killed one ended.
    """
    check_kind(context, options)
    from encodeonce.evaluate.progress import EvaluationProgress

    wanted = wanted_of(options, _task(options))
    with EvaluationProgress(quiet) as progress:
        if wanted.scoring.task == "labels" and options["task"] is None:
            progress.say(
                "The target is metadata: its texts are scored as labels; --task recognition counts their words"
            )
        found = _evaluate(options, wanted, progress)
    _show(found, verbose)
    if as_json:
        click.echo(json.dumps({"splits": [_as_object(name, one) for name, one in found.items()]}))


def check_kind(context: click.Context, options: Mapping[str, Any]) -> None:
    """Refuse options that have no use together: a checkpoint and texts, or what is of the one alone with the other.

    Raises:
        EvaluationError: there are such.
    """
    texts = options["hypotheses"] is not None
    if texts == (options["checkpoint"] is not None):
        raise EvaluationError(
            "CHECKPOINT and --hypotheses are given: take one of them"
            if texts
            else "nothing to evaluate: give CHECKPOINT, or texts with --hypotheses"
        )
    for name in OF_A_CHECKPOINT if texts else OF_TEXTS:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option, other = name.replace("_", "-"), "CHECKPOINT" if texts else "--hypotheses"
            raise EvaluationError(f"--{option} belongs to {other}: leave it out, or give {other}")
    if options["word_times"] is not None:
        if options["attention"] == 0:
            raise EvaluationError(
                "--word-times is for what is drawn, and --attention 0 draws nothing: leave one of them out"
            )
        if not options["report"]:
            raise EvaluationError(
                "--word-times is for what is drawn, and --no-report draws nothing: leave one of them out"
            )
    if texts and len(options["split"]) > 1:
        raise EvaluationError("--hypotheses are of one test set: give one --split")


def wanted_of(options: Mapping[str, Any], task: "Task") -> "Wanted":
    """What options ask to be made of hypotheses.

    Raises:
        EvaluationError: what has no use with the task, or is not there.
        StoreError: no such device, or a library is missing: better missed now than after a night of decoding.
    """
    from encodeonce.evaluate.finish import Wanted
    from encodeonce.evaluate.normalise import find_normaliser
    from encodeonce.evaluate.report.resynthesis import read_rates
    from encodeonce.evaluate.scoring import ScoreOptions
    from encodeonce.store.devices import find_device

    find_normaliser(options["language"])
    scoring = ScoreOptions(
        task=task,
        language=options["language"],
        bert=options["bert"],
        leave_out=options["leave_out"],
        device=find_device(options["device"]),
    )
    return Wanted(
        scoring=scoring,
        compare=options["compare"],
        resynthesis=tuple(map(read_rates, options["resynthesis"])),
        report=options["report"],
        also=options["also"],
    )


def _task(options: dict[str, Any]) -> "Task":
    """What is scored: as the target is, which a checkpoint says where the command does not."""
    if options["task"] is not None:
        return options["task"]
    from encodeonce.evaluate.scoring import task_of

    target = options["target"]
    if target is None and options["checkpoint"] is not None:
        from encodeonce.train.checkpoint import load_checkpoint

        target = load_checkpoint(options["checkpoint"]).config.data.target
    return task_of(target)


def _evaluate(options: dict[str, Any], wanted: "Wanted", progress: "EvaluationProgress") -> "dict[str, Finished]":
    if options["hypotheses"] is not None:
        from encodeonce.evaluate.texts import TextsRequest, evaluate_texts

        names = ("hypotheses", *OF_TEXTS, "audio", "output")
        request = TextsRequest(split=next(iter(options["split"]), None), **{name: options[name] for name in names})
        return evaluate_texts(request, wanted, progress)
    from encodeonce.evaluate.decoding.options import DecodeOptions
    from encodeonce.evaluate.formats.lines import read_lines
    from encodeonce.evaluate.run import CheckpointRequest, evaluate_checkpoint

    prompt = options["prompt"]
    decoding = DecodeOptions(
        prompt=() if prompt is None else tuple(line.text for line in read_lines(prompt)),
        **{name: options[name] for name in DECODING},
    )
    names = (
        *("checkpoint", "store", "encoder", "where", "limit", "target", "device", "attention", "word_times", "audio"),
        "output",
    )
    request = CheckpointRequest(
        splits=tuple(dict.fromkeys(options["split"])), decoding=decoding, **{name: options[name] for name in names}
    )
    return evaluate_checkpoint(request, wanted, progress)


def _show(found: "dict[str, Finished]", verbose: bool) -> None:
    """Results on stdout, the paths of what was written with them."""
    from encodeonce.evaluate.summary import compared, signatures, skipped, table

    evaluations = {name: one.evaluation for name, one in found.items()}
    for line in [*table(evaluations), *skipped(evaluations), *(signatures(evaluations) if verbose else ())]:
        click.echo(line)
    for one in found.values():
        if one.comparison is not None:
            click.echo(compared(one.comparison))
        click.echo(f"Report: {one.report}" if one.report else f"Results: {one.folder}")


def _as_object(name: str, found: "Finished") -> dict[str, Any]:
    from encodeonce.evaluate.report.results import plain
    from encodeonce.evaluate.summary import as_object

    return {
        "split": name,
        **plain(as_object(found.evaluation)),
        "comparison": plain(found.comparison),
        "output": str(found.folder),
        "report": found.report and str(found.report),
    }


def main(arguments: list[str] | None = None) -> None:
    """The entry point; see `run_command`."""
    from encodeonce.extract.corpora import CorpusError

    run_command(evaluate_adapter, arguments, (EvaluationError, TrainingError, StoreError, CorpusError), GO_ON)


if __name__ == "__main__":
    main()
