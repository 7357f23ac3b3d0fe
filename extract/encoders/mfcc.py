"""mfcc: 13 cepstra with their differences over time, which the units of the first HuBERT were clustered from; no weights."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encodeonce.extract.encoders.fbank import KaldiFeatures, LoadedKaldi
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch

OPTIONS: dict[str, Any] = {"num_ceps": 13, "use_energy": False, "dither": 0.0}
"""torchaudio.compliance.kaldi.mfcc's; what is not named is Kaldi's default (23 mel filters, povey window, lifter 22)."""


class Mfcc(KaldiFeatures):
    """As fairseq's examples/hubert/simple_kmeans/dump_mfcc_feature.py makes them: of a waveform in [-1, 1], `[T, 39]`."""

    name = source = "mfcc"
    options: Mapping[str, Any] = OPTIONS
    scale = 1.0
    width = 3 * OPTIONS["num_ceps"]
    what = "13 MFCC, their first and second differences"

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedMfcc":
        return LoadedMfcc(self, device)


class LoadedMfcc(LoadedKaldi):
    """Cepstra by torchaudio, then the differences (5 frames each, the first and last frame repeated at the ends)."""

    def features(self, samples: "torch.Tensor") -> "torch.Tensor":
        import torch
        from torchaudio.functional import compute_deltas

        cepstra = super().features(samples).T
        first = compute_deltas(cepstra)
        return torch.cat([cepstra, first, compute_deltas(first)]).T
