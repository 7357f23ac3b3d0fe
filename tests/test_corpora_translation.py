"""MuST-C, Common Voice and CoVoST 2: texts, translations and ids as fairseq and lhotse read them."""

import csv
from pathlib import Path

import pytest
import yaml
from corpora_miniatures import mustc, write_audio, write_text
from encodeonce.extract.corpora import CorpusError, list_commonvoice, list_corpus, list_mustc
from encodeonce.extract.corpora.mustc import read_segments

# Offsets that order differently as numbers and as text.
SEGMENTS = [
    ("ted_1.wav", "2.500000", "1.250000"),
    ("ted_1.wav", "9.500000", "0.750000"),
    ("ted_1.wav", "10.500000", "2.000000"),
    ("ted_7.wav", "0.100000", "3.000000"),
]
ENGLISH = ["Hello.", " And now\u2028two lines. ", "", "Bye."]
GERMAN = ["Hallo.", "Und nun zwei Zeilen.", "(Applaus)", ""]


def as_fairseq_reads(root: Path, split: str, language: str) -> list[tuple]:
    """The rule of fairseq's prep_mustc_data.py: BaseLoader, stripped lines, rank in the wav by the offset's text."""
    segments = yaml.load((root / "txt" / f"{split}.yaml").read_text(), Loader=yaml.BaseLoader)
    for code in ("en", language):
        with (root / "txt" / f"{split}.{code}").open() as file:
            for segment, line in zip(segments, file, strict=True):
                segment[code] = line.strip()
    found = []
    for wav in sorted({segment["wav"] for segment in segments}):
        group = sorted((s for s in segments if s["wav"] == wav), key=lambda s: s["offset"])
        for i, s in enumerate(group):
            span = float(s["offset"]), float(s["duration"])
            found.append((f"{wav[:-4]}_{i}", root / "wav" / wav, *span, s["en"], s[language], s["speaker_id"]))
    return found


def test_mustc_equals_fairseqs_rule(tmp_path):
    root = mustc(tmp_path / "en-de", "dev", SEGMENTS, {"en": ENGLISH, "de": GERMAN})
    listing = list_corpus(tmp_path, "dev")
    assert (listing.layout, listing.root, listing.problems) == ("mustc", root, [])
    ours = [
        (u.id, u.audio, u.offset, u.duration, u.text or "", u.translations.get("de", ""), u.speaker)
        for u in listing.utterances
    ]
    assert sorted(ours) == sorted(as_fairseq_reads(root, "dev", "de"))
    assert [u.offset for u in listing.utterances] == [2.5, 9.5, 10.5, 0.1]
    assert listing.utterances[2].text is None
    assert listing.utterances[3].translations == {}
    assert all(u.language == "en" and u.metadata == {"rW": "3", "uW": "0"} for u in listing.utterances)


def test_mustc_segments_equal_lhotses_recipe(tmp_path):
    lhotse = pytest.importorskip("lhotse")
    from lhotse.recipes.must_c import prepare_must_c

    for split in ("dev", "tst-COMMON", "tst-HE", "train"):
        mustc(tmp_path / "en-de", split, SEGMENTS, {"en": ENGLISH, "de": [text or "leer" for text in GERMAN]})
    prepare_must_c(tmp_path, tmp_path / "out", "de")
    official = lhotse.load_manifest(tmp_path / "out" / "must_c_supervisions_en-de_tst-HE.jsonl.gz")
    expected = [(f"{s.recording_id}.wav", s.start, s.duration, s.text, s.speaker) for s in official]
    found = list_corpus(tmp_path, "tst-HE").utterances
    assert [(u.audio.name, u.offset, u.duration, u.translations["de"], u.speaker) for u in found] == expected


@pytest.mark.parametrize("data", ["", "MUSTC_v1.0", "MUSTC_v1.0/en-de", "MUSTC_v1.0/en-de/data/dev"])
def test_mustc_is_found_from_every_level(tmp_path, data):
    root = mustc(tmp_path / "MUSTC_v1.0" / "en-de", "dev", SEGMENTS, {"en": ENGLISH, "de": GERMAN})
    listing = list_corpus(tmp_path / data, "dev")
    assert (listing.layout, listing.root) == ("mustc", root)


