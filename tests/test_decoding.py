"""Decoding of CTC's posteriors: the search against all paths there are, the language model's paths against its own plain forward."""

import json
import shutil
from collections.abc import Sequence
from functools import cache
from itertools import product
from math import inf, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from encodeonce.evaluate.decoding import llm_words
from encodeonce.evaluate.decoding.ctc_beam import (
    BeamOptions,
    Query,
    Search,
    WordOptions,
    WordScorer,
    beam_text,
    greedy_text,
    log_add,
)
from encodeonce.evaluate.decoding.forest import ROOT, Forest
from encodeonce.evaluate.decoding.fusion import Fusion, decode, in_step, prompt_lines, tune
from encodeonce.evaluate.decoding.llm_words import LLMWords
from encodeonce.evaluate.decoding.posteriors import Posteriors, compute_posteriors
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.metrics.intervals import bootstrap_interval
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output
from encodeonce.train.checkpoint import load_checkpoint
from encodeonce.train.cli import main as train_adapter
from encodeonce.train.errors import TrainingError
from encodeonce.train.llm.frozen import FrozenLLM
from encodeonce.train.llm.prompt import Prompt
from encodeonce.train.llm.words import Words
from encodeonce.train.model import open_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

ALPHABET = ("", " ", "a", "b")
EXHAUSTIVE = BeamOptions(width=10_000, margin=inf, least=-inf, word_margin=inf)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 12,
}
PIECES = ["<unk>", "</s>", "a", "b", "Ġ", "Ċ", "Ġa", "Ġb", "Ġab"]
MERGES = [("Ġ", "a"), ("Ġ", "b"), ("Ġa", "b")]
KINDS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, max_position_embeddings=64)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
    ),
}
posteriors = st.integers(1, 5).flatmap(
    lambda frames: st.lists(
        st.lists(st.floats(0.02, 1), min_size=len(ALPHABET), max_size=len(ALPHABET)), min_size=frames, max_size=frames
    )
).map(lambda rows: np.log(np.array(rows) / np.sum(rows, 1, keepdims=True)))  # fmt: skip


def spelt(path: Sequence[int]) -> str:
    """The text of a path of classes."""
    kept = [c for i, c in enumerate(path) if i == 0 or c != path[i - 1]]
    return " ".join("".join(ALPHABET[c] for c in kept).split())


def all_texts(frames: np.ndarray) -> dict[str, float]:
    """log p of every text, summed over all its paths."""
    found: dict[str, float] = {}
    for path in product(range(len(ALPHABET)), repeat=len(frames)):
        value = float(frames[np.arange(len(frames)), path].sum())
        found[spelt(path)] = log_add(found.get(spelt(path), -inf), value)
    return found


class MadeUpWords:
    """Any word after any words has a probability of its own; nothing is known before it is read."""

    start = 0

    def __init__(self) -> None:
        self.texts: list[tuple[str, ...]] = [()]
        self.done: set[Query] = set()

    def read(self, queries: Sequence[Query]) -> None:
        self.done |= {*queries, *(Query(state) for state, _ in queries)}

    def is_read(self, query: Query) -> bool:
        return query in self.done

    def follow(self, state: int, word: str) -> tuple[float, int]:
        assert self.is_read(Query(state, word))
        text = (*self.texts[state], word)
        if text not in self.texts:
            self.texts.append(text)
        return self.score(text), self.texts.index(text)

    def guess(self, state: int, word: str) -> float:
        assert self.is_read(Query(state))
        return -1.0

    def ahead(self, state: int, letters: str) -> float:
        assert self.is_read(Query(state))
        return -1.0

    def end(self, state: int) -> float:
        assert self.is_read(Query(state))
        return self.score((*self.texts[state], "."))

    @staticmethod
    def score(text: tuple[str, ...]) -> float:
        return -float(np.random.default_rng([len(text), *map(ord, " ".join(text))]).uniform(0, 4))


