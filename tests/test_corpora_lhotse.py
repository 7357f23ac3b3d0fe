"""Lhotse manifests written by lhotse itself, read without it."""

import subprocess
import sys

import pytest
from corpora_miniatures import write_audio, write_jsonl
from encodeonce.extract.corpora import CorpusError, list_corpus, list_lhotse

lhotse = pytest.importorskip("lhotse")


@pytest.fixture
def recordings(tmp_path):
    paths = [write_audio(tmp_path / "wav" / name, seconds=2, channels=n) for n, name in [(1, "a.wav"), (2, "b.flac")]]
    return lhotse.RecordingSet.from_recordings(map(lhotse.Recording.from_file, paths))


@pytest.fixture
def supervisions():
    segment = lhotse.SupervisionSegment
    return lhotse.SupervisionSet.from_segments(
        [
            segment("s1", "a", 0.0, 0.75, text="eins", speaker="anna", language="de", gender="F"),
            segment("s2", "a", 0.75, 1.0, text="zwei", speaker="anna", language="de"),
            segment("s3", "b", 0.5, 1.25, channel=1, text="drei", custom={"translation_en": "three", "snr": 9.5}),
        ]
    )


def test_mono_cuts_equal_lhotses_own_reading(tmp_path, recordings, supervisions):
    whole = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    cuts = whole.trim_to_supervisions(keep_overlapping=False)
    cuts = lhotse.CutSet.from_cuts([whole["a-0"], *cuts])
    cuts.to_file(tmp_path / "my_cuts_train.jsonl.gz")

    listing = list_corpus(tmp_path, "train")

    assert (listing.layout, listing.problems) == ("lhotse", [])
    assert listing.root == tmp_path / "my_cuts_train.jsonl.gz"
    for cut, u in zip(lhotse.load_manifest(listing.root), listing.utterances, strict=True):
        assert (u.id, u.offset, u.duration) == (cut.id, cut.start, cut.duration)
        assert str(u.audio) == cut.recording.sources[0].source
        assert u.text == " ".join(s.text for s in cut.supervisions)
        assert u.channel == (1 if cut.id.startswith("s3") else None)
    assert [(u.speaker, u.language, u.translations) for u in listing.utterances] == [
        ("anna", "de", {}),
        ("anna", "de", {}),
        ("anna", "de", {}),
        (None, None, {"en": "three"}),
    ]
    assert [u.metadata for u in listing.utterances] == [{}, {"gender": "F"}, {}, {"snr": 9.5}]


def test_a_cut_of_all_channels_averages_them_and_some_channels_are_a_problem(tmp_path, recordings):
    cut = recordings["b"].to_cut()
    lhotse.CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    (utterance,) = list_corpus(tmp_path / "cuts.jsonl", "all").utterances
    assert (utterance.id, utterance.channel, utterance.text) == (cut.id, None, None)
    row = cut.to_dict()
    row["recording"]["sources"][0]["channels"] = [0, 1, 2]
    listing = list_lhotse(write_jsonl(tmp_path / "some.jsonl", [row]))
    assert [p.where for p in listing.problems] == ["some.jsonl:1"]


def test_recordings_with_supervisions_are_one_utterance_a_supervision(tmp_path, recordings, supervisions):
    for name in ("train", "dev"):
        recordings.to_file(tmp_path / f"x_recordings_{name}.jsonl.gz")
    supervisions.to_file(tmp_path / "x_supervisions_train.jsonl.gz")
    listing = list_corpus(tmp_path, "train")
    assert not listing.problems
    for s, u in zip(supervisions, listing.utterances, strict=True):
        assert (u.id, u.offset, u.duration, u.text, u.speaker) == (s.id, s.start, s.duration, s.text, s.speaker)
        assert str(u.audio) == recordings[s.recording_id].sources[0].source
    assert [u.channel for u in listing.utterances] == [None, None, 1]
    without = list_corpus(tmp_path, "dev").utterances
    assert [(u.id, u.channel, u.text, u.duration) for u in without] == [
        ("a", None, None, None),
        ("b", None, None, None),
    ]


def test_cuts_that_are_made_when_loaded_are_problems_that_say_what_to_do(tmp_path, recordings):
    cut = recordings["a"].to_cut()
    made = [cut.pad(duration=3), cut.mix(recordings["a"].to_cut()), cut.perturb_speed(1.1), cut.resample(8000), cut]
    (tmp_path / "train").mkdir()
    lhotse.CutSet.from_cuts(made).to_file(tmp_path / "train" / "cuts.jsonl.gz")
    listing = list_corpus(tmp_path, "train")
    assert [u.id for u in listing.utterances] == [cut.id]
    assert [p.where for p in listing.problems] == [f"cuts.jsonl.gz:{n}" for n in (1, 2, 3, 4)]
    assert all("save" in p.reason for p in listing.problems)
    assert all("MixedCut is mixed or padded" in p.reason for p in listing.problems[:2])
    assert "Speed" in listing.problems[2].reason


def test_audio_that_is_no_file_and_broken_lines_spare_the_others(tmp_path, recordings):
    good, command, bare = (recordings["a"].to_cut().to_dict() for _ in range(3))
    command["id"], command["recording"]["sources"][0]["type"] = "piped", "command"
    bare["id"] = "bare"
    del bare["recording"]
    path = write_jsonl(tmp_path / "cuts_dev.jsonl", [good, command, bare])
    with path.open("a") as file:
        file.write('{"id": "half",\n')
    listing = list_corpus(tmp_path, "dev")
    assert [u.id for u in listing.utterances] == [good["id"]]
    assert sorted((p.where, p.id) for p in listing.problems) == [
        ("cuts_dev.jsonl:2", "piped"),
        ("cuts_dev.jsonl:3", "bare"),
        ("cuts_dev.jsonl:4", ""),
    ]


def test_two_sets_of_cuts_for_one_split_are_refused(tmp_path, recordings):
    for name in ("x_cuts_dev.jsonl", "y_cuts_dev.jsonl"):
        lhotse.CutSet.from_cuts([recordings["a"].to_cut()]).to_file(tmp_path / name)
    with pytest.raises(CorpusError, match=r"2 manifests of cuts: .*x_cuts_dev.jsonl, .*y_cuts_dev.jsonl"):
        list_corpus(tmp_path, "dev")


def test_importing_the_package_loads_nothing_heavy():
    heavy = ["torch", "torchaudio", "lhotse", "yaml", "numpy", "soundfile", "pyarrow"]
    code = f"import sys, encodeonce.extract.corpora; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
