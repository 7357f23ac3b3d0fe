"""The Q-Former: transformers' own numbers, masks as pictures, padding that changes nothing, windows, and generation token by token."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from encodeonce.train.adapters.base import Adapted, AdapterConfig, valid
from encodeonce.train.adapters.qformer import QFormerConfig, SegmentQFormerConfig, WindowQFormerConfig
from encodeonce.train.errors import TrainingError
from encodeonce.train.pretrained import find_bert
from encodeonce.train.qformer import (
    Body,
    QFormer,
    QFormerSizes,
    Windows,
    bidirectional,
    multimodal_causal,
    never_empty,
    unimodal,
    within_windows,
)
from encodeonce.train.qformer_weights import bert_body, load_bert
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel, Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

SMALL = Body(hidden=24, layers=3, heads=4, feed_forward=40, positions=20)
MINILM = Body(hidden=384, layers=6, heads=12, feed_forward=1536, deviation=0.02)
D = 10
"""Width of the features."""

KINDS: dict[str, Windows | None] = {
    "whole": None,
    "local": Windows(frames=4, stride=4),
    "global": Windows(frames=4, stride=4, self_attention="global", positions="sinusoidal"),
    "overlapping": Windows(frames=4, stride=3, self_attention="global", positions="learned", learned=3),
}
kinds = pytest.mark.parametrize("windows", KINDS.values(), ids=KINDS)


SIZES = QFormerSizes(body=SMALL, features=D, queries=2, vocabulary=30)


def make(windows: Windows | None = None, sizes: QFormerSizes = SIZES) -> QFormer:
    """A Q-Former whose every parameter is drawn at random, so that none hides behind a zero or a one."""
    torch.manual_seed(0)
    model = QFormer(replace(sizes, windows=windows)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=1.2 * parameter.shape[1] ** -0.5)
        else:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(*lengths: int, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Features `[B, T, D]` with noise after each utterance, too; `padding` frames of it after the longest."""
    torch.manual_seed(1)
    return torch.randn(len(lengths), max(lengths) + padding, D), torch.tensor(lengths)


def texts(*lengths: int, padding: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randint(1, 30, (len(lengths), max(lengths) + padding)), torch.tensor(lengths)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def blip2_like(ours: QFormer) -> Blip2QFormerModel:
    """transformers' Q-Former with our weights."""
    body = ours.sizes.body
    config = Blip2QFormerConfig(
        hidden_size=body.hidden,
        num_hidden_layers=body.layers,
        num_attention_heads=body.heads,
        intermediate_size=body.feed_forward,
        encoder_hidden_size=ours.sizes.features,
        cross_attention_frequency=ours.sizes.cross_every,
        layer_norm_eps=body.eps,
    )
    theirs = Blip2QFormerModel(config).eval()
    names = {
        "attention.": "attention.attention.",
        "cross.": "crossattention.attention.",
        "attention.output.": "attention.output.dense.",
        "attention.norm.": "attention.output.LayerNorm.",
        "cross.output.": "crossattention.output.dense.",
        "cross.norm.": "crossattention.output.LayerNorm.",
        "feed_query.up.": "intermediate_query.dense.",
        "feed_query.down.": "output_query.dense.",
        "feed_query.norm.": "output_query.LayerNorm.",
    }
    renamed = {}
    for name, value in ours.state_dict().items():
        if name.startswith("embedding_norm."):
            renamed[name.replace("embedding_norm", "layernorm")] = value
        elif name.startswith("layers.") and ".feed_text." not in name:
            _, index, rest = name.split(".", 2)
            prefix = max((p for p in names if rest.startswith(p)), key=len)
            renamed[f"encoder.layer.{index}.{names[prefix]}{rest.removeprefix(prefix)}"] = value
    theirs.load_state_dict(renamed)
    return theirs


@pytest.mark.parametrize("cross_every", [1, 2])
@pytest.mark.parametrize("body", [SMALL, MINILM], ids=["small", "minilm"])
@torch.no_grad()
def test_queries_alone_equal_transformers_blip2(body, cross_every):
    ours = make(sizes=replace(SIZES, body=body, queries=7, cross_every=cross_every))
    theirs = blip2_like(ours)
    features, lengths = batch(9, 5, 1)
    frames = F.layer_norm(features, (D,), ours.feature_norm.weight, ours.feature_norm.bias)
    expected = theirs(
        query_embeds=ours.queries.expand(3, -1, -1),
        encoder_hidden_states=frames,
        encoder_attention_mask=valid(lengths, 9).long(),
    ).last_hidden_state
    same(ours(features, lengths).embeddings, expected)
    assert expected.std(dim=1).mean() > 0.01  # queries differ


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with its prediction head."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("bert")
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=29,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=40,
            max_position_embeddings=20,
        )
    )
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def begun_with(folder: Path, vocabulary: int | None = None, body: Body | None = None) -> QFormer:
    """A Q-Former with the weights of a BERT."""
    model = QFormer(replace(SIZES, body=body or bert_body(folder), vocabulary=vocabulary)).eval()
    load_bert(model, folder)
    return model


