"""The packed forward pass is that of transformers, one utterance at a time, whatever the device would choose."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import BASE, FAMILIES, LARGE, LAYERS, Checkpoints, Family, reference, relative, speechlike
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import Encoder
from encodeonce.extract.encoders.checkpoint import CheckpointEncoder
from encodeonce.extract.encoders.packed import LoadedPacked, can_pack
from encodeonce.extract.encoders.packed_first import FirstConvolution
from encodeonce.extract.encoders.packed_layers import Computing
from encodeonce.extract.encoders.registry import find_encoder
from torch import nn

CPU = torch.device("cpu")
BEST = Computing.best("cpu", "float32")
PLAIN = Computing(CPU, torch.float32)
JOINED = Computing(CPU, torch.float32, joined=True)
"""As on a GPU, but for the kernel of its attention."""
LENGTHS = [5000, 400, 8000, 719, 720, 2001, 2000, 400]
"""Of one frame and more; 719 samples give one, 720 two."""
NAMES = ["hubert-base", "hubert-large", "wav2vec2-adapter", "data2vec-audio", "distilhubert", "unispeech-sat-large"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory) -> Any:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("checkpoints"))
    return cache(checkpoints.folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> FileCache:
    return FileCache(tmp_path_factory.mktemp("cache"))


def packed(encoder: Encoder, model: Any, computing: Computing, layers: str = "all") -> LoadedPacked:
    assert isinstance(encoder, CheckpointEncoder)
    return LoadedPacked(encoder, model, computing, encoder.outputs(layers, "float32"))


def encoded(loaded: LoadedPacked, audio: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The outputs of each utterance of one batch, in the order asked for."""
    lengths = [len(x) for x in audio]
    padded = torch.zeros(len(audio), max(lengths))
    for row, x in zip(padded, audio, strict=True):
        row[: len(x)] = torch.from_numpy(x)
    states = loaded.forward(padded, lengths).values()
    return [[s[i, : loaded.encoder.frames(n)].cpu().numpy() for s in states] for i, n in enumerate(lengths)]


def errors(found: Sequence[Sequence[np.ndarray]], expected: Sequence[Sequence[np.ndarray]]) -> list[float]:
    return [relative(f, e) for one, other in zip(found, expected, strict=True) for f, e in zip(one, other, strict=True)]


