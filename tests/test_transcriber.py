"""Writing from features: against transformers' own generation, against searches without a cache, alone against in a batch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encodeonce.evaluate.decoding.ctc_beam import BeamOptions, beam_text
from encodeonce.evaluate.decoding.fusion import Fusion, decode
from encodeonce.evaluate.decoding.next_token import LLMTokens, QFormerTokens
from encodeonce.evaluate.decoding.options import DecodeOptions, choose_writer
from encodeonce.evaluate.decoding.posteriors import Posteriors, alphabet_of
from encodeonce.evaluate.decoding.token_search import Drawn, Found, write_by_beams, write_one_by_one
from encodeonce.evaluate.decoding.transcriber import Transcriber, Written
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.store.layout import Output
from encodeonce.train.adapters.base import Adapted
from encodeonce.train.checks import check_config
from encodeonce.train.config import TrainConfig
from encodeonce.train.configure import parse_config
from encodeonce.train.llm.config import LLMConfig
from encodeonce.train.llm.frozen import FrozenLLM
from encodeonce.train.llm.load import load_llm
from encodeonce.train.model import AdapterModel, build_model
from encodeonce.train.objectives.base import Tokens
from encodeonce.train.objectives.ctc import CTC
from encodeonce.train.qformer import QFormer, Queries
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

TEXTS = ["open the door", "close a red door", "the cat sat on the mat", "no"]
LENGTHS, SECONDS = torch.tensor([23, 31, 40, 12]), [0.46, 0.62, 0.8, 0.24]
PIECES = ["<unk>", "</s>", "Ġ", "Ċ", *"abcdehmnoprst", "Ġt", "Ġth", "Ġthe", "Ġc", "Ġd", "Ġa", "Ġr"]
MERGES = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("Ġ", "c"), ("Ġ", "d"), ("Ġ", "a"), ("Ġ", "r")]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": len(PIECES),
}
KINDS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=96)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, max_position_embeddings=96)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, max_position_embeddings=96, sliding_window=8)
    ),
}
QFORMER = {"name": "qformer", "hidden": 16, "layers": 3, "heads": 2, "queries": 4}
PARTS: dict[str, dict[str, Any]] = {
    "llm": {"adapter": {"name": "concat-mlp", "concat": 2, "hidden": 16}, "objectives": {"llm": {}, "ctc": {}}, "llm": "LLM"},
    "stg": {"adapter": QFORMER, "objectives": {"stg": {}}},
    "stg windows": {
        "adapter": {"name": "window-qformer", "window_frames": 5, "hidden": 16, "layers": 2, "heads": 2},
        "objectives": {"stg": {}, "ctc": {}},
        "text": {"tokenizer": "characters", "max_tokens": 60},
    },
    "ctc": {"adapter": {"name": "bilstm", "hidden": 8}, "objectives": {"ctc": {}}},
}  # fmt: skip
WAYS = {
    "greedy": DecodeOptions(),
    "unrepeated": DecodeOptions(no_repeat_ngram=2),
    "beam": DecodeOptions(method="beam", beams=3, length_penalty=0.6),
    "sample": DecodeOptions(method="sample", temperature=0.8, top_p=0.9, seed=3),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random language models, by kind."""
    base = tmp_path_factory.mktemp("llms")
    torch.manual_seed(8)
    for kind in KINDS:
        save_llm(kind, base / kind)
    return base


def save_llm(kind: str, folder: Path) -> None:
    """Have transformers save a random language model whose logits are sharp enough to differ."""
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(PIECES)}, MERGES, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    model = KINDS[kind]()
    for weight in model.parameters():
        weight.data.mul_(1 + 4 * (weight.ndim > 1))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def llm_of(folder: Path, **options: Any) -> FrozenLLM:
    return load_llm(LLMConfig(model=str(folder), dtype="float32", prompt="the {speech} to", **options))


def some_speech(width: int, lengths: Sequence[int] = (5, 1, 8, 3)) -> Adapted:
    generator = torch.Generator().manual_seed(0)
    embeddings = 0.5 * torch.randn(len(lengths), max(lengths) + 2, width, generator=generator)
    embeddings[torch.arange(embeddings.shape[1]) >= torch.tensor(lengths)[:, None]] = float("nan")
    return Adapted(embeddings, torch.tensor(lengths))


