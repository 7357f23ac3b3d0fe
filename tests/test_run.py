"""extract-features end to end: nothing is encoded twice, and every store is read alike by plain readers."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import torchaudio
from checkpoints import FAMILIES
from commands import RATE, contents, extract, feature_store, speech, split_folder, write_corpus
from encodeonce.extract import calibrate
from encodeonce.extract.cache import FileCache
from encodeonce.extract.calibrate import spread
from encodeonce.extract.encode import BatchEncoder
from encodeonce.extract.made import told_together
from encodeonce.extract.pipeline import in_threads
from encodeonce.extract.progress import Progress
from encodeonce.extract.request import Request
from encodeonce.extract.run import Run
from encodeonce.store import FeatureStore
from plain_readers import read_both

LENGTHS = [0.4, 1.3, 0.7, 2.0, 0.55, 1.0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "data" / "dev", LENGTHS)
    return tmp_path / "data"


@pytest.fixture(scope="session")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small-hubert"
    FAMILIES["hubert-base"].model().save_pretrained(folder)
    return folder


def fbank_of(path: Path) -> np.ndarray:
    samples, _ = soundfile.read(path, dtype="float32")
    wave = torch.from_numpy(samples)[None] * 32768
    return torchaudio.compliance.kaldi.fbank(wave, num_mel_bins=80, dither=0.0, sample_frequency=16000).numpy()


def test_first_run_encodes_all_and_the_second_nothing(data, tmp_path, monkeypatch):
    first = extract(data, "dev", tmp_path / "s", "--dtype", "float32")
    assert (first.status, first.counts()) == (0, (6, 0, 0, 0))
    values = read_both(split_folder(tmp_path / "s", "dev"), "fbank-float32")
    for name, matrix in values.items():
        np.testing.assert_allclose(matrix, fbank_of(data / "dev" / f"{name}.wav"), atol=1e-4)
    before = contents(tmp_path / "s", times=True)

    monkeypatch.setattr(soundfile, "SoundFile", None)  # decoding would fail
    monkeypatch.setattr("encodeonce.extract.encoders.fbank.Fbank.load", None)  # so would loading
    second = extract(data, "dev", tmp_path / "s", "--dtype", "float32")
    assert (second.status, second.counts()) == (0, (0, 0, 6, 0))
    assert contents(tmp_path / "s", times=True) == before


def test_a_second_run_imports_no_torch(data, tmp_path):
    import subprocess
    import sys

    extract(data, "dev", tmp_path / "s")
    program = (
        "import sys; from encodeonce.extract.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    places = ["--data", str(data), "--split", "dev", "--store", str(tmp_path / "s")]
    done = subprocess.run(
        [sys.executable, "-c", program, "--encoder", "fbank", *places], capture_output=True, text=True
    )
    assert (done.returncode, "6 reused" in done.stdout) == (0, True), done.stderr


def test_without_the_cache_the_audio_is_hashed_again_and_nothing_encoded(data, tmp_path, own_cache, monkeypatch):
    extract(data, "dev", tmp_path / "s")
    before = contents(tmp_path / "s", times=True)
    shutil.rmtree(own_cache)
    monkeypatch.setattr("encodeonce.extract.encoders.fbank.Fbank.load", None)
    assert extract(data, "dev", tmp_path / "s").counts() == (0, 0, 6, 0)
    assert contents(tmp_path / "s", times=True) == before


def test_new_files_are_appended_and_committed_shards_not_touched(data, tmp_path):
    extract(data, "dev", tmp_path / "s")
    split = split_folder(tmp_path / "s", "dev")
    before = contents(split, times=True)
    write_corpus(data / "dev", [0.5, 0.9], first=10)
    assert extract(data, "dev", tmp_path / "s").counts() == (2, 0, 6, 0)
    after = contents(split, times=True)
    for name, data_before in before.items():
        if "/c/" in name or name.startswith(("commits", "plans")):
            assert after[name] == data_before
    assert len(read_both(split, "fbank")) == 8
    assert feature_store("verify", tmp_path / "s", "--read-data").status == 0


def test_layers_and_dtypes_are_outputs_of_one_set_and_a_request_that_stands_is_done(data, tmp_path, hubert):
    store = tmp_path / "s"
    run = lambda *options: extract(data, "dev", store, *options, encoder=str(hubert))  # noqa: E731
    assert run("--layers", "1,2").counts() == (6, 0, 0, 0)
    assert run("--layers", "2").counts() == (0, 0, 6, 0)
    assert run("--dtype", "int8").counts() == (6, 0, 0, 0)
    assert run("--layers", "0,1", "--dtype", "float32").counts() == (6, 0, 0, 0)
    split = split_folder(store, "dev")
    outputs = ["layer-00-float32", "layer-01", "layer-01-float32", "layer-02", "layer-03-int8"]
    assert FeatureStore(split).outputs == outputs
    values = {name: read_both(split, name) for name in outputs}
    for name in values["layer-01"]:
        np.testing.assert_array_equal(values["layer-01"][name], values["layer-01-float32"][name].astype(np.float16))
    assert feature_store("verify", store, "--read-data").status == 0
    # what is appended gets every output that the split holds
    write_corpus(data / "dev", [0.6], first=20)
    assert run("--layers", "2").counts() == (1, 0, 6, 0)
    assert all(len(read_both(split, name)) == 7 for name in outputs)


def test_the_same_audio_in_another_split_is_copied(data, tmp_path, hubert):
    store = tmp_path / "s"
    extract(data, "dev", store, "--layers", "2,3", "--dtype", "int8", encoder=str(hubert))
    (data / "test").mkdir()
    for number in (1, 3):
        shutil.copy(data / "dev" / f"utt-{number:03d}.wav", data / "test" / f"other-{number}.wav")
    write_corpus(data / "test", [0.8])
    done = extract(data, "test", store, "--layers", "2,3", "--dtype", "int8", encoder=str(hubert))
    assert (done.status, done.counts()) == (0, (1, 2, 0, 0))
    dev, test = (read_both(split_folder(store, name), "layer-03-int8") for name in ("dev", "test"))
    for number in (1, 3):
        np.testing.assert_array_equal(dev[f"utt-{number:03d}"], test[f"other-{number}"])
    assert extract(data, "test", store, "--layers", "2,3", "--dtype", "int8", encoder=str(hubert)).counts() == (
        0,
        0,
        3,
        0,
    )


def test_corrected_transcripts_reach_the_table_without_encoding(data, tmp_path, monkeypatch):
    extract(data, "dev", tmp_path / "s")
    split = split_folder(tmp_path / "s", "dev")
    shards = {n: d for n, d in contents(split, times=True).items() if "/c/" in n}
    (data / "dev" / "utt-002.txt").write_text("corrected words")
    monkeypatch.setattr("encodeonce.extract.encoders.fbank.Fbank.load", None)
    assert extract(data, "dev", tmp_path / "s").counts() == (0, 0, 6, 0)
    assert FeatureStore(split)["utt-002"].text == "corrected words"
    assert FeatureStore(split)["utt-001"].text == "words of 1"
    assert {n: d for n, d in contents(split, times=True).items() if "/c/" in n} == shards


def test_changed_audio_is_refused_and_named_and_replace_encodes_it_anew(data, tmp_path):
    store = tmp_path / "s"
    extract(data, "dev", store, "--dtype", "float32", "--shard-frames", "256")
    split = split_folder(store, "dev")
    before = read_both(split, "fbank-float32")
    soundfile.write(data / "dev" / "utt-001.wav", speech(1.1, 99), RATE)
    refused = extract(data, "dev", store, "--dtype", "float32")
    assert (refused.status, refused.counts()) == (1, (0, 0, 5, 1))
    assert "utt-001" in refused.err
    assert "--replace" in refused.err
    np.testing.assert_array_equal(read_both(split, "fbank-float32")["utt-001"], before["utt-001"])

    done = extract(data, "dev", store, "--dtype", "float32", "--replace")
    assert (done.status, done.counts()) == (0, (1, 0, 5, 0))
    after = read_both(split, "fbank-float32")  # which sees no utterance twice
    np.testing.assert_allclose(after["utt-001"], fbank_of(data / "dev" / "utt-001.wav"), atol=1e-4)
    for name in before.keys() - {"utt-001"}:
        np.testing.assert_array_equal(after[name], before[name])
    assert feature_store("verify", store, "--read-data").status == 0
    assert extract(data, "dev", store, "--dtype", "float32").counts() == (0, 0, 6, 0)
    assert not (split / "failures.jsonl").exists()


def test_a_changed_weight_or_rule_is_another_set_and_the_run_and_diff_say_so(data, tmp_path, hubert):
    store, other = tmp_path / "s", tmp_path / "small-hubert"
    extract(data, "dev", store, encoder=str(hubert))
    shutil.copytree(hubert, other)
    FAMILIES["hubert-base"].model(seed=1).save_pretrained(other)
    done = extract(data, "dev", store, encoder=str(other))
    assert done.counts() == (6, 0, 0, 0)
    assert "weights" in done.err
    first, second = sorted(store.glob("small-hubert-*"))
    told = feature_store("diff", first, second)
    assert (told.status, told.out.startswith("weights: ")) == (1, True)
    cut = extract(data, "dev", store, "--cut-seconds", "30", encoder=str(hubert))
    assert cut.counts() == (6, 0, 0, 0)
    assert "cutting.cut_seconds: 30.0 against 60.0" in cut.err
    assert len(list(store.iterdir())) == 3


def test_precision_auto_takes_over_the_set_that_stands(data, tmp_path, hubert):
    extract(data, "dev", tmp_path / "s", "--precision", "bfloat16", encoder=str(hubert))
    assert extract(data, "dev", tmp_path / "s", encoder=str(hubert)).counts() == (0, 0, 6, 0)
    assert len(list((tmp_path / "s").iterdir())) == 1


def test_metadata_of_a_manifest_is_kept(data, tmp_path):
    rows = [
        {"id": "a.b/c", "audio": "dev/utt-000.wav", "text": "hello", "speaker": "s1", "language": "en", "take": 3},
        {"id": "seg", "audio": "dev/utt-003.wav", "offset": 0.5, "duration": 1.0, "translation_de": "hallo"},
    ]
    (data / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert extract(data, "m", tmp_path / "s").counts() == (2, 0, 0, 0)
    split = split_folder(tmp_path / "s", "m")
    first, second = FeatureStore(split)["a.b/c"], FeatureStore(split)["seg"]
    assert (first.text, first.speaker, first.language, first.metadata) == ("hello", "s1", "en", {"take": 3})
    assert second.translations == {"de": "hallo"}
    assert second.duration == 1.0
    table = pq.read_table(split / "utterances.parquet").to_pylist()
    assert {row["id"]: row["audio"] for row in table} == {"a.b/c": "dev/utt-000.wav", "seg": "dev/utt-003.wav"}


def test_dry_run_foretells_and_writes_nothing(data, tmp_path):
    told = extract(data, "dev", tmp_path / "s", "--dry-run", "--price", "7200")
    assert told.status == 0
    (estimate,) = told.json["splits"]
    assert (estimate["utterances"], estimate["to_encode"]) == (6, 6)
    assert estimate["hours"] == pytest.approx(sum(LENGTHS) / 3600, abs=1e-3)
    assert estimate["expected_seconds"] / 3600 == pytest.approx(estimate["expected_hours"], abs=1e-4)
    assert told.json["total"]["cost"] == estimate["cost"] == pytest.approx(2 * estimate["expected_seconds"], abs=0.2)
    assert told.json["devices"] == ["cpu"]
    assert not (tmp_path / "s").exists()
    report = extract(data, "dev", tmp_path / "s").split
    assert estimate["bytes"] == report["bytes"]
    (again,) = extract(data, "dev", tmp_path / "s", "--dry-run").json["splits"]
    assert (again["to_encode"], again["bytes"], again["expected_hours"], again["cost"]) == (0, 0, 0, None)


def test_dry_run_foretells_every_byte_that_is_added(data, tmp_path, hubert):
    store, before = tmp_path / "s", 0
    (data / "dev" / "utt-000.wav").rename(data / "dev" / "ünï.wav")
    for step, options in enumerate(
        (["--dtype", "int8", "--shard-frames", "64"], ["--layers", "1,2", "--dtype", "float32"], ["--layers", "2"])
    ):
        write_corpus(data / "dev", [0.31, 1.27], first=10 * (step + 1))
        (estimate,) = extract(data, "dev", store, "--dry-run", *options, encoder=str(hubert)).json["splits"]
        done = extract(data, "dev", store, *options, encoder=str(hubert)).split
        assert estimate["bytes"] == done["bytes"] - before, options
        before = done["bytes"]


@pytest.mark.parametrize(("ranks", "slower"), [([], 1), (["--rank", "1", "--world-size", "4"], 4)])
def test_dry_run_counts_the_cost_of_every_rank(data, tmp_path, monkeypatch, ranks, slower):
    monkeypatch.setattr("encodeonce.extract.calibrate.times_real_time", lambda *about: sum(LENGTHS) / 3600)
    told = extract(data, "dev", tmp_path / "s", "--dry-run", "--price", "2.5", *ranks)
    (estimate,) = told.json["splits"]
    assert (estimate["expected_hours"], estimate["cost"]) == (1 / slower, 2.5)


@pytest.mark.parametrize(
    ("price", "told"), [("2.5", "2.50"), ("0.04321", "0.043"), ("0.00001234", "0.000012"), ("0", "0.00")]
)
def test_small_costs_keep_their_digits(data, tmp_path, monkeypatch, price, told):
    monkeypatch.setattr("encodeonce.extract.calibrate.times_real_time", lambda *about: sum(LENGTHS) / 3600)
    out = extract(data, "dev", tmp_path / "s", "--dry-run", "--price", price).out
    assert f", which costs {told}\n" in out


@pytest.mark.parametrize(
    ("devices", "cores", "one_thread", "times"),
    [
        (["cpu"], 4, False, 40),
        (["cpu"] * 4, 4, False, 40),
        (["cpu"] * 4, 2, False, 20),
        (["cpu"], 16, True, 80),
        (["cpu"] * 4, 16, True, 160),
        (["cuda:0", "cuda:1"], 4, False, 20),
        (["cuda:0", "cuda:0"], 4, False, 10),
    ],
)
def test_calibration_counts_gpus_and_cores_once(data, tmp_path, monkeypatch, devices, cores, one_thread, times):
    """Each thread is made to take 10 s for 100 s of audio."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(Run, "devices", lambda self: devices)
    monkeypatch.setattr(Run, "load", lambda self, outputs: None)
    monkeypatch.setattr(calibrate, "limit_threads", lambda threads, device: None)
    monkeypatch.setattr(calibrate._Trial, "work", lambda self, first, waiting: calibrate.Spent(100, 0, 10))
    run = Run(Request("fbank", ("dev",), data=data, store=tmp_path / "s"), Progress(quiet=True), FileCache())
    run.encoder.one_thread = one_thread
    assert calibrate.times_real_time(run, [], [["a"]] * 20, {}) == pytest.approx(times)


