"""Kaldi data directories, read as lhotse's own loader reads them."""

import pytest
from corpora_miniatures import write_audio, write_text
from encodeonce.extract.corpora import list_corpus, list_kaldi


def kaldi_dir(root, **files):
    for name, lines in files.items():
        write_text(root / name.replace("wav_scp", "wav.scp"), "".join(f"{line}\n" for line in lines))
    return root


def official(root):
    kaldi = pytest.importorskip("lhotse.kaldi")
    recordings, supervisions, _ = kaldi.load_kaldi_data_dir(root, sampling_rate=16_000)
    return [
        (s.id, recordings[s.recording_id].sources[0].source, s.start, s.duration, s.text, s.speaker, s.language)
        for s in supervisions
    ]


def ours(utterances):
    return [(u.id, str(u.audio), u.offset, u.duration, u.text, u.speaker, u.language) for u in utterances]


def test_segments_equal_lhotses_loader(tmp_path):
    audio = [write_audio(tmp_path / "wav" / f"rec {n}.wav", seconds=3) for n in (1, 2)]
    root = kaldi_dir(
        tmp_path / "train",
        wav_scp=[f"rec{n} {path}" for n, path in enumerate(audio, 1)],
        segments=["anna-1 rec1 0.1 0.3", "anna-2 rec1 1.25 2.0", "bob-1 rec2 0.00 2.99"],
        text=["anna-1 Grüß Gott", "anna-2 zwei  Blanks", "bob-1 drei"],
        utt2spk=["anna-1 anna", "anna-2 anna", "bob-1 bob"],
        utt2lang=["anna-1 de", "anna-2 de", "bob-1 de"],
    )
    listing = list_corpus(tmp_path, "train")
    assert (listing.layout, listing.root, listing.problems) == ("kaldi", root, [])
    assert ours(listing.utterances) == official(root)


def test_whole_recordings_equal_lhotses_loader_but_for_the_end_left_open(tmp_path):
    audio = write_audio(tmp_path / "a.flac", seconds=1)
    root = kaldi_dir(
        tmp_path / "dev", wav_scp=[f"u1 {audio}", f"u2\t{audio}"], text=["u1 one", "u2 two"], utt2spk=["u1 s", "u2 s"]
    )
    expected = [(id, path, start, None, *rest) for id, path, start, _, *rest in official(root)]
    assert ours(list_kaldi(root).utterances) == expected


def test_an_end_of_minus_one_is_the_end_of_the_file(tmp_path):
    root = kaldi_dir(tmp_path, wav_scp=["r /x/r.wav"], segments=["u r 1.5 -1", "v r 0 2 1"])
    assert [(u.offset, u.duration, u.channel, u.text) for u in list_kaldi(root).utterances] == [
        (1.5, None, None, None),
        (0.0, 2.0, 1, None),
    ]


def test_commands_are_not_run_and_the_way_out_is_named(tmp_path):
    marker = tmp_path / "ran"
    root = kaldi_dir(
        tmp_path / "train",
        wav_scp=[f"r1 touch {marker} |", "r2 /x/r2.wav", "r3 /x/raw.ark:1234"],
        segments=["u1 r1 0 1", "u2 r2 0 1", "u3 r3 0 1"],
    )
    listing = list_kaldi(root)
    assert [u.id for u in listing.utterances] == ["u2"]
    assert [(p.id, p.where) for p in listing.problems] == [("u1", "wav.scp:1"), ("u3", "wav.scp:3")]
    assert "are not run" in listing.problems[0].reason
    assert "wav-copy" in listing.problems[0].reason
    assert not marker.exists()


def test_bad_lines_are_named_by_number_and_spare_the_others(tmp_path):
    root = kaldi_dir(
        tmp_path,
        wav_scp=["r /x/r.wav", "r /x/again.wav"],
        segments=["good r 0 1", "short r 0", "word r zero 1", "back r 2 1", "lost q 0 1", "good r 3 4"],
        text=["good fine", "nobody said this"],
    )
    listing = list_kaldi(root)
    assert [(u.id, u.text) for u in listing.utterances] == [("good", "fine")]
    assert sorted((p.where, p.id) for p in listing.problems) == [
        ("segments:2", "short"),
        ("segments:3", "word"),
        ("segments:4", "back"),
        ("segments:5", "lost"),
        ("segments:6", "good"),
        ("text:2", "nobody"),
        ("wav.scp:2", "r"),
    ]


def test_relative_paths_are_tried_from_the_working_directory_first(tmp_path, monkeypatch):
    root = kaldi_dir(tmp_path / "dev", wav_scp=["a wav/a.wav", "b wav/b.wav"])
    write_audio(tmp_path / "here" / "wav" / "a.wav")
    monkeypatch.chdir(tmp_path / "here")
    assert [str(u.audio) for u in list_kaldi(root).utterances] == ["wav/a.wav", str(root / "wav/b.wav")]


def test_channels_count_only_where_recordings_share_a_file(tmp_path):
    channels = ["sw1-A sw1 A", "sw1-B sw1 B", "sw2-B sw2 B"]
    root = kaldi_dir(
        tmp_path, wav_scp=["sw1-A /x/sw1.wav", "sw1-B /x/sw1.wav", "sw2-B /x/sw2-B.wav"], reco2file_and_channel=channels
    )
    assert [u.channel for u in list_kaldi(root).utterances] == [0, 1, None]
