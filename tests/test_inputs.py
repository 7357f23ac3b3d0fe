"""From stored outputs to features: layers mixed, codes embedded, moments taken out, spans masked; padding stays zero."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encodeonce.store import Output
from encodeonce.store.moments import Moments
from encodeonce.train.errors import TrainingError
from encodeonce.train.inputs import FeatureInput, InputConfig, MaskConfig
from encodeonce.train.positions import sinusoids
from encodeonce.train.spec_augment import spans
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import frames_of, make_store
from torch import Tensor

WIDTH = 8
LENGTHS = torch.tensor([5, 1, 12])
LAYERS = [
    Output(f"layer-{n}", WIDTH, dtype, f"hidden_states[{n}]")
    for n, dtype in ((3, "float16"), (6, "int8"), (9, "float32"))
]
CODES = Output("codes", 2, "uint16", "codes of 2 quantizers", codebook_sizes=(7, 4))
UNITS = Output("units", 1, "uint16", "k-means", codebook_sizes=(9,))
SPANS = MaskConfig(time_spans=2, time_frames=3, time_share=0.5, width_spans=1, width_share=0.5)
DISTURBING: dict[str, Any] = {"mask": SPANS, "noise": 1.0, "dropout": 0.5}


def layers(count: int = 3, padding: int = 2) -> list[Tensor]:
    """Values of a few layers on scales of their own, and after each utterance's end what must not matter."""
    generator = torch.Generator().manual_seed(2)
    shape = (len(LENGTHS), int(LENGTHS.max()) + padding, WIDTH)
    return [(torch.randn(shape, generator=generator) + n) * 10**n for n in range(count)]


def codes(output: Output) -> Tensor:
    """Codes as the stream gives them: int32, zero after each utterance's end."""
    generator = torch.Generator().manual_seed(4)
    columns = [torch.randint(size, (len(LENGTHS), 14), generator=generator) for size in output.codebook_sizes or ()]
    inside = torch.arange(14) < LENGTHS[:, None]
    return (torch.stack(columns, dim=2) * inside[..., None]).int()


def mixed(outputs: list[Output] = LAYERS, moments: Any = None, **options: Any) -> FeatureInput:
    """An input whose mix has begun to learn."""
    torch.manual_seed(6)
    made = FeatureInput(InputConfig(**options), outputs, moments)
    if made.mix is not None:
        torch.nn.init.normal_(made.mix)
    return made


def test_one_output_passes_as_it_is():
    made, (values,) = mixed(LAYERS[:1]), layers(1)
    features, lengths = made([values.half()], LENGTHS)
    assert features.dtype == torch.float32
    assert lengths is LENGTHS
    assert not list(made.parameters())
    assert made.weights.tolist() == [1]
    for row, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(features[row, :length], values[row, :length].half().float())
        assert not features[row, length:].any()


@pytest.mark.parametrize("normalise", ["none", "layer"])
def test_layers_are_mixed_as_superb_does(normalise):
    made, values = mixed(normalise=normalise), layers()
    features, _ = made(values, LENGTHS)
    mix = made.state_dict()["mix"].numpy().astype(np.float64)
    weights = np.exp(mix) / np.exp(mix).sum()
    np.testing.assert_allclose(made.weights, weights, rtol=1e-5)
    for row, length in enumerate(LENGTHS.tolist()):
        for frame in range(length):
            expected = np.zeros(WIDTH)
            for weight, layer in zip(weights, values, strict=True):
                value = layer[row, frame].double().numpy()
                if normalise == "layer":
                    value = (value - value.mean()) / np.sqrt(value.var() + 1e-5)
                expected += weight * value
            np.testing.assert_allclose(features[row, frame].detach(), expected, rtol=1e-4, atol=1e-4)
    features.square().sum().backward()
    assert made.mix is not None
    assert made.mix.grad is not None
    assert made.mix.grad.abs().min() > 0


def test_a_mix_begins_with_all_outputs_alike():
    assert FeatureInput(InputConfig(), LAYERS).weights.tolist() == pytest.approx([1 / 3] * 3)


