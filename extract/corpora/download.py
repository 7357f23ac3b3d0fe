"""LibriSpeech from OpenSLR, by torchaudio's own download code, into place only when it is whole."""

import os
import shutil
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .base import CorpusError

# https://www.openslr.org/12
LIBRISPEECH_SPLITS = (
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
)
_SILENCE_SECONDS = 60.0


def download_librispeech(data: Path, split: str) -> None:
    """Put the split at DATA/LibriSpeech/SPLIT; nothing is done where it is there already.

    The archive is fetched, checked against its SHA-256 and unpacked in a folder beside, and moved into place at the
    end, so an interrupted download is never taken for a split. An archive DATA/SPLIT.tar.gz that is there is used.
    """
    if split not in LIBRISPEECH_SPLITS:
        raise CorpusError(f"LibriSpeech has no split {split!r}: expected one of {', '.join(LIBRISPEECH_SPLITS)}")
    data = Path(data)
    target = data / "LibriSpeech" / split
    if target.is_dir():
        return
    archive = data / f"{split}.tar.gz"
    by_hand = (
        f"fetch https://www.openslr.org/resources/12/{split}.tar.gz by hand and put it at {archive}, "
        f"or its unpacked folder at {target}"
    )
    try:
        from torchaudio.datasets import LIBRISPEECH
    except (ImportError, OSError) as error:
        raise CorpusError(f"--download needs torchaudio, which cannot be imported ({error}); {by_hand}") from error
    made_folder = not data.exists()
    try:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=data) as workplace, _patience(_SILENCE_SECONDS):
            if archive.is_file():
                os.symlink(archive.resolve(), Path(workplace, archive.name))
            LIBRISPEECH(workplace, split, download=True)
            _move_into_place(Path(workplace, "LibriSpeech"), data / "LibriSpeech", split)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise CorpusError(
            f"the archive of {split} is damaged ({error}): delete {archive} if it is there, then {by_hand}"
        ) from error
    except (OSError, RuntimeError) as error:
        raise CorpusError(f"could not download LibriSpeech {split} ({_reason(error)}): {by_hand}") from error
    finally:
        if made_folder and data.is_dir() and not any(data.iterdir()):
            data.rmdir()


def _move_into_place(unpacked: Path, library: Path, split: str) -> None:
    library.mkdir(exist_ok=True)
    for entry in sorted(unpacked.iterdir()):
        if entry.name != split and not (library / entry.name).exists():
            shutil.move(entry, library / entry.name)
    os.rename(unpacked / split, library / split)


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Without a limit a network that swallows packets would hold the download for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    """What lies beneath urllib's wrapping: "Name or service not known" and not "<urlopen error [Errno -2] ...>"."""
    inner = getattr(error, "reason", error)
    return " ".join(str(getattr(inner, "strerror", None) or inner or type(error).__name__).split())