def alone(adapted: Adapted, row: int) -> Adapted:
    return Adapted(adapted.embeddings[row : row + 1, : adapted.lengths[row]], adapted.lengths[row : row + 1])


def config_of(kind: str, folders: Path) -> TrainConfig:
    training = {"max_steps": 1, "device": "cpu", "best": "loss"}
    values = {"output_dir": "nowhere", "training": training, "text": {"tokenizer": "words"}, **PARTS[kind]}
    if "llm" in values:
        values["llm"] = {"model": str(folders / "llama"), "dtype": "float32", "max_tokens": 20}
    config = parse_config(json.loads(json.dumps(values)))
    check_config(config)
    return config


def make(kind: str, folders: Path) -> AdapterModel:
    torch.manual_seed(5)
    model = build_model(config_of(kind, folders), [Output("layer-9", 10, "float16", "made up")], TEXTS).eval()
    for name, weight in model.named_parameters():  # sharper than what is drawn, or all utterances are the same
        if weight.ndim > 1 and not name.startswith("llm."):
            weight.data.mul_(2.5)
    return model


def spoken() -> Tensor:
    return torch.randn(len(TEXTS), int(LENGTHS.max()), 10, generator=torch.Generator().manual_seed(1))


def generated(llm: FrozenLLM, speech: Adapted, budgets: Sequence[int], **options: Any) -> list[list[int]]:
    """What transformers writes of each utterance, one at a time, without the end token."""
    found = []
    for row, budget in enumerate(budgets):
        prompt, mask = llm.ask(alone(speech, row))
        ids = llm.model.generate(
            inputs_embeds=prompt, attention_mask=mask.long(), max_new_tokens=budget, **options
        )[0].tolist()  # fmt: skip
        found.append(ids[: ids.index(llm.words.end)] if llm.words.end in ids else ids)
    return found


def often_written(llm: FrozenLLM, speech: Adapted) -> int:
    """A token of its texts, not a first one."""
    texts = [one.tokens[3:] for one in write_one_by_one(LLMTokens(llm, speech), [30] * 4)]
    return max(range(len(PIECES)), key=lambda token: sum(token in text for text in texts))


def end_with(llm: FrozenLLM, end: int) -> None:
    """Have a token end texts, for random models hardly write their own."""
    llm.words.end = llm.model.generation_config.eos_token_id = llm.model.generation_config.pad_token_id = end


@pytest.mark.filterwarnings("ignore:Passing `no_repeat_ngram_size` with `inputs_embeds`")
@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_writes_what_transformers_generates_one_by_one(kind: str, folders: Path) -> None:
    llm, budgets = llm_of(folders / kind), [7, 14, 3, 10]
    speech, ended = some_speech(llm.width), []
    with torch.inference_mode():
        for end in (llm.words.end, often_written(llm, speech)):
            end_with(llm, end)
            greedy = write_one_by_one(LLMTokens(llm, speech), budgets)
            assert [[*one.tokens] for one in greedy] == generated(llm, speech, budgets, num_beams=1)
            unrepeated = write_one_by_one(LLMTokens(llm, speech), budgets, no_repeat_ngram=2)
            wanted = generated(llm, speech, budgets, num_beams=1, no_repeat_ngram_size=2)
            assert [[*one.tokens] for one in unrepeated] == wanted
            ended += [greedy != unrepeated, *(one.ended for one in greedy)]
            for beams, penalty in ((2, 1.0), (3, 0.0), (4, 1.5)):
                found = write_by_beams(LLMTokens(llm, speech), budgets, beams, penalty)
                wanted = generated(llm, speech, budgets, num_beams=beams, length_penalty=penalty)
                assert [[*one.tokens] for one in found] == wanted
                ended += [one.ended for one in found]
    assert set(ended) == {True, False}


def test_scores_are_log_probabilities_of_the_tokens_and_the_end(folders: Path) -> None:
    llm = llm_of(folders / "llama")
    speech = some_speech(llm.width)
    with torch.inference_mode():
        end_with(llm, often_written(llm, speech))
        ways = [write_one_by_one(LLMTokens(llm, speech), [40] * 4), write_by_beams(LLMTokens(llm, speech), [40] * 4, 3)]
        ended = [(row, one) for found in ways for row, one in enumerate(found) if one.ended]
        assert len(ended) > 3
        assert any(len(one.tokens) > 2 for _, one in ended)
        for row, one in ended:
            loss = llm.loss(alone(speech, row), Tokens.of([one.tokens]))
            assert one.score == pytest.approx(-float(loss), rel=1e-4)


