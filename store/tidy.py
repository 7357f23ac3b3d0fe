"""What a writer does before it builds upon a split: see that it is what its records say, and sweep what a kill left.

Of the members of a joint writing the first to come in does it for all, those who join it for their own shards alone:
what else lies there without a record may be being written.
"""

from collections.abc import Callable

from encodeonce.store.errors import DamagedError
from encodeonce.store.files import move, remove_tree, sizes_below
from encodeonce.store.layout import shard_file
from encodeonce.store.state import SplitState

Owns = Callable[[int], bool]


def check_records(state: SplitState, owns: Owns) -> None:
    """Compare the sizes of shards with their records.

    Raises:
        DamagedError: something is not as recorded; the message says what to do.
    """
    paths, places = state.paths, state.places
    if places and not (paths.group / "zarr.json").exists():
        raise DamagedError(f"{paths.group / 'zarr.json'} is missing; it says how the split is laid out: restore it")
    commits = {shard: commit for shard, commit in state.commits.items() if owns(shard)}
    names = {name for commit in commits.values() for name in commit.outputs}
    sizes = {name: sizes_below(state.home(name) / "c") for name in names}
    for shard, commit in commits.items():
        if shard not in places:
            plan = paths.plans / f"{commit.plan}.parquet"
            raise DamagedError(f"{plan} is missing; it places the utterances of shard {shard}: restore it")
        for name, entry in commit.outputs.items():
            size = sizes[name].get(f"{shard}/0")
            if size != entry["size"]:
                found = "nothing" if size is None else f"{size} bytes"
                raise DamagedError(
                    f"{shard_file(state.home(name), shard)} should have {entry['size']} bytes, and there is {found}; "
                    f"feature-store repair {paths.root} sets such shards aside, and the next run fills them"
                )


def sweep_arrays(state: SplitState) -> None:
    """Remove arrays that no record counts: a killed run's, which plain readers would take for the split's."""
    paths = state.paths
    filled = [commit.outputs.keys() for commit in state.commits.values() if commit.utterances]
    for array in paths.unfinished.glob("*/"):
        if (paths.array(array.name) / "zarr.json").is_file():
            remove_tree(array)  # copied whole by a run that was killed before it removed the original
    for array in [*paths.group.glob("*/"), *paths.unfinished.glob("*/")]:
        name, begun = array.name.removesuffix("-affine"), (array / "zarr.json").is_file()
        seen, held = begun and name in state.outputs, [name in outputs for outputs in filled]
        if not any(held) and not seen:
            (array / "zarr.json").unlink(missing_ok=True)  # first: plain zarr reads missing shards as zeros
            remove_tree(array)
        elif begun and array.parent == paths.group and not all(held) and not seen:
            move(array, paths.unfinished / array.name)  # dropping it was begun, and it lacks shards by now


def sweep_shards(state: SplitState, owns: Owns) -> None:
    """Remove shard files that no record counts."""
    for folder in state.paths.shard_folders():
        shard = int(folder.name)
        commit = state.commits.get(shard)
        if owns(shard) and (commit is None or folder.parent.parent.name.removesuffix("-affine") not in commit.outputs):
            remove_tree(folder)
