"""LibriSpeech's layout: the same utterances as torchaudio, whatever the split is called; and its download."""

import os
import socket
import tarfile
from pathlib import Path

import pytest
from corpora_miniatures import librispeech, write_audio, write_text
from encodeonce.extract.corpora import (
    LIBRISPEECH_SPLITS,
    CorpusError,
    download_librispeech,
    list_corpus,
    list_librispeech,
)

CHAPTERS = {
    "1034-121119": {"1034-121119-0000": "THE FIRST LINE", "1034-121119-0001": "A SECOND ONE"},
    "103-1240": {"103-1240-0001": "MISSUS RACHEL LYNDE", "103-1240-0000": "CHAPTER ONE"},
    "103-1241": {"103-1241-0000": "IT'S ANOTHER CHAPTER"},
}


def test_lists_what_torchaudio_lists_in_the_same_order(tmp_path):
    torchaudio = pytest.importorskip("torchaudio")
    librispeech(tmp_path / "LibriSpeech" / "dev-clean", CHAPTERS)
    official = torchaudio.datasets.LIBRISPEECH(tmp_path, "dev-clean", download=False)

    listing = list_corpus(tmp_path, "dev-clean")

    assert (listing.layout, listing.root, listing.problems) == (
        "librispeech",
        tmp_path / "LibriSpeech" / "dev-clean",
        [],
    )
    expected = []
    for index in range(len(official)):
        path, _, text, speaker, chapter, number = official.get_metadata(index)
        expected.append(
            (f"{speaker}-{chapter}-{number:04}", tmp_path / "LibriSpeech" / path, text, str(speaker), str(chapter))
        )
    assert [(u.id, u.audio, u.text, u.speaker, u.metadata["chapter"]) for u in listing.utterances] == expected
    assert all(u.audio.is_file() and u.language == "en" and u.duration is None for u in listing.utterances)


@pytest.mark.parametrize("below", ["LibriSpeech/my-split", "my-split"])
def test_any_split_name_is_found_at_both_places(tmp_path, below):
    librispeech(tmp_path / below, CHAPTERS)
    listing = list_corpus(tmp_path, "my-split")
    assert (listing.layout, len(listing.utterances)) == ("librispeech", 5)


def test_the_split_folder_itself_may_be_the_data_folder(tmp_path):
    librispeech(tmp_path / "train-clean-5", CHAPTERS)
    listing = list_corpus(tmp_path / "train-clean-5", "train-clean-5")
    assert (listing.layout, listing.root) == ("librispeech", tmp_path / "train-clean-5")


def test_audio_without_a_line_has_no_text_and_a_line_without_audio_is_a_problem(tmp_path):
    root = librispeech(tmp_path, {"7-8": {"7-8-0000": "HERE", "7-8-0001": None}})
    with (root / "7/8/7-8.trans.txt").open("a") as file:
        file.write("7-8-0002 GONE\n7-8-0000 HERE AGAIN\n")
    listing = list_librispeech(root)
    assert [(u.id, u.text) for u in listing.utterances] == [("7-8-0000", "HERE"), ("7-8-0001", None)]
    assert {(p.id, p.where) for p in listing.problems} == {
        ("7-8-0000", "7-8.trans.txt:3"),
        ("7-8-0002", "7-8.trans.txt:2"),
    }


def test_hidden_files_are_no_utterances(tmp_path):
    root = librispeech(tmp_path, {"7-8": {"7-8-0000": "HERE"}})
    (root / "7/8/._7-8-0000.flac").write_bytes(b"left by a file manager")
    assert [u.id for u in list_librispeech(root).utterances] == ["7-8-0000"]


def test_a_transcript_line_that_is_no_utf8_spares_the_others(tmp_path):
    root = librispeech(tmp_path, {"7-8": {"7-8-0000": None, "7-8-0001": None}})
    (root / "7/8/7-8.trans.txt").write_bytes(b"7-8-0000 CAF\xc9\r\n7-8-0001 FINE\r\n")
    listing = list_librispeech(root)
    assert [u.text for u in listing.utterances] == [None, "FINE"]
    assert [(p.where, "UTF-8" in p.reason) for p in listing.problems] == [("7-8.trans.txt:1", True)]


@pytest.mark.shared
def test_real_librispeech_equals_torchaudio():
    data = os.environ.get("ENCODEONCE_TEST_DATA")
    if not data:
        pytest.skip("ENCODEONCE_TEST_DATA does not point to the real speech")
    torchaudio = pytest.importorskip("torchaudio")
    official = torchaudio.datasets.LIBRISPEECH(data, "train-clean-100", download=False)
    listing = list_corpus(Path(data), "train-clean-100")
    assert not listing.problems
    assert [u.audio.stem for u in listing.utterances] == official._walker
    assert [u.text for u in listing.utterances] == [official.get_metadata(n)[2] for n in range(len(official))]
    assert len(list_corpus(Path(data), "train-clean-5").utterances) == 606


def test_download_refuses_an_unknown_split_with_the_official_list(tmp_path):
    with pytest.raises(CorpusError, match=r"train-clean-10'.*dev-clean.*train-other-500"):
        download_librispeech(tmp_path, "train-clean-10")


def test_official_split_names_are_torchaudios():
    module = pytest.importorskip("torchaudio.datasets.librispeech")
    assert list(LIBRISPEECH_SPLITS) == module._DATA_SUBSETS


def test_download_without_a_network_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("torchaudio")

    def no_network(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    data = tmp_path / "data"
    with pytest.raises(CorpusError) as caught:
        download_librispeech(data, "dev-clean")
    message = str(caught.value)
    assert "Name or service not known" in message
    assert "https://www.openslr.org/resources/12/dev-clean.tar.gz" in message
    assert str(data / "LibriSpeech" / "dev-clean") in message
    assert "\n" not in message
    assert not data.exists()
    assert socket.getdefaulttimeout() is None


def test_an_archive_put_there_by_hand_is_unpacked_into_place(tmp_path):
    pytest.importorskip("torchaudio")
    librispeech(tmp_path / "made" / "LibriSpeech" / "dev-clean", CHAPTERS)
    write_text(tmp_path / "made" / "LibriSpeech" / "README.TXT", "about")
    data = tmp_path / "data"
    data.mkdir()
    with tarfile.open(data / "dev-clean.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "LibriSpeech", "LibriSpeech")
    download_librispeech(data, "dev-clean")
    assert len(list_corpus(data, "dev-clean").utterances) == 5
    assert sorted(path.name for path in data.iterdir()) == ["LibriSpeech", "dev-clean.tar.gz"]
    assert (data / "LibriSpeech" / "README.TXT").read_text() == "about"
    download_librispeech(data, "dev-clean")  # there already: nothing to do


def test_a_damaged_archive_is_named_and_no_half_split_is_left(tmp_path):
    pytest.importorskip("torchaudio")
    librispeech(tmp_path / "made" / "LibriSpeech" / "dev-clean", CHAPTERS)
    write_audio(tmp_path / "made" / "LibriSpeech" / "dev-clean" / "9" / "9" / "9-9-0000.flac", seconds=5)
    archive = tmp_path / "dev-clean.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "made" / "LibriSpeech", "LibriSpeech")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(CorpusError, match=r"damaged.*dev-clean.tar.gz"):
        download_librispeech(tmp_path, "dev-clean")
    assert not (tmp_path / "LibriSpeech").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev-clean.tar.gz", "made"]