class Uncached:
    """A Q-Former's next tokens, all that stands before computed again each time."""

    def __init__(self, adapter: QFormer, queries: Queries, start: int, end: int) -> None:
        self.adapter, self.queries, self.end = adapter, queries, end
        self.texts = torch.full((len(queries.lengths), 1), start)
        self.utterances = torch.arange(len(queries.lengths))

    def begin(self) -> Tensor:
        rows = self.utterances
        queries = replace(
            self.queries,
            embeddings=self.queries.embeddings[rows],
            lengths=self.queries.lengths[rows],
            keys=tuple((key[rows], value[rows]) for key, value in self.queries.keys),
        )
        hidden, _ = self.adapter.write(self.texts, queries)
        return self.adapter.logits(hidden)[:, -1]

    def go_on(self, rows: Tensor, tokens: Tensor) -> Tensor:
        self.texts, self.utterances = torch.cat((self.texts[rows], tokens[:, None]), 1), self.utterances[rows]
        return self.begin()


def naive_beam(model: Uncached, row: int, budget: int, width: int) -> tuple[int, ...]:
    """The best text of one utterance by log p over tokens, all kept ones asked one by one."""
    kept: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    done: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, budget + 1):
        ways = []
        for score, text in kept:
            model.texts = torch.tensor([[int(model.texts[0, 0]), *text]])
            model.utterances = torch.tensor([row])
            gains = model.begin()[0].log_softmax(0).tolist()
            ways += [(score + gain, (*text, token)) for token, gain in enumerate(gains)]
        ways = sorted(ways, reverse=True)[: 2 * width]
        over = [way for way in ways if way[1][-1] == model.end or length == budget]
        done += [(score / length, text) for score, text in ways[:width] if (score, text) in over]
        done = sorted(done, reverse=True)[:width]
        kept = [way for way in ways if way not in over][:width]
        if not kept or (len(done) == width and kept[0][0] / length <= done[-1][0]):
            break
    best = done[0][1]
    return best[:-1] if best[-1] == model.end else best


@pytest.mark.parametrize("kind", ["stg", "stg windows"])
def test_a_qformer_with_its_cache_writes_what_it_writes_without(kind: str, folders: Path) -> None:
    model, budgets = make(kind, folders), [9, 14, 3, 20]
    text = model.vocabularies.text
    assert text is not None
    with torch.inference_mode():
        queries = model.hear([spoken()], LENGTHS).adapted
        assert isinstance(queries, Queries)
        assert isinstance(model.adapter, QFormer)

        def uncached() -> Uncached:
            return Uncached(model.adapter, queries, text.decode_start, text.end)

        def cached() -> QFormerTokens:
            return QFormerTokens(model.adapter, queries, text)

        def same(found: Sequence[Found], wanted: Sequence[Found]) -> None:
            assert [one.tokens for one in found] == [one.tokens for one in wanted]
            assert [one.score for one in found] == pytest.approx([one.score for one in wanted], rel=1e-4)

        greedy = write_one_by_one(cached(), budgets)
        same(greedy, write_one_by_one(uncached(), budgets))
        for width in (1, 3):
            found = write_by_beams(cached(), budgets, width)
            same(found, write_by_beams(uncached(), budgets, width))
            assert [one.tokens for one in found] == [
                naive_beam(uncached(), row, budget, width) for row, budget in enumerate(budgets)
            ]
        assert [one.tokens for one in write_by_beams(cached(), budgets, 1)] == [one.tokens for one in greedy]
    assert len({one.tokens for one in greedy}) > 1


