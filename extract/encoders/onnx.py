"""Exported encoders through onnxruntime: `input_values`, `attention_mask` -> `last_hidden_state`."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import Encoder, EncoderError, LoadedEncoder, first_line, single_output
from encodeonce.extract.encoders.weights import file_digest
from encodeonce.store.identity import fingerprint
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch

PROBE_LIMIT = 1 << 20
MOONSHINE_PACKAGE = "moonshine_voice"
MOONSHINE_FILE = "assets/tiny-en/encoder_model.ort"


class OnnxEncoder(Encoder):
    """An exported graph over 16 kHz audio. Its frame geometry is found by running it, since a graph does not tell.

    A graph cannot be mended from outside, so each utterance runs by itself: padding would leak, and where activations are
    quantised by the range of the whole batch (moonshine-voice's are) even utterances of equal length change each other.
    """

    mixes_lengths = True
    precisions = ("float32",)

    def __init__(self, path: Path, name: str, cache: FileCache, source: str | None = None) -> None:
        if not path.is_file():
            raise EncoderError(f"no file {path}; onnx: takes the path of an exported encoder")
        self.path, self.name, self.source, self._cache = path, name, source or path.name, cache
        geometry = cache.fact(path, "geometry")
        if geometry is None:
            geometry = probe_geometry(open_session(path, "cpu"), path)
            cache.keep_fact(path, "geometry", geometry)
        self.receptive_field, self.samples_per_frame, self.width = geometry

    def identity(self) -> dict[str, Any]:
        digest = file_digest(self.path, self._cache)
        beside = {path.name: file_digest(path, self._cache) for path in external_data(self.path)}
        if beside:
            digest = fingerprint({"graph": digest, **beside})
        return {
            "encoder": {"class": "onnx", "config": {"output": "last_hidden_state"}},
            "weights": digest,
            "normalise": None,
        }

    def outputs(self, chosen: str, dtype: str) -> list[Output]:
        return single_output(chosen, "last-hidden-state", self.width, dtype, "last_hidden_state")

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedOnnx":
        import torch

        return LoadedOnnx(open_session(self.path, device, torch.get_num_threads()), outputs[0].what)


class LoadedOnnx(LoadedEncoder):
    """A session of onnxruntime, run an utterance at a time."""

    on_device = False

    def __init__(self, session: Any, what: str) -> None:
        self.session, self.what = session, what

    def forward(self, audio: "torch.Tensor", lengths: Sequence[int]) -> "dict[str, torch.Tensor]":
        import torch

        rows = [run(self.session, row[None, :n]) for row, n in zip(audio.numpy(), lengths, strict=True)]
        return {
            self.what: torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row[0]) for row in rows], batch_first=True)
        }


def external_data(path: Path) -> list[Path]:
    """Files beside a graph whose names stand in it: it keeps its weights there."""
    graph = np.memmap(path, np.uint8, "r").tobytes() if path.stat().st_size else b""
    return [
        other
        for other in sorted(path.parent.iterdir())
        if other != path and other.is_file() and other.name.encode() in graph
    ]


def moonshine_tiny(cache: FileCache) -> OnnxEncoder:
    """The exported Moonshine encoder inside the package moonshine-voice."""
    package = find_spec(MOONSHINE_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise EncoderError("moonshine-tiny-onnx needs the package moonshine-voice: pip install 'encodeonce[demo]'")
    path = Path(package.submodule_search_locations[0]) / MOONSHINE_FILE
    return OnnxEncoder(path, "moonshine-tiny-onnx", cache, f"{MOONSHINE_PACKAGE}/{MOONSHINE_FILE}")


def open_session(path: Path, device: str, threads: int = 1) -> Any:
    """An onnxruntime session with the inputs and the output that are needed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EncoderError(f"onnx:{path.name} needs onnxruntime: pip install 'encodeonce[onnx]'") from error
    onnxruntime.set_default_logger_severity(3)
    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
    if cuda := device.startswith("cuda"):
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(device.partition(":")[2] or 0)}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise EncoderError(f"{path} cannot be opened by onnxruntime: {first_line(error)}") from error
    if cuda and "CUDAExecutionProvider" not in session.get_providers():
        raise EncoderError("this onnxruntime has no CUDA; pip install onnxruntime-gpu, or take --device cpu")
    inputs = [entry.name for entry in session.get_inputs()]
    outputs = [entry.name for entry in session.get_outputs()]
    if not {"input_values"} <= set(inputs) <= {"input_values", "attention_mask"} or "last_hidden_state" not in outputs:
        raise EncoderError(
            f"{path} takes {', '.join(inputs)} and gives {', '.join(outputs)}; "
            f"needed are input_values (and attention_mask) and last_hidden_state"
        )
    return session


def run(session: Any, audio: np.ndarray) -> np.ndarray:
    """`last_hidden_state` `[1, T, D]` float32 of one utterance `[1, S]`."""
    entries = {entry.name: entry for entry in session.get_inputs()}
    feeds: dict[str, np.ndarray] = {"input_values": audio}
    if "attention_mask" in entries:
        dtype = {"tensor(int32)": np.int32, "tensor(float)": np.float32}.get(entries["attention_mask"].type, np.int64)
        feeds["attention_mask"] = np.ones(audio.shape, dtype)
    return session.run(["last_hidden_state"], feeds)[0].astype(np.float32, copy=False)


def probe_geometry(session: Any, path: Path) -> list[int]:
    """[receptive field, samples a frame, width] of a graph, from the lengths at which it gives one frame more.

    A chain of convolutions gives `(samples - receptive_field) // samples_per_frame + 1` frames; checked at other lengths.

    Raises:
        EncoderError: it gives no frames for a minute of audio, or its frames follow another law.
    """
    generator = np.random.default_rng(0)

    def frames(samples: int) -> int:
        try:
            return run(session, generator.standard_normal((1, samples)).astype(np.float32) * 0.1).shape[1]
        except Exception:  # onnxruntime has no narrower class for "too short for this graph"
            return 0

    def least(count: int, low: int, high: int) -> int:
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if frames(middle) >= count else (middle + 1, high)
        return low

    high = 1024
    while frames(high) < 3:
        high *= 2
        if high > PROBE_LIMIT:
            raise EncoderError(f"{path} gives no frames for {high // 32000} s of 16 kHz audio")
    second = least(2, 1, high)
    step = least(3, second, high) - second
    field = second - step
    checks = [(n, max(0, (n - field) // step + 1)) for n in (second - 1, 16000, 16000 + step - 1, 40001)]
    wrong = [(n, frames(n), expected) for n, expected in checks if frames(n) != expected]
    if wrong:
        n, found, expected = wrong[0]
        raise EncoderError(f"{path} gives {found} frames for {n} samples where convolutions would give {expected}")
    width = run(session, np.zeros((1, second), np.float32)).shape[2]
    return [field, step, width]
