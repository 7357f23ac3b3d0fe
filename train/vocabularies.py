"""Vocabularies: that of a BERT, or one learnt from the training texts (characters, words, byte pairs)."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from encodeonce.train.errors import TrainingError
from encodeonce.train.tokenizer import Tokenizer
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Pipeline

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[DEC]", "[UNK]")
"""What a vocabulary of one's own begins with."""
PIPELINE_FILE = "tokenizer.json"
ABOUT_FILE = "vocabulary.json"
SPECS = "bert, characters, words, bpe:N such as bpe:1000, or a BERT folder"


class Vocabulary(Tokenizer):
    """A learnt vocabulary: a pipeline of the library tokenizers, whose tokenizer.json other programs read too."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.size = pipeline.get_vocab_size()
        self.pad, self.start, self.end, self.decode_start, self.unknown = (self._id(token) for token in SPECIAL)
        self.special = frozenset((self.pad, self.start, self.end, self.decode_start))

    def encode(self, text: str) -> list[int]:
        ids = self.pipeline.encode(text, add_special_tokens=False).ids
        return [
            self.unknown if number in self.special else number for number in ids
        ]  # a text may hold the letters [SEP]

    def decode(self, ids: Sequence[int]) -> str:
        return self.pipeline.decode(self._ordinary(ids), skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.pipeline.save(str(folder / PIPELINE_FILE))
        about = {"kind": "bert" if isinstance(self, BertVocabulary) else "learnt", "size": self.size}
        (folder / ABOUT_FILE).write_text(json.dumps(about) + "\n")

    def _ordinary(self, ids: Sequence[int]) -> list[int]:
        return [number for number in ids if number not in self.special and number != self.unknown]

    def _id(self, token: str) -> int:
        number = self.pipeline.token_to_id(token)
        if number is None:
            raise TrainingError(
                f"the vocabulary has no {token}: take that of a BERT in transformers' format, or characters, words, bpe:N"
            )
        return number


class BertVocabulary(Vocabulary):
    """The word pieces of a BERT, and [DEC] as one more, the last, as in BLIP-2.

    Args:
        size: rows of the BERT's word embeddings, and one; its vocabulary may be smaller, where the rows were rounded up.
    """

    def __init__(self, pipeline: Pipeline, size: int) -> None:
        self.pipeline = pipeline
        self.size, self.decode_start = size, size - 1
        self.pad, self.start, self.end, self.unknown = (
            self._id(token) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
        )
        self.special = frozenset((self.pad, self.start, self.end, self.decode_start))
        pipeline.no_truncation()
        pipeline.no_padding()

    @classmethod
    def of(cls, folder: Path) -> "BertVocabulary":
        """That of a BERT folder in transformers' format: tokenizer.json or vocab.txt, and config.json.

        Raises:
            TrainingError: one of them is missing, damaged, or does not fit the other.
        """
        rows = _read_json(folder / "config.json").get("vocab_size")
        pipeline = _read_pipeline(folder / PIPELINE_FILE) if (folder / PIPELINE_FILE).exists() else _word_pieces(folder)
        if not isinstance(rows, int) or rows < pipeline.get_vocab_size():
            raise TrainingError(
                f"{folder} is no whole BERT: config.json says vocab_size {rows}, its tokenizer has {pipeline.get_vocab_size()} tokens"
            )
        return cls(pipeline, rows + 1)

    def decode(self, ids: Sequence[int]) -> str:
        pieces = (self.pipeline.id_to_token(number) or "" for number in self._ordinary(ids))
        return _together(" ".join(pieces).replace(" ##", ""))


def make_tokenizer(spec: str, texts: Iterable[str], bert: Path | None = None) -> Tokenizer:
    """The tokenizer of a configuration.

    Args:
        spec: bert (that of `bert`), characters, words, bpe:N (N tokens, special ones included), or a BERT folder.
        texts: what characters, words and byte pairs are learnt from.
        bert: the folder of the Q-Former's BERT, where it has one.

    Raises:
        TrainingError: `spec` is none of these, or nothing can be learnt from `texts`.
    """
    if spec == "bert":
        if bert is None:
            raise TrainingError(
                "text.tokenizer bert needs an adapter with a BERT; this one has none: give characters, words or bpe:N"
            )
        return BertVocabulary.of(bert)
    if spec == "characters":
        return _enumerated(
            sorted(set().union(*texts)), pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
        )
    if spec == "words":
        counts = Counter(word for text in texts for word in text.split())
        return _enumerated(
            sorted(counts, key=lambda word: (-counts[word], word)), pre_tokenizers.WhitespaceSplit(), None
        )
    if found := re.fullmatch(r"bpe:([1-9]\d*)", spec):
        return _byte_pairs(int(found[1]), list(texts))
    if (Path(spec) / "config.json").exists():
        return BertVocabulary.of(Path(spec))
    raise TrainingError(f"text.tokenizer {spec!r} is none of {SPECS}")


def load_tokenizer(folder: Path) -> Tokenizer:
    """What `save` wrote.

    Raises:
        TrainingError: a file is missing or damaged.
    """
    about, pipeline = _read_json(folder / ABOUT_FILE), _read_pipeline(folder / PIPELINE_FILE)
    kind, size = about.get("kind"), about.get("size")
    if kind == "bert" and isinstance(size, int):
        return BertVocabulary(pipeline, size)
    if kind == "learnt" and size == pipeline.get_vocab_size():
        return Vocabulary(pipeline)
    raise TrainingError(
        f"{folder / ABOUT_FILE} does not fit {PIPELINE_FILE}: kind {kind!r}, size {size!r}; copy the tokenizer's folder again"
    )


def _enumerated(known: list[str], cut: Any, joined: Any) -> Vocabulary:
    """A vocabulary of known tokens, numbered in their order; a special one among them is left out."""
    tokens = dict.fromkeys((*SPECIAL, *known))
    if len(tokens) == len(SPECIAL):
        raise TrainingError("the training texts are empty: nothing to learn a vocabulary from")
    pipeline = Pipeline(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    pipeline.pre_tokenizer = cut
    if joined is not None:
        pipeline.decoder = joined
    return Vocabulary(pipeline)


def _byte_pairs(size: int, texts: list[str]) -> Vocabulary:
    """Byte-pair encoding (Sennrich et al. 2016) from all characters of the texts upwards; spaces are part of the tokens."""
    least = len(SPECIAL) + len(set().union(*texts) - {" "} | {"▁"})
    if size < least:
        raise TrainingError(
            f"text.tokenizer bpe:{size} is too small for the characters of the texts: bpe:{least} is the least"
        )
    pipeline = Pipeline(models.BPE(unk_token="[UNK]"))
    pipeline.pre_tokenizer = pre_tokenizers.Metaspace()
    pipeline.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    pipeline.train_from_iterator(texts, trainer)
    return Vocabulary(pipeline)


def _word_pieces(folder: Path) -> Pipeline:
    """A BERT's pipeline from its vocab.txt alone."""
    from transformers import BertTokenizer

    if not (folder / "vocab.txt").exists():
        raise TrainingError(
            f"{folder} has neither {PIPELINE_FILE} nor vocab.txt: give a BERT folder in transformers' format"
        )
    return BertTokenizer.from_pretrained(str(folder)).backend_tokenizer


def _read_pipeline(path: Path) -> Pipeline:
    if not path.exists():
        raise TrainingError(f"no tokenizer at {path}")
    try:
        return Pipeline.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise TrainingError(f"{path} is no tokenizer: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text())
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise TrainingError(f"{path} is no JSON: {error}") from None
    return read if isinstance(read, dict) else {}


def _together(text: str) -> str:
    """English punctuation back where BERT's pre-tokeniser cut it off: o ' clock, the boys ' hats, well - known, yes ."""
    text = re.sub(r"(?<=\w) ' (s|t|d|m|ll|re|ve)\b", r"'\1", text)
    text = re.sub(r"(?<=s) '(?= |$)", "'", text)
    text = re.sub(r"(?<=\w) ' (?=\w)", "'", text)
    text = re.sub(r"(?<=\w) - (?=\w)", "-", text)
    return re.sub(r" (?=[.,;:?!])", "", text)
