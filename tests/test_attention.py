"""Attention that is shown: equal to transformers' own, placed in time, measured, aligned with words, drawn."""

import json
import sys
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from encodeonce.evaluate.attention.alignment import Word, centre_errors, monotone_cuts, spread_evenly, word_times
from encodeonce.evaluate.attention.capture import Attention, Writing, read_attention, why_no_attention
from encodeonce.evaluate.attention.measures import coverage, diagonality, entropy, reading, spearman
from encodeonce.evaluate.attention.pictures import Drawn, attention_pictures, log_mel
from encodeonce.evaluate.attention.references import force_align, own_word_times, read_word_times
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output
from encodeonce.train.adapters.base import AdapterConfig, valid
from encodeonce.train.adapters.concat import ConcatConfig
from encodeonce.train.adapters.perceiver import PerceiverConfig
from encodeonce.train.adapters.qformer import QFormerConfig, WindowQFormerConfig
from encodeonce.train.config import TextConfig, TrainConfig
from encodeonce.train.inputs import InputConfig
from encodeonce.train.model import AdapterModel, build_model
from encodeonce.train.objectives.config import ContrastiveConfig, CTCConfig, GenerationConfig, ObjectivesConfig
from encodeonce.train.qformer import Layer, QFormer
from hypothesis import given
from hypothesis import strategies as st
from streams import make_store
from test_qformer import blip2_like
from torch import Tensor
from torch.nn import functional as F
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

D, RATE = 10, 50.0
OUTPUT = Output("layer-01", D, "float32", "hidden_states[1]")
CODES = Output("codes", 2, "uint16", "codes", codebook_sizes=(7, 7))
BOTH = ObjectivesConfig(stc=ContrastiveConfig(), stg=GenerationConfig())
SMALL = {"hidden": 24, "heads": 4, "layers": 3}
WHOLE = QFormerConfig(queries=5, cross_every=1, **SMALL)
OVERLAPPING = WindowQFormerConfig(
    window_frames=4, stride_frames=3, queries_per_window=2, self_attention="global", **SMALL
)
PERCEIVER = PerceiverConfig(latents=3, hidden=24, heads=4, feed_forward=30)
PLAIN = InputConfig()
CTC_ALONE = ObjectivesConfig(ctc=CTCConfig())


def made(
    adapter: AdapterConfig, objectives: ObjectivesConfig = BOTH, output: Output = OUTPUT, inputs: InputConfig = PLAIN
) -> AdapterModel:
    """A model with attention far from even."""
    torch.manual_seed(0)
    config = TrainConfig(
        output_dir="unused",
        adapter=adapter,
        objectives=objectives,
        input=inputs,
        text=TextConfig(tokenizer="words"),
    )
    model = build_model(config, [output], ["open the door", "close a window"]).eval()
    for parameter in model.adapter.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
    return model


def batch(*lengths: int, padding: int = 0) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(1)
    return [torch.randn(len(lengths), max(lengths) + padding, D)], torch.tensor(lengths)


def attention_of(rows: np.ndarray, writing: Writing | None = None, frame_seconds: float = 0.02) -> Attention:
    """One layer, one head: rows `[N, T]`."""
    seen = np.tile([0, rows.shape[1]], (len(rows), 1))
    weights = rows[None, None].astype(np.float32)
    return Attention(weights, (0,), seen, np.ones((1, 1, len(rows))), frame_seconds, writing)


@torch.no_grad()
def test_attention_equals_transformers_own():
    model = made(WHOLE)
    assert isinstance(model.adapter, QFormer)
    (features,), lengths = batch(9, 5, 1)
    theirs = blip2_like(model.adapter)
    theirs.set_attn_implementation("eager")
    norm = model.adapter.feature_norm
    expected = theirs(
        query_embeds=model.adapter.queries.expand(3, -1, -1),
        encoder_hidden_states=F.layer_norm(features, (D,), norm.weight, norm.bias),
        encoder_attention_mask=valid(lengths, 9).long(),
        output_attentions=True,
    ).cross_attentions
    found = read_attention(model, [features], lengths, RATE)
    for row, length in enumerate(lengths.tolist()):
        theirs_of = torch.stack([layer[row] for layer in expected])  # [L, heads, N, T]
        torch.testing.assert_close(torch.from_numpy(found[row].weights), theirs_of[..., :length], rtol=0, atol=1e-5)
        assert not theirs_of[..., length:].any()
    assert found[0].weights.std() > 0.05


