"""A small corpus of synthesised speech that comes with the package, and a training on it that a laptop does in a minute."""

from pathlib import Path

SPEECH = Path(__file__).resolve().parent / "speech"
"""Splits train, sentences (held-out sentences, known voices) and voice (held-out sentences, a held-out voice)."""
