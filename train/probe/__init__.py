"""Probes: how much of the text a small, quickly trained recogniser finds in each output of a store."""
