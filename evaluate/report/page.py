"""One HTML page with everything in it, the same as Markdown, and the numbers for programs."""

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from encodeonce.evaluate.evaluation import RESYNTHESIS, Evaluation
from encodeonce.evaluate.metrics.significance import Comparison
from encodeonce.evaluate.report import attention, breakdowns, details, examples, listing, others, resynthesis, scores
from encodeonce.evaluate.report.analysis import SPOKEN, Analysis, analyse
from encodeonce.evaluate.report.document import Document, Figure, Section
from encodeonce.evaluate.report.extras import Extras
from encodeonce.evaluate.report.markdown import markdown_of
from encodeonce.evaluate.report.results import RESULTS, SAMPLES, write_results
from encodeonce.evaluate.report.training_chart import training_chart
from encodeonce.store.extras import extra
from encodeonce.store.files import atomic_write

PAGE, TEXT = "report.html", "report.md"
HERE = "encodeonce.evaluate.report"
SHOWN_ELSEWHERE = (RESYNTHESIS, attention.WORD_CENTRES)
"""Details that have a section, or a place in one."""


def write_report(
    folder: Path, evaluation: Evaluation, extras: Extras | None = None, comparisons: Sequence[Comparison] = ()
) -> Path:
    """Write report.html, report.md, samples.jsonl and, last, results.json, each whole or not at all; gives the path of the page.

    The page needs nothing beside it: styles, script, drawings, pictures and the audio of the utterances that it shows are in it.

    Raises:
        StoreError: the folder cannot be written, or jinja2 or matplotlib is not installed; the message says the way out.
    """
    date = datetime.now(UTC)
    analysis = analyse(evaluation)
    document = document_of(evaluation, analysis, extras or Extras(), comparisons, date)
    for name, text in ((TEXT, markdown_of(document, folder)), (PAGE, html_of(document))):
        with atomic_write(folder / name) as file:
            file.write(text.encode("utf-8", "replace"))  # half of a surrogate pair, which JSON can hold
    write_results(folder, evaluation, analysis, comparisons, date)
    return folder / PAGE


def document_of(
    evaluation: Evaluation, analysis: Analysis, extras: Extras, comparisons: Sequence[Comparison], date: datetime
) -> Document:
    """What the report says."""
    found = [
        scores.scores(evaluation),
        scores.noticed(analysis.notices),
        scores.compared(comparisons),
        details.details({name: one for name, one in evaluation.details.items() if name not in SHOWN_ELSEWHERE}),
        _training(extras.training),
        resynthesis.resynthesis(evaluation.details.get(RESYNTHESIS, ())),
        others.published(evaluation),
        *(_errors(analysis) if evaluation.task in SPOKEN else ()),
        breakdowns.length_ratio(analysis.length_ratio) if evaluation.task != "labels" else None,
        breakdowns.suspicious(analysis, evaluation.scores),
        resynthesis.targets(evaluation),
        examples.examples(evaluation.task, analysis, extras),
        attention.attention(extras.pictures, evaluation.details),
        listing.every_utterance(evaluation),
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


def _errors(analysis: Analysis) -> list[Section | None]:
    """Where words go wrong."""
    return [
        breakdowns.by_band(analysis),
        breakdowns.meaning_by_errors(analysis.meaning),
        breakdowns.word_errors(analysis),
    ]


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
