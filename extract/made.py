"""With what features are made: the versions of libraries, the processor."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    "encodeonce",
    "numpy",
    "soundfile",
    "torch",
    "torchaudio",
    "transformers",
    "onnxruntime",
    "speechtokenizer",
)


def versions() -> dict[str, str]:
    """The versions of the libraries that take part."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def processor() -> str:
    """The processor's model, as Linux names it; else what Python knows of it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