@torch.no_grad()
def test_text_alone_equals_bert(bert):
    ids, lengths = texts(8, 3)
    ids = ids.clamp(max=28)
    expected = BertModel.from_pretrained(bert).eval()(ids, valid(lengths, 8).long()).last_hidden_state
    found = begun_with(bert, 30).read(ids, lengths)
    for row, length in enumerate(lengths):
        same(found[row, :length], expected[row, :length])


@torch.no_grad()
def test_text_alone_equals_the_real_minilm():
    folder = find_bert("minilm-l6")
    model = QFormerConfig(bert="minilm-l6", queries=4).build(D, 30523).eval()
    assert model.sizes.body == MINILM
    ids, lengths = torch.tensor([[101, 2023, 2003, 1037, 3231, 102], [101, 7592, 102, 0, 0, 0]]), torch.tensor([6, 3])
    expected = BertModel.from_pretrained(folder).eval()(ids, valid(lengths, 6).long()).last_hidden_state
    found = model.read(ids, lengths)
    same(found[0], expected[0])
    same(found[1, :3], expected[1, :3])


@torch.no_grad()
def test_prediction_head_equals_berts_and_knows_one_token_more(bert):
    hidden = torch.randn(2, 5, 24)
    model = begun_with(bert, 30)
    found = model.logits(hidden)
    assert found.shape == (2, 5, 30)
    same(found[..., :29], BertForMaskedLM.from_pretrained(bert).eval().cls(hidden))


def test_query_feed_forwards_begin_as_copies_and_the_rest_as_drawn(bert):
    model = begun_with(bert, 30)
    parameters = dict(model.named_parameters())
    copies = [name for name in parameters if ".feed_query." in name]
    assert len(copies) == 3 * 6
    for name in copies:
        assert torch.equal(parameters[name], parameters[name.replace("feed_query", "feed_text")])
    assert {name.split(".")[1] for name in parameters if ".cross." in name} == {"0", "2"}
    for name in ("queries", "layers.0.cross.key.weight", "layers.2.cross.output.weight"):
        assert 0.01 < parameters[name].std() < 0.03


def test_learned_positions_begin_as_large_as_the_queries():
    """Else the queries of a window would begin all alike: LayerNorm follows."""
    model = SegmentQFormerConfig(hidden=256).build(D)
    assert model.window_positions is not None
    for drawn in (model.queries, model.window_positions.weight):
        assert drawn.std().item() == pytest.approx(0.02, rel=0.1)


def test_without_a_vocabulary_there_is_no_text_side(bert):
    model = begun_with(bert)
    assert not [name for name, _ in model.named_parameters() if "text" in name]
    assert model(*batch(5)).embeddings.shape == (1, 2, 24)
    with pytest.raises(TrainingError, match="without a vocabulary"):
        model.read(*texts(3))


