"""New outputs from stored ones, without the encoder: see docs/deriving.md."""
