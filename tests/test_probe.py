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
from encodeonce.store.errors import StoreError
from encodeonce.store.moments import Usage
from encodeonce.train.probe.characters import Characters, least_emissions, spoken
from encodeonce.train.probe.cli import find_outputs, main
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


def kept_otherwise(folder: Path) -> FeatureStore:
    """Layers as the encoder gave them, and cast ones under other names; what is made of a layer; units."""

    def output(name: str, what: str, dtype: str = "float32", parent: str | None = None) -> Output:
        units = dtype == "uint16"
        return Output(name, 1 if units else len(LETTERS), dtype, what, parent, codebook_sizes=(9,) if units else None)

    outputs = [
        output("units", "units(hidden_states[9])", "uint16", "layer-09-float32"),
        output("layer-09-pca", "pca(hidden_states[9], 7)", "float32", "layer-09-float32"),
        output("layer-09-normalised", "normalised(hidden_states[9])", "float32", "layer-09-float32"),
        output("cast", "hidden_states[10]", "float16", "layer-10-int8"),
        output("layer-10-int8", "hidden_states[10]", "int8"),
        output("layer-09", "hidden_states[9]", "float16", "layer-09-float32"),
        output("layer-09-float32", "hidden_states[9]"),
        output("layer-02-int8", "hidden_states[2]", "int8", "layer-02"),
        output("mean-09-10", "mean(hidden_states[9-10])"),
        output("mean-of-layer-02-09", "mean(hidden_states[2], hidden_states[9])", "float32", "layer-02,layer-09"),
        output("layer-03", "stack(hidden_states[3], 2)"),
    ]
    said = {f"utt-{i:03d}": text for i, text in enumerate(texts_of(20))}

    def features(name: str) -> dict[str, np.ndarray]:
        frames = one_hot(said[name])
        form = {"float16": "f2", "float32": "f4", "int8": "f4"}
        units = frames.argmax(1)[:, None].astype("u2")
        return {one.name: units if one.dtype == "uint16" else frames.astype(form[one.dtype]) for one in outputs}

    writer = FeatureWriter(folder, "toy", "dev", outputs, {"made": "for tests"}, 16_000, 320)
    utterances = [NewUtterance(name, len(one_hot(text)), text=text) for name, text in said.items()]
    assert not writer.write(utterances, features).failed
    return FeatureStore(writer.path)


def test_layers_are_known_by_what_they_hold_and_not_by_their_names(tmp_path):
    kept = kept_otherwise(tmp_path)
    found = {
        asked: find_outputs(kept, asked, None)
        for asked in (None, "all", "last", "9", "9, 2", "9-10,2", "mean:9-10,10", "10,2-2,10")
    }
    every = ["layer-02-int8", "layer-09-float32", "layer-10-int8"]  # of what the encoder gave and its cast: the first
    assert found == {
        None: every,
        "all": every,
        "last": every[2:],
        "9": every[1:2],
        "9, 2": every[:2],
        "9-10,2": every,
        "mean:9-10,10": ["layer-10-int8", "mean-09-10"],
        "10,2-2,10": [every[0], every[2]],
    }
    done = probe_layers(kept, "--steps", "2", "--json", "--plot", str(tmp_path / "probe.svg"))
    assert done.status == 0, done.err
    assert [(entry["output"], entry["layer"]) for entry in done.json["outputs"]] == list(
        zip(every, (2, 9, 10), strict=True)
    )
    drawn = (tmp_path / "probe.svg").read_text()
    assert "<!-- layer -->" in drawn
    assert "<!-- 09-float32 -->" not in drawn


def test_a_derived_mean_is_found_by_its_layers(tmp_path):
    outputs = [Output(f"layer-{n}", 7, "float32", f"hidden_states[{n}]") for n in (1, 2)]
    derived = Output("ours", 7, "float32", "mean(hidden_states[1], hidden_states[2])", "layer-1,layer-2")
    writer = FeatureWriter(tmp_path, "toy", "dev", [*outputs, derived], {"made": "for tests"}, 16_000, 320)
    frames = one_hot("abc")
    writer.write([NewUtterance("a", len(frames))], lambda name: dict.fromkeys(("layer-1", "layer-2", "ours"), frames))
    assert find_outputs(FeatureStore(writer.path), "mean:1-2,2", None) == ["layer-2", "ours"]
    with pytest.raises(StoreError, match=r"no mean:0-2 in .*; there are layers 1, 2, mean:1-2$"):
        find_outputs(FeatureStore(writer.path), "mean:all", None)


def test_the_mean_of_all_goes_to_the_last_layer_that_is_stored(tmp_path):
    whats = ["mean(hidden_states[0-3])", "hidden_states[6]", "mean(hidden_states[0-6])"]
    outputs = [Output(name, 7, "float32", what) for name, what in zip("abc", whats, strict=True)]
    frames = one_hot("abc")
    for some in (outputs[:1], outputs):
        writer = FeatureWriter(tmp_path / some[-1].name, "toy", "dev", some, {"made": "for tests"}, 16_000, 320)
        features = {output.name: frames for output in some}
        writer.write([NewUtterance("a", len(frames))], {"a": features}.__getitem__)
        assert find_outputs(FeatureStore(writer.path), "mean:all", None) == [some[-1].name]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("3", "no layer 3 in"),
        ("1-3", "there are layers 1, 2, 10"),
        ("mean:1-2", "no mean:1-2 in"),
        ("2-1", "2-1 runs backwards"),
        ("mean:2", "'mean:2' is no layer; give all, last, numbers such as 9,18-24, mean:18-24 or mean:all"),
        ("layer-02", "'layer-02' is no layer"),
        ("0-99999999999", "'0-99999999999' is no layer"),
        ("", "'' is no layer"),
    ],
)
def test_a_layer_that_is_not_stored_is_named_with_those_that_are(asked, words, store):
    done = probe_layers(store, "--layers", asked)
    assert (done.status, words in done.err) == (2, True), done.err


def test_a_store_without_layers_has_none_to_choose(tmp_path):
    writer = FeatureWriter(
        tmp_path, "toy", "dev", [Output("units", 1, "uint16", "k-means")], {"made": "for tests"}, 16_000, 320
    )
    writer.write([NewUtterance("a", 3)], lambda name: {"units": np.zeros((3, 1), np.uint16)})
    bare = FeatureStore(writer.path)
    assert find_outputs(bare, None, None) == ["units"]
    with pytest.raises(StoreError, match="there are no layers, but units"):
        find_outputs(bare, "all", None)


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
        (store, ["--layers", "2", "--outputs", "codes"], "give one of them"),
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
