"""units:FOLDER: another encoder's frames as the numbers of their nearest k-means centres, made while extracting."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import Encoder, EncoderError, LoadedEncoder
from encodeonce.extract.encoders.registry import find_encoder, short_names
from encodeonce.store.codebooks import Codebooks
from encodeonce.store.identity import describe_difference, differences
from encodeonce.store.kmeans import KMeans, read_kmeans
from encodeonce.store.layout import Output
from encodeonce.store.objects import store_path

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 256 << 20
"""Distances that are on the device at a time."""
OWN = {"name", "source", "default_outputs"}
"""What units say of themselves; everything else is as the base encoder has it."""
WAY_OUT = "make the units of stored features, with feature-store derive units"


def find_units(folder: str, base_encoder: str | None, cache: FileCache) -> "Units":
    """The encoder that makes the units of a k-means folder.

    Args:
        base_encoder: the encoder whose output was clustered; None: the one that the k-means names.

    Raises:
        StoreError: no k-means. EncoderError: its encoder is not to be had, or computes something else.
    """
    kmeans = read_kmeans(folder)
    name = store_path(folder).resolve().name
    short, source = kmeans.source["encoder"], kmeans.source["source"]
    if "weights" not in kmeans.source["identity"]:  # derived from another feature set, or written by other code
        raise EncoderError(
            f"units:{name} was trained on {kmeans.what} of {short}, which no encoder gives while extracting; {WAY_OUT}"
        )
    try:
        base = find_encoder(base_encoder or (short if short in short_names() else source), cache)
    except EncoderError as error:
        if base_encoder is not None:
            raise
        raise EncoderError(
            f"units:{name} needs the encoder that it was trained on, {short} ({source}), and that is not to be had: {error}. "
            f"Where it lies in a folder, give that as --base-encoder"
        ) from error
    return Units(base, kmeans, name)


class Units(Encoder):
    """A base encoder whose frames become units `[T, 1]`; the features are not stored."""

    default_outputs = "units"

    def __init__(self, base: Encoder, kmeans: KMeans, folder_name: str) -> None:
        self.base, self.kmeans = base, kmeans
        self.name = f"{base.name}-km{kmeans.clusters}"
        self.source = f"units:{folder_name}"
        for field in Encoder.__annotations__.keys() - OWN:
            setattr(self, field, getattr(base, field))
        self._check_base()
        self.clustered = self._clustered()

    def frames(self, samples: int) -> int:
        return self.base.frames(samples)

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        return self.base.prepare(samples)

    def identity(self) -> dict[str, Any]:
        own = self.base.identity()
        encoder = {
            "class": "Units",
            "base": own["encoder"],
            "what": self.kmeans.what,
            "kmeans": self.kmeans.fingerprint,
        }
        return {**own, "encoder": encoder}

    def outputs(self, chosen: str, dtype: str) -> list[Output]:
        if chosen not in ("units", "last", "all"):
            raise EncoderError(
                f"--layers {chosen!r}: {self.source} has one output, units; leave --layers (--outputs) away"
            )
        what = f"units({self.kmeans.what})"
        return [Output("units", 1, "uint16", what, codebook_sizes=(self.kmeans.clusters,))]

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedUnits":
        loaded = self.base.load(device, precision, [self.clustered])
        return LoadedUnits(loaded, self.clustered.what, outputs[0].what, self.kmeans.codebooks, device)

    def _check_base(self) -> None:
        """Refuse an encoder that computes something else than what was clustered."""
        recorded, own = self.kmeans.source["identity"], self.base.identity()
        preprocessing = {"sample_rate": self.base.sample_rate, "normalise": own["normalise"]}
        ours = {"encoder": own["encoder"], "weights": own["weights"], "preprocessing": preprocessing}
        theirs = {
            "encoder": recorded["encoder"],
            "weights": recorded["weights"],
            "preprocessing": {field: recorded["preprocessing"].get(field) for field in preprocessing},
        }
        if found := list(differences(ours, theirs)):
            # Of another class every field differs: the class says enough.
            told = [one for one in found if one[0] == "encoder.class"] or found
            raise EncoderError(
                f"{self.source} was trained on features of another encoder than {self.base.name}: "
                f"{'; '.join(describe_difference(*difference) for difference in told)}; "
                f"give {self.kmeans.source['source']} as --base-encoder, as it was then"
            )

    def _clustered(self) -> Output:
        """The base encoder's output that was clustered, as float32."""
        what = self.kmeans.what
        try:
            found = {output.what: output for output in self.base.outputs(word_for(what), "float32")}
        except EncoderError:
            found = {}
        if what not in found:
            raise EncoderError(
                f"{self.source} was trained on {what}, which {self.base.name} does not give while extracting; {WAY_OUT}"
            )
        if found[what].width != self.kmeans.width:
            raise EncoderError(
                f"{self.source} has centres of {self.kmeans.width} dimensions, and {what} of {self.base.name} "
                f"has {found[what].width}: train a k-means on these features"
            )
        return found[what]


class LoadedUnits(LoadedEncoder):
    """A loaded base encoder and the centres, on one device."""

    def __init__(self, base: LoadedEncoder, clustered: str, what: str, codebooks: Codebooks, device: str) -> None:
        import torch

        self.base, self.clustered, self.what, self._codebooks = base, clustered, what, codebooks
        self.on_device = base.on_device
        self.centres = torch.from_numpy(codebooks.quantizers[0].codebook).to(device)

    def forward(self, audio: "torch.Tensor", lengths: Sequence[int]) -> "dict[str, torch.Tensor]":
        import torch

        with torch.inference_mode():
            features = self.base.forward(audio, lengths)[self.clustered].to(self.centres.device)
            units = nearest(features.flatten(0, 1), self.centres).view(*features.shape[:2], 1)
            finite = torch.isfinite(features).all(-1, keepdim=True)
            # What has no nearest centre is -1, so that it is encoded again in float32, or refused.
            return {self.what: units.where(finite, -1)}

    def codebooks(self, output: Output) -> Codebooks:
        return self._codebooks


def nearest(frames: "torch.Tensor", centres: "torch.Tensor") -> "torch.Tensor":
    """`[N]` int64: the number of the centre `[K, D]` nearest to each frame `[N, D]`, the first of several.

    The least |c|^2 / 2 - x.c in float32, as `KMeans.assign` has it; at most `BLOCK_BYTES` of distances are held.
    """
    import torch

    half_norms = 0.5 * (centres * centres).sum(1)
    blocks = frames.split(max(1, BLOCK_BYTES // (4 * len(centres))))
    return torch.cat([torch.addmm(half_norms, block, centres.T, alpha=-1).argmin(1) for block in blocks])


def word_for(what: str) -> str:
    """What --layers (--outputs) calls an output: "9" for "hidden_states[9]", "mean:18-24", "latents:0-7"; else `last`."""
    named = re.fullmatch(r"(mean\()?(hidden_states|latents)\[([0-9]+(?:-[0-9]+)?)\](\))?", what)
    if named is None:
        return "last"
    return {"latents": f"latents:{named[3]}"}.get(named[2], f"mean:{named[3]}" if named[1] else named[3])
