"""A lhotse FeatureExtractor around transformers, written as lhotse/features/ssl.py (S3PRLSSL) is; imports lhotse."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from lhotse import FeatureExtractor
from lhotse.features.base import register_extractor
from lhotse.utils import compute_num_frames_from_samples

from peers.extract import SAMPLE_RATE, Job
from peers.extract.transformers import encoder, feature_extractor, frames_of, load_config


@dataclass
class TransformersConfig:
    """What a lhotse manifest keeps of an extractor."""

    checkpoint: str
    frame_shift: float
    feature_dim: int

    def to_dict(self) -> dict[str, Any]:
        """As lhotse wants it."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "TransformersConfig":
        """As lhotse wants it."""
        return TransformersConfig(**data)


@register_extractor
class TransformersExtractor(FeatureExtractor):
    """The last hidden states of a transformers model."""

    name = "transformers"
    config_type = TransformersConfig

    def __init__(self, job: Job) -> None:
        config = load_config(job)
        shift = float(np.prod(config.conv_stride)) / SAMPLE_RATE
        super().__init__(TransformersConfig(job.checkpoint, shift, config.hidden_size))
        self.frames = frames_of(job)
        self.prepare, self.encode = feature_extractor(job), encoder(job, "float32")

    @property
    def frame_shift(self) -> float:
        """Seconds."""
        return self.config.frame_shift

    def feature_dim(self, sampling_rate: int) -> int:
        """The width of the features."""
        return self.config.feature_dim

    def extract(self, samples: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Features `[T, D]` of one utterance, of samples `[1, S]`."""
        with torch.inference_mode():
            states = self.encode({"input_values": self.prepare([np.asarray(samples).reshape(-1)])["input_values"]})
        return self._as_long_as_lhotse_wants(states[0].cpu().numpy(), np.size(samples))

    def extract_batch(self, samples: Any, sampling_rate: int, lengths: Any = None) -> list[np.ndarray]:
        """Features of several utterances, padded as the checkpoint's preprocessor pads."""
        arrays = [np.asarray(array).reshape(-1) for array in samples]
        states = self.encode(self.prepare(arrays)).cpu().numpy()
        return [
            self._as_long_as_lhotse_wants(values[: self.frames(len(array))], len(array))
            for values, array in zip(states, arrays, strict=True)
        ]

    def _as_long_as_lhotse_wants(self, values: np.ndarray, samples: int) -> np.ndarray:
        """One frame of zeros more where lhotse expects it, as S3PRLSSL.fix_off_by_one_error does."""
        due = compute_num_frames_from_samples(samples, self.frame_shift, SAMPLE_RATE)
        return np.pad(values, ((0, due - len(values)), (0, 0))) if due > len(values) else values
