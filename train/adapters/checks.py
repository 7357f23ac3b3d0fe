"""What the options of an adapter must be, whichever adapter it is."""

from encodeonce.train.adapters.base import AdapterConfig
from encodeonce.train.errors import TrainingError


def check_counts(config: AdapterConfig, *options: str, least: int = 1) -> None:
    """Refuse an option that is below `least`.

    Raises:
        TrainingError: it is, or one of several numbers is.
    """
    for option in options:
        value = getattr(config, option)
        if min(value if isinstance(value, tuple) else (value,), default=least) < least:
            raise TrainingError(f"adapter {config.name}: {option} is {value}; give {least} or more")


def check_dropout(config: AdapterConfig) -> None:
    """Refuse a dropout that is no probability.

    Raises:
        TrainingError: it is not.
    """
    dropout: float = vars(config)["dropout"]
    if not 0 <= dropout < 1:
        raise TrainingError(f"adapter {config.name}: dropout is {dropout}; give 0 or more, and less than 1")


def check_kernel(config: AdapterConfig) -> None:
    """Refuse a kernel without a middle: with one, ceil(frames / stride) come out.

    Raises:
        TrainingError: it is even.
    """
    kernel: int = vars(config)["kernel"]
    if kernel < 1 or kernel % 2 == 0:
        raise TrainingError(f"adapter {config.name}: kernel is {kernel}; give an odd number")


def check_heads(config: AdapterConfig, width: int) -> None:
    """Refuse heads that do not share a width evenly.

    Raises:
        TrainingError: they do not.
    """
    check_counts(config, "heads")
    heads: int = vars(config)["heads"]
    if width % heads:
        raise TrainingError(f"adapter {config.name}: {heads} heads do not divide a width of {width}")
