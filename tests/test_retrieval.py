"""Retrieval and matching: against loops over all pairs, and a Q-Former's against one utterance at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from encodeonce.evaluate.embeddings import retrieval_scores
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.metrics import retrieval
from encodeonce.evaluate.metrics.intervals import Bootstrap, Clusters
from encodeonce.evaluate.metrics.retrieval import (
    Embedded,
    find_ranks,
    matching_score,
    recall_scores,
    wrong_texts,
)
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output
from encodeonce.train.config import DataConfig
from encodeonce.train.configure import parse_config
from encodeonce.train.model import AdapterModel, build_model

TEXTS = ["open the door", "close a red door", "the cat sat on the mat", "no", "open the cat"]
SIZES = {"hidden": 16, "layers": 2, "heads": 2}
ADAPTERS: dict[str, dict[str, Any]] = {
    "qformer": {"name": "qformer", "queries": 3, **SIZES},
    "windows": {"name": "window-qformer", "window_frames": 7, "queries_per_window": 2, **SIZES},
}
OUTPUT = Output("layer-9", 10, "float32", "made up")


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def drawn(utterances: int, texts: int, seed: int) -> Embedded:
    """Texts, and utterances that are near theirs; every text has one."""
    random = np.random.default_rng(seed)
    text_of = np.concatenate((random.permutation(texts), random.integers(texts, size=utterances - texts)))
    counts, text = random.integers(1, 5, utterances), unit(random.standard_normal((texts, 6)))
    near = np.repeat(text[text_of], counts, axis=0) + random.standard_normal((counts.sum(), 6))
    return Embedded(unit(near), counts, text, text_of)


def straight_ranks(embedded: Embedded) -> tuple[list[int], list[int], list[int]]:
    """Of each utterance's text, of each text's best utterance, and the wrong text nearest to each utterance: pair by pair."""
    queries = np.split(embedded.speech.astype(np.float64), np.cumsum(embedded.counts)[:-1])
    near = [[max(float(query @ text) for query in own) for text in embedded.text.astype(np.float64)] for own in queries]
    of, utterances, texts = embedded.text_of.tolist(), range(len(queries)), range(len(embedded.text))
    by_speech = [1 + sum(near[i][j] > near[i][of[i]] for j in texts) for i in utterances]
    best = [max(near[i][j] for i in utterances if of[i] == j) for j in texts]
    by_text = [1 + sum(near[i][j] > best[j] for i in utterances if of[i] != j) for j in texts]
    return by_speech, by_text, [max((j for j in texts if j != of[i]), key=near[i].__getitem__) for i in utterances]


@pytest.mark.parametrize("block", [1, 64, 1 << 24])
@pytest.mark.parametrize(("utterances", "texts"), [(1, 1), (9, 9), (40, 17), (12, 2)])
def test_ranks_are_those_of_a_loop_over_all_pairs_however_they_are_blocked(block, utterances, texts, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    embedded = drawn(utterances, texts, seed=utterances)
    ranks = find_ranks(embedded)
    if texts == 1:
        assert (ranks.speech_to_text.tolist(), ranks.text_to_speech.tolist(), ranks.hardest.tolist()) == (
            [1],
            [1],
            [-1],
        )
        return
    by_speech, by_text, hardest = straight_ranks(embedded)
    assert ranks.speech_to_text.tolist() == by_speech
    assert ranks.text_to_speech.tolist() == by_text
    assert ranks.hardest.tolist() == hardest
    if block == 1:
        scores = recall_scores(ranks, "x")
        assert scores["recall_at_5_speech_to_text"].value == np.mean([rank <= 5 for rank in by_speech])
        assert scores["recall_at_1_text_to_speech"].value == np.mean([rank <= 1 for rank in by_text])


def test_any_utterance_of_a_text_is_right_for_it():
    """Two utterances say the first text; the one that does not sound like it is no mistake of the text's, but its own."""
    text = unit(np.array([[1, 0], [0, 1]]))
    ranks = find_ranks(
        Embedded(unit(np.array([[1, 0.1], [0.1, 1], [0, 1]])), np.ones(3, int), text, np.array([0, 0, 1]))
    )
    assert ranks.speech_to_text.tolist() == [1, 2, 1]
    assert ranks.text_to_speech.tolist() == [1, 1]


@pytest.mark.parametrize("scale", [1, np.nan])
def test_a_model_to_which_all_is_one_finds_nothing(scale):
    """Whatever rounding makes of equal cosines."""
    counts, random = np.arange(10) % 3 + 1, np.random.default_rng(6)
    for _ in range(20):
        speech, text = unit(random.standard_normal((2, 100)))
        speech = np.tile(speech * np.float32(scale), (counts.sum(), 1))
        ranks = find_ranks(Embedded(speech, counts, np.tile(text, (10, 1)), np.arange(10)))
        assert set(ranks.speech_to_text.tolist()) == set(ranks.text_to_speech.tolist()) == {10}
        assert {score.value for name, score in recall_scores(ranks, "x").items() if "_at_10_" not in name} == {0}


