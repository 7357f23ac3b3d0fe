"""Texts from CTC's log posteriors: beam search over characters, and a frozen language model that scores the words."""