def test_a_wide_beam_finds_the_likeliest_of_all_texts() -> None:
    generator = torch.Generator().manual_seed(4)
    tables = 2 * torch.randn(2, 4, 5, 5, generator=generator)  # [utterance, step, token before, token]

    class Table:
        end = 0

        def __init__(self) -> None:
            self.rows, self.step = [0, 1], 0

        def begin(self) -> Tensor:
            return torch.stack([tables[row, 0, 0] for row in self.rows])

        def go_on(self, rows: Tensor, tokens: Tensor) -> Tensor:
            self.rows, self.step = [self.rows[row] for row in rows.tolist()], self.step + 1
            return torch.stack([tables[row, self.step, t] for row, t in zip(self.rows, tokens.tolist(), strict=True)])

    def log_p(row: int, text: tuple[int, ...]) -> float:
        before = (0, *text)
        return sum(float(tables[row, i, before[i]].log_softmax(0)[token]) for i, token in enumerate(text))

    every = [
        (*text, *end)
        for length in range(5)
        for text in product(range(1, 5), repeat=length)
        for end in [()] * (length == 4) + [(0,)] * (length < 4)
    ]
    for row, one in enumerate(write_by_beams(Table(), [4, 4], 600, length_penalty=0.0)):
        best = max(every, key=lambda text: log_p(row, text))
        assert one.tokens == tuple(token for token in best if token)
        assert one.score == pytest.approx(log_p(row, best), abs=1e-4)
        assert one.ended == (best[-1] == 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", PARTS)
def test_an_utterance_is_written_the_same_alone_and_in_a_batch(kind: str, way: str, folders: Path) -> None:
    options = WAYS[way]
    if kind == "ctc":
        options = {"greedy": DecodeOptions(), "beam": DecodeOptions(method="beam", beams=3)}.get(way)
        if options is None:
            return
    transcriber, features, ids = Transcriber(make(kind, folders), options), spoken(), [f"u-{i}" for i in range(4)]
    together = transcriber.write([features], LENGTHS, SECONDS, ids)
    order = [2, 0, 3, 1]
    mixed = transcriber.write([features[order]], LENGTHS[order], [SECONDS[i] for i in order], [ids[i] for i in order])
    for row in range(4):
        own = features[row : row + 1, : LENGTHS[row]]
        (single,) = transcriber.write([own], LENGTHS[row : row + 1], SECONDS[row : row + 1], ids[row : row + 1])
        for other in (together[row], mixed[order.index(row)]):
            assert (other.text, other.tokens, other.ended) == (single.text, single.tokens, single.ended)
            assert single.score is None or other.score == pytest.approx(single.score, rel=1e-4)
    assert len({(one.text, one.score) for one in together}) > 1


@pytest.mark.parametrize("kind", PARTS)
def test_greedy_texts_are_those_of_the_training(kind: str, folders: Path) -> None:
    model = make(kind, folders)
    budgets = {"llm": DecodeOptions(base_tokens=19, tokens_per_second=1)}  # 20 tokens, as llm.max_tokens
    options = budgets.get(kind, DecodeOptions(base_tokens=999))
    written = Transcriber(model, options).write([spoken()], LENGTHS, SECONDS)
    assert [one.text for one in written] == model.transcribe([spoken()], LENGTHS)


def test_ctc_is_written_by_its_beam_search_and_with_a_language_model(folders: Path) -> None:
    model, llm = make("stg windows", folders), str(folders / "llama")
    alphabet, objective = alphabet_of(model), model.objectives["ctc"]
    assert isinstance(objective, CTC)
    with torch.inference_mode():
        logits, emissions = objective.logits(model.hear([spoken()], LENGTHS).adapted)
    shares = logits.log_softmax(2).numpy()
    frames = {str(i): row[:length] for i, (row, length) in enumerate(zip(shares, emissions.tolist(), strict=True))}

    def texts(**options: Any) -> list[str]:
        written = Transcriber(model, DecodeOptions(writer="ctc", method="beam", **options)).write(
            [spoken()], LENGTHS, SECONDS
        )
        assert all("".join(alphabet[c] for c in one.tokens) == one.text and one.ended for one in written)
        return [one.text for one in written]

    plain = [beam_text(row, alphabet, BeamOptions(width=5)) for row in frames.values()]
    assert texts(beams=5) == plain
    fusion = Fusion(weight=0.7, word_bonus=1.0, beam=BeamOptions(width=5), prompt=("the door",))
    wanted = decode(Posteriors(alphabet, frames), load_llm(LLMConfig(model=llm)), fusion)
    found = texts(beams=5, language_model=llm, language_model_weight=0.7, word_bonus=1.0, prompt=("the door",))
    assert found == list(wanted.values()) != plain


def test_what_is_drawn_follows_the_probabilities() -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 1.0, -4.0]).log_softmax(0)
    names = [f"utterance {i}" for i in range(4000)]
    for temperature, top_p in ((1.0, 1.0), (0.6, 1.0), (1.0, 0.8)):
        shares = (logits / temperature).softmax(0).numpy().astype(float)
        order = np.argsort(-shares)
        kept = order[: int((np.cumsum(shares[order]) < top_p).sum()) + 1] if top_p < 1 else order
        wanted = np.zeros(5)
        wanted[kept] = shares[kept] / shares[kept].sum()
        drawn = Drawn(0, names, 2, temperature, top_p)(logits.expand(len(names), -1), range(len(names)), 1)
        counts = np.bincount(drawn.numpy(), minlength=5) / len(names)
        assert np.abs(counts - wanted).max() < 4 * 0.5 / len(names) ** 0.5
        assert not counts[wanted == 0].any()