def test_attention_of_windows_is_set_down_where_they_lie():
    """Each window alone, by hand: softmax of its own queries and its own frames."""
    model = made(OVERLAPPING)
    (features,), lengths = batch(11, 6, padding=3)
    found = read_attention(model, [features], lengths, RATE)
    adapter = model.adapter
    assert isinstance(adapter, QFormer)
    assert found[0].layers == (0, 2)
    assert found[0].seen.tolist() == [[start, min(start + 4, 11)] for start in (0, 3, 6, 9) for _ in range(2)]
    hidden, real = adapter._start(features, lengths)
    layer = adapter.layers[0]
    assert isinstance(layer, Layer)
    assert layer.cross is not None
    mask = adapter._among_windows(real[:, None].expand(-1, real.shape[1], -1), real)
    hidden = layer.attention(hidden, *layer.attention.key_value(hidden), mask)
    with torch.no_grad():
        query, key = layer.cross.query(hidden), layer.cross.key(adapter.feature_norm(features))
    for row, length in enumerate((11, 6)):
        for n, (start, end) in enumerate(found[row].seen.tolist()):
            for head, part in enumerate(torch.arange(24).split(6)):
                scores = key[row, start:end, part] @ query[row, n, part] / 6**0.5
                expected = np.zeros(length, np.float32)
                expected[start:end] = scores.softmax(0)
                np.testing.assert_allclose(found[row].weights[0, head, n], expected, atol=1e-5)


@pytest.mark.parametrize("adapter", [WHOLE, OVERLAPPING, PERCEIVER], ids=["whole", "windows", "perceiver"])
def test_rows_sum_to_one_and_padding_changes_nothing(adapter):
    model = perceiver() if adapter is PERCEIVER else made(adapter)
    values, lengths = batch(11, 4, 1, padding=5)
    for row, one in enumerate(read_attention(model, values, lengths, RATE)):
        n = int(lengths[row])
        assert one.weights.dtype == np.float32
        np.testing.assert_allclose(one.weights.sum(3), 1, atol=1e-5)
        (alone,) = read_attention(model, [values[0][row : row + 1, :n]], lengths[row : row + 1], RATE)
        np.testing.assert_allclose(one.weights, alone.weights, atol=1e-5)
        np.testing.assert_allclose(one.on_frames, alone.on_frames, atol=1e-5)
        if adapter is PERCEIVER:
            assert 0.05 < one.on_frames.mean() < 0.95
        else:
            np.testing.assert_allclose(one.on_frames, 1, atol=1e-5)
        if one.writing is not None and alone.writing is not None:
            assert one.writing.words == alone.writing.words


def perceiver() -> AdapterModel:
    """Behind a model that writes nothing: the perceiver has no text side, and CTC cannot stand on it."""
    model = made(ConcatConfig(), CTC_ALONE)
    torch.manual_seed(2)
    adapter = PERCEIVER.build(D).eval()
    for parameter in adapter.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
    model.adapter = adapter
    return model


def test_adapters_without_queries_say_so():
    model = made(ConcatConfig(), CTC_ALONE)
    assert read_attention(model, *batch(6), RATE) == []
    assert "Concat has no queries" in str(why_no_attention(model))
    assert why_no_attention(made(WHOLE)) is None


def test_a_last_layer_that_nothing_is_trained_through_is_left_out():
    alone = made(replace(WHOLE, cross_every=2), ObjectivesConfig(stg=GenerationConfig()))
    assert read_attention(alone, *batch(6), RATE)[0].layers == (0,)
    assert read_attention(made(replace(WHOLE, cross_every=2)), *batch(6), RATE)[0].layers == (0, 2)


def test_looking_changes_nothing_and_leaves_no_hook():
    model = made(WHOLE)
    values, lengths = batch(9, 5)
    before = model.hear(values, lengths).adapted.embeddings
    read_attention(model, values, lengths, RATE)
    assert torch.equal(before, model.hear(values, lengths).adapted.embeddings)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_interleaved_codes_are_several_frames_in_the_time_of_one():
    model = made(WHOLE, output=CODES, inputs=InputConfig(codes="interleave"))
    (one,) = read_attention(model, [torch.randint(0, 7, (1, 6, 2))], torch.tensor([6]), RATE)
    assert one.weights.shape[3] == 12
    assert one.seconds == pytest.approx(6 / RATE)
    assert one.times[0] == pytest.approx(1 / RATE / 4)


def test_words_look_at_queries_as_the_text_attends():
    model = made(WHOLE)
    values, lengths = batch(9, 5)
    said = ["open a door", "close"]
    found = read_attention(model, values, lengths, RATE, said)
    for one, text in zip(found, said, strict=True):
        assert one.writing is not None
        assert one.writing.words == tuple(text.split())
        assert one.writing.weights.shape == (3, 4, len(text.split()), 5)
        total = one.writing.weights.sum(3)
        assert (total < 1).all()
        assert (total > 0).all()
    (alone,) = read_attention(model, [values[0][1:, :5]], lengths[1:], RATE, said[1:])
    assert alone.writing is not None
    assert found[1].writing is not None
    np.testing.assert_allclose(found[1].writing.weights, alone.writing.weights, atol=1e-5)
    assert [word.word for word in word_times(alone)] == ["close"]
    by_itself = read_attention(model, values, lengths, RATE)[0].writing
    assert by_itself is not None
    assert " ".join(by_itself.words) == " ".join(model.transcribe(values, lengths)[0].split())


