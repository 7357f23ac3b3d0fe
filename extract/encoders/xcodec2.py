"""X-Codec 2 and NeuCodec through transformers: w2v-BERT and a convolutional encoder, one codebook of finite scalars."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.encoders.checkpoint import filled_in
from encodeonce.extract.encoders.checkpoint_codec import CheckpointCodec, quantizer
from encodeonce.extract.encoders.codec import LoadedCodec
from encodeonce.extract.encoders.w2v_bert import Wav2Vec2Bert
from encodeonce.store.codebooks import Codebooks
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch

HOP = 320
"""Samples of a frame: two of the spectrogram's frames, which are 160 samples apart (Xcodec2FeatureExtractor.frame_shift)."""
TOGETHER_SECONDS = 30
"""Threads take turns at longer audio: w2v-BERT's table of relative positions, `[T, T, 64]` in every layer, makes memory grow with the
square of the length (docs/codecs.md)."""
SEMANTIC: Mapping[str, Any] = {**Wav2Vec2Bert.fields, "use_intermediate_ffn_before_adapter": False}
"""The fields of Wav2Vec2BertConfig that change the last hidden state."""


class Xcodec2(CheckpointCodec):
    """X-Codec 2: the model takes audio and its log-mel spectrogram, both as the feature extractor makes them."""

    model_class = "Xcodec2Model"
    extractor_class = "Xcodec2FeatureExtractor"
    width_field = "quantization_dim"
    fields: Mapping[str, Any] = {
        "sampling_rate": 16000,
        "encoder_hidden_size": 48,
        "downsampling_ratios": [2, 2, 4, 4, 5],
        "hidden_size": 1024,
        "semantic_model_config": None,
        "quantization_dim": 2048,
        "quantization_levels": [4, 4, 4, 4, 4, 4, 4, 4],
    }

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        name: str,
        source: str,
        cache: FileCache,
        published_normalise: bool | None = None,
    ) -> None:
        super().__init__(folder, config, name, source, cache, published_normalise)
        padded = int(self.preprocessor.get("hop_length", HOP))
        if (self.hop(), padded) != (HOP, HOP):
            raise EncoderError(
                f"{name} has {self.hop()} samples a frame and pads audio to multiples of {padded}; its spectrogram has a frame "
                f"every {HOP} samples, and nothing else fits it: copy config.json and preprocessor_config.json of one checkpoint"
            )
        # transformers keeps the other tables of positions on the module, of the last length it met.
        self.parallel = self.config["semantic_model_config"]["position_embeddings_type"] in (None, "relative_key")

    def computed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().computed(config)
        given = fields["semantic_model_config"]
        if given is None:  # Xcodec2Config.sub_configs_defaults
            given = {"num_hidden_layers": 16}
        kind = given.get("model_type", "wav2vec2-bert")
        if kind != "wav2vec2-bert" or given.get("add_adapter"):
            what = f"{kind!r}" if kind != "wav2vec2-bert" else "a w2v-BERT that shortens its frames (add_adapter)"
            raise EncoderError(
                f"{self.name} listens with {what}, which is not known here; known is w2v-BERT without it"
            )
        return fields | {
            "semantic_model_config": {"model_type": kind, **filled_in(SEMANTIC, given)},
            "codebook_size": math.prod(fields["quantization_levels"]),
        }

    def hop(self) -> int:
        return math.prod(self.config["downsampling_ratios"])

    def quantizers(self) -> int:
        return 1

    def frames(self, samples: int) -> int:
        """The extractor appends a zero, then pads to a multiple of the hop: a full last frame is followed by one more."""
        return samples // HOP + 1 if samples >= HOP else 0

    def extractor(self) -> Any:
        """The feature extractor that the model's inputs come from."""
        import transformers

        try:
            return getattr(transformers, self.extractor_class)(sampling_rate=self.sample_rate, hop_length=HOP)
        except (ImportError, OSError) as error:
            raise EncoderError(f"{self.name} needs torchaudio to encode, which does not load: {error}") from error

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedXcodec2":
        return LoadedXcodec2(self, device, outputs)


class NeuCodec(Xcodec2):
    """X-Codec 2 trained on other speech, whose decoder gives 24 kHz."""

    model_class = "NeuCodecModel"
    extractor_class = "NeuCodecFeatureExtractor"
    rate_field = "input_sampling_rate"
    fields: Mapping[str, Any] = {
        **{name: value for name, value in Xcodec2.fields.items() if name != "sampling_rate"},
        "input_sampling_rate": 16000,
        "output_sampling_rate": 24000,
    }

    @property
    def decoded_rate(self) -> int:
        return int(self.config["output_sampling_rate"])

    def frames(self, samples: int) -> int:
        """Its spectrogram is not padded at the ends and has a frame less, to which the rest is cut."""
        return samples // HOP


class LoadedXcodec2(LoadedCodec):
    """The model, and to encode its feature extractor. The latents are what its decoder takes."""

    def __init__(self, codec: Xcodec2, device: str, outputs: Sequence[Output]) -> None:
        self.extractor = codec.extractor() if outputs else None
        self.model, self._turn = codec.model(device), Lock()
        scalars, out = self.model.quantizer.quantizer, self.model.quantizer.project_out
        super().__init__(codec, Codebooks((quantizer(scalars.codebook, out.weight, out.bias),)), device, outputs)

    def encode_one(self, audio: "torch.Tensor") -> "torch.Tensor":
        assert self.extractor is not None, "loaded to decode only"
        # On the CPU, as the extractor computes where it is not told otherwise.
        inputs = self.extractor(audio.cpu().numpy(), sampling_rate=self.sample_rate, return_tensors="pt")
        with self._turn if len(audio) > TOGETHER_SECONDS * self.sample_rate else nullcontext():
            return self.model.encode(**inputs.to(self.device)).audio_codes[0].long()

    def audio_of_codes(self, codes: "torch.Tensor") -> "torch.Tensor":
        return self.model.decode(audio_codes=codes[None]).audio_values[0, 0]

    def audio_of_latents(self, latents: "torch.Tensor") -> "torch.Tensor":
        return self.model.decode(latents=latents[None]).audio_values[0, 0]
