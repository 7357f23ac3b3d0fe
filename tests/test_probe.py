"""Probes of layers: they find the output that says most, by the same training for all, and refuse what cannot be probed."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Done, run
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output
from encodeonce.store.moments import Usage
from encodeonce.train.probe.characters import Characters, least_emissions, spoken
from encodeonce.train.probe.cli import main
from encodeonce.train.probe.head import Probe
from encodeonce.train.probe.run import ProbeOptions, probe
from encodeonce.train.probe.subset import EMISSIONS_A_SECOND, choose, emissions_a_frame
from hypothesis import given
from hypothesis import strategies as st

LETTERS = "abcde f"
FRAMES = 3
"""Of each letter, the last one silent."""
QUICK = ProbeOptions(steps=150, batch_seconds=8, learning_rate=0.03)
AS_QUICK = ["--steps", "150", "--batch-seconds", "8", "--learning-rate", "0.03"]


def texts_of(count: int) -> list[str]:
    """Texts of letters that never stand beside their like."""
    rng = np.random.default_rng(0)
    steps = rng.integers(1, len(LETTERS), (count, 12)).cumsum(axis=1) % len(LETTERS)
    return [spoken("a" + "".join(LETTERS[i] for i in row) + "b") for row in steps]


def one_hot(text: str) -> np.ndarray:
    """Frames that say their letter, `[3 * letters, 7]`; each third one says nothing."""
    frames = np.zeros((FRAMES * len(text), len(LETTERS)), np.float32)
    for place, letter in enumerate(text):
        frames[FRAMES * place : FRAMES * place + 2, LETTERS.index(letter)] = 1
    return frames


def make_store(folder: Path, texts: Sequence[str | None]) -> FeatureStore:
    """layer-01 is noise, layer-02 says the letters, layer-10 the same on another scale, and codes name them."""
    rng = np.random.default_rng(1)
    said = {f"utt-{i:03d}": text for i, text in enumerate(texts)}
    plain = {name: one_hot(text or "abc") for name, text in said.items()}

    def features(name: str) -> dict[str, np.ndarray]:
        letters = plain[name] + 0.1 * rng.standard_normal(plain[name].shape, np.float32)
        codes = np.stack([plain[name].argmax(1) + 8 * plain[name].any(1), rng.integers(0, 500, len(letters))], axis=1)
        noise = rng.standard_normal(letters.shape, np.float32)
        return {"layer-01": noise, "layer-02": letters, "layer-10": 300 * letters - 40, "codes": codes.astype("u2")}

    outputs = [Output(f"layer-{n}", len(LETTERS), "float32", f"hidden_states[{n}]") for n in ("01", "02", "10")]
    outputs.append(Output("codes", 2, "uint16", "codes of 2 quantizers"))
    writer = FeatureWriter(folder, "toy", "dev", outputs, {"made": "for tests"}, 16_000, 320)
    utterances = [
        NewUtterance(name, len(plain[name]), text=text, speaker="vwxyz"[i % 5])
        for i, (name, text) in enumerate(said.items())
    ]
    assert not writer.write(utterances, features).failed
    return FeatureStore(writer.path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("probe"), texts_of(60))


def probe_layers(store: FeatureStore | Path, *arguments: str) -> Done:
    return run(main, [str(store if isinstance(store, Path) else store.path), *arguments])


def test_the_layer_that_says_most_is_named_and_drawn(store, tmp_path):
    done = probe_layers(store, "--json", "--plot", str(tmp_path / "probe.svg"), *AS_QUICK)
    assert done.status == 0, done.err
    found = {entry["output"]: entry for entry in done.json["outputs"]}
    assert list(found) == ["layer-01", "layer-02", "layer-10"]
    assert found["layer-02"]["cer"] < 0.02
    assert found["layer-01"]["cer"] > 0.5
    assert found["layer-01"]["loss"] > 10 * found["layer-02"]["loss"]
    assert done.json["best"] in ("layer-02", "layer-10")
    assert f"Best: {done.json['best']}" in done.out
    assert done.json["utterances"] == {"training": 48, "held_out": 12, "without_text": 0, "too_dense": 0}
    assert "character error rate" in (tmp_path / "probe.svg").read_text()


def test_a_probe_is_the_same_every_time_and_does_not_see_the_scale_of_a_layer(store):
    subset, options = choose(store, None, 0), replace(QUICK, steps=30)
    first, again, scaled = (probe(store, name, subset, options) for name in ("layer-02", "layer-02", "layer-10"))
    assert replace(first, seconds=0) == replace(again, seconds=0)
    assert scaled.loss == pytest.approx(first.loss, rel=0.05)  # the noise differs
    assert probe(store, "layer-02", subset, replace(options, seed=1)).loss != first.loss


def test_codes_are_probed_through_an_embedding_and_unseen_ones_add_nothing(store):
    subset = choose(store, None, 0)
    assert probe(store, "codes", subset, QUICK).cer < 0.05
    head = Probe(Usage.of(np.array([[3, 0], [1, 7]])), classes=4, emissions=2)
    (found,) = head(torch.full((1, 5, 2), 65_535))
    assert torch.equal(found, head.linear.bias.reshape(2, 4).log_softmax(1).repeat(5, 1))
    torch.nn.init.normal_(next(head.entry.parameters()))
    assert not torch.equal(head(torch.tensor([[[1, 0]]])), head(torch.tensor([[[0, 1]]])))  # each codebook has its own


def test_slow_frames_emit_several_characters_each(tmp_path):
    """At 12.5 frames a second, two letters a frame: one emission a frame could not even hold the text."""
    texts = [text[: len(text) // 2 * 2] for text in texts_of(60)]
    width, said = 2 * len(LETTERS), {f"utt-{i:03d}": text for i, text in enumerate(texts)}

    def pairs(text: str) -> np.ndarray:
        return one_hot(text)[::FRAMES].reshape(-1, width)

    writer = FeatureWriter(
        tmp_path, "slow", "dev", [Output("latents", width, "float32", "latents")], {"made": "for tests"}, 16_000, 1280
    )
    utterances = [NewUtterance(name, len(text) // 2, text=text) for name, text in said.items()]
    writer.write(utterances, lambda name: {"latents": pairs(said[name])})
    slow = FeatureStore(writer.path)
    subset = choose(slow, None, 0)
    assert (subset.speakers, subset.too_dense, len(subset.held_out)) == (None, 0, 12)
    assert probe(slow, "latents", subset, QUICK).cer < 0.02


@given(st.floats(0.5, 1000))
def test_emissions_are_the_least_that_come_often_enough(rate):
    count = emissions_a_frame(rate)
    assert count * rate >= EMISSIONS_A_SECOND - 1e-6
    assert count == 1 or (count - 1) * rate < EMISSIONS_A_SECOND


def test_speakers_are_held_out_whole_and_a_limit_takes_from_all_of_them(store):
    subset = choose(store, 30, 3)
    speaker = dict(zip(store.ids, store.table["speaker"].to_pylist(), strict=True))
    learnt, held = ({speaker[name] for name in part} for part in (subset.training, subset.held_out))
    assert not learnt & held
    assert (len(learnt), len(held)) == subset.speakers
    assert len(subset.training) + len(subset.held_out) == 30
    assert len(learnt | held) == 5
    assert choose(store, 30, 4).held_out != subset.held_out


def test_utterances_without_text_or_with_too_much_of_it_are_left_out_and_counted(tmp_path):
    texts = ["abc", "abcd", "aab", None, " -- ", "ab"]  # three frames each: aab needs a blank between its a's
    units = [Output("units", 1, "uint16", "k-means")]
    writer = FeatureWriter(tmp_path, "dense", "dev", units, {"made": "for tests"}, 16_000, 320)
    utterances = [NewUtterance(f"{i}", 3, text=text) for i, text in enumerate(texts)]
    writer.write(utterances, lambda name: {"units": np.zeros((3, 1), np.uint16)})
    subset = choose(FeatureStore(writer.path), None, 0)
    assert (subset.without_text, subset.too_dense) == (2, 2)
    assert sorted(subset.training | subset.held_out) == ["0", "5"]


def test_what_cannot_be_probed_is_one_line_that_says_the_way_out(store, tmp_path, monkeypatch):
    silent = make_store(tmp_path, [None] * 4)
    for where, arguments, words in (
        (silent, [], "4 have no text"),
        (store, ["--outputs", "layer-7"], "there are"),
        (store, ["--device", "mps"], "take auto, cpu, cuda"),
        (store, ["--learning-rate", "nan"], "learning_rate nan"),
        (store, ["--plot", str(tmp_path / "probe.txt")], "give one such as probe.png"),
        (tmp_path / "nowhere", [], "nowhere"),
    ):
        done = probe_layers(where, *arguments)
        assert done.status == 2, arguments
        assert words in done.err
        assert done.err.splitlines()[-1].startswith("error: ")
    monkeypatch.setitem(sys.modules, "jiwer", None)
    assert 'pip install "encodeonce[evaluate]"' in probe_layers(store).err


@given(st.text("ab ", min_size=1, max_size=12))
def test_characters_agree_with_torchs_ctc(text):
    """A text has an alignment in its least emissions and none in fewer; the alignment decodes to the text."""
    characters, least = Characters.of([text]), least_emissions(text)

    def loss(emissions: int) -> float:
        log_probs = torch.zeros(emissions, 1, len(characters)).log_softmax(2)
        target, lengths = torch.tensor([characters.encode(text)]), torch.tensor([emissions])
        return float(torch.nn.functional.ctc_loss(log_probs, target, lengths, torch.tensor([len(text)])))

    assert math.isfinite(loss(least))
    assert least == 1 or loss(least - 1) == math.inf
    aligned = [number for c in characters.encode(text) for number in (0, c, c, 0)]
    assert characters.decode(aligned) == text


def test_spoken_keeps_what_is_heard():
    assert spoken("  «Don\u2019t — MR. Ünal», said 2 of\nthem! ") == "don't mr ünal said 2 of them"
    assert spoken("हिन्दी।") == "हिन्दी"
    assert spoken("…!") == ""