@settings(max_examples=60, deadline=None)
@given(posteriors)
def test_a_wide_beam_finds_the_likeliest_text_of_all_paths(frames: np.ndarray) -> None:
    texts = all_texts(frames)
    found = beam_text(frames, ALPHABET, EXHAUSTIVE)
    assert texts[found] == pytest.approx(max(texts.values()), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(posteriors, st.floats(0, 2), st.floats(-2, 5))
def test_a_wide_beam_with_words_finds_the_best_weighted_text(frames: np.ndarray, weight: float, bonus: float) -> None:
    def worth(text: str) -> float:
        words = tuple(text.split())
        scores = [MadeUpWords.score(words[: i + 1]) for i in range(len(words))] + [MadeUpWords.score((*words, "."))]
        return weight * sum(scores) + bonus * len(words)

    texts = {text: value + worth(text) for text, value in all_texts(frames).items()}
    options, scorer = WordOptions(weight=weight, bonus=bonus), MadeUpWords()
    found = in_step({0: Search(ALPHABET, EXHAUSTIVE, options, scorer).run(frames)}, scorer)[0]
    assert texts[found] == pytest.approx(max(texts.values()), abs=1e-9)


def test_a_narrow_beam_is_not_exact_but_close_to_the_best_path() -> None:
    rng = np.random.default_rng(0)
    said = [2, 2, 0, 3, 0, 1, 0, 2, 0, 2, 3, 3]
    shares = rng.dirichlet(np.full(len(ALPHABET), 0.05), len(said)) * 0.2
    shares[np.arange(len(said)), said] += 0.8
    assert beam_text(np.log(shares + 1e-9), ALPHABET) == greedy_text(np.log(shares + 1e-9), ALPHABET) == "ab aab"


def words_of_pieces() -> Words:
    """A small tokenizer of GPT-2's kind, by which some words are several tokens."""
    pipeline = Tokenizer(models.BPE({piece: number for number, piece in enumerate(PIECES)}, MERGES))
    pipeline.pre_tokenizer, pipeline.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return Words(PreTrainedTokenizerFast(tokenizer_object=pipeline, eos_token="</s>", unk_token="<unk>"))


@cache
def small_llm(kind: str) -> FrozenLLM:
    torch.manual_seed(4)
    model = KINDS[kind]().eval().requires_grad_(False)
    for weight in model.parameters():
        weight.data.mul_(1 + 4 * (weight.ndim > 1))  # sharp enough to differ
    return FrozenLLM(model, words_of_pieces(), Prompt([], []), "made up")


@torch.no_grad()
def plain(llm: FrozenLLM, ids: Sequence[int]) -> np.ndarray:
    """log p of each next token after each of some tokens, `[N, V]`."""
    return llm.model(input_ids=torch.tensor([list(ids)])).logits[0].float().log_softmax(-1).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_every_path_of_a_forest_is_what_the_model_says_of_it_alone(kind: str) -> None:
    llm, prompt, random = small_llm(kind), [3, 1, 4, 1, 5], np.random.default_rng(2)
    forest = Forest(llm, prompt, at_once=5, dtype=torch.float32)
    for _ in range(2):  # what was there before it was cleared changes nothing
        paths: dict[int, list[int]] = {ROOT: []}
        for _ in range(6):
            for node in random.choice(list(paths), 4).tolist():
                token = int(random.integers(12))
                paths[forest.child(node, token)] = [*paths[node], token]
            forest.evaluate(random.choice(list(paths), 6).tolist())
        forest.evaluate(paths)
        for node, path in paths.items():
            np.testing.assert_allclose(forest.log_probs(node), plain(llm, [*prompt, *path])[-1], atol=1e-4)
        assert len(forest) == len(paths) > 15
        forest.clear()
        assert (len(forest), forest._cache.get_seq_length()) == (1, len(prompt))


def test_models_that_cannot_be_asked_so_and_long_texts_are_refused() -> None:
    bloom = BloomForCausalLM(BloomConfig(vocab_size=12, hidden_size=32, n_layer=1, n_head=2)).eval()
    with pytest.raises(TrainingError, match=r"BloomForCausalLM cannot score .* smollm2-135m"):
        Forest(FrozenLLM(bloom, words_of_pieces(), Prompt([], []), "made up"), [1])
    with pytest.raises(TrainingError, match=r"prompt has 64 tokens, .* sees 64: give it fewer lines"):
        Forest(small_llm("llama"), [1] * 64)
    forest = Forest(small_llm("llama"), [1] * 63)
    forest.evaluate([first := forest.child(ROOT, 2)])
    with pytest.raises(TrainingError, match=r"prompt and text have 65 tokens"):
        forest.evaluate([forest.child(first, 2)])


def test_words_have_the_log_probabilities_of_their_tokens_in_the_whole_text() -> None:
    llm = small_llm("llama")
    scorer: WordScorer = LLMWords(llm, ["ab ba", "b aab"])
    state, text, total = scorer.start, "\n ab ba\n b aab\n", 0.0
    for word in ("ab", "b", "aab"):
        scorer.read([Query(state, word)])
        score, state = scorer.follow(state, word)
        text, total = f"{text} {word}", total + score
    ids = llm.words.encode(text)
    shares, behind = plain(llm, ids), [PIECES.index(piece) for piece in ("Ġab", "Ġb", "Ġa", "a", "b")]
    assert ids[-5:] == behind
    assert total == pytest.approx(sum(shares[i - 1, ids[i]] for i in range(len(ids) - 5, len(ids))), abs=2e-2)
    assert not scorer.is_read(Query(state))
    scorer.read([Query(state)])
    assert scorer.end(state) == pytest.approx(shares[-1, PIECES.index("Ċ")], abs=1e-2)
    assert scorer.guess(state, "aab") == pytest.approx(shares[-1, PIECES.index("Ġa")] - 2 * llm_words.PIECE, abs=1e-2)
    beginnings = [PIECES.index(piece) for piece in ("Ġa", "Ġab")]
    assert scorer.ahead(state, "a") == pytest.approx(shares[-1, beginnings].max(), abs=1e-2)
    assert scorer.ahead(state, "abb") == pytest.approx(shares[-1, PIECES.index("Ġab")] - 2 * llm_words.LETTER, abs=1e-2)


def made_up_posteriors(count: int) -> Posteriors:
    rng = np.random.default_rng(7)
    frames = {
        f"u{i}": np.log(rng.dirichlet(np.full(4, 0.3), 6 + 3 * i) + 1e-6).astype(np.float32) for i in range(count)
    }
    return Posteriors(ALPHABET, frames)


def test_utterances_in_step_have_the_texts_that_they_have_alone() -> None:
    found, llm = made_up_posteriors(5), small_llm("llama")
    together = decode(found, llm, Fusion(prompt=("ab ba",), group=3))
    assert list(together) == list(found.frames)
    for name in found.frames:
        assert decode(found.of([name]), llm, Fusion(prompt=("ab ba",))) == {name: together[name]}
    assert together != {name: beam_text(frames, ALPHABET) for name, frames in found.frames.items()}


def test_what_is_read_for_one_utterance_changes_no_other() -> None:
    rng, llm = np.random.default_rng(1), small_llm("llama")
    rows = np.log(rng.dirichlet(np.full(4, 0.6), (8, 30)) + 1e-6).astype(
        np.float32
    )  # all begin with the same few words
    found, options = Posteriors(ALPHABET, {f"u{i}": frames for i, frames in enumerate(rows)}), Fusion(weight=0.5)
    together = decode(found, llm, options)
    assert together == {name: decode(found.of([name]), llm, options)[name] for name in found.frames}


def test_tuning_takes_the_best_of_the_grid() -> None:
    found, llm = made_up_posteriors(4), small_llm("llama")
    wanted = Fusion(weight=0.2, word_bonus=1.0)
    texts = decode(found, llm, wanted)
    best, trials = tune(found, texts, llm, grid=[(2.0, -4.0), (0.2, 1.0), (0.0, 9.0)])
    assert best == wanted
    assert [trial.wer for trial in trials][1] == 0 < min(trials[0].wer, trials[2].wer)
    with pytest.raises(EvaluationError, match="nothing to try"):
        tune(found, texts, llm, grid=[])
    with pytest.raises(EvaluationError, match="give utterances that have texts"):
        tune(found, dict.fromkeys(texts, ""), llm)


def test_prompt_lines_are_of_middle_length_and_from_everywhere() -> None:
    texts = ["x" * (1 + 7 * i % 41) for i in range(40)]
    lines = prompt_lines(texts, 10)
    assert len(lines) == 10
    assert all(10 <= len(line) <= 31 for line in lines)
    assert prompt_lines(["one", "two"]) == ("one", "two")
    assert all(len(prompt_lines(texts[:count], 10)) == 10 for count in range(10, 25))
    assert prompt_lines([]) == ()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FeatureStore]:
    """A store of one-hot letters, and a small CTC model on it, not trained to the end."""
    folder = tmp_path_factory.mktemp("trained")
    letters, rng = "ab c", np.random.default_rng(1)
    said = {
        f"u-{i:02d}": "a" + "".join(letters[c] for c in rng.integers(1, 4, 3 + i % 5).cumsum() % 4) + "b"
        for i in range(24)
    }
    frames = {
        name: np.repeat(np.eye(4, dtype=np.float32)[[letters.index(c) for c in text]], 3, axis=0)
        for name, text in said.items()
    }
    utterances = [NewUtterance(name, len(frames[name]), text=" ".join(text.split())) for name, text in said.items()]
    writer = FeatureWriter(
        folder / "store", "toy", "train", [Output("letters", 4, "float16", "one-hot")], {}, 16_000, 320
    )
    assert not writer.write(utterances, lambda name: {"letters": frames[name]}).failed
    options = [
        "adapter={name: concat-mlp, concat: 1, hidden: 16}",
        "objectives={ctc: {}}",
        f"output_dir={folder / 'run'}",
    ]
    options += [
        f"data.store={folder / 'store'}",
        "training.max_steps=12",
        "training.device=cpu",
        "training.learning_rate=0.03",
    ]
    (folder / "config.yaml").write_text("training: {threads: 1, best: loss}\n")
    done = run(train_adapter, [str(folder / "config.yaml"), *options])
    assert done.status == 0, done.err
    return folder / "run", FeatureStore(folder / "store", split="train")  # fmt: skip


