"""Adapters: an utterance becomes the same in any batch, its lengths are known before, and every parameter learns."""

from dataclasses import FrozenInstanceError, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from encodeonce.train.adapters import base
from encodeonce.train.adapters.attention import TransformerLayer, attend
from encodeonce.train.adapters.base import Adapted, Adapter, AdapterConfig
from encodeonce.train.adapters.blsp import BLSPConfig
from encodeonce.train.adapters.compressed import Compressed, CompressedConfig, merge
from encodeonce.train.adapters.concat import ConcatAdapter, ConcatConfig
from encodeonce.train.adapters.convolution import ConvolutionConfig
from encodeonce.train.adapters.perceiver import PerceiverConfig
from encodeonce.train.adapters.pooling import PoolingConfig
from encodeonce.train.adapters.qformer import QFormerConfig, SegmentQFormerConfig, WindowQFormerConfig
from encodeonce.train.adapters.recurrent import RecurrentConfig
from encodeonce.train.adapters.registry import ADAPTERS, find_adapter
from encodeonce.train.adapters.transformer import TransformerConfig
from encodeonce.train.errors import TrainingError
from encodeonce.train.inputs import InputConfig, MaskConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTH = 12
CLASSES = 5
LENGTHS = torch.tensor([1, 2, 7, 40, 23])
LAYERS: dict[str, Any] = {"hidden": 16, "heads": 2, "feed_forward": 24}
SMALL: dict[str, AdapterConfig] = {
    "qformer": QFormerConfig(hidden=16, heads=2, queries=3),
    "window-qformer": WindowQFormerConfig(hidden=16, heads=2, window_frames=5, queries_per_window=2),
    "segment-qformer": SegmentQFormerConfig(hidden=16, heads=2, window_frames=9, queries_per_window=2),
    "concat-mlp": ConcatConfig(concat=3, hidden=16, layer_norm=True),
    "conv-mlp": ConvolutionConfig(strides=(2, 3), kernel=5, hidden=16),
    "bilstm": RecurrentConfig(layers=2, hidden=8, concat=2),
    "transformer": TransformerConfig(**LAYERS, layers=2, strides=(2,), concat=2),
    "perceiver": PerceiverConfig(**LAYERS, latents=3),
    "m-adapter": PoolingConfig(**LAYERS, layers=2),
    "ctc-compressed": CompressedConfig(encoder=RecurrentConfig(hidden=8), layers=1, heads=2, feed_forward=24),
    "blsp": BLSPConfig(hidden=16, bottleneck=8),
}
"""Every adapter, small; ADAPTERS has no other."""
WITHOUT_TEXT = [name for name, config in ADAPTERS.items() if not config.has_text]
"""Those whose every parameter the speech alone reaches."""


def build(name: str, **options: Any) -> Adapter:
    """A small adapter, the same at every call."""
    torch.manual_seed(3)
    return replace(SMALL[name], **options).build(WIDTH, CLASSES)


