"""What stands of a split: plans, commit records, the outputs and the table that readers see. Reading only."""

from collections.abc import Collection, Sequence
from typing import Any

from encodeonce.store.commits import Commit, commit_versions, read_commits
from encodeonce.store.errors import StoreError
from encodeonce.store.files import version_of
from encodeonce.store.layout import Output, SplitAttributes, SplitPaths, published_outputs, read_attributes
from encodeonce.store.objects import StorePath
from encodeonce.store.plan import Place, Plan, read_plans
from encodeonce.store.table import concat, read_table, shards_of


class SplitState:
    """The state of a split, as it was when `load` read it last."""

    def __init__(self, paths: SplitPaths, attributes: SplitAttributes) -> None:
        self.paths, self.attributes = paths, attributes
        self.plans: list[Plan] = []
        self.commits: dict[int, Commit] = {}
        self.outputs: dict[str, Output] = {}
        self.table = concat([])
        self._commit_versions: dict[int, Any] = {}
        self._table_version: Any = None

    def load(self) -> None:
        """Read what stands; of plans, records and the table only what is not known yet.

        Raises:
            StoreError: another feature set. DamagedError: something that cannot be read.
        """
        if (self.paths.group / "zarr.json").exists():
            standing = read_attributes(self.paths.group)
            if standing.fingerprint != self.attributes.fingerprint:
                raise StoreError(
                    f"{self.paths.root} holds feature set {standing.fingerprint}, not {self.attributes.fingerprint}"
                )
            self.attributes = standing
        self.plans += read_plans(self.paths.plans, self.plans[-1].number if self.plans else -1)
        self._load_commits()
        if set(self.attributes.outputs) != self.outputs.keys():
            self.outputs = published_outputs(self.paths, self.attributes)
        if (version := version_of(self.paths.table)) != self._table_version:
            self.table, self._table_version = read_table(self.paths.table) if version else concat([]), version

    def _load_commits(self) -> None:
        versions = commit_versions(self.paths)
        changed = [shard for shard, version in versions.items() if version != self._commit_versions.get(shard)]
        for shard in self._commit_versions.keys() - versions.keys():
            self.commits.pop(shard, None)
        self.commits |= read_commits(self.paths, changed)  # in place: other threads may be committing
        self._commit_versions = versions

    def home(self, array: str) -> StorePath:
        """Where the shards of an array lie, which readers may not see yet."""
        published = array.removesuffix("-affine") in self.outputs
        return self.paths.array(array) if published else self.paths.standing(array)

    @property
    def places(self) -> dict[int, list[Place]]:
        """Every planned utterance, by shard, in the order of rows."""
        shards: dict[int, list[Place]] = {}
        for plan in self.plans:
            for place in plan.places:
                shards.setdefault(place.shard, []).append(place)
        return shards

    def present(self, shard: int, places: Sequence[Place]) -> list[Place]:
        """The utterances of a committed shard."""
        absent = set(self.commits[shard].absent)
        return [place for place in places if place.id not in absent]

    def live_shards(self, shards: Collection[int] | None = None) -> dict[str, int]:
        """The shard each utterance counts in: of all committed shards, or of some, the newest that holds it."""
        places, counted = self.places, self.commits if shards is None else shards
        return {place.id: shard for shard in sorted(counted) for place in self.present(shard, places.get(shard, []))}

    def tabled(self) -> dict[str, int]:
        """The shard of each utterance in the table that readers see."""
        return dict(shards_of(self.table))

    def superseded(self) -> dict[int, set[str]]:
        """Utterances that readers see in a newer shard, by the older shard that still holds them."""
        shown, places = self.tabled(), self.places
        older = {
            shard: {place.id for place in self.present(shard, places.get(shard, [])) if shown.get(place.id, -1) > shard}
            for shard in self.commits
        }
        return {shard: names for shard, names in older.items() if names}