def test_intervals_are_over_utterances_by_speaker_and_over_texts():
    ranks = find_ranks(drawn(60, 30, seed=3))
    bootstrap = Bootstrap(Clusters.find([f"speaker {i % 10}" for i in range(60)], 60), resamples=300)
    scores = recall_scores(ranks, "x", bootstrap)
    assert len(scores) == 6
    for name, score in scores.items():
        places, by = (
            (ranks.speech_to_text, bootstrap)
            if name.endswith("to_text")
            else (ranks.text_to_speech, Bootstrap(Clusters.find(None, 30), resamples=300))
        )
        assert score.interval == by.mean((places <= int(name.split("_")[2])).astype(float))
        assert score.counts == {"utterances": 60, "texts": 30}
        assert not score.lower_is_better


def test_wrong_texts_are_every_other_text_alike_and_follow_the_seed():
    text_of = np.repeat(np.arange(4), 3000)
    found = wrong_texts(text_of, 4, seed=1)
    counts = np.zeros((4, 4))
    np.add.at(counts, (text_of, found), 1)
    assert np.diag(counts).sum() == 0
    assert counts[~np.eye(4, dtype=bool)] == pytest.approx(1000, rel=0.12)
    assert (found == wrong_texts(text_of, 4, seed=1)).all()
    assert (found != wrong_texts(text_of, 4, seed=2)).any()
    with pytest.raises(EvaluationError, match="all utterances have one text"):
        wrong_texts(np.zeros(5, int), 1)


def test_matching_is_half_right_where_everything_is_accepted():
    right, wrong = np.array([0.9, 0.6, 0.4, np.nan]), np.array([0.1, 0.7, 0.5, np.nan])
    score = matching_score("matching_accuracy", right, wrong, "x")
    assert score.value == (2 + 2) / 8
    assert score.counts == {"pairs": 8, "accepted": 2, "refused": 2}
    assert matching_score("matching_accuracy", np.ones(7), np.ones(7), "x").value == 0.5