def batch(lengths: Tensor = LENGTHS, padding: int = 3) -> Tensor:
    """Features, and beyond each utterance's end what must never be looked at."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(len(lengths), int(lengths.max()) + padding, WIDTH, generator=generator)
    for row, length in zip(features, lengths.tolist(), strict=True):
        row[length:] *= 100
    return features


def loss_of(adapted: Adapted) -> Tensor:
    """A number to which every embedding of every utterance, and every logit, adds in its own way."""
    made = [(adapted.embeddings, adapted.mask)]
    if isinstance(adapted, Compressed):
        made.append((adapted.logits, adapted.frames.mask))
    generator = torch.Generator().manual_seed(7)
    return sum(
        ((values.float() * torch.randn(values.shape, generator=generator))[mask].sum() for values, mask in made),
        torch.zeros(()),
    )


def gradients(adapter: Adapter, features: Tensor, lengths: Tensor) -> dict[str, Tensor | None]:
    """Of every parameter, after one training step's way back."""
    adapter.zero_grad()
    torch.manual_seed(11)
    loss_of(adapter(features, lengths)).backward()
    return {name: parameter.grad for name, parameter in adapter.named_parameters()}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_utterance_alone_becomes_what_it_becomes_in_a_batch(name):
    adapter, features = build(name).eval(), batch()
    with torch.no_grad():
        together = adapter(features, LENGTHS)
        for row, length in enumerate(LENGTHS.tolist()):
            alone = adapter(features[row : row + 1, :length], LENGTHS[row : row + 1])
            own = int(together.lengths[row])
            assert alone.lengths.tolist() == [own]
            torch.testing.assert_close(together.embeddings[row, :own], alone.embeddings[0, :own], atol=1e-5, rtol=0)
            if isinstance(alone, Compressed):
                heard = together.logits[row, : alone.logits.shape[1]]
                torch.testing.assert_close(heard, alone.logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ADAPTERS)
def test_padding_gets_no_gradient(name):
    features = batch().requires_grad_()
    loss_of(build(name)(features, LENGTHS)).backward()
    assert features.grad is not None
    for row, length in zip(features.grad, LENGTHS.tolist(), strict=True):
        assert not row[length:].any()
        assert row[:length].any(dim=1).all()


@pytest.mark.parametrize("name", ADAPTERS)
def test_lengths_are_known_before(name):
    lengths = torch.arange(1, 65)
    adapter = build(name).eval()
    assert adapter.width == adapter(batch(LENGTHS), LENGTHS).embeddings.shape[2]
    with torch.no_grad():
        adapted = adapter(batch(lengths), lengths)
    assert (adapted.lengths >= 1).all()
    assert adapted.lengths.dtype == torch.int64
    assert adapted.embeddings.shape[1] >= adapted.lengths.max()
    if isinstance(adapted, Compressed):
        assert (adapted.lengths <= adapted.frames.lengths).all()
        adapted = adapted.frames
    assert adapter.output_lengths(lengths).tolist() == adapted.lengths.tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 4), max_size=3),
    st.sampled_from([1, 3, 5, 7]),
    st.integers(1, 4),
    st.integers(1, 50),
    st.integers(0, 5),
)
def test_lengths_are_known_for_any_strides(strides, kernel, concat, length, padding):
    config = TransformerConfig(**LAYERS, layers=1, strides=tuple(strides), kernel=kernel, concat=concat)
    adapter, lengths = config.build(WIDTH).eval(), torch.tensor([length])
    expected = length
    for stride in [*strides, concat]:
        expected = len(range(0, expected, stride))
    features = batch(lengths, padding)
    adapted, alone = adapter(features, lengths), adapter(features[:, :length], lengths)
    assert adapted.lengths.tolist() == adapter.output_lengths(lengths).tolist() == [expected]
    torch.testing.assert_close(adapted.embeddings[:, :expected], alone.embeddings, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", WITHOUT_TEXT)
def test_gradients_reach_every_parameter(name):
    found = gradients(build(name), batch(), LENGTHS)
    assert [name for name, gradient in found.items() if gradient is None or not gradient.abs().max() > 1e-6] == []


@pytest.mark.parametrize("name", ADAPTERS)
def test_gradient_checkpointing_changes_no_gradient(name, monkeypatch):
    calls, real = [], base.checkpoint
    monkeypatch.setattr(base, "checkpoint", lambda *given, **options: calls.append(given) or real(*given, **options))
    adapter = build(name, dropout=0.2)
    kept = {name: None if g is None else g.clone() for name, g in gradients(adapter, batch(), LENGTHS).items()}
    assert not calls
    adapter.checkpointing = True
    torch.testing.assert_close(gradients(adapter, batch(), LENGTHS), kept)
    assert calls


@pytest.mark.parametrize("name", ADAPTERS)
def test_autocast_to_bfloat16_runs(name):
    adapter = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        adapted = adapter(batch(), LENGTHS)
    loss = loss_of(adapted)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() and p.dtype == torch.float32 for p in adapter.parameters() if p.grad is not None)


