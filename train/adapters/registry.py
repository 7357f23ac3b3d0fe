"""Every adapter by its name in configurations."""

import difflib

from encodeonce.train.adapters.base import AdapterConfig
from encodeonce.train.adapters.blsp import BLSPConfig
from encodeonce.train.adapters.compressed import CompressedConfig
from encodeonce.train.adapters.concat import ConcatConfig
from encodeonce.train.adapters.convolution import ConvolutionConfig
from encodeonce.train.adapters.perceiver import PerceiverConfig
from encodeonce.train.adapters.pooling import PoolingConfig
from encodeonce.train.adapters.qformer import QFormerConfig, SegmentQFormerConfig, WindowQFormerConfig
from encodeonce.train.adapters.recurrent import RecurrentConfig
from encodeonce.train.adapters.transformer import TransformerConfig
from encodeonce.train.errors import TrainingError

ADAPTERS: dict[str, type[AdapterConfig]] = {
    config.name: config
    for config in (
        QFormerConfig,
        WindowQFormerConfig,
        SegmentQFormerConfig,
        ConcatConfig,
        ConvolutionConfig,
        RecurrentConfig,
        TransformerConfig,
        PerceiverConfig,
        PoolingConfig,
        CompressedConfig,
        BLSPConfig,
    )
}


def find_adapter(name: str) -> type[AdapterConfig]:
    """The options, and with them the builder, of the adapter of a name.

    Raises:
        TrainingError: there is none.
    """
    if name in ADAPTERS:
        return ADAPTERS[name]
    close = difflib.get_close_matches(name, ADAPTERS, 3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise TrainingError(f"no adapter {name!r}; {hint}There are {', '.join(ADAPTERS)}")
