"""What an output was fitted with, kept in its feature set: `transforms/<output>.safetensors`, float32 arrays by name."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from encodeonce.store.errors import DamagedError, MissingError
from encodeonce.store.files import atomic_write
from encodeonce.store.layout import FeatureSet, Output
from encodeonce.store.objects import StorePath

FORMAT = "encodeonce transform"


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """Fitted arrays by name; `said` is what a person may want to know of the fit, as texts."""

    arrays: dict[str, np.ndarray]
    said: dict[str, str]

    @property
    def sha256(self) -> str:
        """Over the name, shape and float32 values of every array, 64 hex digits."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name} {list(array.shape)} ".encode())
            digest.update(np.ascontiguousarray(array, "<f4").data)
        return digest.hexdigest()

    def write(self, path: StorePath) -> None:
        """Write it, whole or not at all."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(array, "<f4") for name, array in self.arrays.items()}
        # One entry: safetensors writes several in any order, and the same transform shall be the same bytes.
        data = save(arrays, {"encodeonce": json.dumps({"format": FORMAT, **self.said})})
        with atomic_write(path) as file:
            file.write(data)


def transform_path(feature_set: FeatureSet, output: str) -> StorePath:
    """Where the transform of an output is kept."""
    return feature_set.path / "transforms" / f"{output}.safetensors"


def read_transform(feature_set: FeatureSet, output: Output) -> Mapping[str, np.ndarray]:
    """The arrays that an output was fitted with.

    Raises:
        MissingError: they are gone. DamagedError: they are not those that the output was made with.
    """
    from safetensors.numpy import load

    path = transform_path(feature_set, output.name)
    try:
        arrays = load(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingError(
            f"{path} is not there, and {output.name} cannot be computed without it: copy it from another copy of the "
            f"store, or feature-store drop the output and derive it anew"
        ) from error
    except Exception as error:  # safetensors' errors are of its own kind
        raise DamagedError(f"{path} cannot be read: {error}; copy it from another copy of the store") from error
    found, recorded = Transform(arrays, {}).sha256, (output.derivation or {}).get("transform_sha256")
    if found != recorded:
        raise DamagedError(
            f"{path}: its values have sha256 {found}, and {output.name} was made with {recorded}; copy it "
            f"from another copy of the store"
        )
    return arrays
