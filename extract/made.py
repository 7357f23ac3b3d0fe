"""With what features are made: the versions of libraries, the processor."""

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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


def told_together(made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """With what several shards were made; where they differ, as those of unlike machines do, the value of each kind in a list."""
    found = {name: [one.get(name) for one in made] for each in made for name in each}
    return {
        name: values if any(value != values[0] for value in values) else values[0] for name, values in found.items()
    }


def gpu(device: str) -> dict[str, str | int | None]:
    """A CUDA device's model, and the versions of what computes on it."""
    import torch

    return {
        "gpu": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def processor() -> str:
    """The processor's model, as Linux names it; else what Python knows of it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
