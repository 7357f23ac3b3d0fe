"""Texts made comparable before errors are counted, each way with the signature that a score made with it carries."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from unicodedata import category, normalize

from encodeonce.evaluate.english import PiecewiseNormaliser
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.store.extras import extra

CHINESE = {"zh", "cmn", "yue", "wuu", "nan", "hak", "lzh"}
UNSPACED = CHINESE | {"ja", "th", "lo", "my", "km", "bo", "dz"}
"""Languages written without spaces between words: errors are counted on letters (Whisper's paper, appendix C)."""


def is_code(language: str) -> bool:
    """Whether it looks as codes of languages do: `en`, `yue`."""
    return re.fullmatch(r"[a-z]{2,3}", language) is not None


def code_of(language: str) -> str:
    """The code of a language as data name it: `pt` of `pt-BR`, `cmn` of `cmn_hans_cn`, `en` of `English`.

    What is neither a code nor one of the English names that Whisper knows is given back in lower case.
    """
    name = language.strip().lower()
    code = name.replace("_", "-").partition("-")[0]
    if is_code(code):
        return code
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return TO_LANGUAGE_CODE.get(name, name)


def is_unspaced(language: str | None) -> bool:
    """Whether the language is written without spaces between words; an unknown one is taken to have them."""
    return language is not None and code_of(language) in UNSPACED


@dataclass(frozen=True, slots=True)
class Normaliser:
    """A function from text to comparable text, and the name and versions of what computes it.

    Attributes:
        caveat: what it leaves to be counted; None where the language has a normaliser of its own.
        splits_letters: whether every letter is a word.
    """

    signature: str
    apply: Callable[[str], str]
    caveat: str | None = None
    splits_letters: bool = False

    def __call__(self, text: str) -> str:
        return self.apply(text)


def _spaces_only(text: str) -> str:
    return " ".join(text.split())


RAW = Normaliser("raw", _spaces_only)
"""The text as it is: only runs of white space become one space, for words are what stands between them."""


def find_normaliser(language: str | None = "en") -> Normaliser:
    """The normaliser of a language, by its code (`en`, `de`, `pt-BR`).

    English has Whisper's: contractions, numbers, titles, British and American spellings (Radford et al. 2022, appendix C), by
    transformers' EnglishTextNormalizer with the spelling map of the package whisper-normalizer, which transformers lacks.
    Other languages, and None, an unknown one, have Whisper's basic one: lower case, no punctuation or symbols, nothing in brackets;
    `caveat` says so. But marks stay: Whisper's makes each vowel sign of Hindi, Arabic or Thai a space, which tears words apart
    and forgives wrong vowels.

    Raises:
        EvaluationError: no code of a language.
        StoreError: an optional library is missing; the message says how to install it.
    """
    if language is None:
        return _basic(None)
    code = re.fullmatch(r"([a-z]{2,3})([-_][A-Za-z0-9]+)*", language)
    if code is None:
        raise EvaluationError(f"{language!r} is no language code; give one such as en, de or pt-BR")
    return _english() if code[1] == "en" else _basic(code[1])


def _english() -> Normaliser:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    with extra("evaluate"):
        spellings = files("whisper_normalizer") / "normalizers" / "english.json"
    normalise = EnglishTextNormalizer(json.loads(spellings.read_text(encoding="utf-8")))
    signature = f"whisper-english|transformers:{version('transformers')}|spellings:{version('whisper-normalizer')}"
    return Normaliser(signature, PiecewiseNormaliser(normalise))


def _basic(language: str | None) -> Normaliser:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    split = is_unspaced(language)
    normalise = BasicTextNormalizer(split_letters=split)
    normalise.clean = _without_symbols
    name = "whisper-basic-letters" if split else "whisper-basic"
    return Normaliser(
        f"{name}+marks|transformers:{version('transformers')}",
        lambda text: _spaces_only(normalise(text)),
        "texts were compared in lower case without punctuation; numbers, contractions and spellings count as they are written",
        split,
    )


def _without_symbols(s: str) -> str:
    """Spaces for punctuation and symbols."""
    return "".join(" " if category(char)[0] in "PS" else char for char in normalize("NFKC", s))
