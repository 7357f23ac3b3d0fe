"""Real speech through the real Moonshine encoder, read by every plain reader and compared with transformers alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from codec_checkpoints import Codecs
from commands import extract, feature_store, run, split_folder
from encodeonce.store import FeatureStore
from encodeonce.train.kmeans.cli import main as train_kmeans
from plain_readers import read_both
from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def moonshine(shared: Path) -> Path:
    folder = shared.parent / "models" / "moonshine-tiny-encoder"
    if not folder.is_dir():
        pytest.skip("no moonshine-tiny-encoder beside ENCODEONCE_TEST_DATA")
    return folder


def check_store(shared: Path, split: Path) -> None:
    """The outside checker: zarr, webdataset, tar, tensorstore, dask, zarrs and xarray agree."""
    tool = shared.parent / "tools" / "check_store.py"
    if tool.is_file():
        done = subprocess.run([sys.executable, str(tool), str(split)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def one_by_one(moonshine: Path, corpus: Path) -> dict[str, np.ndarray]:
    model = MoonshineEncoder.from_pretrained(moonshine, dtype=torch.float32).eval()
    features = {}
    for path in sorted(corpus.rglob("*.flac")):
        samples, _ = soundfile.read(path, dtype="float32")
        with torch.inference_mode():
            features[path.stem] = model(torch.from_numpy(samples)[None]).last_hidden_state[0].numpy()
    return features


def test_features_equal_transformers_one_utterance_at_a_time_in_every_dtype(shared, moonshine, tmp_path):
    expected = one_by_one(moonshine, shared / "LibriSpeech" / "test-clean")
    for dtype, batch in (("float32", "600"), ("float16", "40"), ("int8", "0")):
        options = ["--dtype", dtype, "--batch-seconds", batch]
        done = extract(shared, "test-clean", tmp_path / "s", *options, encoder=str(moonshine))
        assert done.status == 0
    split = split_folder(tmp_path / "s", "test-clean")
    check_store(shared, split)
    exact, half, small = (read_both(split, f"layer-06{suffix}") for suffix in ("-float32", "", "-int8"))
    assert exact.keys() == half.keys() == small.keys() == expected.keys()
    for name, reference in expected.items():
        assert np.linalg.norm(exact[name] - reference) / np.linalg.norm(reference) < 1e-4
        for values, least in ((half[name].astype(np.float32), 0.9999), (small[name], 0.9998)):
            cosine = (values * reference).sum(1) / np.linalg.norm(values, axis=1) / np.linalg.norm(reference, axis=1)
            assert cosine.min() > least
    noise = feature_store("info", tmp_path / "s", "--json").json["feature_sets"].popitem()[1]["splits"][0]["outputs"]
    assert noise["layer-06-int8"]["least_snr_db"] > 40


def test_other_rates_channels_and_containers_are_encoded(shared, moonshine, tmp_path):
    for name in ("other-rates", "fleurs"):
        done = extract(shared, name, tmp_path / "s", "--limit", "6", encoder=str(moonshine))
        assert (done.status, done.split["failed"]) == (0, 0), done.err
        check_store(shared, split_folder(tmp_path / "s", name))
    texts = [utterance.text for utterance in FeatureStore(split_folder(tmp_path / "s", "fleurs"))]
    assert all(texts)


def test_many_layers_from_one_pass(shared, moonshine, tmp_path):
    done = extract(shared, "dev-clean", tmp_path / "s", "--layers", "all", encoder=str(moonshine))
    assert done.status == 0
    split = split_folder(tmp_path / "s", "dev-clean")
    assert FeatureStore(split).outputs == [f"layer-{k:02d}" for k in range(7)]
    check_store(shared, split)


def test_codes_latents_units_and_casts_are_read_by_every_reader(shared, tmp_path):
    codec = str(Codecs(tmp_path).folder("dac"))
    done = extract(shared, "test-clean", tmp_path / "s", "--outputs", "codes,latents", "--limit", "6", encoder=codec)
    assert (done.status, done.split["failed"]) == (0, 0), done.err
    split = split_folder(tmp_path / "s", "test-clean")
    of = ["--output", "latents"]
    done = run(train_kmeans, [str(split), *of, "--clusters", "50", "--steps", "20", "--to", str(tmp_path / "km")])
    assert done.status == 0, done.err
    for arguments in (["cast", split, "--dtype", "int8"], ["units", split, "--kmeans", tmp_path / "km"]):
        assert feature_store("derive", *arguments, *of).status == 0
    assert FeatureStore(split).outputs == ["codes", "latents", "latents-int8", "units"]
    check_store(shared, split)
