"""Texts from anywhere: what is written is read back the same, and what cannot be read is named with file and line."""

import re
from collections.abc import Callable
from pathlib import Path

import jiwer
import pytest
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Edits, Evaluation, Scored
from encodeonce.evaluate.formats.espnet import espnet_tables
from encodeonce.evaluate.formats.find import read_texts
from encodeonce.evaluate.formats.icefall import write_errs, write_recogs
from encodeonce.evaluate.formats.pairing import alone, pair
from encodeonce.evaluate.formats.sclite import WIDE, WIDE_AT, write_trn
from encodeonce.evaluate.hypotheses import Hypothesis, read_hypotheses, write_hypotheses
from hypothesis import given, settings
from hypothesis import strategies as st

QUICK = settings(max_examples=60, deadline=None)
ANY_WORDS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Zs", "Zl", "Zp", "Cc")), min_size=1), max_size=6
)
TEXTS = ANY_WORDS.map(lambda words: " ".join(" ".join(words).split()))
IDS = st.from_regex(r"[a-zé0-9][a-z0-9_:.\-]{0,8}[0-9]", fullmatch=True)
PAIRS = st.dictionaries(IDS, st.tuples(TEXTS, TEXTS), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("texts")


def both(path: Path, format: str | None = None) -> dict[str, tuple[str | None, str]]:
    """Reference and hypothesis by id, of one file."""
    return {one.id: (one.text, one.pred_text) for one in alone(read_texts(path, "pred_text", format)).hypotheses}


def paired(
    written: Path, said: Path, format: str | None = None, **allowed: bool
) -> dict[str, tuple[str | None, str, tuple[str, ...]]]:
    found = pair(read_texts(written, "pred_text", format), read_texts(said, "text", format), **allowed)
    return {one.id: (one.text, one.pred_text, one.flags) for one in found.hypotheses}


@QUICK
@given(PAIRS)
def test_icefall_s_recogs_are_read_as_they_were_written(folder, texts):
    path = folder / "recogs-dev-greedy.txt"
    write_recogs(path, [(name, *pair) for name, pair in texts.items()])
    assert both(path) == texts


@QUICK
@given(PAIRS)
def test_sclite_s_transcripts_are_read_as_they_were_written(folder, texts):
    for side in (0, 1):
        write_trn(folder / f"{side}.trn", [(name, pair[side]) for name, pair in texts.items()])
    found = paired(folder / "1.trn", folder / "0.trn")

    def shown(text: str) -> str:
        return " ".join(WIDE_AT if word == "@" else word for word in text.translate(WIDE).split())

    assert {name: (said, written) for name, (said, written, _) in found.items()} == {
        name: (shown(said), shown(written)) for name, (said, written) in texts.items()
    }


@QUICK
@given(PAIRS)
def test_json_lines_are_read_as_they_were_written(folder, texts):
    path = folder / "hyp.jsonl"
    write_hypotheses(path, [Hypothesis(name, written, said) for name, (said, written) in texts.items()])
    assert both(path) == texts


@QUICK
@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1).filter(lambda pairs: all(any(p[i] for p in pairs) for i in (0, 1)))
)
def test_plain_lines_are_read_as_they_stand(folder, texts):
    for side, name in enumerate(("ref.txt", "hyp.txt")):
        (folder / name).write_bytes("".join(f"{pair[side]}\n" for pair in texts).encode())
    found = paired(folder / "hyp.txt", folder / "ref.txt", "plain")
    assert [(said, written) for said, written, _ in found.values()] == texts


def test_errs_have_icefall_s_sections_and_counts(tmp_path):
    texts = [
        (
            "utt-1",
            "the association of edison illuminating companies",
            "the association of addison illuminating companies",
        ),
        ("utt-2", "for the first day sir i think", "for the first day i think so yes"),
        ("utt-3", "a b c d", "a x y d"),
        ("utt-4", "", "noise"),
    ]
    write_errs(tmp_path / "errs-dev.txt", texts)
    found = (tmp_path / "errs-dev.txt").read_text().splitlines()
    counted = jiwer.process_words([text[1] for text in texts], [text[2] for text in texts])
    assert found[0] == f"%WER = {100 * counted.wer:.2f}" == "%WER = 41.18"
    assert found[1] == "Errors: 3 insertions, 1 deletions, 3 substitutions, over 17 reference words (13 correct)"
    assert "utt-1:\tthe association of (edison->addison) illuminating companies" in found
    assert "utt-2:\tfor the first day (sir->*) i think (*->so yes)" in found
    assert "utt-3:\ta (b c->x y) d" in found
    assert "utt-4:\t(*->noise)" in found
    assert "1   edison -> addison" in found
    assert found[found.index("DELETIONS: count ref") + 1] == "1   sir"
    assert "the   2 0 2 2" in found
    assert "sir   0 1 1 0" in found


