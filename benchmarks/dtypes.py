"""What a dtype loses: size against cosine, signal-to-noise ratio, k-means units and a trained probe.

    python benchmarks/dtypes.py GOLDENS [--store SPLIT --output layer-06-float32 --held-out SPEAKER,...] [--clusters 500]

GOLDENS holds `sample.*.npy`, features of one utterance each. SPLIT is a split with a float32 output: product codebooks and
k-means are learnt on the utterances of the other speakers, everything is measured on those held out, and `probe-layers`' CTC
probe is trained on the features as each form restores them. Prints Markdown tables and one JSON object.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from encodeonce.store import FeatureStore
from encodeonce.store.feature_writer import FeatureWriter
from encodeonce.store.incoming import NewUtterance
from encodeonce.store.layout import Output
from encodeonce.store.quantize import signal_to_noise
from forms import Form, forms, learnt_forms

MOST_TRAINING_FRAMES = 60_000
GOLDEN_CLUSTERS = 50
"""Of the one utterance that a golden file holds, learnt on its own frames."""


def cosines(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The cosine of each frame with what is restored of it, `[T]`."""
    norms = np.linalg.norm(values, axis=1) * np.linalg.norm(kept, axis=1)
    return np.einsum("td,td->t", values.astype(np.float64), kept) / norms


def losses(form: Form, utterances: Sequence[np.ndarray]) -> dict[str, Any]:
    """Size, SNR and cosines of a form over utterances."""
    kept = [form.restored(x).astype(np.float32) for x in utterances]
    ratios = [signal_to_noise(x, k) for x, k in zip(utterances, kept, strict=True)]
    alike = np.concatenate([cosines(x, k) for x, k in zip(utterances, kept, strict=True)])
    size = sum(form.bytes(x) for x in utterances) / sum(x.size for x in utterances)
    return {
        "form": form.name,
        "bits_a_value": 8 * size,
        "snr_db_mean": float(np.mean(ratios)),
        "snr_db_least": float(np.min(ratios)),
        "cosine_mean": float(alike.mean()),
        "cosine_least": float(alike.min()),
    }


def unit_agreement(form: Form, utterances: Sequence[np.ndarray], centres: np.ndarray) -> float:
    """The share of frames whose nearest centre stays the same."""
    squares = (centres**2).sum(1)

    def units(x: np.ndarray) -> np.ndarray:
        return (squares - 2 * x @ centres.T).argmin(1)

    same = np.concatenate([units(x) == units(form.restored(x).astype(np.float32)) for x in utterances])
    return float(same.mean())


def learn_units(frames: np.ndarray, clusters: int) -> np.ndarray:
    """k-means by scikit-learn, `[clusters, D]` float32."""
    from sklearn.cluster import MiniBatchKMeans

    found = MiniBatchKMeans(clusters, batch_size=10_000, n_init=1, max_iter=50, random_state=0).fit(frames)
    return found.cluster_centers_.astype(np.float32)


def probed(store: FeatureStore, output: str, some: Sequence[Form]) -> dict[str, dict[str, float]]:
    """Loss and CER of `probe-layers`' probe on the features as each form restores them."""
    from encodeonce.train.probe.run import ProbeOptions, probe
    from encodeonce.train.probe.subset import choose

    rows = store.table.to_pylist()
    width, rate = store.spec(output).width, store.sample_rate
    outputs = [Output(f"form-{number}", width, "float32", form.name) for number, form in enumerate(some)]
    with tempfile.TemporaryDirectory() as folder:
        samples_per_frame = round(rate / store.frame_rate)
        writer = FeatureWriter(folder, "forms", "all", outputs, {}, rate, samples_per_frame)

        def features(name: str) -> dict[str, np.ndarray]:
            values = store[name][output]
            return {o.name: form.restored(values) for o, form in zip(outputs, some, strict=True)}

        writer.write(
            [NewUtterance(row["id"], row["frames"], text=row["text"], speaker=row["speaker"]) for row in rows], features
        )
        with FeatureStore(writer.path) as forms_store:
            subset = choose(forms_store, None, 0)
            found = {
                form.name: probe(forms_store, o.name, subset, ProbeOptions())
                for o, form in zip(outputs, some, strict=True)
            }
    return {name: {"probe_loss": one.loss, "probe_cer": one.cer} for name, one in found.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    heads = {
        "form": "{}",
        "bits_a_value": "{:.2f}",
        "megabytes_an_hour": "{:.0f}",
        "snr_db_mean": "{:.1f}",
        "snr_db_least": "{:.1f}",
        "cosine_mean": "{:.6f}",
        "cosine_least": "{:.6f}",
        "same_units": "{:.2%}",
        "probe_loss": "{:.3f}",
        "probe_cer": "{:.2%}",
    }
    present = [name for name in heads if name in rows[0]]
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in present)} |", "|" + "---|" * len(present)]
    lines += [f"| {' | '.join(heads[name].format(row[name]) for name in present)} |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goldens", type=Path)
    parser.add_argument("--store")
    parser.add_argument("--output", default="layer-06-float32")
    parser.add_argument("--held-out", default="")
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--probe", action="store_true")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for path in sorted(args.goldens.glob("sample.*.npy")):
        values = np.load(path)
        centres = learn_units(values, GOLDEN_CLUSTERS)
        found[path.stem] = [
            losses(form, [values]) | {"same_units": unit_agreement(form, [values], centres)} for form in forms()
        ]
        print(f"\n{path.stem} {list(values.shape)}\n\n{table(found[path.stem])}")
    if args.store:
        store = FeatureStore(args.store)
        held = set(args.held_out.split(","))
        rows = store.table.select(["id", "speaker"]).to_pylist()
        measured = [np.asarray(store[r["id"]][args.output]) for r in rows if r["speaker"] in held]
        training = [np.asarray(store[r["id"]][args.output]) for r in rows if r["speaker"] not in held]
        frames = np.concatenate(training)
        chosen = np.random.default_rng(0).permutation(len(frames))[:MOST_TRAINING_FRAMES]
        some, centres = [*forms(), *learnt_forms(frames[np.sort(chosen)])], learn_units(frames, args.clusters)
        tried = probed(store, args.output, some) if args.probe else {}
        found[args.output] = [
            losses(form, measured) | {"same_units": unit_agreement(form, measured, centres)} | tried.get(form.name, {})
            for form in some
        ]
        for row in found[args.output]:
            row["megabytes_an_hour"] = (
                row["bits_a_value"] / 8 * store.spec(args.output).width * store.frame_rate * 3600e-6
            )
        print(
            f"\n{args.output}, {len(measured)} utterances held out, {args.clusters} clusters\n\n{table(found[args.output])}"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
