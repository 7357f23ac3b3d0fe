"""Reading audio: what soundfile and torchaudio give by hand, lengths known beforehand, and errors that name file and reason."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from encodeonce.extract.audio import AudioError, count_samples, read_audio, read_header, resampled_length
from encodeonce.extract.corpora.base import Utterance
from hypothesis import example, given, settings
from hypothesis import strategies as st

resample = pytest.importorskip("torchaudio.functional").resample

FORMATS = {
    "wav-16": ("wav", "PCM_16"),
    "wav-24": ("wav", "PCM_24"),
    "wav-32": ("wav", "PCM_32"),
    "wav-float": ("wav", "FLOAT"),
    "flac": ("flac", "PCM_16"),
    "flac-24": ("flac", "PCM_24"),
    "vorbis": ("ogg", "VORBIS"),
    "opus": ("opus", "OPUS"),
    "mp3": ("mp3", "MPEG_LAYER_III"),
    "sphere": ("sph", "PCM_16"),
    "aiff": ("aiff", "PCM_16"),
}
CONTAINERS = {"opus": "OGG", "sph": "NIST", "aiff": "AIFF"}


def speech(samples: int, channels: int = 1) -> np.ndarray:
    """`[samples, channels]`: tones under a little noise, so that lossy codecs keep something."""
    time = np.arange(samples)[:, None] / 16000
    noise = np.random.default_rng(samples).standard_normal((samples, channels)) * 0.02
    return (0.3 * np.sin(2 * np.pi * (150 + 90 * np.arange(channels)) * time) + noise).astype(np.float32)


def write(folder: Path, kind: str, values: np.ndarray, rate: int) -> Path:
    suffix, subtype = FORMATS[kind]
    path = folder / f"{kind}-{rate}.{suffix}"
    soundfile.write(path, values, rate, subtype=subtype, format=CONTAINERS.get(suffix))
    return path


def by_hand(path: Path, channel: int | None = None) -> np.ndarray:
    with soundfile.SoundFile(path) as file:  # soundfile.read seeks first, which moves MP3 by a rounding
        values, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    mono = values.mean(axis=1) if channel is None else values[:, channel]
    return resample(torch.from_numpy(np.ascontiguousarray(mono)), rate, 16000).numpy()


def utterance(path: Path, **more) -> Utterance:
    return Utterance(path.stem, path, **more)


def refusal(path: Path, **more) -> str:
    with pytest.raises(AudioError) as caught:
        read_audio(utterance(path, **more), 16000)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_and_rate_equals_soundfile_and_torchaudio(kind, rate, tmp_path):
    if kind == "opus" and rate in (22050, 44100):
        pytest.skip("Opus has no such rate")
    path = write(tmp_path, kind, speech(rate // 2 + 37, 2), rate)
    for channel in (None, 0, 1):
        found = read_audio(utterance(path, channel=channel), 16000)
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert np.array_equal(found, by_hand(path, channel))
        assert count_samples(utterance(path, channel=channel), 16000) == len(found)


def test_full_scale_is_one_whatever_the_sample_format(tmp_path):
    values = speech(4000)
    for kind in ("wav-16", "wav-24", "wav-32", "wav-float", "flac", "flac-24"):
        found = read_audio(utterance(write(tmp_path, kind, values, 16000)), 16000)
        assert np.abs(found - values[:, 0]).max() < 2**-14


def test_stereo_is_the_mean_of_its_channels_and_a_channel_is_itself(tmp_path):
    values = speech(3000, 2)
    path = write(tmp_path, "wav-float", values, 16000)
    assert np.allclose(read_audio(utterance(path), 16000), (values[:, 0] + values[:, 1]) / 2, atol=1e-7)
    assert np.array_equal(read_audio(utterance(path, channel=1), 16000), values[:, 1])


@pytest.mark.parametrize("kind", ["wav-16", "flac", "vorbis", "opus", "mp3"])
def test_segments_equal_slices_of_the_whole(kind, tmp_path):
    path = write(tmp_path, kind, speech(80000), 16000)
    whole = by_hand(path)
    # A lossy decoder that starts inside a file ends up the same but for rounding, after a stretch that is thrown away.
    tolerance = 0 if kind in ("wav-16", "flac") else 1e-4
    for first, last in [(0, 8000), (5000, 5400), (8001, 79999), (60000, None)]:
        duration = None if last is None else (last - first) / 16000
        part = utterance(path, offset=first / 16000, duration=duration)
        assert np.abs(read_audio(part, 16000) - whole[first:last]).max() <= tolerance
        assert count_samples(part, 16000) == len(whole[first:last])


def test_a_segment_is_cut_before_it_is_resampled(tmp_path):
    path = write(tmp_path, "flac", speech(44100), 44100)
    found = read_audio(utterance(path, offset=0.25, duration=0.5), 16000)
    values = soundfile.read(path, dtype="float32")[0][11025:33075]
    assert np.array_equal(found, resample(torch.from_numpy(values), 44100, 16000).numpy())


def test_a_duration_that_a_manifest_rounded_is_forgiven(tmp_path):
    path = write(tmp_path, "wav-16", speech(16003), 16000)
    assert len(read_audio(utterance(path, duration=1.0), 16000)) == 16003
    assert len(read_audio(utterance(path, offset=0.5, duration=0.58), 16000)) == 8003


@settings(max_examples=150, deadline=None)
@given(
    samples=st.integers(1, 40_000),
    rate=st.sampled_from([8000, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000]),
)
def test_lengths_are_known_before_resampling(samples, rate):
    assert resampled_length(samples, rate, 16000) == len(resample(torch.zeros(samples), rate, 16000))


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 30_000), rate=st.sampled_from([8000, 16000, 22050, 44100, 48000]))
@example(samples=1, rate=44100)
def test_count_samples_is_the_length_of_what_is_read(samples, rate, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("counted"), "wav-16", speech(samples), rate)
    assert count_samples(utterance(path), 16000) == len(read_audio(utterance(path), 16000))


def test_lengths_of_hours_are_those_that_torchaudio_gives():
    """Beyond 2**24 samples its float32 ceiling rounds (beyond 2**25 past what the convolution makes: 2 too many here)."""
    samples = 2**24 + 1
    assert resampled_length(samples, 48000, 16000) == len(resample(torch.zeros(samples), 48000, 16000))
    assert resampled_length(33_554_438, 8000, 16000) == 67_108_878  # what torchaudio 2.11 gave; 7 s to see it again


def test_a_missing_file_is_named(tmp_path):
    assert refusal(tmp_path / "nowhere.flac").endswith("no such file or directory")


def test_an_empty_file_is_named(tmp_path):
    path = tmp_path / "empty.wav"
    path.touch()
    assert "is empty (0 bytes)" in refusal(path)


def test_a_folder_is_no_audio(tmp_path):
    assert "it is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["text.flac", "text.wav", "text.mp3", "text.raw"])
def test_text_under_the_name_of_audio_is_no_audio(name, tmp_path):
    path = tmp_path / name
    path.write_text("This is not audio, whatever its name says.\n" * 20)
    message = refusal(path)
    assert "no audio that can be decoded: " in message
    assert not message.endswith(": ")


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
def test_a_truncated_flac_is_refused(keep, tmp_path):
    path = write(tmp_path, "flac", speech(64000), 16000)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    message = refusal(path)
    assert "truncated" in message
    assert read_header(path).samples == 64000


def test_a_flac_cut_after_a_frame_is_refused(tmp_path):
    """Every block that is left decodes without an error; only the header's count tells."""
    path = write(tmp_path, "flac", speech(64000), 16000)
    data = path.read_bytes()
    sync = b"\xff\xf8"
    starts = [i for i in range(len(data)) if data[i : i + 2] == sync]
    for start in starts[len(starts) // 2 :][:3]:
        path.write_bytes(data[:start])
        assert "truncated" in refusal(path)


@pytest.mark.parametrize("kind", ["wav-16", "wav-float"])
def test_a_truncated_wav_is_refused(kind, tmp_path):
    path = write(tmp_path, kind, speech(64000), 16000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "truncated" in refusal(path)
    with pytest.raises(AudioError, match="truncated"):
        count_samples(utterance(path), 16000)


@pytest.mark.parametrize("stated", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_that_was_written_to_a_pipe_is_read(stated, tmp_path):
    path = write(tmp_path, "wav-16", speech(8000), 16000)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = stated.to_bytes(4, "little")
    path.write_bytes(data)
    assert len(read_audio(utterance(path), 16000)) == count_samples(utterance(path), 16000) == 8000


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused_with_their_place(bad, tmp_path):
    values = speech(16000)
    values[4000:4003] = bad
    path = write(tmp_path, "wav-float", values, 16000)
    assert "3 samples that are NaN or infinite, the first at 0.250 s" in refusal(path)
    assert "the first at 0.250 s" in refusal(path, offset=0.2, duration=0.5)
    assert len(read_audio(utterance(path, offset=0.5), 16000)) == 8000


@pytest.mark.parametrize(
    "place", [{"offset": 3.0}, {"offset": 0.5, "duration": 1.0}, {"offset": -0.5, "duration": 0.2}, {"duration": -1.0}]
)
@pytest.mark.parametrize("kind", ["flac", "vorbis"])
def test_a_segment_outside_its_file_is_refused(kind, place, tmp_path):
    path = write(tmp_path, kind, speech(16000), 16000)
    message = refusal(path, **place)
    assert "lies outside" in message
    assert "of 1 s" in message


def test_a_channel_that_is_not_there_is_refused(tmp_path):
    path = write(tmp_path, "wav-16", speech(1000, 2), 16000)
    assert "has 2 channels, no channel 2" in refusal(path, channel=2)
    assert "no channel -1" in refusal(path, channel=-1)


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["other-rates", "fleurs"])
def test_real_files_of_other_rates_equal_soundfile_and_torchaudio(folder):
    if "ENCODEONCE_TEST_DATA" not in os.environ:
        pytest.skip("ENCODEONCE_TEST_DATA is not set")
    kinds = {".wav", ".flac", ".ogg"}
    files = [p for p in sorted((Path(os.environ["ENCODEONCE_TEST_DATA"]) / folder).rglob("*")) if p.suffix in kinds]
    assert files
    for path in files if folder == "other-rates" else files[::6]:
        found = read_audio(utterance(path), 16000)
        assert np.array_equal(found, by_hand(path))
        assert count_samples(utterance(path), 16000) == len(found)