def test_espnet_s_table_has_its_columns():
    scored = [
        Scored(Hypothesis("a", ""), "", "", Edits(8, 1, 1, 2), Edits(30, 2, 2, 4)),
        Scored(Hypothesis("b", ""), "", "", Edits(10, 0, 0, 0), Edits(40, 0, 0, 0)),
    ]
    table = espnet_tables([("dev", Evaluation("x", {}, scored))]).splitlines()
    assert table[0] == "### WER"
    assert table[2] == "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|"
    assert table[4] == "|dev|2|20|90.0|5.0|5.0|10.0|20.0|50.0|"
    assert table[10] == "|dev|2|74|94.6|2.7|2.7|5.4|10.8|50.0|"


@pytest.mark.parametrize(
    ("name", "content", "format", "told"),
    [
        ("hyp.jsonl", '{"id": "a", "pred_text": "x"}', "json", {"a": "x"}),
        ("manifest.json", '{"audio_filepath": "a.wav", "pred_text": "x", "text": "y"}', "json", {"a.wav": "x"}),
        ("hyp", ' {"id": 7, "pred_text": "x"}\n\n', "json", {"7": "x"}),
        ("decoded.jsonl", '{"pred_text": "x"}\n{"pred_text": "z"}', "json", {None: "z"}),
        ("any.txt", "utt-1:\tref=['A', \"B'S\"]\nutt-1:\thyp=[]\n", "icefall", {"utt-1": ""}),
        ("hyp.trn", ";; by us\n\nyes (uh) it is (s-1)\n(s-2)\n@ x\\;y (s-3)\n", "trn", {"s-1": "yes (uh) it is", "s-2": "", "s-3": "x;y"}),
        ("out.txt", "yes (s-1)\nno (s-2)\n", "trn", {"s-1": "yes", "s-2": "no"}),
        ("text", "one a  b\ntwo\n", "kaldi", {"one": "a b", "two": ""}),
        ("out.txt", "84-121123-0000 go\n84-121123-0001\n", "kaldi", {"84-121123-0000": "go", "84-121123-0001": ""}),
        ("hyp.jsonl", '{"id": "a", "hypothesis": "x", "reference": "y"}', "json", {"a": "x"}),
        ("hyp.jsonl", '{"id": "a", "pred_text": "x", "prediction": "z"}', "json", {"a": "x"}),
        ("out.txt", "utt_a go\nutt_b\n", "kaldi", {"utt_a": "go", "utt_b": ""}),
        ("out.txt", "turn_on\nturn_off\n", "plain", {None: "turn_off"}),
        ("out.txt", "the cat\r\nsat\r\n", "plain", {None: "sat"}),
        ("out.txt", "3 cats\n4 dogs\n", "plain", {None: "4 dogs"}),
        ("out.txt", "label-1\nlabel-2\nlabel-1\n", "plain", {None: "label-1"}),
        ("out.txt", "2nd a\n1st b\n2nd c\n1st d\n2nd e\n", "plain", {None: "2nd e"}),
        ("out.txt", "\ufeffa\u2028b", "plain", {None: "a\u2028b"}),
    ],
)  # fmt: skip
def test_a_format_is_told_by_name_and_content(tmp_path, name, content, format, told):
    (tmp_path / name).write_bytes(content.encode())
    found = read_texts(tmp_path / name, "pred_text")
    assert found.format == format
    assert {entry.id: entry.pred_text for entry in found.entries} == told


@pytest.mark.parametrize(
    ("content", "format", "told"),
    [
        (b"", None, "hyp is empty"),
        (b" \n\n", None, "hyp is empty"),
        (b"good\nna\xefve\n", None, "line 2: byte 3 (0xef) is no UTF-8"),
        ("a".encode("utf-16"), None, "line 1: byte 1 (0xff) is no UTF-8"),
        (b'{"id": "a", "pred_text": ""}\n{"id": "a"', None, "line 2: it is no JSON"),
        (
            b'{"id": "a", "pred_text": ""}\n{"id": "b"}',
            None,
            "line 2: no pred_text, nor hypothesis, nor prediction among id",
        ),
        (b'{"id": "a", "pred_text": 3}', None, "line 1: pred_text is 3: give a text"),
        (b'{"id": ["a"], "pred_text": ""}', None, "line 1: id is ['a']: give a text"),
        (b'{"id": "a", "pred_text": "", "duration": "long"}', None, "duration is 'long'"),
        (b'{"id": "a", "pred_text": ""}\n{"pred_text": ""}', None, "line 2: utterances with an id and without"),
        (b'[{"id": "a"}]', "json", "line 1: it is a JSON list"),
        (b"7", "json", "line 1: it is no JSON object but 7"),
        (b"u-1 a\nu-2 b\nu-1 c", "kaldi", "line 3: id u-1 is there twice, first in line 1"),
        (
            b"u-1 a\nu-2 b\nu-1 c",
            None,
            "id u-1 is there twice, first in line 1; if these are texts without ids, give --format plain",
        ),
        (b"yes (s-1)\nno", "trn", "line 2: no (id) at the end of 'no'"),
        (b"a { b / c } (s-1)", None, "line 1: it has alternatives"),
        (b";; nothing\n", "trn", "line 1: there is no utterance"),
        (b"u-1:\tref=['a']\nu-2:\thyp=['a']\n", None, "line 1: no hyp= of 'u-1'"),
        (b"u-1:\tref=['a']\n", None, "line 1: no hyp= of 'u-1'"),
        (b"u-1:\tref=['a']\nu-1:\tref=['a']\n", None, "line 2: it is no `id:<tab>hyp=[...]`"),
        (b"u-1:\tref=[open('x')]\nu-1:\thyp=[]\n", None, "line 1: [open('x')] is no list of words"),
    ],
)
def test_what_cannot_be_read_is_named_with_file_and_line(tmp_path, content, format, told):
    (tmp_path / "hyp").write_bytes(content)
    with pytest.raises(EvaluationError, match=re.escape(told)) as raised:
        read_texts(tmp_path / "hyp", "pred_text", format)
    assert str(raised.value).startswith(str(tmp_path / "hyp"))


