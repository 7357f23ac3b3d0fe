"""Exported encoders: their geometry is found by running them, and no utterance sees another's padding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import relative, speechlike
from encodeonce.extract.batching import batches
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encode import BatchEncoder, Cutting
from encodeonce.extract.encoders.base import Encoder, EncoderError
from encodeonce.extract.encoders.registry import find_encoder

onnxruntime = pytest.importorskip("onnxruntime")


class Exported(torch.nn.Module):
    """Two convolutions and a norm over time: enough that padding would show."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv1d(1, 6, 20, 10)
        self.second = torch.nn.Conv1d(6, 6, 5, 4)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        x = self.first(audio[:, None])
        x = (x - x.mean(2, keepdim=True)) / (x.std(2, keepdim=True) + 1e-5)
        return torch.relu(self.second(x)).transpose(1, 2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> FileCache:
    return FileCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def moonshine(cache) -> Encoder:
    pytest.importorskip("moonshine_voice")
    return find_encoder("moonshine-tiny-onnx", cache)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    pytest.importorskip("onnx", reason="torch's exporter needs the package onnx")
    path = tmp_path_factory.mktemp("graph") / "tiny.onnx"
    names = {"input_names": ["input_values"], "output_names": ["last_hidden_state"]}
    axes = {"input_values": {0: "batch", 1: "samples"}, "last_hidden_state": {0: "batch", 1: "frames"}}
    torch.onnx.export(Exported().eval(), (torch.zeros(1, 400),), path, dynamic_axes=axes, dynamo=False, **names)
    return path


def encode(encoder: Encoder, audio: list[np.ndarray]) -> list[np.ndarray]:
    """Features in the order of `audio`, through batches as a run makes them."""
    outputs = encoder.outputs("last", "float32")
    loaded = encoder.load("cpu", "float32", outputs)
    encoding = BatchEncoder(encoder, loaded, Cutting(60.0, 5.0), "float32", lambda: loaded)
    found: dict[int, np.ndarray] = {}
    for batch in batches([len(x) for x in audio], 100_000, encoder.mixes_lengths):
        for i, frames in zip(batch, encoding.encode([audio[i] for i in batch]), strict=True):
            found[i] = frames["last_hidden_state"]
    return [found[i] for i in range(len(audio))]


def test_moonshines_geometry_is_found(moonshine):
    assert (moonshine.receptive_field, moonshine.samples_per_frame) == (895, 384)
    (output,) = moonshine.outputs("last", "float16")
    assert (output.name, output.width) == ("last-hidden-state", 288)
    assert moonshine.frames(894) == 0
    assert moonshine.frames(895) == 1


def test_moonshines_geometry_is_kept_in_the_cache(moonshine, cache):
    assert cache.fact(moonshine.path, "geometry") == [895, 384, 288]


def test_mixed_lengths_equal_onnxruntime_one_at_a_time(moonshine):
    session = onnxruntime.InferenceSession(str(moonshine.path), providers=["CPUExecutionProvider"])
    audio = [speechlike(n, seed) for seed, n in enumerate([9000, 4000, 9000, 895, 9000, 4001, 4000])]
    for x, frames in zip(audio, encode(moonshine, audio), strict=True):
        mask = np.ones((1, len(x)), np.int64)
        (alone,) = session.run(["last_hidden_state"], {"input_values": x[None], "attention_mask": mask})
        assert len(frames) == moonshine.frames(len(x))
        assert relative(frames, alone[0]) < 1e-4


def test_equal_lengths_in_one_run_of_this_graph_would_change_each_other(moonshine):
    """Its activations are quantised by the range of the whole batch: the reason why each utterance runs by itself."""
    session = onnxruntime.InferenceSession(str(moonshine.path), providers=["CPUExecutionProvider"])
    pair = np.stack([speechlike(9000, 0), speechlike(9000, 2)])
    feeds = [{"input_values": x, "attention_mask": np.ones(x.shape, np.int64)} for x in (pair, pair[:1])]
    together, alone = (session.run(["last_hidden_state"], feed)[0][0] for feed in feeds)
    assert relative(together, alone) > 1e-3


def test_identity_of_moonshine_is_the_digest_of_its_file(moonshine):
    assert len(moonshine.identity()["weights"]) == 64
    assert moonshine.source == "moonshine_voice/assets/tiny-en/encoder_model.ort"


def test_an_exported_graph_equals_its_module(graph, cache):
    encoder = find_encoder(f"onnx:{graph}", cache)
    assert (encoder.name, encoder.receptive_field, encoder.samples_per_frame) == ("tiny", 60, 40)
    audio = [speechlike(n, seed) for seed, n in enumerate([60, 99, 100, 4000, 4000])]
    module = Exported().eval()
    for x, frames in zip(audio, encode(encoder, audio), strict=True):
        with torch.no_grad():
            alone = module(torch.from_numpy(x)[None])[0].numpy()
        assert relative(frames, alone) < 1e-4


def test_half_precision_is_refused_before_anything_is_written(tmp_path):
    """A graph computes as it was exported; a set in another precision would stand for ever, and be wrong."""
    from commands import extract, write_corpus

    write_corpus(tmp_path / "data" / "dev", [0.5])
    done = extract(tmp_path / "data", "dev", tmp_path / "s", "--precision", "float16", encoder="moonshine-tiny-onnx")
    assert done.status == 2
    assert "computes in float32 alone" in done.err
    assert not (tmp_path / "s").exists()


def test_layers_are_refused(moonshine):
    with pytest.raises(EncoderError, match="this encoder has one output"):
        moonshine.outputs("3", "float16")


def test_a_missing_file_is_named(tmp_path, cache):
    with pytest.raises(EncoderError, match=r"no file .*nowhere\.onnx"):
        find_encoder(f"onnx:{tmp_path / 'nowhere.onnx'}", cache)


@pytest.mark.parametrize("data", [b"", b"This is no graph.\n" * 50])
def test_a_file_that_is_no_graph_is_refused(data, tmp_path, cache):
    path = tmp_path / "text.onnx"
    path.write_bytes(data)
    with pytest.raises(EncoderError) as caught:
        find_encoder(f"onnx:{path}", cache)
    assert f"{path} cannot be opened by onnxruntime: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_that_is_no_encoder_is_refused(moonshine, cache):
    decoder = moonshine.path.parent / "decoder_model_merged.ort"
    if not decoder.is_file():
        pytest.skip("the package holds no decoder")
    with pytest.raises(EncoderError, match="needed are input_values"):
        find_encoder(f"onnx:{decoder}", cache)