@pytest.mark.parametrize(("gpus", "times"), [(1, 10), (2, 20), (4, 40), (8, 40)])
def test_calibration_counts_every_thread_that_decodes(data, tmp_path, monkeypatch, gpus, times):
    """A thread is made to take 80 s to decode 100 s of audio, of 32 cores."""
    monkeypatch.setattr(Run, "devices", lambda self: [f"cuda:{number}" for number in range(gpus)])
    monkeypatch.setattr(Run, "load", lambda self, outputs: None)
    monkeypatch.setattr("encodeonce.extract.run.cores", lambda: 32)
    monkeypatch.setattr(calibrate, "cores", lambda: 32)
    monkeypatch.setattr(calibrate, "limit_threads", lambda threads, device: None)
    monkeypatch.setattr(calibrate._Trial, "work", lambda self, first, waiting: calibrate.Spent(100, 80, 0.1))
    run = Run(Request("fbank", ("dev",), data=data, store=tmp_path / "s"), Progress(quiet=True), FileCache())
    assert calibrate.times_real_time(run, [], [["a"]] * 20, {}) == pytest.approx(times)


@pytest.mark.parametrize(
    ("cores", "asked", "processes", "decoders"),
    [(128, 0, 1, 8), (128, 0, 8, 8), (32, 0, 8, 4), (4, 0, 8, 1), (128, 48, 8, 6), (4, 3, 8, 1)],
)
def test_every_gpu_has_threads_that_decode(data, tmp_path, monkeypatch, cores, asked, processes, decoders):
    monkeypatch.setattr("encodeonce.extract.run.cores", lambda: cores)
    monkeypatch.setattr(Run, "devices", lambda self: ["cuda:0"])
    request = Request("fbank", ("dev",), data=data, store=tmp_path / "s", workers=asked)
    work = Run(request, Progress(quiet=True), FileCache()).work(processes)
    assert (work.decoders, work.encoders) == (decoders, 1)


