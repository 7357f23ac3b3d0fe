"""Which layout a split is in, the folder layout that takes what is left, and refusals that name the way out."""

import os
from pathlib import Path

import pytest
from corpora_miniatures import librispeech, mustc, write_audio, write_jsonl, write_text
from encodeonce.extract.corpora import LAYOUTS, CorpusError, list_corpus, list_folder


def test_a_folder_of_audio_files_with_texts_beside_them(tmp_path):
    root = tmp_path / "interviews"
    for name in ("b.wav", "sub/a.FLAC", "sub/deep/c.d.ogg", ".hidden.wav", ".cache/x.wav"):
        path = write_audio(root / name.lower())
        path.rename(root / name)
    write_text(root / "b.txt", "\ufeffEin Satz.\r\nNoch einer.\r\n")
    write_text(root / "sub/a.txt", " \n")
    write_text(root / "notes.md", "no audio")
    listing = list_corpus(tmp_path, "interviews")
    assert (listing.layout, listing.root, listing.problems) == ("folder", root, [])
    assert [(u.id, u.text) for u in listing.utterances] == [
        ("b", "Ein Satz. Noch einer."),
        ("sub/a", None),
        ("sub/deep/c.d", None),
    ]
    assert listing.utterances[1].audio == root / "sub" / "a.FLAC"


def test_two_files_of_one_name_are_one_utterance_and_one_problem(tmp_path):
    for name in ("a.flac", "a.wav"):
        write_audio(tmp_path / name)
    listing = list_folder(tmp_path)
    assert [u.audio.name for u in listing.utterances] == ["a.flac"]
    assert [(p.where, p.reason) for p in listing.problems] == [("a.wav", "duplicate id 'a', first seen at a.flac")]


def test_a_folder_that_links_to_itself_ends(tmp_path):
    write_audio(tmp_path / "x" / "a.wav")
    write_audio(tmp_path / "elsewhere" / "b.wav")
    (tmp_path / "x" / "loop").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "linked").symlink_to(tmp_path / "elsewhere")
    assert [u.id for u in list_folder(tmp_path / "x").utterances] == ["a", "linked/b"]


