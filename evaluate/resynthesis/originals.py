"""The audio that a store was made of, read again from its corpus."""

from pathlib import Path

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.extract.audio import Decoded, decode
from encodeonce.extract.corpora import list_corpus
from encodeonce.store.reader import FeatureStore
from encodeonce.store.utterance import StoredUtterance


class Originals:
    """The split of a corpus that a store holds.

    Raises:
        CorpusError: there is no such split; the message says the way out.
    """

    def __init__(self, store: FeatureStore, data: Path, layout: str = "auto") -> None:
        listing = list_corpus(data, store.parts[0].attributes.split, layout)
        self._utterances = {utterance.id: utterance for utterance in listing.utterances}
        self._root, self._rate = listing.root, store.sample_rate

    def audio(self, utterance: StoredUtterance) -> Decoded:
        """The audio that was encoded, at its file's own rate.

        Raises:
            EvaluationError: the corpus does not have the utterance, or has other audio for it.
            AudioError: it cannot be decoded.
        """
        found = self._utterances.get(utterance.id)
        if found is None:
            raise EvaluationError(
                f"{self._root} has no utterance of this id; give the corpus that was encoded with --data"
            )
        decoded = decode(found)
        if decoded.sha256(self._rate) != utterance.record["audio_sha256"]:
            raise EvaluationError(
                f"{found.audio} is not the audio that was encoded; give the corpus that was with --data"
            )
        return decoded
