"""What stored outputs were made of, and the noise that is in that already: a ratio to the source alone does not tell it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from encodeonce.store.commits import Commit, read_commits
from encodeonce.store.derive.chain import sources_of
from encodeonce.store.layout import SET_FILE, FeatureSet, SplitPaths, read_feature_set
from encodeonce.store.noise import Snr, of_split
from encodeonce.store.objects import StorePath, name_below


@dataclass(frozen=True, slots=True)
class Held:
    """An output of a split, with the split's commit records."""

    feature_set: FeatureSet
    split: StorePath
    records: Mapping[int, Commit]
    output: str

    @property
    def snr(self) -> Snr | None:
        """Its signal-to-noise ratio, to what `snr_to` says."""
        return of_split(self.records.values(), self.output)

    @property
    def snr_to(self) -> str | None:
        """`layer-24` of a cast, else what an operation gives: `pca(layer-24)`; None for the values that an encoder gave."""
        spec = self.feature_set.outputs[self.output]
        if spec.derivation is not None:
            sources, operation = ", ".join(sources_of(spec)), spec.derivation["operation"]
            return sources if operation == "cast" else f"{operation}({sources})"
        if (parent := self._parent()) is not None:
            folder, output = parent
            return f"{self.feature_set.provenance['command'][0]}({output} of {folder.name})"
        return None

    def sources(self) -> Iterator["Held"]:
        """What it was made of directly; nothing where that is the output of a parent that is not there."""
        spec = self.feature_set.outputs[self.output]
        if spec.derivation is not None:
            there = [name for name in sources_of(spec) if name in self.feature_set.outputs]
            yield from (replace(self, output=name) for name in there)
        elif (parent := self._parent()) is not None and (parent[0] / SET_FILE).is_file():
            folder, output = parent
            found, split = read_feature_set(folder), folder / name_below(self.split, self.feature_set.path)
            if output in found.outputs:
                yield Held(found, split, read_commits(SplitPaths(split)), output)

    def name_beside(self, feature_set: FeatureSet) -> str:
        """Its name, with that of its feature set where it is another."""
        return (
            self.output
            if self.feature_set.path == feature_set.path
            else f"{self.output} of {self.feature_set.path.name}"
        )

    def _parent(self) -> tuple[StorePath, str] | None:
        """The parent of a feature set that was derived whole, and the output of it that this was made of."""
        if "command" not in self.feature_set.provenance:
            return None
        folder = self.feature_set.path.parent / self.feature_set.provenance["parent"]
        return folder, self.feature_set.identity["identity"]["output"]["name"]


def worst_source(held: Held) -> tuple[Held, Snr] | None:
    """Of all that an output was made of, step by step, what has the lowest mean ratio, and that.

    It ends at codes and units: no ratio tells what was lost in choosing them.
    """
    found: list[tuple[Held, Snr]] = []
    for source in held.sources():
        if source.feature_set.outputs[source.output].dtype != "uint16":
            found += [(source, snr)] if (snr := source.snr) else []
            found += [further] if (further := worst_source(source)) else []
    return min(found, key=lambda one: one[1].mean, default=None)
