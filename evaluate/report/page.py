"""One HTML page with everything in it, the same as Markdown, and the numbers for programs."""

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from encodeonce.evaluate.evaluation import Evaluation
from encodeonce.evaluate.metrics.significance import Comparison
from encodeonce.evaluate.report import breakdowns, details, examples, others, scores
from encodeonce.evaluate.report.analysis import analyse
from encodeonce.evaluate.report.document import Document, Figure, Section
from encodeonce.evaluate.report.extras import Extras
from encodeonce.evaluate.report.markdown import markdown_of
from encodeonce.evaluate.report.results import RESULTS, SAMPLES, write_results
from encodeonce.evaluate.report.training_chart import training_chart
from encodeonce.store.extras import extra
from encodeonce.store.files import atomic_write

PAGE, TEXT = "report.html", "report.md"
HERE = "encodeonce.evaluate.report"


def write_report(
    folder: Path, evaluation: Evaluation, extras: Extras | None = None, comparisons: Sequence[Comparison] = ()
) -> Path:
    """Write report.html, report.md, results.json and samples.jsonl, each whole or not at all; gives the path of the page.

    The page needs nothing beside it: styles, script, drawings, pictures and the audio of the utterances that it shows are in it.

    Raises:
        StoreError: the folder cannot be written, or jinja2 or matplotlib is not installed; the message says the way out.
    """
    date = datetime.now(UTC)
    document = document_of(evaluation, extras or Extras(), comparisons, date)
    write_results(folder, evaluation, comparisons, date)
    for name, text in ((TEXT, markdown_of(document)), (PAGE, html_of(document))):
        with atomic_write(folder / name) as file:
            file.write(text.encode("utf-8", "replace"))  # half of a surrogate pair, which JSON can hold
    return folder / PAGE


def document_of(evaluation: Evaluation, extras: Extras, comparisons: Sequence[Comparison], date: datetime) -> Document:
    """What the report says."""
    analysis = analyse(evaluation)
    found = [
        scores.scores(evaluation),
        scores.noticed(analysis.notices),
        scores.compared(comparisons),
        details.details(evaluation.details),
        _training(extras.training),
        others.published(evaluation),
        breakdowns.by_band(analysis),
        breakdowns.meaning_by_errors(analysis.meaning),
        breakdowns.word_errors(analysis),
        breakdowns.length_ratio(analysis.length_ratio),
        breakdowns.suspicious(analysis, evaluation.scores),
        examples.examples(analysis, extras),
        examples.pictures(extras.pictures),
        examples.every_utterance(evaluation),
        scores.made(evaluation),
    ]
    return Document(
        evaluation.title or "Evaluation",
        scores.facts(evaluation),
        scores.headlines(evaluation),
        [section for section in found if section is not None],
        f"Made by encodeonce on {date:%Y-%m-%d} at {date:%H:%M} UTC. The same as text: {TEXT}; the numbers: {RESULTS}; "
        f"every utterance: {SAMPLES}.",
    )


def _training(folder: Path | None) -> Section | None:
    chart = None if folder is None else training_chart(folder)
    if chart is None:
        return None
    caption = f"Losses and error rates of the training in {folder}, by step."
    return Section("training", "Training", [Figure(chart, caption)])


def html_of(document: Document) -> str:
    """The page. Everything in it is escaped but the drawings, whose texts matplotlib escapes; no script but its own may run."""
    with extra("evaluate"):
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup

    style, script = (files(HERE).joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    digest = b64encode(sha256(f"\n{script}".encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(HERE).joinpath("report.html.j2").read_text(encoding="utf-8"))
    return template.render(document=document, style=Markup(style), script=Markup(script), policy=policy)