def test_what_fails_on_a_batch_fails_a_dry_run_in_a_line_too(data, tmp_path, monkeypatch):
    def begin(*about: object) -> None:
        raise RuntimeError("CUDA out of memory.\nMore of it")

    monkeypatch.setattr(BatchEncoder, "begin", begin)
    told = r"fbank in float32 failed on a batch of 1 utterances, .*among them 'utt-00\d': CUDA out of memory\.; try a smaller"
    for options in ([], ["--dry-run"]):
        done = extract(data, "dev", tmp_path / "s", *options)
        assert (done.status, "Traceback" in done.err) == (2, False)
        assert re.search(told, done.err), done.err


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_what_loading_freed_is_given_back():
    before = resident_bytes()
    last = in_threads(1, lambda: [b"x" * 100_000 for _ in range(1000)][-1])
    assert (len(last), resident_bytes() - before < 50_000_000) == (100_000, True)


def test_a_run_keeps_with_what_it_was_made(data, tmp_path):
    assert extract(data, "dev", tmp_path / "s", "--batch-seconds", "7").status == 0
    folder = split_folder(tmp_path / "s", "dev")
    ((run,), (commit, *_)) = [
        [json.loads(path.read_text())["made"] for path in folder.glob(f"{kind}/*.json")] for kind in ("runs", "commits")
    ]
    commit.pop("time")
    assert run == commit
    assert {"device": "cpu", "batch_seconds": 7.0}.items() <= run.items()
    assert {"threads", "processor"} <= run.keys()
    unlike = told_together([{"device": "cpu", "threads": 1}, {"device": "cuda", "threads": 1, "gpu": "one"}])
    assert unlike == {"device": ["cpu", "cuda"], "threads": 1, "gpu": [None, "one"]}