def test_older_names_of_bert_are_known(bert, tmp_path):
    """bert-base-uncased on the hub calls LayerNorm's tensors gamma and beta."""
    tensors = load_file(bert / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    old["cls.seq_relationship.weight"] = torch.zeros(2, 24)
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    torch.save(old, tmp_path / "pytorch_model.bin")
    found, expected = begun_with(tmp_path, 30), begun_with(bert, 30)
    drawn = ("queries", ".cross.", "text.words.weight")
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert any(part in name for part in drawn) or torch.equal(a, b), name


def test_a_bert_that_does_not_fit_is_refused_by_name(bert, tmp_path):
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    tensors = load_file(bert / "model.safetensors")
    with pytest.raises(TrainingError, match=r"neither model.safetensors nor pytorch_model.bin"):
        begun_with(tmp_path, 30)
    less = {name: value for name, value in tensors.items() if "layer.2.attention" not in name}
    save_file(less, tmp_path / "model.safetensors")
    with pytest.raises(TrainingError, match=r"encoder.layer.2.attention.output.LayerNorm.bias.* and 7 more missing"):
        begun_with(tmp_path, 30)
    with pytest.raises(TrainingError, match=r"encoder.layer.2.*unexpected"):
        begun_with(bert, 30, body=replace(bert_body(bert), layers=2))
    with pytest.raises(TrainingError, match=r"predictions.bias is \[29\]; this Q-Former needs \[49\]"):
        begun_with(bert, 50)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(TrainingError, match="cannot be read"):
        begun_with(tmp_path, 30)
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(TrainingError, match="model_type roberta"):
        bert_body(tmp_path)


def picture(mask: Tensor) -> list[str]:
    return ["".join("#" if seen else "." for seen in row) for row in mask[0]]


def test_masks_as_pictures():
    """Two queries, then three tokens of which the last is padding."""
    queries, text = torch.tensor([[True, True]]), torch.tensor([[True, True, False]])
    assert picture(bidirectional(queries, text)) == ["####.", "####.", "####.", "####.", "####."]
    assert picture(multimodal_causal(queries, text)) == ["##...", "##...", "###..", "####.", "####."]
    assert picture(unimodal(queries, text)) == ["##...", "##...", "..##.", "..##.", "..##."]


def test_masks_of_windows_as_pictures():
    """Two windows of two queries, of which the utterance has the first alone, and a token."""
    queries, text = torch.tensor([[True, True, False, False]]), torch.tensor([[True]])
    both = within_windows(bidirectional(queries, text), 4, 2)
    assert picture(both) == ["##..#", "##..#", "....#", "....#", "##..#"]
    alone = within_windows(unimodal(queries, text[:, :0]), 4, 2)
    assert picture(alone) == ["##..", "##..", "....", "...."]
    assert picture(never_empty(alone)) == ["##..", "##..", "####", "####"]


def every_way(
    model: QFormer, features: Tensor, lengths: Tensor, ids: Tensor, text_lengths: Tensor
) -> list[list[Tensor]]:
    """All that the model makes of each utterance, without what stands after its length."""
    queries = model(features, lengths)
    found: list[tuple[Tensor, Tensor]] = [
        (queries.embeddings, queries.lengths),
        (model.match(features, lengths, ids, text_lengths).embeddings, queries.lengths),
        (model.read(ids, text_lengths), text_lengths),
        (model.logits(model.write(ids, queries)[0]), text_lengths),
    ]
    return [[values[row, : count[row]] for values, count in found] for row in range(len(features))]


@kinds
@torch.no_grad()
def test_utterance_alone_equals_utterance_in_a_batch(windows):
    model = make(windows)
    (features, lengths), (ids, text_lengths) = batch(11, 4, 1, 8, padding=6), texts(2, 5, 1, 3, padding=2)
    together = every_way(model, features, lengths, ids, text_lengths)
    for row in range(4):
        t, s = int(lengths[row]), int(text_lengths[row])
        alone = every_way(
            model,
            features[row : row + 1, :t],
            lengths[row : row + 1],
            ids[row : row + 1, :s],
            text_lengths[row : row + 1],
        )
        for a, b in zip(together[row], alone[0], strict=True):
            assert a.isfinite().all()
            same(a, b)


@kinds
@torch.no_grad()
def test_padded_frames_change_nothing_and_every_other_frame_does(windows):
    """The thesis's own code had its mask the wrong way round, and attended to padding alone."""
    model = make(windows)
    features, lengths = batch(9, 6)
    ids, text_lengths = texts(3, 3)
    before = every_way(model, features, lengths, ids, text_lengths)
    for frame in range(9):
        changed = features.clone()
        changed[1, frame] += 5 * torch.randn(D)
        after = every_way(model, changed, lengths, ids, text_lengths)
        for way, (a, b) in enumerate(zip(before[1], after[1], strict=True)):
            assert torch.equal(a, b) == (frame >= 6 or way == 2), (way, frame)
        assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))


