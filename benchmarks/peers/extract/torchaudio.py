"""torchaudio's HuBERT with the checkpoint's weights, one by one into .npy files."""

from typing import TYPE_CHECKING

import numpy as np

from peers.extract import Extract, Extractor, Job, save_each
from peers.extract.transformers import feature_extractor, load_model

if TYPE_CHECKING:
    import torch


def load(job: Job) -> Extract:
    """import_huggingface_model, and the whole model's output."""
    from torchaudio.models.wav2vec2.utils import import_huggingface_model

    model = import_huggingface_model(load_model(job, "float32").cpu()).eval().to(job.device)
    prepare = feature_extractor(job)

    def encode(samples: np.ndarray) -> "torch.Tensor":
        return model(prepare([samples])["input_values"].to(job.device))[0][0]

    return save_each(job, encode)


EXTRACTORS = [Extractor("torchaudio HuBERT, one by one", "peer", load, ("torchaudio",))]