@pytest.mark.parametrize("options", [["--price", "3"], ["--dry-run", "--price", "-1"], ["--dry-run", "--price", "nan"]])
def test_a_price_that_means_nothing_is_refused(data, tmp_path, options):
    done = extract(data, "dev", tmp_path / "s", *options)
    assert (done.status, "--price" in done.err) == (2, True)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_calibration_takes_batches_from_all_over(count):
    order = spread(count)
    assert sorted(order) == list(range(count))
    for taken in range(1, count):
        gaps = np.diff(sorted([-1, *order[:taken], count]))
        assert max(gaps) <= max(2, 3.5 * count / taken)


@pytest.mark.parametrize("batch", ["0", "3"])
def test_a_store_does_not_depend_on_the_number_of_encoder_threads(data, tmp_path, hubert, batch):
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            options = ["--layers", "1,3", "--dtype", "int8", "--batch-seconds", batch, "--shard-frames", "64"]
            assert extract(data, "dev", tmp_path / str(threads), *options, encoder=str(hubert)).counts() == (6, 0, 0, 0)
    finally:
        torch.set_num_threads(1)
    assert contents(tmp_path / "1") == contents(tmp_path / "4")


def test_a_limit_takes_the_first_and_the_rest_comes_later(data, tmp_path):
    assert extract(data, "dev", tmp_path / "s", "--limit", "2").counts() == (2, 0, 0, 0)
    assert sorted(FeatureStore(split_folder(tmp_path / "s", "dev")).ids) == ["utt-000", "utt-001"]
    assert extract(data, "dev", tmp_path / "s", "--limit", "2").counts() == (0, 0, 2, 0)
    assert extract(data, "dev", tmp_path / "s").counts() == (4, 0, 2, 0)


def test_audio_without_text_and_silence_are_utterances_like_any_other(data, tmp_path):
    soundfile.write(data / "dev" / "silence.wav", np.zeros(RATE, np.float32), RATE)
    assert extract(data, "dev", tmp_path / "s").counts() == (7, 0, 0, 0)
    assert FeatureStore(split_folder(tmp_path / "s", "dev"))["silence"].text is None


def test_several_splits_in_one_command(data, tmp_path):
    write_corpus(data / "test", [0.5])
    done = extract(data, "dev", tmp_path / "s", "test")
    assert [(r["split"], r["encoded"]) for r in done.json["splits"]] == [("dev", 6), ("test", 1)]
