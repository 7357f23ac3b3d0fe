"""Configurations that come with the package; `train-adapter NAME` takes one by its file's name."""