def test_an_even_look_has_all_the_entropy_and_a_single_frame_none():
    even, sharp = np.full((3, 8), 1 / 8), np.eye(8)[:3]
    assert entropy(attention_of(even)).nats == pytest.approx(np.log(8))
    assert entropy(attention_of(even)).share == pytest.approx(1)
    assert entropy(attention_of(sharp)).nats == pytest.approx(0)
    assert coverage(attention_of(sharp)) == pytest.approx(3 / 8)
    assert coverage(attention_of(even)) == pytest.approx(0)


def test_what_a_query_reads_is_told_in_seconds():
    row = np.zeros((1, 10))
    row[0, 4:8] = 0.25
    found = reading(row, 0.1)
    assert found.centre[0] == pytest.approx(0.6)
    assert found.half[0] == pytest.approx((0.5, 0.7))
    assert found.most[0] == pytest.approx((0.42, 0.78))
    assert 0.4 < found.peak[0] < 0.8


def test_diagonality_is_one_in_order_and_minus_one_backwards():
    assert diagonality(attention_of(np.eye(6))) == pytest.approx(1)
    assert diagonality(attention_of(np.eye(6)[::-1])) == pytest.approx(-1)
    assert np.isnan(diagonality(attention_of(np.full((1, 6), 1 / 6)))).all()


def test_rank_correlation_equals_scipys():
    scipy = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for length in range(3, 12):
        values = rng.integers(0, 5, length)  # with ties
        expected = scipy.spearmanr(np.arange(length), values).statistic
        assert spearman(np.arange(length), values) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=8))
def test_words_on_a_diagonal_get_their_times_back(lengths):
    frames, ends = sum(lengths), np.cumsum(lengths)
    on_frames = np.full((len(lengths), frames), 1e-6)
    for query, (length, end) in enumerate(zip(lengths, ends.tolist(), strict=True)):
        on_frames[query, end - length : end] = 1 / length
    words = tuple(f"w{n}" for n in range(len(lengths)))
    on_queries = np.stack([np.zeros((1, len(words), len(words))), np.eye(len(words))[None]])  # layers 0 and 1
    found = word_times(attention_of(on_frames, Writing(words, on_queries + 1e-9)))
    expected = [Word(word, (end - n) * 0.02, end * 0.02) for word, n, end in zip(words, lengths, ends, strict=True)]
    assert centre_errors(found, expected).max() < 0.002


def test_words_that_nothing_tells_apart_divide_the_time():
    cuts = monotone_cuts(np.ones((3, 30)))
    assert cuts == pytest.approx([0, 10, 20, 30], abs=0.5)
    with pytest.raises(EvaluationError, match="1 words found, 2 in the reference"):
        centre_errors([Word("a", 0, 1)], [Word("a", 0, 1), Word("b", 1, 2)])
    assert spread_evenly(["a", "bcd"], 6.0) == [Word("a", 0.0, 2.0), Word("bcd", 2.0, 6.0)]


def test_forced_alignment_finds_words_where_ctc_hears_them():
    alphabet, path = ["", " ", "a", "b"], [0, 2, 2, 0, 3, 0, 1, 0, 0, 2, 0]
    posteriors = np.full((len(path), 4), -9.0, np.float32)
    posteriors[np.arange(len(path)), path] = -0.01
    found = force_align(posteriors, alphabet, "ab a", 0.1)
    assert [word.word for word in found] == ["ab", "a"]
    assert [(word.start, word.end) for word in found] == [pytest.approx((0.1, 0.5)), pytest.approx((0.9, 1.0))]
    with pytest.raises(EvaluationError, match="'x', which CTC does not know"):
        force_align(posteriors, alphabet, "ax", 0.1)
    with pytest.raises(EvaluationError, match="do not fit into 11 frames"):
        force_align(posteriors, alphabet, "ab ab ab ab ab", 0.1)


