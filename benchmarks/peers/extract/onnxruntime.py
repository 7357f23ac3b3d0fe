"""onnxruntime: transformers' model exported with dynamic lengths, one by one, in float32 on a CPU."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from peers.extract import Extract, Extractor, Job, save_each
from peers.extract.transformers import EXAMPLE_SAMPLES, feature_extractor, last_hidden_states, only_on_cpu

if TYPE_CHECKING:
    import torch


def load(job: Job) -> Extract:
    """torch.onnx.export and a session with its default options."""
    import torch
    from onnxruntime import InferenceSession

    only_on_cpu(job)
    example, lengths = torch.zeros(1, EXAMPLE_SAMPLES), {"samples": {1: torch.export.Dim.DYNAMIC}}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(last_hidden_states(job), (example,), path, dynamic_shapes=lengths, dynamo=True, verbose=False)
        session = InferenceSession(path, providers=["CPUExecutionProvider"])
    prepare, name = feature_extractor(job), session.get_inputs()[0].name

    def encode(samples: np.ndarray) -> "torch.Tensor":
        (frames,) = session.run(None, {name: prepare([samples])["input_values"].numpy()})
        return torch.from_numpy(np.asarray(frames)[0])

    return save_each(job, encode)


EXTRACTORS = [Extractor("onnxruntime, one by one, float32", "peer", load, ("onnxruntime", "onnx", "onnxscript"))]