AUDIO = [speechlike(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("computing", [BEST, PLAIN, JOINED], ids=["best", "plain", "joined"])
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_of_a_mixed_batch_is_that_of_transformers_alone(name, computing, folder_of, files):
    model = FAMILIES[name].saved.from_pretrained(folder_of(name)).eval()
    found = encoded(packed(find_encoder(str(folder_of(name)), files), model, computing), AUDIO)
    model.adapter = None
    assert max(errors(found, [reference(model, x) for x in AUDIO])) < 1e-5


@pytest.mark.parametrize("computing", [BEST, JOINED], ids=["best", "joined"])
@pytest.mark.parametrize(
    "changes",
    [
        BASE | {"conv_bias": True},
        LARGE | {"conv_bias": False},
        BASE | {"feat_extract_norm": "layer"},
        LARGE | {"feat_extract_norm": "group"},
        BASE | {"num_conv_pos_embeddings": 7, "conv_kernel": [10, 5, 3, 4, 3, 2, 2]},
    ],
    ids=["base-bias", "large-no-bias", "layer-post", "group-stable", "other-kernels"],
)
def test_biases_and_norms_combine_freely(changes, computing, files, tmp_path):
    hubert = FAMILIES["hubert-base"]
    model = Family("changed", hubert.config, hubert.saved, changes).model()
    model.save_pretrained(tmp_path)
    audio = [x for x in AUDIO if len(x) >= 2000]
    found = encoded(packed(find_encoder(str(tmp_path), files), model, computing), audio)
    assert max(errors(found, [reference(model, x) for x in audio])) < 1e-5


@pytest.mark.parametrize("name", ["hubert-base", "hubert-large", "data2vec-audio"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bits_stay_closer_than_transformers_own(precision, name, folder_of, files):
    """On every way to compute, each layer within 3e-2 and the last closer than the same weights of transformers in 16 bits."""
    dtype = getattr(torch, precision)
    model = FAMILIES[name].saved.from_pretrained(folder_of(name)).eval()
    audio = [speechlike(16000 + 800 * seed, seed) for seed in range(3)]
    expected = [reference(model, x) for x in audio]
    with torch.no_grad():
        rounded = FAMILIES[name].saved.from_pretrained(folder_of(name), dtype=dtype).eval()
        theirs = [[rounded(torch.from_numpy(x)[None].to(dtype)).last_hidden_state[0].float().numpy()] for x in audio]
    last = np.mean(errors(theirs, [states[-1:] for states in expected]))
    for computing in (Computing.best("cpu", precision), Computing(CPU, dtype, joined=True)):
        found = encoded(packed(find_encoder(str(folder_of(name)), files), model, computing), audio)
        assert max(errors(found, expected)) < 3e-2
        assert np.mean(errors([f[-1:] for f in found], [e[-1:] for e in expected])) < last


@pytest.mark.parametrize("computing", [Computing.best("cpu", "bfloat16"), Computing(CPU, torch.bfloat16)])
@pytest.mark.parametrize("norm", [nn.GroupNorm(16, 16), nn.LayerNorm(16)])
def test_the_first_convolution_loses_nothing_in_16_bits_but_in_its_result(norm, computing):
    """Of audio with an offset ten times its loudness, which bfloat16 would round by a twentieth of that loudness."""
    torch.manual_seed(0)
    conv = nn.Conv1d(1, 16, 10, 5)
    audio = torch.from_numpy(speechlike(16000, 0))[None]
    audio = audio + 10 * audio.std()
    with torch.no_grad():
        y = conv(audio[:, None])
        y = norm(y) if isinstance(norm, nn.GroupNorm) else norm(y.mT).mT
        found = FirstConvolution(conv, norm, computing)(audio, [16000], [16000])
    expected = torch.nn.functional.gelu(y)[0].T
    assert relative(found.float().numpy(), expected.numpy()) < 5e-3


def test_attention_by_variable_lengths_is_told_where_utterances_end(folder_of, files, monkeypatch):
    """The kernel needs a GPU; here its documented meaning stands for it."""
    from torch.nn.attention import varlen

    def varlen_attn(query, key, value, bounds_q, bounds_k, max_q, max_k):
        assert bounds_q.dtype == bounds_k.dtype == torch.int32
        assert max_q == max_k == int(bounds_q.diff().max())
        mixed = torch.empty_like(query)
        for start, stop in zip(bounds_q.tolist(), bounds_q.tolist()[1:], strict=False):
            q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))  # [heads, T, width]
            mixed[start:stop] = (torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v).transpose(0, 1)
        return mixed

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    model = FAMILIES["hubert-large"].saved.from_pretrained(folder_of("hubert-large")).eval()
    computing = Computing(CPU, torch.float32, joined=True, variable=True)
    found = encoded(packed(find_encoder(str(folder_of("hubert-large")), files), model, computing), AUDIO)
    assert max(errors(found, [reference(model, x) for x in AUDIO])) < 1e-5


@pytest.mark.parametrize(("width", "variable"), [(8, True), (64, True), (256, True), (12, False), (264, False)])
def test_the_kernel_for_variable_lengths_takes_some_widths_of_heads(width, variable):
    assert Computing(CPU, torch.float16, variable=True).attending(width).variable is variable
    assert Computing(CPU, torch.float16).attending(width).variable is False


@pytest.mark.parametrize(
    "computing", [BEST, JOINED, Computing.best("cpu", "bfloat16")], ids=["best", "joined", "bfloat16"]
)
def test_several_threads_share_one_model(computing, folder_of, files):
    encoder = find_encoder(str(folder_of("hubert-base")), files)
    model = FAMILIES["hubert-base"].saved.from_pretrained(folder_of("hubert-base")).eval()
    loaded = packed(encoder, model, computing)
    batches = [AUDIO[first : first + size] for size in (1, 3) for first in range(0, len(AUDIO), size)]
    alone = [encoded(loaded, batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: encoded(loaded, batch), batches * 3))
    for one, other in zip(alone * 3, together, strict=True):
        for states, threaded in zip(one, other, strict=True):
            assert max(errors([threaded], [states])) < 1e-6


def test_only_layers_and_norms_that_are_needed_are_kept(folder_of, files):
    encoder = find_encoder(str(folder_of("hubert-large")), files)
    model = FAMILIES["hubert-large"].saved.from_pretrained(folder_of("hubert-large")).eval()
    for layers, deepest in {"0": 0, "1": 1, "mean:0-2": 2, "last": LAYERS}.items():
        kept = packed(encoder, model, PLAIN, layers).model
        assert len(kept.layers) == deepest
        assert (kept.norm_after is not None) == (deepest == LAYERS)


def test_means_are_over_the_layers_named(folder_of, files):
    encoder = find_encoder(str(folder_of("hubert-large")), files)
    model = FAMILIES["hubert-large"].saved.from_pretrained(folder_of("hubert-large")).eval()
    (found,) = encoded(packed(encoder, model, PLAIN, "mean:1-3"), AUDIO[:1])
    assert relative(found[0], np.mean(reference(model, AUDIO[0])[1:4], axis=0)) < 1e-5


@pytest.mark.parametrize(
    ("name", "changes", "packs"),
    [
        ("hubert-base", {}, True),
        ("hubert-batch-norm", {}, False),
        ("hubert-base", {"hidden_act": "relu"}, False),
        ("hubert-base", {"feat_extract_activation": "gelu_new"}, False),
        ("wav2vec2-large", {"adapter_attn_dim": 8}, False),
        ("wavlm-base", {}, False),
        ("conformer-rotary", {}, False),
    ],
)
def test_what_is_made_of_other_blocks_stays_with_transformers(name, changes, packs, files, tmp_path):
    model = FAMILIES[name].model(**changes)
    assert can_pack(model) is packs
    model.save_pretrained(tmp_path)
    encoder = find_encoder(str(tmp_path), files)
    loaded = encoder.load("cpu", "float32", encoder.outputs("last", "float32"))
    assert isinstance(loaded, LoadedPacked) is packs
    (values,) = loaded.forward(torch.from_numpy(AUDIO[0])[None], [len(AUDIO[0])]).values()
    assert relative(values[0].numpy(), reference(model, AUDIO[0])[-1]) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 1e-2), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("name", ["hubert-base", "hubert-large", "data2vec-audio"])
def test_a_gpu_computes_the_same(name, precision, tolerance, folder_of, files):
    model = FAMILIES[name].saved.from_pretrained(folder_of(name)).eval()
    loaded = packed(find_encoder(str(folder_of(name)), files), model, Computing.best("cuda", precision))
    audio = [x for x in AUDIO if len(x) >= 2000]
    assert max(errors(encoded(loaded, audio), [reference(model, x) for x in audio])) < tolerance