@torch.no_grad()
def test_matched_queries_see_the_text_and_no_padding_of_it():
    model = make()
    features, lengths = batch(9, 6)
    ids, text_lengths = texts(5, 3)
    before = model.match(features, lengths, ids, text_lengths).embeddings
    for place in range(5):
        changed = ids.clone()
        changed[1, place] = ids[1, place] % 29 + 1
        after = model.match(features, lengths, changed, text_lengths).embeddings
        assert torch.equal(before[1], after[1]) == (place >= 3)


@torch.no_grad()
def test_written_text_sees_the_speech_and_what_is_earlier():
    model = make()
    features, lengths = batch(9)
    ids, _ = texts(6)
    queries = model(features, lengths)
    before, _ = model.write(ids, queries)
    changed = ids.clone()
    changed[0, 3] = ids[0, 3] % 29 + 1
    after, _ = model.write(changed, queries)
    assert [torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True)] == [True] * 3 + [False] * 3
    other, _ = model.write(ids, model(features + 1 * torch.randn_like(features), lengths))
    assert not any(torch.equal(a, b) for a, b in zip(before[0], other[0], strict=True))


@kinds
@torch.no_grad()
def test_writing_token_by_token_equals_writing_at_once(windows):
    model = make(windows)
    queries = model(*batch(9, 3, padding=3))
    ids, _ = texts(7, 7)
    expected, _ = model.write(ids, queries)
    past, made = None, []
    for piece in ids.split([1, 1, 2, 1, 2], dim=1):
        hidden, past = model.write(piece, queries, past)
        made.append(hidden)
    same(torch.cat(made, dim=1), expected)


@torch.no_grad()
def test_queries_cached_equal_queries_and_text_in_one_pass():
    """Generation from cached keys is the multimodal causal mask over queries and text together."""
    model = make()
    features, lengths = batch(9, 6)
    ids, _ = texts(4, 4)
    start, real = model._start(features, lengths)
    mask = multimodal_causal(real, torch.ones_like(ids, dtype=torch.bool))
    both, _ = model._body(torch.cat((start, model._embed(ids)), dim=1), mask, *model._frames(features, lengths))
    queries = model(features, lengths)
    same(queries.embeddings, both[:, :2])
    same(model.write(ids, queries)[0], both[:, 2:])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 9), st.data())
