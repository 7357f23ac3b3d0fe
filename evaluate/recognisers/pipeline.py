"""Recognisers that transformers' pipeline loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.recognisers.base import BEAMS, WINDOW_SECONDS, Recogniser, check_language, first_line

if TYPE_CHECKING:
    from transformers import AutomaticSpeechRecognitionPipeline

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
"""The files that a tokenizer is made of, any one of them."""


class TransformersRecogniser(Recogniser):
    """Any model that transformers' pipeline for speech recognition loads: CTC, Whisper, and what else generates text."""

    def __init__(self, folder: Path, name: str, device: str, language: str) -> None:
        self.name = name
        with _quiet():
            self._pipeline = _load_pipeline(folder, name, device)
        extractor: Any = self._pipeline.feature_extractor
        self.sample_rate = int(extractor.sampling_rate)
        self._whisper = self._pipeline.type == "seq2seq_whisper"
        self._generates = self._pipeline.type in ("seq2seq", "seq2seq_whisper")
        self._options: dict[str, Any] = {"num_beams": BEAMS, "do_sample": False} if self._generates else {}
        if self._whisper:
            generation = self._pipeline.model.generation_config
            multilingual = getattr(generation, "is_multilingual", False)
            check_language(name, language, list(_whisper_languages(generation)) if multilingual else ["en"])
            if multilingual:
                self._options |= {"language": language, "task": "transcribe"}
        decoding = f"beam:{BEAMS}" if self._generates else "greedy"
        self.signature = f"{name}|{decoding}|float32|transformers:{version('transformers')}"

    def recognise(self, samples: np.ndarray) -> str:
        # The pipeline adds to what it is given, so each call gets its own.
        asked: dict[str, Any] = {"generate_kwargs": dict(self._options)} if self._options else {}
        if len(samples) > WINDOW_SECONDS * self.sample_rate:
            if self._whisper:
                asked["return_timestamps"] = True
            elif self._generates or hasattr(self._pipeline.model.config, "inputs_to_logits_ratio"):
                asked["chunk_length_s"] = WINDOW_SECONDS
        with _quiet():
            heard: Any = self._pipeline({"raw": samples, "sampling_rate": self.sample_rate}, **asked)
        return heard["text"]


def _whisper_languages(generation: Any) -> list[str]:
    return [token.strip("<|>") for token in getattr(generation, "lang_to_id", None) or {}]


def _load_pipeline(folder: Path, name: str, device: str) -> "AutomaticSpeechRecognitionPipeline":
    import torch
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoModelForCTC,
        AutoModelForSpeechSeq2Seq,
        AutoModelForTDT,
        AutoTokenizer,
        pipeline,
    )

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        classes = [
            kind
            for auto in (AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoModelForTDT)
            if (kind := auto._model_mapping.get(type(config), None)) is not None
        ]
    except Exception as error:  # transformers and huggingface_hub raise many kinds
        raise EvaluationError(f"{folder} is no recogniser in transformers' format: {first_line(error)}") from error
    if not classes:
        raise EvaluationError(
            f"{folder} is a checkpoint of {config.model_type!r}, which transformers' pipeline for speech recognition does not know; "
            f"give one such as openai/whisper-large-v3 or facebook/hubert-large-ls960-ft"
        )
    saved = config.architectures or []
    chosen = next((kind for kind in classes if kind.__name__ in saved), classes[0])
    try:
        model, loading = chosen.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        if loading["missing_keys"]:
            missing = sorted(loading["missing_keys"])
            raise ValueError(
                f"{len(missing)} tensors of {chosen.__name__} are not in it, {missing[0]} for one: it is part of a model, "
                f"or an encoder without a head for text"
            )
        if not has_vocabulary(folder):  # some tokenizers load without one, empty
            raise ValueError(f"its tokenizer is not there, one of {', '.join(VOCABULARIES)}; copy the whole checkpoint")
        return pipeline(
            "automatic-speech-recognition",
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
            feature_extractor=AutoFeatureExtractor.from_pretrained(folder, local_files_only=True),
            device=torch.device(device),
        )
    except Exception as error:
        raise EvaluationError(f"{name} cannot be loaded as a recogniser: {first_line(error)}") from error


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder in transformers' format holds a tokenizer's vocabulary."""
    return any(path.is_file() for pattern in VOCABULARIES for path in folder.glob(pattern))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' reports and bars from between the lines of a command; what matters of them is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
