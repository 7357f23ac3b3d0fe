"""The first half of the demo: real recorded speech and a real pretrained encoder become a store that three readers agree on."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from encodeonce.train.demo.steps import DemoError, expect, heading, run, run_json

ENCODER = "moonshine-tiny-onnx"
RECORDINGS = {"two_cities": 44.0, "beckett": 9.9, "endgame_nagg_nell": 28.0}
"""Files inside the package, with the seconds of each that are cut into utterances."""
SEGMENT_SECONDS = 5.5


def make_store(folder: Path) -> None:
    """Extract, verify, read three ways, stream, extract again, and draw."""
    seconds = write_manifest(folder / "speech.jsonl")
    store = folder / "features"
    heading("1. Encode: real speech (48, 24 and 16 kHz, cut into segments), the pretrained Moonshine encoder")
    command = [
        "extract-features",
        "--encoder",
        ENCODER,
        "--data",
        str(folder),
        "--split",
        "speech",
        "--store",
        str(store),
    ]
    first = run_json(command)["splits"][0]
    expect(first["encoded"] == first["utterances"] > 10, f"{first['encoded']} of {first['utterances']} were encoded")
    expect(abs(first["audio_seconds"] - seconds) < 1, f"{first['audio_seconds']} s of audio, {seconds} were asked for")

    heading("2. Verify: every byte against its recorded checksum")
    run(["feature-store", "verify", str(store), "--read-data"])

    heading("3. Read it three ways")
    matrices = read_three_ways(Path(first["store"]))

    heading("4. Stream it as a training would: stop, and go on on another number of GPUs")
    stream_and_resume(Path(first["store"]), matrices)

    heading("5. Encode again: nothing is computed twice")
    second = run_json(command)["splits"][0]
    expect(second["reused"] == first["utterances"] and second["encoded"] == 0, "the second run encoded something")

    heading("6. One utterance as a picture")
    picture = folder / "features.png"
    draw(Path(first["store"]), "two_cities-00", matrices["two_cities-00"], picture)
    print(f"   {picture}: waveform, spectrogram and features, aligned in time")

    frames = sum(len(m) for m in matrices.values())
    heading("In short")
    for name, value in (
        ("speech", f"{first['audio_seconds']:.1f} s in {first['utterances']} utterances"),
        ("encoding", f"{first['pipeline_seconds']:.2f} s, {first['rtfx']:.0f} times real time"),
        ("features", f"{frames} frames of {next(iter(matrices.values())).shape[1]} float16 values"),
        ("store", f"{first['bytes'] / 1e6:.2f} MB, {first['bytes'] / (frames * 288 * 2):.3f} of the raw values"),
        ("second run", f"{second['wall_seconds']:.2f} s, {second['reused']} reused, none encoded"),
    ):
        print(f"   {name:12}{value}")


def write_manifest(path: Path) -> float:
    """A manifest of segments of the recordings in the package; the seconds of speech in it."""
    package = find_spec("moonshine_voice")
    if package is None or not package.submodule_search_locations:
        raise DemoError("the package moonshine-voice is not installed: pip install 'encodeonce[demo]'")
    assets = Path(package.submodule_search_locations[0]) / "assets"
    rows = []
    for name, length in RECORDINGS.items():
        for number in range(int(length / SEGMENT_SECONDS)):
            offset = number * SEGMENT_SECONDS
            audio = str(assets / f"{name}.wav")
            rows.append(
                {
                    "id": f"{name}-{number:02d}",
                    "audio": audio,
                    "offset": offset,
                    "duration": SEGMENT_SECONDS,
                    "speaker": name,
                }
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows) * SEGMENT_SECONDS


def read_three_ways(split: Path) -> dict[str, np.ndarray]:
    """The features by our reader, plain zarr and plain WebDataset, all equal; by utterance id."""
    import webdataset
    import zarr
    from encodeonce.store import FeatureStore

    store = FeatureStore(split)
    ours = {utterance.id: utterance.features for utterance in store}
    array = zarr.open_array(str(split / "features.zarr" / store.output), mode="r")
    rows = store.table.select(["id", "row", "frames"]).to_pylist()
    by_zarr = {row["id"]: np.asarray(array[row["row"] : row["row"] + row["frames"]]) for row in rows}
    shards = [str(path) for path in sorted((split / "features.zarr" / store.output).glob("c/*/0"))]
    dataset: Any = webdataset.WebDataset(shards, shardshuffle=False).decode()
    by_webdataset = {sample["json"]["id"]: sample["npy"] for sample in dataset}
    for name, found in (("zarr", by_zarr), ("webdataset", by_webdataset)):
        expect(found.keys() == ours.keys(), f"{name} gives {len(found)} utterances, ours {len(ours)}")
        for key, values in ours.items():
            expect(np.array_equal(found[key], values), f"{name} and ours differ on {key}")
    shape = "x".join(map(str, array.shape))
    print(f"   FeatureStore      {len(ours)} utterances, zero-copy from {len(shards)} mapped shard")
    print(f"   zarr.open_array   [{shape}] {array.dtype}, the same values")
    print(f"   WebDataset        {len(by_webdataset)} samples, the same values")
    expect(
        all(np.isfinite(values).all() and values.std() > 0.1 for values in ours.values()),
        "features are not finite, or flat",
    )
    return ours


def stream_and_resume(split: Path, expected: dict[str, np.ndarray]) -> None:
    """An epoch of padded batches, begun by one rank, stopped, and finished by two; every utterance once, as stored."""
    from encodeonce.store import FeatureStore

    store = FeatureStore(split)
    stream = store.stream(frames_per_batch=600, seed=1)
    seen: list[str] = []
    for batch in stream:
        print(
            f"   rank 0 of 1: batch {batch.number} [{', '.join(map(str, batch.features.shape))}] {', '.join(batch.ids)}"
        )
        seen += batch.ids
        if len(seen) >= len(store) // 3:
            break
    state = stream.state_dict()
    print(f"   stopped: epoch {state['epoch']}, {state['batch']} batches taken, plan {state['plan'][:12]}...")
    steps = [0, 0]
    for rank in range(2):
        resumed = store.stream(frames_per_batch=600, seed=1, rank=rank, world_size=2)
        resumed.load_state_dict(state)
        for batch in resumed:
            steps[rank] += 1
            seen += batch.ids
            for values, length, name in zip(np.asarray(batch.features), batch.lengths.tolist(), batch.ids, strict=True):
                expect(np.array_equal(values[:length], expected[name]), f"the stream and the store differ on {name}")
    expect(sorted(seen) == sorted(expected) and steps[0] == steps[1], "the ranks did not share the rest of the epoch")
    print(f"   ranks 0 and 1 of 2: {steps[0]} steps each, and every one of {len(seen)} utterances came once")


def draw(split: Path, name: str, features: np.ndarray, target: Path) -> None:
    """Waveform, spectrogram and features of an utterance over the same time axis, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import soundfile
    from encodeonce.store import FeatureStore

    store = FeatureStore(split)
    utterance = store[name]
    audio = Path(utterance.record["audio"])
    rate = soundfile.info(audio).samplerate
    start = round(utterance.record["offset"] * rate)
    samples, _ = soundfile.read(audio, start=start, frames=round(utterance.duration * rate), dtype="float32")
    figure, (wave, spectrum, matrix) = plt.subplots(
        3, 1, figsize=(10, 7), sharex=True, height_ratios=[1, 2, 3], layout="constrained"
    )
    wave.plot(np.arange(len(samples)) / rate, samples, linewidth=0.4, color="#1f5a99")
    wave.set(
        ylabel="amplitude",
        title=f"{name}: {utterance.duration:.1f} s of speech, {utterance.frames} frames of {features.shape[1]} features",
    )
    spectrum.specgram(
        samples + 1e-9, NFFT=int(0.025 * rate), Fs=rate, noverlap=int(0.015 * rate), cmap="magma", vmin=-140
    )
    spectrum.set(ylabel="frequency (kHz)", ylim=(0, 8000))
    spectrum.set_yticks([0, 2000, 4000, 6000, 8000], ["0", "2", "4", "6", "8"])
    values = features.astype(np.float32)
    values = (values - values.mean(0)) / (values.std(0) + 1e-6)
    order = np.argsort(np.argmax(values, axis=0), kind="stable")
    extent = (0, utterance.frames / store.frame_rate, features.shape[1], 0)
    image = matrix.imshow(
        values[:, order].T, aspect="auto", extent=extent, cmap="RdBu_r", vmin=-3, vmax=3, interpolation="nearest"
    )
    matrix.set(xlabel="seconds", ylabel="feature, by the time of its peak", xlim=(0, utterance.duration))
    figure.colorbar(image, ax=matrix, label="standard deviations", shrink=0.9)
    figure.savefig(target, dpi=110)
    plt.close(figure)
    expect(target.stat().st_size > 20_000, "the picture is empty")