def test_mustc_with_two_pairs_asks_which(tmp_path):
    for pair, language in (("en-de", "de"), ("en-fr", "fr")):
        mustc(tmp_path / pair, "dev", SEGMENTS, {"en": ENGLISH, language: GERMAN})
    with pytest.raises(CorpusError, match=r"2 language pairs.*--split en-de/dev or en-fr/dev"):
        list_corpus(tmp_path, "dev")
    assert set(list_corpus(tmp_path, "en-fr/dev").utterances[0].translations) == {"fr"}
    with pytest.raises(CorpusError, match=r"no split 'en-fr/deb'.*did you mean 'en-fr/dev'"):
        list_corpus(tmp_path, "en-fr/deb", "mustc")


def test_mustc_lines_that_do_not_align_are_refused(tmp_path):
    root = mustc(tmp_path / "en-de", "dev", SEGMENTS, {"en": ENGLISH, "de": GERMAN[:-1]})
    with pytest.raises(CorpusError, match=r"dev\.de has 3 lines and the yaml beside it 4 segments"):
        list_mustc(root)


def test_mustc_entries_without_a_time_or_a_wav_are_problems(tmp_path):
    root = mustc(tmp_path / "en-de", "dev", SEGMENTS, {"en": ENGLISH, "de": GERMAN})
    lines = (root / "txt" / "dev.yaml").read_text().splitlines()
    lines[0] = "- {duration: soon, offset: 1.0, wav: ted_1.wav}"
    lines[3] = "- {duration: 1.0, offset: 1.0}"
    write_text(root / "txt" / "dev.yaml", "\n".join(lines) + "\n")
    listing = list_mustc(root)
    assert [u.offset for u in listing.utterances] == [9.5, 10.5]
    assert [p.where for p in listing.problems] == ["dev.yaml:1", "dev.yaml:4"]


@pytest.mark.parametrize(
    "text",
    [
        "- {duration: 3.500000, offset: 16.080000, rW: 9, uW: 0, speaker_id: spk.767, wav: ted_767.wav}\n" * 2,
        "- {duration: 1.0, offset: 2.0, wav: 'a, b.wav'}\n- {wav: a.wav, offset: 1, duration: 2}\n",
        '- {duration: 1.0, offset: 2.0, wav: "a.wav"}\n',
        "- duration: 1.0\n  offset: 2.0\n  wav: a.wav\n",
        "# made by hand\n- {duration: 1.0, offset: 2.0, speaker_id: , wav: a.wav}\n",
        "- {duration: 1.0,\n   offset: 2.0, wav: a.wav}\n",
    ],
)
def test_mustc_yaml_is_read_as_a_yaml_parser_reads_it(tmp_path, text):
    path = write_text(tmp_path / "dev.yaml", text)
    assert read_segments(path) == yaml.load(text, Loader=yaml.BaseLoader)


def test_mustc_broken_yaml_is_refused_by_name(tmp_path):
    with pytest.raises(CorpusError, match=r"dev\.yaml is no YAML"):
        read_segments(write_text(tmp_path / "dev.yaml", "- {duration: 1.0\n- ["))


COLUMNS = ["client_id", "path", "sentence", "up_votes", "age", "gender", "accents", "variant", "locale"]
CLIPS = [
    ["spk1", "common_voice_de_1.mp3", '"Ja, sagte er.', "2", "", "female", "", "", "de"],
    ["spk2", "common_voice_de_2.mp3", "Ein \\ und ein Wort.", "3", "twenties", "", "", "", "de"],
]


def write_tsv(path, columns, rows):
    return write_text(path, "".join("\t".join(cells) + "\n" for cells in [columns, *rows]))


def test_common_voice_equals_lhotses_recipe(tmp_path):
    recipe = pytest.importorskip("lhotse.recipes.commonvoice")
    table = write_tsv(tmp_path / "train.tsv", COLUMNS, CLIPS)
    for _, clip, *_ in CLIPS:
        write_audio(tmp_path / "clips" / clip)
    with table.open() as file:
        infos = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    official = [recipe._parse_utterance(tmp_path, "de", info) for info in infos]

    listing = list_corpus(tmp_path, "train")

    assert (listing.layout, listing.root, listing.problems) == ("commonvoice", table, [])
    for (recording, segment), u in zip(official, listing.utterances, strict=True):
        assert (u.id, u.text, u.speaker, u.language) == (segment.id, segment.text, segment.speaker, segment.language)
        assert str(u.audio) == recording.sources[0].source
    assert listing.utterances[0].metadata["gender"] == "female"
    assert listing.utterances[0].metadata["age"] is None
    assert listing.utterances[1].metadata["up_votes"] == "3"


