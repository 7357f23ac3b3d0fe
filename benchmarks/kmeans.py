"""Frames a second of mini-batch k-means streamed from a store, against scikit-learn used plainly on an array in memory.

    python benchmarks/kmeans.py SPLIT [--clusters 100 500] [--steps 100] [--device cuda]

Every row learns from as many mini-batches of 10,000 frames, from the same first centres; scikit-learn's own row draws its batches
from the array. Best of three, taken in turn.
"""

import time
from collections.abc import Callable, Iterator
from itertools import islice

import click
import numpy as np
from encodeonce.store import FeatureStore
from encodeonce.store.kmeans import half_norms, nearest
from encodeonce.train.kmeans.first import first_centres
from encodeonce.train.kmeans.frames import Frames
from encodeonce.train.kmeans.minibatch import MiniBatch, ScikitMiniBatch
from encodeonce.train.kmeans.on_device import TorchMiniBatch
from sklearn.cluster import MiniBatchKMeans

BATCH_FRAMES = 10_000
ROUNDS = 3


@click.command()
@click.argument("split")
@click.option("--clusters", multiple=True, type=int, default=(100, 500))
@click.option("--steps", default=100)
@click.option("--device", default="cpu", help="Of the torch row.")
def main(split: str, clusters: tuple[int, ...], steps: int, device: str) -> None:
    """Print frames a second and inertia, a line a way."""
    with FeatureStore(split) as store:
        frames = Frames(store)
        array = np.concatenate(list(frames.batches(BATCH_FRAMES, epochs=1)))
        click.echo(f"{len(array):,} frames of {frames.spec.name} [{frames.spec.width}] {frames.spec.dtype}")
        for count in clusters:
            centres = first_centres(array[: 3 * BATCH_FRAMES], count, 0)
            ways: dict[str, Callable[[], tuple[float, np.ndarray]]] = {
                "scikit-learn on the array": lambda centres=centres: plainly(array, centres, steps),
                "streamed, scikit-learn": lambda centres=centres: streamed(frames, ScikitMiniBatch(centres, 0), steps),
                f"streamed, torch on {device}": lambda centres=centres: streamed(
                    frames, TorchMiniBatch(centres, 0, device), steps
                ),
            }
            compare(ways, array, count, steps)


def compare(
    ways: dict[str, Callable[[], tuple[float, np.ndarray]]], array: np.ndarray, clusters: int, steps: int
) -> None:
    """Run the ways in turn and print the best of each, with its ratio to the first."""
    best = dict.fromkeys(ways, float("inf"))
    inertia = dict.fromkeys(ways, 0.0)
    for _ in range(ROUNDS):
        for name, run in ways.items():
            seconds, centres = run()
            best[name] = min(best[name], seconds)
            inertia[name] = mean_squared_distance(array, centres)
    plain = best[next(iter(ways))]
    for name, seconds in best.items():
        rate = steps * BATCH_FRAMES / seconds
        click.echo(
            f"{clusters:6} {name:28} {rate:12,.0f} frames a second, ratio {plain / seconds:.2f}, inertia {inertia[name]:.4g}"
        )


def mean_squared_distance(array: np.ndarray, centres: np.ndarray) -> float:
    """Of frames `[N, D]` from their nearest centres."""
    apart = array - centres[nearest(array, centres, half_norms(centres))]
    return float(np.einsum("nd,nd->n", apart, apart).mean())


def plainly(array: np.ndarray, centres: np.ndarray, steps: int) -> tuple[float, np.ndarray]:
    """scikit-learn's partial_fit on mini-batches drawn from an array."""
    model, random = (
        MiniBatchKMeans(len(centres), init=centres, n_init=1, reassignment_ratio=0.0),
        np.random.default_rng(0),
    )
    begun = time.perf_counter()
    for batch in drawn(array, random, steps):
        model.partial_fit(batch)
    return time.perf_counter() - begun, model.cluster_centers_


def drawn(array: np.ndarray, random: np.random.Generator, steps: int) -> Iterator[np.ndarray]:
    """Mini-batches, each drawn anew."""
    for _ in range(steps):
        yield array[random.integers(0, len(array), BATCH_FRAMES)]


def streamed(frames: Frames, model: MiniBatch, steps: int) -> tuple[float, np.ndarray]:
    """Our training, reading included."""
    begun = time.perf_counter()
    for batch in islice(frames.batches(BATCH_FRAMES), steps):
        model.step(batch)
    centres = model.centres
    return time.perf_counter() - begun, centres


if __name__ == "__main__":
    main()