def test_sampling_depends_on_seed_and_id_alone(folders: Path) -> None:
    model = make("stg windows", folders)

    def texts(seed: int, ids: Sequence[str] | None) -> list[str]:
        transcriber = Transcriber(model, DecodeOptions(writer="stg", method="sample", seed=seed))
        return [one.text for one in transcriber.write([spoken()], LENGTHS, SECONDS, ids)]

    ids = ["a", "b", "c", "d"]
    assert texts(0, ids) == texts(0, ids) != texts(1, ids)
    assert texts(0, ids) != texts(0, ids[::-1])
    assert texts(0, None) == texts(0, ["0", "1", "2", "3"])
    nearly = DecodeOptions(writer="stg", method="sample", temperature=1e-4)
    greedy = Transcriber(model, DecodeOptions(writer="stg")).write([spoken()], LENGTHS, SECONDS)
    assert [one.text for one in Transcriber(model, nearly).write([spoken()], LENGTHS, SECONDS)] == [
        one.text for one in greedy
    ]


def test_the_budget_follows_the_audio_and_the_model(folders: Path) -> None:
    def lengths(kind: str, seconds: Sequence[float], **options: Any) -> list[tuple[int, bool]]:
        written = Transcriber(make(kind, folders), DecodeOptions(**options)).write([spoken()], LENGTHS, seconds)
        return [(len(one.tokens), one.ended) for one in written]

    for method in ("greedy", "beam", "sample"):
        for count, ended in lengths("llm", [0.0, 1.0, 1.5, 2.0], method=method, tokens_per_second=2, base_tokens=1):
            assert count <= 5
            assert ended or count in (1, 3, 4, 5)
    free = lengths("stg windows", [9.0] * 4)
    assert any(not ended and count == 60 for count, ended in free)  # no more than text.max_tokens
    within = lengths("stg windows", SECONDS)  # 36 characters a second
    assert [count for count, _ in within] == [
        min(count, 16 + int(np.ceil(36 * span))) for (count, _), span in zip(free, SECONDS, strict=True)
    ]


def test_speech_that_leaves_no_room_is_said_to_be_unfinished(folders: Path) -> None:
    model = make("llm", folders)
    assert model.llm is not None
    before = Transcriber(model).write([spoken()], LENGTHS, SECONDS)
    model.llm.limit = len(model.llm.prompt) + 17  # of 23, 31, 40 and 12 frames, two an embedding
    written = Transcriber(model).write([spoken()], LENGTHS, SECONDS)
    assert written[2] == Written("", (), None, False)
    assert written[3].tokens == before[3].tokens[: 17 - 6]
    assert written[1] == Written(written[1].text, before[1].tokens[:1], written[1].score, written[1].ended)


def test_a_model_without_keys_and_values_is_refused() -> None:
    mamba = MambaForCausalLM(MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=9, state_size=4))

    class Words:
        end = 1

    llm = type("LLM", (), {"words": Words, "model": mamba})
    with pytest.raises(EvaluationError, match="MambaForCausalLM keeps no keys and values"):
        LLMTokens(llm, Adapted(torch.zeros(1, 1, 8), torch.tensor([1])))  # pyrefly: ignore[bad-argument-type]