def test_common_voice_bad_lines_are_named_by_number(tmp_path):
    table = write_tsv(tmp_path / "dev.tsv", COLUMNS, [["spk", "a.mp3"], CLIPS[0], ["spk", "", *CLIPS[1][2:]], CLIPS[0]])
    listing = list_commonvoice(table)
    assert [u.id for u in listing.utterances] == ["common_voice_de_1"]
    assert sorted((p.where, p.reason.split(":")[0]) for p in listing.problems) == [
        ("dev.tsv:2", "2 columns where the header has 9"),
        ("dev.tsv:4", "no clip"),
        ("dev.tsv:5", "duplicate id 'common_voice_de_1', first seen at dev.tsv"),
    ]


def test_common_voice_language_folders(tmp_path):
    for language in ("de", "fr"):
        write_tsv(tmp_path / language / "test.tsv", COLUMNS, CLIPS)
        (tmp_path / language / "clips").mkdir()
    with pytest.raises(CorpusError, match=r"in 2 tables.*--split de/test or fr/test"):
        list_corpus(tmp_path, "test")
    assert list_corpus(tmp_path, "fr/test").root == tmp_path / "fr" / "test.tsv"


COVOST = [
    ["common_voice_de_1.mp3", '\\"Yes, he said.', "train"],
    ["common_voice_de_2.mp3", "A \\\\ and a word.", "train_covost"],
    ["common_voice_de_3.mp3", "Nobody validated this.", "train"],
    ["common_voice_de_4.mp3", "Another split.", "dev"],
]


def write_covost(folder):
    """The two files as they are published; Common Voice's sentences escaped as CoVoST's script expects them."""
    rows = [[cell.replace("\\", "\\\\") for cell in row] for row in CLIPS]
    write_tsv(folder / "validated.tsv", COLUMNS, rows)
    return write_tsv(folder / "covost_v2.de_en.tsv", ["path", "translation", "split"], COVOST)


def test_covost_files_of_all_splits_and_of_one_agree(tmp_path):
    whole = write_covost(tmp_path / "whole")
    listing = list_corpus(tmp_path / "whole", "train")
    assert (listing.layout, listing.root) == ("commonvoice", whole)
    assert [(u.id, u.text, u.translations, u.speaker, u.language) for u in listing.utterances] == [
        ("common_voice_de_1", '"Ja, sagte er.', {"en": '"Yes, he said.'}, "spk1", "de"),
        ("common_voice_de_2", "Ein \\ und ein Wort.", {"en": "A \\ and a word."}, "spk2", "de"),
    ]
    assert [p.where for p in listing.problems] == ["covost_v2.de_en.tsv:4"]

    # What get_covost_splits.py makes of them: pandas' to_csv without quoting and with a backslash for escapes.
    with (tmp_path / "covost_v2.de_en.train.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\", lineterminator="\n")
        writer.writerow(["path", "sentence", "translation", "client_id"])
        writer.writerows([f"{u.id}.mp3", u.text, u.translations["en"], u.speaker] for u in listing.utterances)
    for name in ("train", "covost_v2.de_en.train"):
        made = list_corpus(tmp_path, name)
        assert made.layout == "commonvoice"
        assert [(u.id, u.text, u.translations, u.speaker, u.language) for u in made.utterances] == [
            (u.id, u.text, u.translations, u.speaker, u.language) for u in listing.utterances
        ]


def test_covost_without_its_sentences_says_which_file_is_missing(tmp_path):
    write_covost(tmp_path).with_name("validated.tsv").unlink()
    with pytest.raises(CorpusError, match=r"no .*validated\.tsv"):
        list_corpus(tmp_path, "dev")


def test_covost_pairs_of_one_split_ask_which(tmp_path):
    for pair in ("en_de", "en_fa"):
        columns = ["path", "sentence", "translation", "client_id"]
        write_tsv(tmp_path / f"covost_v2.{pair}.dev.tsv", columns, [["a.mp3", "Yes.", "Ja.", "s"]])
    with pytest.raises(CorpusError, match=r"--split covost_v2\.en_de\.dev or covost_v2\.en_fa\.dev"):
        list_corpus(tmp_path, "dev")
    assert list_corpus(tmp_path, "covost_v2.en_fa.dev").utterances[0].translations == {"fa": "Ja."}