def test_posteriors_of_a_checkpoint_spell_what_its_model_transcribes(trained: tuple[Path, FeatureStore]) -> None:
    folder, store = trained
    found = compute_posteriors(folder, store)
    assert sorted(found.frames) == sorted(store.ids)
    assert [*found.alphabet] == ["", "", "", "", "", " ", "a", "b", "c"]
    model = open_model(load_checkpoint(folder), store)
    written = set()
    for name, frames in found.frames.items():
        features = torch.tensor(store[name].features).float()[None]
        text = model.transcribe([features], torch.tensor([features.shape[1]]))[0]
        assert greedy_text(frames, found.alphabet) == " ".join(text.split())
        assert frames.shape == (features.shape[1], len(found.alphabet))
        np.testing.assert_allclose(np.exp(frames).sum(1), 1, rtol=1e-5)
        written.add(text)
    assert len(written) > 5
    assert set(compute_posteriors(folder, store, "id in ('u-03', 'u-07')").frames) == {"u-03", "u-07"}


def test_a_checkpoint_of_other_features_is_refused(trained: tuple[Path, FeatureStore], tmp_path: Path) -> None:
    folder, store = shutil.copytree(load_checkpoint(trained[0]).folder, tmp_path / "run"), trained[1]
    file = folder / "fingerprints.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "features": "other"}))
    with pytest.raises(TrainingError, match=rf"trained on something else.*features {store.fingerprint} against other"):
        compute_posteriors(folder, store)


def test_bootstrap_intervals_hold_what_is_known_of_them() -> None:
    random = np.random.default_rng(0)
    units = np.full(400, 20)
    edits = random.binomial(20, 0.3, 400)
    rate, error = edits.sum() / units.sum(), 1.96 * (0.3 * 0.7 / 8000) ** 0.5
    low, high = bootstrap_interval(edits.tolist(), units.tolist())
    assert low == pytest.approx(rate - error, abs=error / 5)
    assert high == pytest.approx(rate + error, abs=error / 5)
    assert bootstrap_interval([1, 2] * 5, [10, 20] * 5) == (pytest.approx(0.1), pytest.approx(0.1))
    with pytest.raises(EvaluationError, match="no interval from 0 counts"):
        bootstrap_interval([], [])


def test_adding_logarithms_is_exact_at_the_ends() -> None:
    assert log_add(-inf, -inf) == -inf
    assert log_add(-inf, -3.0) == log_add(-3.0, -inf) == -3.0
    assert log_add(log(0.25), log(0.5)) == pytest.approx(log(0.75))