def test_windows_hold_the_frames_that_they_should(lengths, frames, data):
    stride = data.draw(st.integers(1, frames))
    windows = Windows(frames=frames, stride=stride)
    longest = max(lengths) + data.draw(st.integers(0, 12))
    numbered = torch.arange(1, longest + 1).expand(len(lengths), -1) * valid(torch.tensor(lengths), longest)
    folded = windows.fold(numbered[..., None])[..., 0].tolist()
    counts = windows.count(torch.tensor(lengths)).tolist()
    for row, length in enumerate(lengths):
        starts = [0]
        while starts[-1] + frames < length:
            starts.append(starts[-1] + stride)
        expected = [[i + 1 if i < length else 0 for i in range(start, start + frames)] for start in starts]
        assert counts[row] == len(starts)
        assert folded[row][: len(starts)] == expected
        if stride == frames:
            assert counts[row] == -(-length // frames)
    assert {len(row) for row in folded} == {int(windows.count(torch.tensor(longest)))}


@torch.no_grad()
def test_queries_of_a_window_read_its_frames_alone():
    model = make(Windows(frames=4, stride=4))
    features, lengths = batch(10)
    before = model(features, lengths)
    assert before.lengths.tolist() == [6]
    changed = features.clone()
    changed[0, 5] += 1
    after = model(changed, lengths).embeddings
    assert [torch.equal(a, b) for a, b in zip(before.embeddings[0], after[0], strict=True)] == [True] * 2 + [
        False
    ] * 2 + [True] * 2


@torch.no_grad()
def test_queries_of_windows_see_each_other_where_told_and_know_their_place():
    model = make(Windows(frames=4, stride=4, self_attention="global"))
    features, lengths = batch(10)
    changed = features.clone()
    changed[0, 5] += 1
    before, after = model(features, lengths).embeddings[0], model(changed, lengths).embeddings[0]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    same_windows = features[:, :4].repeat(1, 3, 1)
    for kind, place in KINDS.items():
        if place is not None and kind != "overlapping":
            found = make(place)(same_windows, torch.tensor([12])).embeddings[0].unflatten(0, (3, 2))
            assert torch.allclose(found[0], found[2], atol=1e-5) == (place.positions == "none")


@kinds
def test_gradient_reaches_every_parameter_also_with_checkpointing(windows):
    model = make(windows).train()
    (features, lengths), (ids, text_lengths) = batch(13, 5), texts(6, 3)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(4)  # of dropout
        queries = model(features, lengths)
        ways = [model.logits(model.write(ids, queries)[0]), model.read(ids, text_lengths), queries.embeddings]
        torch.stack([way.square().mean() for way in ways]).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    kept = gradients()
    assert kept.keys() == dict(model.named_parameters()).keys()
    model.checkpointing = True
    for name, gradient in gradients().items():
        same(gradient, kept[name])


@kinds
def test_bfloat16_autocast_is_near_float32(windows):
    model = make(windows)
    inputs = (*batch(11, 4, padding=5), *texts(4, 2))
    plain = every_way(model, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        near = every_way(model, *inputs)
    for a, b in zip(plain[0][:3] + plain[1][:3], near[0][:3] + near[1][:3], strict=True):
        assert (a - b).abs().mean() < 0.05 * a.abs().mean()
    torch.stack([way.float().mean() for way in near[0]]).sum().backward()
    assert model.queries.grad is not None
    assert model.queries.grad.isfinite().all()


@pytest.mark.parametrize(
    ("config", "most", "ordered"),
    [
        (QFormerConfig(queries=5), 5, False),
        (WindowQFormerConfig(window_frames=6, queries_per_window=2), 10, True),
        (SegmentQFormerConfig(window_frames=10, queries_per_window=4), 12, True),
    ],
    ids=["qformer", "window", "segment"],
)
def test_lengths_are_known_beforehand(config: AdapterConfig, most, ordered):
    model = config.build(D)
    features, lengths = batch(30, 7, 1)
    adapted = model(features, lengths)
    assert isinstance(adapted, Adapted)
    assert adapted.lengths.tolist() == model.output_lengths(lengths).tolist()
    assert int(adapted.lengths[0]) == most == adapted.embeddings.shape[1]
    assert (model.ordered, config.ordered) == (ordered, ordered)


def test_options_that_contradict_are_refused(bert):
    with pytest.raises(TrainingError, match="layers given, but bert"):
        QFormerConfig(bert=str(bert), layers=2)
    with pytest.raises(TrainingError, match="5 heads do not divide a width of 256"):
        QFormerConfig(heads=5)
    with pytest.raises(TrainingError, match="stride_frames is 9"):
        WindowQFormerConfig(window_frames=8, stride_frames=9)
    with pytest.raises(TrainingError, match=r"have 30 tokens, the text side has 31"):
        QFormerConfig(bert=str(bert)).build(D, 31)
    with pytest.raises(TrainingError, match="a text of 21 tokens: this Q-Former has positions for 20"):
        make().read(*texts(21))
