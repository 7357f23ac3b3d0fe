"""The operations that keep the frames: what each makes of which outputs, as a spec, and what it is fitted with."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from encodeonce.store.codebooks import Codebooks, read_codebooks, span_suffix
from encodeonce.store.derive.fitting import fit_normalise, fit_pca
from encodeonce.store.derive.sources import need_codes, need_features
from encodeonce.store.derive.transforms import Transform
from encodeonce.store.errors import StoreError
from encodeonce.store.kmeans import KMeans
from encodeonce.store.layout import FeatureSet, Output
from encodeonce.store.objects import StorePath


def base_name(output: Output) -> str:
    """The name of an output without the suffix that tells its dtype."""
    return output.name.removesuffix(f"-{output.dtype}")


def kept_name(base: str, dtype: str) -> str:
    """The name of an output kept in a dtype: float16 (and uint16, for codes) is the plain name."""
    return base if dtype in ("float16", "uint16") else f"{base}-{dtype}"


@dataclass(frozen=True, slots=True)
class Operation(ABC):
    """What is made of one output or of several, frame by frame."""

    dtype: str = "float16"
    name: ClassVar[str]
    fitted: ClassVar[bool] = False

    @abstractmethod
    def output(self, feature_set: FeatureSet, sources: Sequence[Output]) -> Output:
        """What it makes, under the name that it gets by default, without what fitting adds to its derivation.

        Raises:
            StoreError: sources that it cannot be made of.
        """

    def fit(self, splits: Sequence[StorePath], source: Output) -> Transform:
        """Fit it to the frames of splits, where it is fitted."""
        raise NotImplementedError

    @property
    def codebooks(self) -> Codebooks | None:
        """What is kept as the codebooks of the output."""
        return None

    def _made(self, sources: Sequence[Output], base: str, width: int, what: str, **how: Any) -> Output:
        derivation = {"operation": self.name, **how}
        origin = ",".join(source.name for source in sources)
        return Output(kept_name(base, self.dtype), width, self.dtype, what, origin, derivation=derivation)


@dataclass(frozen=True, slots=True)
class Cast(Operation):
    """The same values in another dtype."""

    name = "cast"

    def output(self, feature_set: FeatureSet, sources: Sequence[Output]) -> Output:
        """The source as it is, kept otherwise."""
        (source,) = sources
        need_features(source, self.name)
        if source.dtype == self.dtype:
            raise StoreError(f"{source.name} is {self.dtype} already; give another --dtype")
        # What was lost stays lost: the plain name is for what an encoder gives in that dtype.
        widened = np.dtype(self.dtype).itemsize > np.dtype(source.dtype).itemsize
        base = f"{base_name(source)}-from-{source.dtype}" if widened else base_name(source)
        return self._made(sources, base, source.width, source.what)


@dataclass(frozen=True, slots=True)
class Mean(Operation):
    """The mean of several outputs, layers usually."""

    name = "mean"

    def output(self, feature_set: FeatureSet, sources: Sequence[Output]) -> Output:
        """As wide as each source."""
        for source in sources:
            need_features(source, self.name)
        if len({source.name for source in sources}) < max(2, len(sources)):
            raise StoreError(
                f"mean of {', '.join(source.name for source in sources)}: give two different outputs or more"
            )
        first = sources[0]
        for source in sources[1:]:
            if source.width != first.width:
                raise StoreError(
                    f"mean of layers of different width: {first.name} has {first.width} dimensions, {source.name} has {source.width}"
                )
        what = f"mean({', '.join(source.what for source in sources)})"
        return self._made(sources, f"mean-of-{mean_label([*map(base_name, sources)])}", first.width, what)


def mean_label(bases: Sequence[str]) -> str:
    """Names of sources in short: `18-to-24` for layers in a row, `9-18-24` for others, or the names."""
    layers = [re.fullmatch(r"layer-(\d+)", base) for base in bases]
    numbers = [int(layer[1]) for layer in layers if layer]
    if len(numbers) < len(bases):
        return "-".join(bases)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-to-{numbers[-1]}"
    return "-".join(map(str, numbers))


@dataclass(frozen=True, slots=True)
class Normalise(Operation):
    """Zero mean and unit variance of each dimension, over the splits it was fitted on."""

    name = "normalise"
    fitted = True

    def output(self, feature_set: FeatureSet, sources: Sequence[Output]) -> Output:
        """As wide as the source."""
        (source,) = sources
        need_features(source, self.name)
        return self._made(sources, f"{base_name(source)}-normalised", source.width, f"normalised({source.what})")

    def fit(self, splits: Sequence[StorePath], source: Output) -> Transform:
        """Mean and standard deviation."""
        return fit_normalise(splits, source)


@dataclass(frozen=True, slots=True)
class Pca(Operation):
    """Principal components; whitened, each has unit variance."""

    dimensions: int = 64
    whiten: bool = False
    name = "pca"
    fitted = True

    def output(self, feature_set: FeatureSet, sources: Sequence[Output]) -> Output:
        """As wide as there are components."""
        (source,) = sources
        need_features(source, self.name)
        if not 1 <= self.dimensions <= source.width:
            raise StoreError(
                f"pca --dimensions {self.dimensions}: {source.name} has {source.width} dimensions; take 1 to {source.width}"
            )
        base = f"{base_name(source)}-pca{self.dimensions}" + ("-whitened" if self.whiten else "")
        what = f"pca({source.what}, {self.dimensions}{', whitened' if self.whiten else ''})"
        return self._made(sources, base, self.dimensions, what, dimensions=self.dimensions, whiten=self.whiten)

    def fit(self, splits: Sequence[StorePath], source: Output) -> Transform:
        """Mean and components."""
        return fit_pca(splits, source, self.dimensions, self.whiten)


IDENTITY = ("encoder", "weights", "identity")
"""Fields of a feature set's identity that say which network it is of; `identity` is what FeatureWriter was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Units(Operation):
    """The nearest centre of a k-means to each frame."""

    kmeans: KMeans
    dtype: str = "uint16"
    name = "units"

    def output(self, feature_set: FeatureSet, sources: Sequence[Output]) -> Output:
        """One column."""
        (source,) = sources
        need_features(source, self.name)
        kmeans = self.kmeans
        if not self.fits(feature_set):
            raise self.of_another_encoder(feature_set.path)
        if kmeans.width != source.width:
            raise StoreError(
                f"the k-means has centres of {kmeans.width} dimensions ({kmeans.what} of {kmeans.encoder}), and {source.name} "
                f"has {source.width}; take the output that it was trained on"
            )
        if kmeans.what != source.what:
            raise StoreError(
                f"the k-means was trained on {kmeans.what}, and {source.name} holds {source.what}; take the --output that "
                f"it was trained on"
            )
        fitted = (kmeans.source["output"].get("derivation") or {}).get("transform_sha256")
        if fitted != (source.derivation or {}).get("transform_sha256"):
            raise StoreError(
                f"the k-means was trained on {kmeans.source['output']['name']}, whose {kmeans.what} was fitted otherwise than that "
                f"of {source.name}; take the --output that it was trained on"
            )
        made = self._made(
            sources,
            "units",
            1,
            f"units({source.what})",
            kmeans=kmeans.fingerprint,
            codebooks_sha256=kmeans.codebooks.sha256,
        )
        sizes = (kmeans.clusters,)
        return Output(made.name, 1, made.dtype, made.what, made.derived_from, sizes, made.derivation)

    def fits(self, feature_set: FeatureSet) -> bool:
        """Whether a feature set is of the encoder that the k-means was trained on."""
        ours, theirs = feature_set.identity, self.kmeans.source["identity"]
        return all(ours.get(field) == theirs.get(field) for field in IDENTITY)

    def of_another_encoder(self, path: StorePath) -> StoreError:
        """What to raise where nothing at a path fits."""
        source = self.kmeans.source
        return StoreError(
            f"the k-means was trained on {source['output']['name']} of {self.kmeans.encoder} ({source['fingerprint'][:8]}), and "
            f"{path} holds another encoder's features; train one on these"
        )

    @property
    def codebooks(self) -> Codebooks:
        """The centres."""
        return self.kmeans.codebooks