def write(folder: Path, **files: str) -> Callable[..., dict[str, tuple[str | None, str, tuple[str, ...]]]]:
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return lambda **options: paired(folder / "hyp.txt", folder / "ref.txt", **options)


def test_missing_and_extra_ids_are_named_and_refused_unless_told(tmp_path):
    run = write(tmp_path, hyp="u-1 a\nu-4 d\nu-5 e\n", ref="u-0 z\nu-1 a\nu-2 b\nu-3 c\nu-9\n")
    with pytest.raises(EvaluationError) as raised:
        run()
    assert "lacks 4 of the 5 utterances" in str(raised.value)
    assert "(u-0, u-2, u-3, ...)" in str(raised.value)
    assert "2 utterances that" in str(raised.value)
    assert "(u-4, u-5)" in str(raised.value)
    with pytest.raises(EvaluationError, match="--allow-extra"):
        run(allow_missing=True)
    with pytest.raises(EvaluationError, match="--allow-missing"):
        run(allow_extra=True)
    found = run(allow_missing=True, allow_extra=True)
    assert list(found) == ["u-0", "u-1", "u-2", "u-3", "u-9"]
    assert found["u-1"] == ("a", "a", ())
    assert found["u-2"] == ("b", "", ("missing",))


def test_what_cannot_be_paired_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match=r"hyp\.txt has 2 lines, .*ref\.txt 3"):
        write(tmp_path, hyp="a\nb\n", ref="a\nb\nc\n")()
    with pytest.raises(EvaluationError, match=r"hyp\.txt has no ids to pair by"):
        write(tmp_path, hyp="a\nb\n", ref="u-1 a\nu-2 b\n")()
    with pytest.raises(EvaluationError, match="no id in common: u-1 against v-1"):
        write(tmp_path, hyp="u-1 a\n", ref="v-1 a\n")(allow_missing=True, allow_extra=True)
    (tmp_path / "hyp.jsonl").write_text('{"id": "a", "pred_text": "x"}\n')
    with pytest.raises(EvaluationError, match="holds no references; give them with --references"):
        alone(read_texts(tmp_path / "hyp.jsonl", "pred_text"))


def test_formats_may_differ_and_the_reference_knows_better(tmp_path):
    (tmp_path / "hyp.trn").write_text("x y (u-1)\nz (u-2)\n")
    (tmp_path / "ref.jsonl").write_text(
        '{"id": "u-2", "text": "z", "speaker": "s", "duration": 1.5, "room": 3}\n{"id": "u-1", "text": "x", "pred_text": "?"}\n'
    )
    found = pair(read_texts(tmp_path / "hyp.trn", "pred_text"), read_texts(tmp_path / "ref.jsonl", "text")).hypotheses
    assert found == [
        Hypothesis("u-2", "z", "z", duration=1.5, speaker="s", metadata={"room": 3}),
        Hypothesis("u-1", "x y", "x"),
    ]


def test_ids_that_sclite_could_not_read_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match=r"id 'a\(b\)' cannot stand in x\.trn"):
        write_trn(tmp_path / "x.trn", [("a(b)", "words")])
    assert not (tmp_path / "x.trn").exists()


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-3", "true", "1" + "0" * 400])
@pytest.mark.parametrize("key", ["duration", "seconds"])
def test_seconds_that_cannot_be_are_refused_with_their_line(tmp_path, key, value):
    path = tmp_path / "hyp.jsonl"
    path.write_text(f'{{"id": "a", "text": "x", "pred_text": "x", "{key}": {value}}}\n')
    with pytest.raises(EvaluationError, match=rf"line 1: {key} is .*number of seconds"):
        read_texts(path, "pred_text")
    with pytest.raises(EvaluationError, match=rf"line 1: {key} is .*number of seconds"):
        read_hypotheses(path)


def test_json_that_is_too_deep_is_refused_with_its_line(tmp_path):
    path = tmp_path / "hyp.jsonl"
    path.write_text('{"id": "a", "text": "x", "pred_text": "x", "more": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    for read in (lambda: read_texts(path, "pred_text"), lambda: read_hypotheses(path)):
        with pytest.raises(EvaluationError, match=r"hyp.jsonl, line 1: "):
            read()
