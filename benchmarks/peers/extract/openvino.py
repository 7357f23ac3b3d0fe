"""OpenVINO: transformers' model converted with dynamic lengths, one by one, on a CPU."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from peers.extract import Extract, Extractor, Job, save_each
from peers.extract.transformers import EXAMPLE_SAMPLES, feature_extractor, last_hidden_states, only_on_cpu

if TYPE_CHECKING:
    import torch

HINTS = {"float32": "f32", "bfloat16": "bf16"}


def load(precision: str, job: Job) -> Extract:
    """convert_model, and compile_model with a hint of the precision."""
    import openvino
    import torch

    only_on_cpu(job)
    model = openvino.convert_model(
        last_hidden_states(job),
        example_input=torch.zeros(1, EXAMPLE_SAMPLES),
        input=[openvino.PartialShape([1, -1])],
    )
    hint = {"INFERENCE_PRECISION_HINT": HINTS[precision]}
    compiled, prepare = openvino.compile_model(model, "CPU", hint), feature_extractor(job)
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if taken != HINTS[precision]:
        raise RuntimeError(f"OpenVINO computes in {taken} on this processor")

    def encode(samples: np.ndarray) -> "torch.Tensor":
        return torch.from_numpy(compiled(prepare([samples])["input_values"].numpy())[0][0])

    return save_each(job, encode)


EXTRACTORS = [
    Extractor(f"OpenVINO, one by one, {precision}", "peer", partial(load, precision), ("openvino",), precision)
    for precision in HINTS
]