@dataclass(frozen=True, slots=True)
class Latents(Operation):
    """The sum of the vectors that codes stand for; of units, the centres."""

    quantizers: tuple[int, int] | None = None
    name = "latents"

    def output(self, feature_set: FeatureSet, sources: Sequence[Output]) -> Output:
        """As wide as the codebooks' vectors. Quantizers are numbered as the codec numbers them."""
        (source,) = sources
        need_codes(source, self.name)
        books = read_codebooks(feature_set.codebooks(source.name))
        named = re.fullmatch(r"codes\[\d+-\d+\]", source.what)
        numbered = re.search(r"codes\[(\d+)-\d+\]", source.what)  # also of codes that were made fewer
        begin = int(numbered[1]) if numbered else 0
        last = begin + source.width - 1
        first, final = self.quantizers or (begin, last)
        if not begin <= first <= final <= last:
            raise StoreError(f"--quantizers {first}-{final}: {source.name} holds quantizers {begin} to {last}")
        base = re.sub(r"^codes", "latents", source.name) if named else f"{source.name}-latents"
        if (first, final) != (begin, last):
            base += span_suffix(first, final)
        return self._made(
            sources,
            base,
            books.width,
            f"latents[{first}-{final}]" if named else f"latents({source.what})",
            columns=list(range(first - begin, final - begin + 1)),
            codebooks_sha256=books.sha256,
        )