def test_concat_mlp_is_slam_asr_projector_without_its_last_map():
    adapter = ConcatConfig(concat=5, hidden=16).build(WIDTH)
    assert isinstance(adapter, ConcatAdapter)
    linear, features = adapter.layers[0], batch()
    assert isinstance(linear, nn.Linear)
    adapted = adapter(features, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        own = features[row, :length]
        for place, first in enumerate(range(0, length, 5)):
            filled = torch.zeros(5 * WIDTH)
            some = own[first : first + 5].flatten()
            filled[: len(some)] = some
            expected = (linear.weight @ filled + linear.bias).clamp(min=0)
            torch.testing.assert_close(adapted.embeddings[row, place], expected)


def test_transformer_layer_equals_torchs():
    ours = TransformerLayer(16, 4, 24, 0.0).eval()
    theirs = nn.TransformerEncoderLayer(16, 4, 24, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    names = {
        **{"norm": "norm1", "leave": "self_attn.out_proj", "feed_forward.0": "norm2"},
        **{"feed_forward.1": "linear1", "feed_forward.4": "linear2"},
    }
    state = {"self_attn.in_proj_weight": ours.entry.weight, "self_attn.in_proj_bias": ours.entry.bias}
    for key, value in ours.state_dict().items():
        module, _, kind = key.rpartition(".")
        if module in names:
            state[f"{names[module]}.{kind}"] = value
    theirs.load_state_dict(state)
    frames = torch.randn(3, 9, 16)
    seen = torch.arange(9) < torch.tensor([[9], [1], [5]])
    expected = theirs(frames, src_key_padding_mask=~seen)
    torch.testing.assert_close(ours(frames, seen)[seen], expected[seen], atol=1e-5, rtol=0)


def test_attention_of_other_queries_equals_the_formula():
    queries, keys, values = torch.randn(2, 3, 8), torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    lengths = [6, 2]
    found = attend(queries, keys, values, 2, torch.arange(6) < torch.tensor(lengths)[:, None], 0.0)
    for row, length in enumerate(lengths):
        for head in (slice(0, 4), slice(4, 8)):
            shares = (queries[row, :, head] @ keys[row, :length, head].T / 2).softmax(1)
            torch.testing.assert_close(found[row, :, head], shares @ values[row, :length, head])


def test_bilstm_equals_torchs_one_utterance_at_a_time():
    adapter, features = RecurrentConfig(layers=2, hidden=8).build(WIDTH).eval(), batch()
    theirs = nn.LSTM(WIDTH, 8, num_layers=2, batch_first=True, bidirectional=True)
    state = {}
    for name, weight in adapter.state_dict().items():
        _, layer, way, kind = name.split(".")
        state[kind.replace("l0", f"l{layer}") + {"forth": "", "back": "_reverse"}[way]] = weight
    theirs.load_state_dict(state)
    adapted = adapter(features, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        expected = theirs(features[row : row + 1, :length])[0][0]
        torch.testing.assert_close(adapted.embeddings[row, :length], expected, atol=1e-5, rtol=0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=4), st.booleans())
def test_merging_averages_runs_of_a_class(heard, drop_blanks):
    lengths = torch.tensor([len(classes) for classes in heard])
    padded = torch.tensor([classes + [3] * (12 - len(classes)) for classes in heard])
    values = torch.randn(len(heard), 12, 3)
    merged = merge(Adapted(values, lengths), padded, drop_blanks)
    for row, classes in enumerate(heard):
        expected, place = [], 0
        for kind, run in groupby(classes):
            frames = len(list(run))
            if kind or not drop_blanks or not any(classes):
                expected.append(values[row, place : place + frames].mean(0))
            place += frames
        assert merged.lengths[row] == len(expected)
        torch.testing.assert_close(merged.embeddings[row, : len(expected)], torch.stack(expected), atol=1e-5, rtol=0)


def test_ctc_head_learns_through_the_logits_alone():
    adapter = build("ctc-compressed")
    adapted = adapter(batch(), LENGTHS)
    assert isinstance(adapted, Compressed)
    assert adapted.logits.shape == (len(LENGTHS), adapted.frames.embeddings.shape[1], CLASSES)
    adapted.embeddings.sum().backward()
    assert dict(adapter.named_parameters())["ctc_head.weight"].grad is None


def test_every_adapter_has_options_of_its_own():
    assert set(SMALL) == set(ADAPTERS)
    for name, config in ADAPTERS.items():
        assert find_adapter(name) is config
        assert config.name == name
        assert build(name).ordered == config.ordered
        positional: Any = config
        with pytest.raises(TypeError):
            positional(3)
        with pytest.raises(FrozenInstanceError):
            setattr(SMALL[name], fields(config)[0].name, 1)


def test_every_adapter_stands_in_the_docs():
    text = (Path(__file__).parent.parent / "docs" / "adapters.md").read_text()
    ten_seconds = torch.tensor([500])
    for name, config in ADAPTERS.items():
        section = text.partition(f"\n### `{name}`\n")[2].partition("\n#")[0]
        for option in fields(config):
            assert f"`{option.name}`" in section, f"docs/adapters.md does not tell {option.name} of {name}"
        adapter = config().build(768, 32 if config is CompressedConfig else None)
        parameters = sum(parameter.numel() for parameter in adapter.parameters())
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        _, _, embeddings, width, count, follows, _ = (cell.strip().replace(",", "") for cell in row.split("|"))
        assert (int(width), int(count), follows) == (adapter.width, parameters, "yes" if config.ordered else "no")
        assert embeddings.removesuffix(" or fewer") == str(adapter.output_lengths(ten_seconds).item())


def test_every_option_of_the_input_stands_in_the_docs():
    section = (Path(__file__).parent.parent / "docs" / "adapters.md").read_text().partition("\n## Input\n")[2]
    for option in (*fields(InputConfig), *fields(MaskConfig)):
        assert f"\n| `{option.name}` |" in section


def test_a_name_that_is_nearly_right_gets_a_suggestion():
    with pytest.raises(TrainingError, match=r"no adapter 'perciever'; did you mean perceiver\?"):
        find_adapter("perciever")
    with pytest.raises(TrainingError, match="There are qformer, "):
        find_adapter("zzz")


def test_options_that_cannot_be_are_refused():
    with pytest.raises(TrainingError, match="adapter concat-mlp: concat is 0; give 1 or more"):
        ConcatConfig(concat=0)
    with pytest.raises(TrainingError, match="adapter blsp: kernel is 4; give an odd number"):
        BLSPConfig(kernel=4)
    with pytest.raises(TrainingError, match=r"adapter conv-mlp: strides is \(2, 0\); give 1 or more"):
        ConvolutionConfig(strides=(2, 0))
    with pytest.raises(TrainingError, match="adapter transformer: 5 heads do not divide a width of 256"):
        TransformerConfig(heads=5)
    with pytest.raises(TrainingError, match="adapter bilstm: dropout is 1; give 0 or more, and less than 1"):
        RecurrentConfig(dropout=1)
    with pytest.raises(TrainingError, match="its encoder is perceiver, whose embeddings are not frames"):
        CompressedConfig(encoder=PerceiverConfig())
    with pytest.raises(TrainingError, match="give the objective ctc"):
        CompressedConfig().build(WIDTH)
    with pytest.raises(TrainingError, match="adapter ctc-compressed: 3 heads do not divide a width of 512"):
        CompressedConfig(heads=3).build(WIDTH, CLASSES)
