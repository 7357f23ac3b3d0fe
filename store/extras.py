"""Optional libraries: a missing one is an error that names the extra to install."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from encodeonce.store.errors import StoreError


@contextmanager
def extra(
    name: Literal["views", "export", "evaluate", "units", "train", "lora", "gguf", "quantised", "tensorboard"],
) -> Iterator[None]:
    """Import what belongs to an extra of the package inside this.

    Raises:
        StoreError: it is not installed; the message says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise StoreError(
            f'this needs the package {error.name}, which is not installed: pip install "encodeonce[{name}]"'
        ) from error