def make(adapter: str, objectives: dict[str, Any], max_tokens: int = 256) -> AdapterModel:
    text = {"tokenizer": "words", "max_tokens": max_tokens}
    training = {"max_steps": 1, "device": "cpu", "best": "loss"}
    values = {
        "output_dir": "nowhere",
        "adapter": ADAPTERS[adapter],
        "objectives": objectives,
        "text": text,
        "training": training,
    }
    torch.manual_seed(5)
    model = build_model(parse_config(values), [OUTPUT], TEXTS).eval()
    with torch.no_grad():  # so that scores are not all alike
        for name, weight in model.named_parameters():
            if "norm" not in name and "temperature" not in name:
                weight.mul_(2)
    return model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Utterances of many lengths; some share a text, one has none, one has another than the rest in upper case."""
    random = np.random.default_rng(4)
    frames = {f"{speaker}-{i}": int(random.integers(5, 40)) for i in range(3) for speaker in "abcdefg"}
    values = {name: 3 * random.standard_normal((count, 10)).astype(np.float32) for name, count in frames.items()}
    said = {name: TEXTS[place * 3 % 5] for place, name in enumerate(frames)} | {"b-1": None, "c-2": TEXTS[0].upper()}
    utterances = [NewUtterance(name, count, text=said[name], speaker=name[0]) for name, count in frames.items()]
    writer = FeatureWriter(tmp_path_factory.mktemp("store"), "toy", "dev", [OUTPUT], {"weights": "1"}, 16_000, 320)
    assert not writer.write(utterances, lambda name: {"layer-9": values[name]}).failed
    return FeatureStore(writer.path)


def straight(
    model: AdapterModel, store: FeatureStore, ids: list[str], texts: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and matching probabilities of every utterance with every text, `[N, M]` each, one pair at a time."""
    adapter: Any = model.adapter
    tokenizer: Any = model.text
    near, told = np.zeros((len(ids), len(texts))), np.zeros((len(ids), len(texts)))
    stc: Any = model.objectives["stc"]
    stm: Any = model.objectives["stm"]
    for i, name in enumerate(ids):
        features = torch.from_numpy(store[name].features.astype(np.float32))[None]
        lengths = torch.tensor([features.shape[1]])
        for j, text in enumerate(texts):
            written = torch.tensor([[tokenizer.start, *tokenizer.encode(text), tokenizer.end]])
            size = torch.tensor([written.shape[1]])
            queries = stc.speech(adapter(features, lengths).embeddings[0])
            said = stc.text(adapter.read(written, size)[0, 0])
            near[i, j] = torch.cosine_similarity(queries, said[None]).max()
            told[i, j] = stm.head(adapter.match(features, lengths, written, size).embeddings[0].mean(0)).softmax(0)[1]
    return near, told


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_model_has_the_scores_of_its_utterances_and_texts_one_by_one(adapter, store):
    model = make(adapter, {"stc": {"width": 8}, "stm": {}})
    with torch.inference_mode():
        scores, details = retrieval_scores(model, store, ["layer-9"], data=DataConfig(), seed=3)
        ids = [name for name in store.ids if name != "b-1"]
        of = [TEXTS.index(str(store[name].text).lower()) for name in ids]
        near, told = straight(model, store, ids, TEXTS)
    for cutoff in (1, 5, 10):
        by_speech = [sum(near[i] >= near[i, j]) <= cutoff for i, j in enumerate(of)]
        by_text = [any(of[i] == j for i in np.argsort(-near[:, j])[:cutoff]) for j in range(5)]
        assert scores[f"recall_at_{cutoff}_speech_to_text"].value == pytest.approx(np.mean(by_speech))
        assert scores[f"recall_at_{cutoff}_text_to_speech"].value == pytest.approx(np.mean(by_text))
    assert 0 < scores["recall_at_1_speech_to_text"].value < 1
    order = list(dict.fromkeys(of))
    wrong = wrong_texts(np.array([order.index(j) for j in of]), 5, seed=3)
    right = [told[i, j] > 0.5 for i, j in enumerate(of)]
    drawn_ones = [told[i, order[j]] <= 0.5 for i, j in enumerate(wrong)]
    near[np.arange(len(of)), of] = -2
    hardest = [told[i, j] <= 0.5 for i, j in enumerate(near.argmax(1))]
    assert scores["matching_accuracy"].value == pytest.approx(np.mean(right + drawn_ones))
    assert scores["matching_accuracy_hard"].value == pytest.approx(np.mean(right + hardest))
    assert {score.signature.partition("|utterances")[2] for score in scores.values()} == {":20|texts:5"}
    assert details["retrieval"] | {"examples": []} == details["retrieval"] | {"examples": []} | {
        "utterances": 20, "texts": 5, "without_text": 1, "too_long": 0, "not_drawn": 0
    }  # fmt: skip
    for row in details["retrieval"]["examples"]:
        assert row["text"] == TEXTS[of[ids.index(row["id"])]]
        assert row["nearest"] == TEXTS[near[ids.index(row["id"])].argmax()]


def test_each_objective_is_scored_without_the_other(store):
    scores, _ = retrieval_scores(make("qformer", {"stc": {"width": 8}}), store, ["layer-9"], data=DataConfig())
    assert sorted({name.partition("_at")[0] for name in scores}) == ["recall"]
    scores, details = retrieval_scores(make("qformer", {"stm": {}}), store, ["layer-9"], data=DataConfig())
    assert list(scores) == ["matching_accuracy"]
    assert "examples" not in details["retrieval"]


def test_case_is_kept_where_it_was_trained_on(store):
    model = make("qformer", {"stc": {"width": 8}})
    _, details = retrieval_scores(model, store, ["layer-9"], data=DataConfig(lower=False))
    assert details["retrieval"]["texts"] == 6


def test_a_sample_is_the_same_again_and_follows_the_seed(store):
    model = make("qformer", {"stc": {"width": 8}})
    first, again, other = (
        retrieval_scores(model, store, ["layer-9"], data=DataConfig(), most=9, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first[1] != other[1]
    assert (first[1]["retrieval"]["utterances"], first[1]["retrieval"]["not_drawn"]) == (9, 11)


def test_what_cannot_be_retrieved_is_told(store):
    outputs = ["layer-9"]
    with pytest.raises(EvaluationError, match=r"needs contrast \(stc\) or matching \(stm\), .* trained for stg"):
        retrieval_scores(make("qformer", {"stg": {}}), store, outputs, data=DataConfig())
    model = make("qformer", {"stc": {"width": 8}}, max_tokens=3)
    _, details = retrieval_scores(model, store, outputs, data=DataConfig())
    assert details["retrieval"]["texts"] == 3
    assert details["retrieval"]["too_long"] == 20 - details["retrieval"]["utterances"] > 0
    with pytest.raises(
        EvaluationError, match=r"nothing to retrieve among 1 utterances .*: 1 have no text, 0 one that is too long"
    ):
        retrieval_scores(model, store, outputs, "text is None", data=DataConfig())
