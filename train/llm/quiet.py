"""transformers without its bars and warnings."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing that transformers has to say is shown; what it raises comes through."""
    from transformers.utils import logging as talk

    verbosity, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.disable_progress_bar()
    talk.set_verbosity_error()
    try:
        with redirect_stderr(StringIO()):  # the bar over a GGUF file's tensors has no switch
            yield
    finally:
        talk.set_verbosity(verbosity)
        if bars:
            talk.enable_progress_bar()