def test_too_little_memory_names_the_way_out(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("ctc", folders)

    def hear(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to")

    monkeypatch.setattr(model, "hear", hear)
    with pytest.raises(
        EvaluationError, match=r"4 utterances of up to 40 frames .* smaller frames_per_batch than 20,000"
    ):
        Transcriber(model).write([spoken()], LENGTHS, SECONDS)


REFUSED: dict[str, Mapping[str, Any]] = {
    "method='viterbi': take one of greedy, beam, sample": {"method": "viterbi"},
    "writer='stc': take one of llm, stg, ctc": {"writer": "stc"},
    "precision='half': take one of auto": {"precision": "half"},
    "beams=0: take a whole number": {"method": "beam", "beams": 0},
    "beams=2.5: take a whole number": {"method": "beam", "beams": 2.5},
    "temperature=0: take a number above 0": {"method": "sample", "temperature": 0},
    "top_p=1.5: take a share": {"method": "sample", "top_p": 1.5},
    "seed=-1: take a whole number": {"method": "sample", "seed": -1},
    "length_penalty=nan: take a number": {"method": "beam", "length_penalty": float("nan")},
    "tokens_per_second=-1: take a number above 0": {"tokens_per_second": -1},
    "frames_per_batch=0: take a whole number": {"frames_per_batch": 0},
    "beams=4 has no use with method=greedy: take beam": {"beams": 4},
    "temperature=0.5 has no use with method=greedy: take sample": {"temperature": 0.5},
    "top_p=0.9 has no use with method=beam: take sample": {"method": "beam", "top_p": 0.9},
    "seed=1 has no use with method=greedy: take sample": {"seed": 1},
    "length_penalty=2.0 has no use with method=sample: take beam": {"method": "sample", "length_penalty": 2.0},
    "language_model=x has no use with method=greedy: take beam": {"language_model": "x"},
    "language_model_weight=0.5 belongs to a language model": {"language_model_weight": 0.5},
    "word_bonus=2.0 belongs to a language model": {"word_bonus": 2.0},
    "belongs to a language model": {"prompt": ("a line",)},
    "language_model=x scores the words of ctc, not of llm": {"language_model": "x", "method": "beam", "writer": "llm"},
    "method=sample has no use with ctc": {"writer": "ctc", "method": "sample"},
    "length_penalty=1.0 has no use with ctc": {"writer": "ctc", "method": "beam", "length_penalty": 1.0},
    "no_repeat_ngram=3 has no use with ctc": {"writer": "ctc", "no_repeat_ngram": 3},
    "tokens_per_second=9 has no use with ctc": {"writer": "ctc", "tokens_per_second": 9},
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_contradict_each_other_are_refused(message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        DecodeOptions(**REFUSED[message])


def test_options_that_do_not_fit_the_training_are_refused(folders: Path) -> None:
    llm, ctc = config_of("llm", folders), config_of("ctc", folders)
    assert choose_writer(DecodeOptions(), llm) == "llm"
    assert choose_writer(DecodeOptions(writer="ctc"), llm) == "ctc"
    ended = replace(llm, objectives=replace(llm.objectives, llm=replace(llm.objectives.llm, weight=0.0)))  # pyrefly: ignore
    assert choose_writer(DecodeOptions(), ended) == "ctc"
    assert choose_writer(DecodeOptions(writer="llm"), ended) == "llm"
    assert choose_writer(DecodeOptions(method="beam", language_model="x"), ctc) == "ctc"
    for options, config, message in (
        (DecodeOptions(writer="stg"), llm, "writer=stg: this checkpoint was trained for llm, ctc; take one of these"),
        (DecodeOptions(method="sample"), ctc, "method=sample has no use with ctc"),
        (DecodeOptions(method="beam", language_model="x"), llm, "language_model=x scores the words of ctc, not of llm"),
    ):
        with pytest.raises(EvaluationError, match=message):
            choose_writer(options, config)
    ctc_of_words = replace(ctc, objectives=replace(ctc.objectives, ctc=replace(ctc.objectives.ctc, units="text")))  # pyrefly: ignore
    with pytest.raises(EvaluationError, match=r"the beam search is over characters.*units=text.*take method=greedy"):
        choose_writer(DecodeOptions(method="beam"), ctc_of_words)
    nothing = replace(ctc, objectives=replace(ctc.objectives, ctc=None))
    with pytest.raises(EvaluationError, match="writes no text: it was trained for none of llm, stg, ctc"):
        choose_writer(DecodeOptions(), nothing)