def test_a_text_or_a_name_that_is_no_utf8_is_a_problem(tmp_path):
    write_audio(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    try:
        os.rename(write_audio(tmp_path / "b.wav"), os.fsencode(tmp_path) + b"/b\xe9.wav")
    except OSError:
        pytest.skip("this file system has no names other than UTF-8")
    listing = list_folder(tmp_path)
    assert not listing.utterances
    assert sorted("UTF-8" in p.reason for p in listing.problems) == [True, True]


@pytest.mark.shared
def test_real_folder_with_texts():
    data = os.environ.get("ENCODEONCE_TEST_DATA")
    if not data:
        pytest.skip("ENCODEONCE_TEST_DATA does not point to the real speech")
    listing = list_corpus(Path(data), "fleurs")
    assert (listing.layout, len(listing.utterances), listing.problems) == ("folder", 30, [])
    assert all(u.text for u in listing.utterances)


def corpus_of_everything(root: Path) -> dict[str, str]:
    """One split of every layout below one folder; gives {split: layout}."""
    librispeech(root / "LibriSpeech" / "dev-clean", {"1-2": {"1-2-0000": "HI"}})
    mustc(root / "en-de", "tst-HE", [("ted_1.wav", "0.5", "1.0")], {"en": ["Hi."], "de": ["Hallo."]})
    write_text(root / "validated.tsv", "client_id\tpath\tsentence\ns\ta.mp3\tHi.\n")
    write_text(root / "kaldi-dev" / "wav.scp", "u /x/u.wav\n")
    source = {"type": "file", "channels": [0], "source": "/x/a.wav"}
    recording = {"id": "a", "sources": [source], "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0}
    cut = {"id": "c", "start": 0, "duration": 1.0, "channel": 0, "supervisions": [], "recording": recording}
    write_jsonl(root / "cuts_l.jsonl", [cut | {"type": "MonoCut"}])
    write_jsonl(root / "m.jsonl", [{"id": "a", "audio": "a.wav"}])
    write_text(root / "t.tsv", "id\taudio\na\ta.wav\n")
    write_text(root / "inner" / "manifest.csv", "id,audio\na,a.wav\n")
    write_audio(root / "plain" / "a.wav")
    return {
        "dev-clean": "librispeech",
        "tst-HE": "mustc",
        "validated": "commonvoice",
        "kaldi-dev": "kaldi",
        "l": "lhotse",
        "m": "manifest",
        "t": "manifest",
        "inner": "manifest",
        "plain": "folder",
    }


def test_every_layout_is_recognised_among_the_others(tmp_path):
    splits = corpus_of_everything(tmp_path)
    assert {split: list_corpus(tmp_path, split).layout for split in splits} == splits
    assert set(splits.values()) == set(LAYOUTS)
    for split, layout in splits.items():
        chosen = list_corpus(tmp_path, split, layout)
        assert chosen == list_corpus(tmp_path, split)
        assert all(u.where for u in chosen.utterances)


def test_a_missing_split_names_those_that_are_there(tmp_path):
    splits = corpus_of_everything(tmp_path)
    with pytest.raises(CorpusError) as caught:
        list_corpus(tmp_path, "kaldi_dev")
    message = str(caught.value)
    assert "(did you mean 'kaldi-dev'?)" in message
    assert "kaldi_dev/wav.scp" in message
    assert "--data" in message
    assert all(split in message for split in splits)


def test_a_missing_librispeech_split_offers_the_download(tmp_path):
    librispeech(tmp_path / "LibriSpeech" / "train-clean-5", {"1-2": {"1-2-0000": "HI"}})
    with pytest.raises(CorpusError, match=r"(?s)splits there: train-clean-5.*--download.*LibriSpeech/train-clean-100/"):
        list_corpus(tmp_path, "train-clean-100")
    with pytest.raises(CorpusError, match=r"no data folder .*nowhere.*--data.*--download"):
        list_corpus(tmp_path / "nowhere", "train-clean-100")


@pytest.mark.parametrize("split", ["..", "../x", "a/../b", "/etc", "", ".", "a//b", "a\\b", "a\nb", "a/"])
def test_a_split_never_leads_out_of_the_data_folder(tmp_path, split):
    with pytest.raises(CorpusError, match="is no name of a split"):
        list_corpus(tmp_path, split)


def test_an_empty_split_is_refused_with_its_first_problem(tmp_path):
    write_text(tmp_path / "dev.jsonl", "nonsense\n")
    with pytest.raises(CorpusError, match=r"no usable utterance: 1 problems, the first one dev\.jsonl:1: not JSON"):
        list_corpus(tmp_path, "dev")
    (tmp_path / "LibriSpeech" / "dev-clean").mkdir(parents=True)
    with pytest.raises(CorpusError, match="no usable utterance: no entry"):
        list_corpus(tmp_path, "dev-clean")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"(?s)no split 'empty'.*the folder .*empty.* is there, but holds none"):
        list_corpus(tmp_path, "empty")


def test_a_wrong_layout_is_named_with_what_is_there(tmp_path):
    write_audio(tmp_path / "plain" / "a.wav")
    with pytest.raises(CorpusError, match="it is there in folder layout: leave --corpus out"):
        list_corpus(tmp_path, "plain", "kaldi")
    with pytest.raises(CorpusError, match=r"no corpus layout 'kaldy'.*did you mean 'kaldi'"):
        list_corpus(tmp_path, "plain", "kaldy")


def test_a_file_that_is_no_manifest_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"notes\.txt is no manifest"):
        list_corpus(write_text(tmp_path / "notes.txt", "hello"), "dev")


def test_missing_audio_is_left_to_the_decoder(tmp_path):
    write_jsonl(tmp_path / "dev.jsonl", [{"id": "a", "audio": "gone.wav"}])
    listing = list_corpus(tmp_path, "dev")
    assert [u.audio.exists() for u in listing.utterances] == [False]
    assert not listing.problems