def test_moments_are_taken_out_and_kept_in_the_state():
    values = layers()
    inside = torch.arange(14) < LENGTHS[:, None]
    found = [Moments.of(layer[inside].numpy()) for layer in values]
    made = mixed(moments=[(m.mean, m.variance) for m in found], normalise="moments")
    again = FeatureInput(InputConfig(normalise="moments"), LAYERS)
    assert again(values, LENGTHS)[0][inside].isnan().all()
    again.load_state_dict(made.state_dict())
    torch.testing.assert_close(again(values, LENGTHS)[0], made(values, LENGTHS)[0])
    alone = mixed(LAYERS[2:], [(found[2].mean, found[2].variance)], normalise="moments")
    normal = alone(values[2:], LENGTHS)[0][inside].numpy()
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(normal.std(0), 1, atol=1e-4)


def test_a_dimension_that_never_changes_is_not_blown_up():
    made = mixed(LAYERS[:1], [(np.full(WIDTH, 0.25), np.zeros(WIDTH))], normalise="moments")
    assert made([torch.full((3, 12, WIDTH), 0.25)], LENGTHS)[0].abs().max() == 0


def test_codes_are_summed_over_their_codebooks():
    made, values = mixed([CODES, UNITS], code_width=6), [codes(CODES), codes(UNITS)]
    features, lengths = made(values, LENGTHS)
    table = made.state_dict()["tables.table"]
    assert table.shape == (7 + 4 + 9, 6)
    assert made.width == 6
    assert lengths.tolist() == LENGTHS.tolist()
    for row, length in enumerate(LENGTHS.tolist()):
        for frame in range(length):
            (first, second), (unit,) = (v[row, frame].tolist() for v in values)
            torch.testing.assert_close(features[row, frame], table[first] + table[7 + second] + table[11 + unit])
        assert not features[row, length:].any()
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_codes_are_interleaved():
    made, values = mixed([CODES], code_width=6, codes="interleave"), codes(CODES)
    features, lengths = made([values], LENGTHS)
    table = made.state_dict()["tables.table"]
    assert lengths.tolist() == made.output_lengths(LENGTHS).tolist() == (2 * LENGTHS).tolist()
    for row, length in enumerate(LENGTHS.tolist()):
        for frame in range(length):
            first, second = values[row, frame].tolist()
            torch.testing.assert_close(features[row, 2 * frame], table[first])
            torch.testing.assert_close(features[row, 2 * frame + 1], table[7 + second])
        assert not features[row, 2 * length :].any()


@pytest.mark.parametrize("how", ["sum", "interleave"])
def test_embedded_codes_have_unit_variance(how):
    torch.manual_seed(0)
    many = Output("codes", 8, "uint16", "codes", codebook_sizes=(512,) * 8)
    made = FeatureInput(InputConfig(codes=how), [many])
    features, _ = made([torch.randint(512, (4, 200, 8))], torch.full((4,), 200))
    assert features.std().item() == pytest.approx(1, abs=0.05)


def test_positions_are_added_from_the_utterance_s_beginning():
    values = layers(1)
    plain, placed = mixed(LAYERS[:1]), mixed(LAYERS[:1], positions="sinusoidal")
    added = placed(values, LENGTHS)[0] - plain(values, LENGTHS)[0]
    for row, length in enumerate(LENGTHS.tolist()):
        for frame in range(length):
            angles = frame * 10_000.0 ** -(np.arange(4) / 4)
            expected = np.concatenate([np.sin(angles), np.cos(angles)])
            np.testing.assert_allclose(added[row, frame], expected, atol=1e-5)
        assert not added[row, length:].any()
    assert sinusoids(3, 5).shape == (3, 5)


@pytest.mark.parametrize("options", [{}, {"normalise": "layer"}, {"positions": "sinusoidal"}, DISTURBING])
def test_an_utterance_alone_is_what_it_is_in_a_batch(options):
    made, values = mixed(**options).eval(), layers()
    together, _ = made(values, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone, _ = made([layer[row : row + 1, :length] for layer in values], LENGTHS[row : row + 1])
        torch.testing.assert_close(together[row : row + 1, :length], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"mask": SPANS}, {"noise": 1.0}, {"dropout": 0.5}])
def test_what_disturbs_does_so_in_training_alone_and_by_torch_s_seed(options):
    made, values = mixed(**options), layers()
    plain, _ = mixed()(values, LENGTHS)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return made(values, LENGTHS)[0]

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not drawn(1)[torch.arange(14) >= LENGTHS[:, None]].any()
    made.eval()
    assert torch.equal(drawn(1), plain)


