"""transformers alone: in memory (the reference), and from files to .npy, one by one and in padded batches."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peers.extract import PRECISIONS, SAMPLE_RATE, Extract, Extractor, Finished, Job, read_audio, save_each, saved

if TYPE_CHECKING:
    import torch

LEAKS = "padding leaks through the group norm and into the statistics of the audio"
EXAMPLE_SAMPLES = SAMPLE_RATE
"""The audio that a model is traced with."""


def load_config(job: Job) -> Any:
    """The checkpoint's configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(job.checkpoint)


def load_model(job: Job, precision: str) -> "torch.nn.Module":
    """The encoder on its device."""
    import torch
    from transformers import AutoModel

    model_class: Any = AutoModel
    if load_config(job).model_type == "moonshine":
        from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder as model_class
    model = model_class.from_pretrained(job.checkpoint, dtype=getattr(torch, precision))
    return model.eval().to(job.device)


def feature_extractor(job: Job) -> Callable[[Sequence[np.ndarray]], dict[str, "torch.Tensor"]]:
    """Audio to a padded batch of the model's inputs, by the checkpoint's preprocessor; padded with zeros where it has none."""
    import torch

    if not (Path(job.checkpoint) / "preprocessor_config.json").is_file():

        def pad(arrays: Sequence[np.ndarray]) -> dict[str, "torch.Tensor"]:
            tensors = [torch.from_numpy(array) for array in arrays]
            return {"input_values": torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)}

        return pad
    from transformers import AutoFeatureExtractor

    prepare = AutoFeatureExtractor.from_pretrained(job.checkpoint)

    def prepared(arrays: Sequence[np.ndarray]) -> dict[str, "torch.Tensor"]:
        return dict(prepare(list(arrays), sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt"))

    return prepared


def encoder(job: Job, precision: str) -> "Callable[[dict[str, torch.Tensor]], torch.Tensor]":
    """The model's inputs to its last hidden states `[B, T, D]`, on the device."""
    model = load_model(job, precision)
    dtype = next(model.parameters()).dtype

    def encode(inputs: "dict[str, torch.Tensor]") -> "torch.Tensor":
        moved = {
            name: values.to(job.device, dtype) if values.is_floating_point() else values.to(job.device)
            for name, values in inputs.items()
        }
        return model(**moved).last_hidden_state

    return encode


def last_hidden_states(job: Job, precision: str = "float32") -> "torch.nn.Module":
    """Samples `[1, S]` to the last hidden states `[1, T, D]`, as a module for those that trace or compile one."""
    import torch

    class LastHiddenStates(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = load_model(job, precision)

        def forward(self, samples: torch.Tensor) -> torch.Tensor:
            return self.model(samples).last_hidden_state

    return LastHiddenStates().eval()


def only_on_cpu(job: Job) -> None:
    """Refuse another device, for those that are measured on a CPU alone."""
    if job.device != "cpu":
        raise ValueError(f"it is run on a CPU alone here, not on {job.device}")


def in_memory(job: Job) -> Extract:
    """The encoder alone: audio decoded and normalised before, features left in memory, on a GPU in its own."""
    import torch

    torch.backends.cudnn.allow_tf32 = False  # the reference is float32 on a GPU, too
    encode, prepare = encoder(job, "float32"), feature_extractor(job)
    inputs = {audio.id: {"input_values": prepare([read_audio(audio)])["input_values"]} for audio in job.utterances}

    def extract(folder: Path) -> Finished:
        with torch.inference_mode():
            features = {name: encode(values)[0] for name, values in inputs.items()}
        return Finished(lambda name: features[name].float().cpu().numpy())

    return extract


def one_by_one(precision: str, job: Job) -> Extract:
    """A loop over the files."""
    encode, prepare = encoder(job, precision), feature_extractor(job)
    return save_each(job, lambda samples: encode({"input_values": prepare([samples])["input_values"]})[0])


def padded(precision: str, job: Job) -> Extract:
    """Batches of similar lengths, padded as the checkpoint's preprocessor pads."""
    import torch

    model_frames = frames_of(job)
    encode, prepare = encoder(job, precision), feature_extractor(job)

    def extract(folder: Path) -> Finished:
        with torch.inference_mode():
            for batch in job.batches():
                states = encode(prepare([read_audio(audio) for audio in batch])).float().cpu().numpy()
                for audio, values in zip(batch, states, strict=True):
                    np.save(folder / f"{audio.id}.npy", values[: model_frames(audio.samples)])
        return saved(folder)

    return extract


def frames_of(job: Job) -> Callable[[int], int]:
    """Samples to frames, by the convolutions that the configuration lists."""
    config = load_config(job)
    moonshine = [(127, 64), (7, 3), (3, 2)]
    kernels = (
        moonshine if config.model_type == "moonshine" else zip(config.conv_kernel, config.conv_stride, strict=True)
    )
    layers = list(kernels)

    def frames(samples: int) -> int:
        for kernel, stride in layers:
            samples = (samples - kernel) // stride + 1
        return samples

    return frames


EXTRACTORS = [
    Extractor("transformers in memory, one by one", "bare", in_memory),
    *(
        Extractor(f"transformers, one by one, {precision}", "peer", partial(one_by_one, precision), (), precision)
        for precision in PRECISIONS
    ),
    *(
        Extractor(
            f"transformers, padded batches, {precision}", "peer", partial(padded, precision), (), precision, LEAKS
        )
        for precision in PRECISIONS
    ),
]
