"""Whisper in CTranslate2's format, run by faster-whisper."""

import re
import struct
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.recognisers.base import BEAMS, WINDOW_SECONDS, Recogniser, check_language, first_line
from encodeonce.store.extras import extra

if TYPE_CHECKING:
    from faster_whisper import WhisperModel


class Ctranslate2Whisper(Recogniser):
    """A Whisper that ct2-transformers-converter made, or one of those that faster-whisper publishes."""

    sample_rate = 16000

    def __init__(self, folder: Path, name: str, device: str, language: str) -> None:
        kind = _ctranslate2_kind(folder / "model.bin")
        if kind != "WhisperSpec":
            raise EvaluationError(
                f"{folder} holds a model.bin of {kind or 'no CTranslate2 model'}, and WhisperSpec is needed; "
                f"convert a Whisper with ct2-transformers-converter"
            )
        for file in ("config.json", "tokenizer.json"):
            if not (folder / file).is_file():
                raise EvaluationError(
                    f"{folder} lacks {file}; copy the whole model (model.bin, config.json, tokenizer.json)"
                )
        self.name, self._language = name, language
        self._model = self._load(folder, device)
        check_language(name, language, self._model.supported_languages)
        self.signature = f"{name}|beam:{BEAMS}|float32|faster-whisper:{version('faster-whisper')}"

    @staticmethod
    def _load(folder: Path, device: str) -> "WhisperModel":
        with extra("evaluate"):
            from faster_whisper import WhisperModel
        import torch

        kind, _, number = device.partition(":")
        try:
            return WhisperModel(
                str(folder),
                device=kind,
                device_index=int(number or 0),
                compute_type="float32",
                cpu_threads=torch.get_num_threads(),
                local_files_only=True,
            )
        except Exception as error:  # CTranslate2 raises RuntimeError, the tokenizer's library a bare Exception
            raise EvaluationError(f"{folder} cannot be loaded by faster-whisper: {first_line(error)}") from error

    def recognise(self, samples: np.ndarray) -> str:
        segments, _ = self._model.transcribe(
            samples,
            language=self._language,
            beam_size=BEAMS,
            temperature=0.0,
            compression_ratio_threshold=None,
            log_prob_threshold=None,
            no_speech_threshold=None,
            condition_on_previous_text=False,
            without_timestamps=len(samples) <= WINDOW_SECONDS * self.sample_rate,
        )
        return "".join(segment.text for segment in segments)


def _ctranslate2_kind(path: Path) -> str | None:
    """What a CTranslate2 file says it holds: after its version, the length and the zero-ended name of its specification."""
    with open(path, "rb") as file:
        head = file.read(6)
        if len(head) < 6:
            return None
        name = file.read(struct.unpack("<IH", head)[1])[:-1]
    return name.decode() if re.fullmatch(rb"[A-Za-z0-9]{3,64}", name) else None
