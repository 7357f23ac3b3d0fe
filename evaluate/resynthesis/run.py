"""Every utterance of a store to audio and to text, one at a time, going on from what was heard before."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from encodeonce.evaluate.audio import PATH
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.recognisers.base import Recogniser, first_line
from encodeonce.evaluate.report.resynthesis import ORIGINAL_TEXT
from encodeonce.evaluate.resynthesis.decoding import Choice, decode
from encodeonce.evaluate.resynthesis.originals import Originals
from encodeonce.evaluate.resynthesis.transcripts import Heard, Transcripts
from encodeonce.extract.audio import AudioError
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.encoders.codec import LoadedCodec
from encodeonce.extract.encoders.weights import file_digest
from encodeonce.store.errors import StoreError
from encodeonce.store.files import DiskFullError, atomic_write
from encodeonce.store.identity import canonical_json, member_key
from encodeonce.store.progress import Advance, silent
from encodeonce.store.reader import FeatureStore
from encodeonce.store.utterance import StoredUtterance

FAILURES = (EncoderError, StoreError, EvaluationError, AudioError, RuntimeError)
"""What one utterance may fail of; RuntimeError is torch's, on a GPU whose memory is too small for one."""


@dataclass(frozen=True, slots=True)
class Resynthesis:
    """What became of the utterances.

    Attributes:
        samples: what was said and what was heard, in the order of the store. Their metadata has what was heard in the original audio,
            where that was asked for, and the file of the decoded audio, where it was kept.
        failed: reasons by id.
    """

    samples: list[Hypothesis]
    failed: dict[str, str]
    without_text: int


def texted(store: FeatureStore, limit: int | None = None) -> np.ndarray:
    """The positions of the utterances that have a text, or of the first so many of them."""
    return np.flatnonzero(store.columns(["text"])["text"].is_valid().to_numpy())[:limit]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resynthesiser:
    """What turns stored codes into text again.

    Attributes:
        originals: where the original audio is, to transcribe it too.
        audio_folder: where decoded audio is kept, as float WAV files by the utterances' member keys.
    """

    store: FeatureStore
    choice: Choice
    codec: LoadedCodec
    recogniser: Recogniser
    transcripts: Transcripts
    originals: Originals | None = None
    audio_folder: Path | None = None

    def run(
        self,
        limit: int | None = None,
        failed: Callable[[str, str], object] = lambda name, reason: None,
        advance: Advance = silent,
    ) -> Resynthesis:
        """Decode and transcribe the utterances that have a text.

        Args:
            limit: the first so many of them.
            failed: told of each utterance that fails, and why.
            advance: told of each utterance's length in whole seconds.
        """
        found = Resynthesis([], {}, len(self.store) - len(texted(self.store)))
        for number in texted(self.store, limit).tolist():
            utterance = self.store[number]
            try:
                found.samples.append(self.sample(utterance))
            except DiskFullError:
                raise
            except FAILURES as error:
                found.failed[utterance.id] = first_line(error)
                failed(utterance.id, first_line(error))
            advance(round(utterance.duration))
        return found

    def sample(self, utterance: StoredUtterance) -> Hypothesis:
        """One utterance, whatever of it was not heard before."""
        path = None
        if self.audio_folder is not None:
            path = self.audio_folder.absolute() / f"{member_key(utterance.id)}.wav"
        prediction, original = self._resynthesised(utterance, path), self._original(utterance)
        return Hypothesis(
            utterance.id,
            prediction,
            utterance.text,
            utterance.duration,
            utterance.speaker,
            utterance.language,
            metadata={
                **({PATH: str(path)} if path is not None else {}),
                **({ORIGINAL_TEXT: original} if original is not None else {}),
            },
        )

    def _resynthesised(self, utterance: StoredUtterance, path: Path | None) -> str:
        heard = Heard("resynthesised", utterance.id, utterance.record["audio_sha256"])
        text = self.transcripts.get(heard)
        if text is not None and (path is None or path.is_file()):
            return text
        audio = decode(self.codec, self.choice, utterance)
        if path is not None:
            write_audio(path, audio, self.codec.decoded_rate)
        return text if text is not None else self._transcribed(heard, audio, self.codec.decoded_rate)

    def _original(self, utterance: StoredUtterance) -> str | None:
        if self.originals is None:
            return None
        heard = Heard("original", utterance.id, utterance.record["audio_sha256"])
        if (text := self.transcripts.get(heard)) is not None:
            return text
        decoded = self.originals.audio(utterance)
        return self._transcribed(heard, decoded.samples, decoded.rate)

    def _transcribed(self, heard: Heard, audio: np.ndarray, rate: int) -> str:
        (text,) = self.recogniser.transcribe([audio], rate)
        self.transcripts.add(heard, text)
        return text


def write_audio(path: Path, audio: np.ndarray, rate: int) -> None:
    """Write `[samples]` float32 as a float WAV file, whole or not at all: the very samples that the recogniser hears."""
    import soundfile

    gathered = io.BytesIO()
    soundfile.write(gathered, audio, rate, subtype="FLOAT", format="WAV")
    with atomic_write(path) as file:
        file.write(gathered.getbuffer())


def request_of(
    store: FeatureStore, choice: Choice, recogniser: Recogniser, asr: str, language: str, cache: FileCache
) -> dict[str, Any]:
    """What the texts depend on, beside the audio of each utterance. The feature set's fingerprint says which codec it is."""
    return {
        "feature_set": store.fingerprint,
        "output": choice.output.to_json(),
        "quantizers": [choice.wanted.first, choice.wanted.last],
        "recogniser": recogniser.signature,
        "recogniser_files": folder_digest(Path(asr), cache),
        "language": language,
    }


def folder_digest(folder: Path, cache: FileCache) -> str | None:
    """sha256 over the names and contents of the files of a folder, so that another model of the same name is told apart;
    None where there is no such folder, but a hub id."""
    if not folder.is_dir():
        return None
    digests = {path.name: file_digest(path, cache) for path in folder.iterdir() if path.is_file()}
    return hashlib.sha256(canonical_json(digests)).hexdigest()