def test_a_spectrogram_is_torchaudios_and_needs_none(monkeypatch):
    samples, rate = np.random.default_rng(0).normal(0, 0.1, 9000).astype(np.float32), 16_000
    samples[3000:] *= 1e-5
    theirs = MelSpectrogram(rate, n_fft=512, hop_length=160, n_mels=80, pad_mode="constant")
    expected = AmplitudeToDB(top_db=70)(theirs(torch.from_numpy(samples))).numpy()
    for name in ("torchaudio", "torchaudio.transforms", "transformers.audio_utils"):  # the last imports the first
        monkeypatch.setitem(sys.modules, name, None)
    np.testing.assert_allclose(log_mel(samples, rate), expected, atol=1e-3)
    assert log_mel(samples[:99], rate).shape == (80, 1)


GRID = """File type = "ooTextFile"
item [1]:
    class = "IntervalTier"
    name = "words"
    intervals: size = 3
    intervals [1]:
        xmin = 0
        xmax = 0.5
        text = ""
    intervals [2]:
        xmin = 0.5
        xmax = 0.9
        text = "go"
    intervals [3]:
        xmin = 0.9
        xmax = 1.25
        text = "on"
item [2]:
    class = "IntervalTier"
    name = "phones"
    intervals [1]:
        xmin = 0
        xmax = 0.5
        text = "G"
"""


def test_word_times_are_read_from_ctm_and_text_grids(tmp_path):
    expected = {"u1": [Word("go", 0.5, 0.9), Word("on", 0.9, 1.25)]}
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "u1.TextGrid").write_text(GRID)
    ctm = tmp_path / "times.ctm"
    ctm.write_text(";; comment\nu1 1 0.9 0.35 on 0.8\nu1 1 0.5 0.4 go\nu1 1 0.0 0.5 <eps>\n")
    for path in (tmp_path / "grids", ctm):
        found = read_word_times(path, {"u1", "u2"})
        assert found.keys() == expected.keys()
        for a, b in zip(found["u1"], expected["u1"], strict=True):
            assert (a.word, pytest.approx((a.start, a.end))) == (b.word, (b.start, b.end))
    ctm.write_text("u1 1 0.5 0.4 go\nu1 half\n")
    with pytest.raises(EvaluationError, match="line 2: 'u1 half' is no line of a CTM file"):
        read_word_times(ctm, {"u1"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match=r"holds no .TextGrid and no .ctm file"):
        read_word_times(tmp_path / "empty", {"u1"})
    with pytest.raises(EvaluationError, match="cannot be read: no such file"):
        read_word_times(tmp_path / "none.ctm", {"u1"})


def test_word_times_of_the_corpus_are_a_column_of_it(tmp_path):
    words = [{"word": "go", "start": 0.5, "end": 0.9}]
    columns = {"u1": {"words": json.dumps(words)}, "u2": {}, "u3": {"words": "soon"}}
    writer = FeatureWriter(tmp_path, "toy", "dev", [OUTPUT], {"made": "for tests"}, 16_000, 320)
    utterances = [NewUtterance(name, 5, text="go", metadata=metadata) for name, metadata in columns.items()]
    writer.write(utterances, lambda _: {OUTPUT.name: np.ones((5, D), np.float32)})
    store = FeatureStore(writer.path)
    assert own_word_times(store["u1"]) == [Word("go", 0.5, 0.9)]
    assert own_word_times(store["u2"]) == []
    with pytest.raises(EvaluationError, match="utterance u3: the column words is no list"):
        own_word_times(store["u3"])


def test_pictures_are_written_with_captions_that_say_what_is_seen(tmp_path):
    store = make_store(tmp_path / "store", [30, 21], [OUTPUT])
    audio = tmp_path / "utt-000.wav"
    soundfile.write(audio, np.random.default_rng(0).standard_normal(30 * 320) / 10, 16_000)
    words = {"utt-000": [Word("words", 0.1, 0.25), Word("of", 0.3, 0.4)]}
    model = made(OVERLAPPING)
    found = attention_pictures(
        model, store, [OUTPUT.name], ["utt-000", "utt-001"], tmp_path / "png", audio={"utt-000": audio}, words=words
    ).pictures
    assert [picture.path.name for picture in found] == [
        "attention-utt-000.png",
        "attention-utt-000-heads.png",
        "attention-utt-001.png",
        "attention-utt-001-heads.png",
        "attention-entropy.png",
    ]
    assert [picture.utterance for picture in found] == ["utt-000"] * 2 + ["utt-001"] * 2 + [None]
    for picture in found:
        pixels = matplotlib.image.imread(picture.path)[..., :3]
        assert 1500 <= pixels.shape[1] <= 1700
        assert pixels[0, 0].min() > 0.99
        assert 0.02 < (pixels.min(2) < 0.95).mean() < 0.9
    assert "20 queries over 30 frames (0.6 s)" in found[0].caption
    none = attention_pictures(made(ConcatConfig(), CTC_ALONE), store, [OUTPUT.name], ["utt-000"], tmp_path / "no")
    assert none == Drawn()
    assert not (tmp_path / "no").exists()
