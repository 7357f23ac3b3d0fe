"""Whisper's encoder, from a folder that holds the encoder alone, or the whole model."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.encoders.checkpoint import load_pretrained
from encodeonce.extract.encoders.spectrogram import LoadedSpectrogram, SpectrogramEncoder
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch


class Whisper(SpectrogramEncoder):
    """Whisper of every size: audio padded with silence to 30 s, of whose frames those of the audio itself are kept.

    The extractor gives M = samples // 160 mel frames, and the second convolution (kernel 3, stride 2, padding 1) every
    second of them: (M + 1) // 2 frames.
    """

    model_class = "WhisperEncoder"
    layer_field = "encoder_layers"
    width_field = "d_model"
    fields: Mapping[str, Any] = {
        "d_model": 384,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "activation_function": "gelu",
        "num_mel_bins": 80,
        "max_source_positions": 1500,
    }
    extractor_class = "WhisperFeatureExtractor"
    extractor_fields: Mapping[str, Any] = {
        "feature_size": 80,
        "sampling_rate": 16000,
        "hop_length": 160,
        "chunk_length": 30,
        "n_fft": 400,
        "padding_value": 0.0,
    }
    mels_field = "feature_size"

    def take_preprocessor(self, preprocessor: Mapping[str, Any], published_normalise: bool | None) -> None:
        super().take_preprocessor(preprocessor, published_normalise)
        self.pads_to = self.extractor["chunk_length"] * self.sample_rate
        self.longest_seconds = float(self.extractor["chunk_length"])
        mel_frames = self.pads_to // self.extractor["hop_length"]
        if mel_frames != 2 * self.config["max_source_positions"]:
            raise EncoderError(
                f"{self.folder}: the preprocessor makes {mel_frames} mel frames, the model takes "
                f"{2 * self.config['max_source_positions']}; copy preprocessor_config.json and config.json of one checkpoint"
            )

    @property
    def mels(self) -> int:
        return int(self.config["num_mel_bins"])

    def convolutions(self) -> list[tuple[int, int]]:
        hop = self.extractor["hop_length"]
        return [(hop, hop), (1, 2)]

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedWhisper":
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        model = load_pretrained(WhisperEncoder, self.folder, key_mapping={r"^(model\.)?encoder\.": ""})
        return LoadedWhisper(self, model, model, "layer_norm", device, precision, outputs)


class LoadedWhisper(LoadedSpectrogram):
    """Whisper attends to the silence after the audio as it does to the audio: there is nothing to mask."""

    on_device = False

    def inputs(self, audio: "torch.Tensor", lengths: Sequence[int]) -> "torch.Tensor":
        """`[B, mels, mel frames]`: log-mel features of 30 s, clamped to 8 below each utterance's highest."""
        rows = [row[:length].numpy() for row, length in zip(audio, lengths, strict=True)]
        extracted = self.extractor(
            rows, sampling_rate=self.encoder.sample_rate, device=str(self.device), return_tensors="pt"
        )
        return extracted["input_features"]