def test_spans_go_to_zero_and_the_rest_stays():
    made, values = mixed(mask=SPANS), layers()
    plain, _ = mixed()(values, LENGTHS)
    torch.manual_seed(1)
    features, _ = made(values, LENGTHS)
    changed = features != plain
    assert changed.any()
    assert not features[changed].any()
    rows, columns = changed.all(2), (changed | (plain == 0)).all(1)
    assert torch.equal(changed, (rows[..., None] | columns[:, None]) & (plain != 0))


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    count=st.integers(1, 4),
    frames=st.integers(0, 40),
    share=st.floats(0, 1),
)
def test_masked_time_stays_within_its_share(lengths, count, frames, share):
    config = InputConfig(mask=MaskConfig(time_spans=count, time_frames=frames, time_share=share))
    made = FeatureInput(config, [Output("layer-9", 2, "float32", "ones")])
    features, _ = made([torch.ones(len(lengths), max(lengths), 2)], torch.tensor(lengths))
    for row, length in zip(features, lengths, strict=True):
        masked = int((row[:length] == 0).all(1).sum())
        assert masked <= min(share * length + 1e-4, count * frames)


def test_spans_reach_every_place_alike():
    torch.manual_seed(0)
    many = 20_000
    inside = spans(1, torch.full((many,), 4), torch.full((many,), 10), 12)
    shares = inside.float().mean(0)
    widths = inside.sum(1)
    assert not shares[10:].any()
    assert torch.bincount(widths, minlength=5)[:5].tolist() == pytest.approx([many / 5] * 5, rel=0.05)
    assert shares[3:7].tolist() == pytest.approx([shares[4].item()] * 4, rel=0.06)
    assert shares[0] > 0
    assert shares[9] == pytest.approx(shares[0].item(), rel=0.15)


def test_autocast_leaves_features_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        assert mixed(normalise="layer", positions="sinusoidal")(layers(), LENGTHS)[0].dtype == torch.float32


def test_batches_of_a_store_come_through(tmp_path: Path):
    outputs = [Output(f"layer-{n}", 16, "float16", f"hidden_states[{n}]") for n in (3, 9)]
    outputs.append(Output("codes", 2, "uint16", "codes", codebook_sizes=(40_000, 40_000)))
    store = make_store(tmp_path / "features", frames_of(5), outputs)
    for names in (["layer-3", "layer-9"], ["codes"]):
        made = FeatureInput(InputConfig(normalise="layer", mask=SPANS), [store.spec(name) for name in names])
        for batch in store.stream(frames_per_batch=400, outputs=names, device="cpu"):
            features, lengths = made([batch[name].values for name in names], batch.lengths)
            assert features.shape == (len(batch), int(lengths.max()), made.width)
            assert features.isfinite().all()


def test_what_does_not_go_together_is_refused():
    config = InputConfig()
    with pytest.raises(
        TrainingError, match="outputs layer-3, codes: features and codes do not go together; give one kind"
    ):
        FeatureInput(config, [LAYERS[0], CODES])
    with pytest.raises(TrainingError, match="layer-3 of 8, wide of 9 dimensions cannot be mixed"):
        FeatureInput(config, [LAYERS[0], Output("wide", 9, "float32", "wide")])
    with pytest.raises(
        TrainingError, match=r"outputs of 12 and 24 frames do not go together; give outputs of one frame rate"
    ):
        FeatureInput(config, LAYERS[:2])([torch.zeros(1, 12, WIDTH), torch.zeros(1, 24, WIDTH)], torch.tensor([12]))
    with pytest.raises(TrainingError, match="outputs codes are codes, which have no moments"):
        FeatureInput(InputConfig(normalise="moments"), [CODES])
    with pytest.raises(TrainingError, match="output units does not say how many codes"):
        FeatureInput(config, [Output("units", 1, "uint16", "k-means")])
    with pytest.raises(TrainingError, match="no output to train on"):
        FeatureInput(config, [])


def test_masks_that_cannot_be_are_refused():
    with pytest.raises(TrainingError, match=r"input.mask.time_spans=-1: take 0 or more"):
        MaskConfig(time_spans=-1)
    with pytest.raises(TrainingError, match=r"input.mask.width_share=1.5: take a share from 0 to 1"):
        MaskConfig(width_share=1.5)
