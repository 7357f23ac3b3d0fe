"""Manifests: the same rows from JSON lines, CSV and TSV; NeMo's names; a bad line never harms another."""

import gzip
import json

import pytest
from corpora_miniatures import write_jsonl, write_table, write_text
from encodeonce.extract.corpora import CorpusError, Utterance, list_corpus, list_manifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PLAIN = st.characters(exclude_categories=("Cs", "Cc"))
# A tab or a line break cannot stand in a cell of a TSV file; what is blank alone counts as empty.
CELL = st.text(PLAIN, min_size=1, max_size=30).filter(lambda text: not text.isspace())
FILE = st.text(PLAIN, min_size=1, max_size=20).filter(lambda text: text[0] != "/" and "://" not in text)
SECONDS = st.floats(0, 10_000, allow_subnormal=False)
ROW = st.fixed_dictionaries(
    {
        "id": CELL,
        "audio": FILE,
        "offset": st.none() | SECONDS,
        "duration": st.none() | SECONDS.filter(bool),
        "text": st.none() | CELL,
        "speaker": st.none() | CELL,
        "language": st.none() | CELL,
        "channel": st.none() | st.integers(0, 7),
        "translation_de": st.none() | CELL,
        "note": CELL,
    }
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, min_size=1, max_size=4, unique_by=lambda row: row["id"]))
def test_rows_come_back_equal_from_every_format(tmp_path, rows):
    expected = [
        Utterance(
            id=row["id"],
            audio=tmp_path / row["audio"],
            offset=row["offset"] or 0.0,
            duration=row["duration"],
            channel=row["channel"],
            text=row["text"],
            speaker=row["speaker"],
            language=row["language"],
            translations={"de": row["translation_de"]} if row["translation_de"] else {},
            metadata={"note": row["note"]},
        )
        for row in rows
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_table(tmp_path / "a.csv", rows)
    write_table(tmp_path / "a.tsv", rows, delimiter="\t")
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        listing = list_manifest(tmp_path / name)
        assert not listing.problems, name
        assert listing.utterances == expected, name


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "x", "audio": ', "not JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('{"id": "x"}', "no audio file"),
        ('{"id": "x", "audio": ""}', "no audio file"),
        ('{"id": "x", "audio": 7}', "expected a path"),
        ('{"id": "x", "audio": "s3://bucket/x.wav"}', "is an address"),
        ('{"id": "x", "audio": "x\\u0000.wav"}', "NUL character"),
        ('{"id": "x", "audio": "x.wav", "offset": "soon"}', "offset 'soon'"),
        ('{"id": "x", "audio": "x.wav", "offset": -1}', "offset -1.0 s: expected 0 or more"),
        ('{"id": "x", "audio": "x.wav", "offset": NaN}', "offset nan s"),
        ('{"id": "x", "audio": "x.wav", "duration": true}', "duration True"),
        ('{"id": "x", "audio": "x.wav", "duration": -0.5}', "duration -0.5 s"),
        ('{"id": "x", "audio": "x.wav", "duration": 0}', "duration 0.0 s: expected more than 0"),
        ('{"id": "x", "audio": "x.wav", "channel": 1.5}', "channel 1.5"),
        ('{"id": "x", "audio": "x.wav", "text": ["a"]}', "text is ['a']"),
        ('{"id": "x", "audio": "x.wav", "text": "\\ud800"}', "surrogate"),
        ('{"id": "x", "audio": "x.wav", "translations": "de"}', "translations 'de'"),
        ('{"id": "", "audio": "x.wav"}', "the id is empty"),
        ('{"id": "a\\nb", "audio": "x.wav"}', "control character"),
        ('{"id": "a\\u0000b", "audio": "x.wav"}', "control character"),
        ('{"id": "first", "audio": "x.wav"}', "duplicate id 'first', first seen at m.jsonl:1"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_spares_the_others(tmp_path, line, reason):
    path = write_text(
        tmp_path / "m.jsonl", f'{{"id": "first", "audio": "1.wav"}}\n\n{line}\n{{"id": "last", "audio": "2.wav"}}\n'
    )
    listing = list_manifest(path)
    assert [u.id for u in listing.utterances] == ["first", "last"]
    assert [p.where for p in listing.problems] == ["m.jsonl:3"]
    assert reason in listing.problems[0].reason


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_row_with_the_wrong_number_of_columns_is_named_by_its_number(tmp_path, delimiter):
    lines = ["id,audio,text", "a,a.wav,one", "b,b.wav", "c,c.wav,three,four", "d,d.wav,"]
    path = tmp_path / ("m.csv" if delimiter == "," else "m.tsv")
    write_text(path, "\r\n".join(line.replace(",", delimiter) for line in lines))
    listing = list_manifest(path)
    assert [(u.id, u.text) for u in listing.utterances] == [("a", "one"), ("d", None)]
    assert [(p.where, p.reason) for p in listing.problems] == [
        (f"{path.name}:3", "2 columns where the header has 3"),
        (f"{path.name}:4", "4 columns where the header has 3"),
    ]


@pytest.mark.parametrize("bad", ['b,b.wav,"never closed', 'b,"b.wav,x', 'b,b.wav,"closed"too early'])
def test_a_stray_quote_in_csv_costs_its_own_line_only(tmp_path, bad):
    lines = ["id,audio,text", 'a,a.wav,"said ""yes"", twice"', bad, 'c,c.wav,"two\nlines"', "d,d.wav,four"]
    listing = list_manifest(write_text(tmp_path / "m.csv", "\n".join(lines) + "\n"))
    assert [(u.id, u.text, u.where) for u in listing.utterances] == [
        ("a", 'said "yes", twice', "m.csv:2"),
        ("c", "two\nlines", "m.csv:4"),
        ("d", "four", "m.csv:6"),
    ]
    assert [p.where for p in listing.problems] == ["m.csv:3"]


def test_quotes_in_tsv_are_kept_where_the_file_does_not_quote(tmp_path):
    """fairseq and Common Voice write cells as they are; a quote at the start of a cell opens nothing."""
    path = write_text(tmp_path / "m.tsv", 'id\taudio\ttext\na\ta.wav\t"Yes\nb\tb.wav\t"Oh," he said\nc\tc.wav\t"No"\n')
    assert [u.text for u in list_manifest(path).utterances] == ['"Yes', '"Oh," he said', '"No"']


def test_bytes_that_are_no_utf8_cost_their_line_only(tmp_path):
    for name, content in {
        "m.jsonl": b'{"id": "a", "audio": "a"}\n{"id": "b\xe9", "audio": "b"}\n{"id": "\xc3\xa9", "audio": "c"}\n',
        "m.csv": b"id,audio\na,a.wav\nb\xe9,b.wav\n\xc3\xa9,c.wav\n",
        "m.tsv": b"id\taudio\na\ta.wav\nb\xe9\tb.wav\n\xc3\xa9\tc.wav\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        listing = list_manifest(tmp_path / name)
        assert [u.id for u in listing.utterances] == ["a", "é"]
        assert [p.where for p in listing.problems] == [f"{name}:{2 if name == 'm.jsonl' else 3}"]


def test_gzip_byte_order_mark_and_crlf_make_no_difference(tmp_path):
    rows = [{"id": f"u{n}", "audio": f"{n}.wav", "text": "zwei Wörter\u2028eine Zeile"} for n in range(3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    write_jsonl(tmp_path / "plain.jsonl", rows)
    packed = list_manifest(tmp_path / "m.jsonl.gz")
    assert packed.utterances == list_manifest(tmp_path / "plain.jsonl").utterances
    assert not packed.problems
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbfid,audio\r\na,a.wav\r\n")
    assert [u.id for u in list_manifest(tmp_path / "m.csv").utterances] == ["a"]


def test_half_a_gzip_file_is_refused_by_name(tmp_path):
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": "a", "audio": "a.wav"}\n' * 99)[:-20])
    with pytest.raises(CorpusError, match=r"m\.jsonl\.gz is no whole gzip file"):
        list_manifest(path)


def test_nemo_rows_get_ids_from_their_files(tmp_path):
    rows = [
        {"audio_filepath": "one.wav", "duration": 2.5, "text": "whole file", "lang": "en"},
        {"audio_filepath": "talk.wav", "offset": 0, "duration": 4.0, "text": "its start"},
        {"audio_filepath": "talk.wav", "offset": 12.25, "duration": 3.0, "text": "later"},
        {"audio_filepath": "talk.wav", "offset": 12.25, "duration": 5.0, "text": "longer"},
        {"audio_filepath": "/far/x/same.wav", "text": "one of two"},
        {"audio_filepath": "y/same.flac", "text": "two of two"},
    ]
    by_text = {}
    for order in (rows, rows[::-1]):
        listing = list_manifest(write_jsonl(tmp_path / "nemo.jsonl", order))
        assert not listing.problems
        by_text = {u.text: u for u in listing.utterances}
        assert {text: u.id for text, u in by_text.items()} == {
            "whole file": "one",
            "its start": "talk-0.0",
            "later": "talk-12.25-3.0",
            "longer": "talk-12.25-5.0",
            "one of two": "/far/x/same",
            "two of two": "y/same",
        }
    assert (by_text["whole file"].language, by_text["whole file"].duration) == ("en", 2.5)
    assert by_text["later"].audio == tmp_path / "talk.wav"
    assert str(by_text["one of two"].audio) == "/far/x/same.wav"


def test_translations_and_metadata_keep_what_they_were(tmp_path):
    row = {"id": "a", "audio": "a.wav", "speaker": 1034, "translations": {"fr": "oui"}, "translation_de": "ja"}
    extra = {"snr": 12.5, "clean": True, "page": 7, "words": ["x"], "none": None}
    (utterance,) = list_manifest(write_jsonl(tmp_path / "m.jsonl", [row | extra])).utterances
    assert utterance.translations == {"fr": "oui", "de": "ja"}
    assert utterance.speaker == "1034"
    assert utterance.metadata == extra | {"words": '["x"]'}


def test_odd_ids_are_free(tmp_path):
    ids = ["a/b/../c", "..", "two words", "日本語", "x" * 200, "dots.and.more", "-", "~"]
    listing = list_manifest(write_jsonl(tmp_path / "m.jsonl", [{"id": id, "audio": "a.wav"} for id in ids]))
    assert [u.id for u in listing.utterances] == ids
    assert not listing.problems


def test_a_header_without_audio_or_with_a_name_twice_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"m\.csv:1: no column 'audio'.*'id', 'file'"):
        list_manifest(write_text(tmp_path / "m.csv", "id,file\na,a.wav\n"))
    with pytest.raises(CorpusError, match=r"m\.tsv:1: the header names 'text' more than once"):
        list_manifest(write_text(tmp_path / "m.tsv", "id\taudio\ttext\ttext\n"))


def test_two_manifests_of_one_split_are_refused(tmp_path):
    write_jsonl(tmp_path / "dev.jsonl", [{"id": "a", "audio": "a.wav"}])
    write_table(tmp_path / "dev.csv", [{"id": "a", "audio": "a.wav"}])
    with pytest.raises(CorpusError, match=r"2 manifests: .*dev\.jsonl, .*dev\.csv; .*--data FILE"):
        list_corpus(tmp_path, "dev")
    assert len(list_corpus(tmp_path / "dev.csv", "dev").utterances) == 1
