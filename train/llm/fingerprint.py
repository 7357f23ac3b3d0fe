"""The fingerprint of a language model's files: tells another model, without reading gigabytes."""

import hashlib
import json
from pathlib import Path

from encodeonce.train.pretrained import CONFIG, Pretrained

BLOCK = 1 << 16
BLOCKS = 64
"""Blocks that are read of a file of weights, spread evenly from its first bytes to its last."""
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


def fingerprint(found: Pretrained) -> str:
    """SHA-256 (hex) over the configuration, the vocabulary, and of each file of weights its size and `BLOCKS` blocks.

    The first block of a safetensors or GGUF file holds its header. Weights that are trained on, or into which a LoRA was merged, differ
    in a large share of all bytes, and so in one of the blocks; a change of a few bytes goes unseen, unless the file has 4 MiB or less.
    """
    digest = hashlib.sha256()
    if not found.gguf:
        digest.update(json.dumps(json.loads((found.folder / CONFIG).read_bytes()), sort_keys=True).encode())
        for path in (found.folder / name for name in VOCABULARY):
            if path.is_file():
                digest.update(path.read_bytes())
    for path in found.weights:
        digest.update(_sample(path))
    return digest.hexdigest()


def _sample(path: Path) -> bytes:
    size, digest = path.stat().st_size, hashlib.sha256()
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        for number in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * number // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.digest()
