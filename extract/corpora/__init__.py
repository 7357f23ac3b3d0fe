"""Speech corpora as they lie on disk, listed as utterances: `list_corpus(data, split)`."""

from .base import CorpusError, Listing, Problem, Scalar, Utterance
from .commonvoice import list_commonvoice
from .download import LIBRISPEECH_SPLITS, download_librispeech
from .find import LAYOUTS, check_split_name, list_corpus
from .folder import list_folder
from .kaldi import list_kaldi
from .lhotse import list_lhotse
from .librispeech import list_librispeech
from .manifest import list_manifest
from .mustc import list_mustc

__all__ = [
    "LAYOUTS",
    "LIBRISPEECH_SPLITS",
    "CorpusError",
    "Listing",
    "Problem",
    "Scalar",
    "Utterance",
    "check_split_name",
    "download_librispeech",
    "list_commonvoice",
    "list_corpus",
    "list_folder",
    "list_kaldi",
    "list_lhotse",
    "list_librispeech",
    "list_manifest",
    "list_mustc",
]
