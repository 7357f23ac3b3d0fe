"""w2v-BERT 2.0: Kaldi's filterbanks, two frames stacked, then conformer layers with causal convolutions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encodeonce.extract.encoders.checkpoint import load_pretrained
from encodeonce.extract.encoders.spectrogram import LoadedSpectrogram, SpectrogramEncoder
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch

WINDOW, HOP, FFT = 400, 160, 512
"""Samples of a filterbank's frame, from one to the next, and of its Fourier transform: constants of SeamlessM4TFeatureExtractor."""
PREEMPHASIS, FLOOR, SCALE = 0.97, 1.192092955078125e-07, 2.0**15
"""The extractor's too: Kaldi's pre-emphasis, the least energy of a mel filter, 16-bit integers' range."""


class Wav2Vec2Bert(SpectrogramEncoder):
    """w2v-BERT 2.0 and what is fine-tuned from it; layers of an adapter after the encoder are left out."""

    model_class = "Wav2Vec2BertModel"
    layer_field = "num_hidden_layers"
    fields: Mapping[str, Any] = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feature_projection_input_dim": 160,
        "hidden_act": "swish",
        "layer_norm_eps": 1e-5,
        "position_embeddings_type": "relative_key",
        "rotary_embedding_base": 10000,
        "max_source_positions": 5000,
        "left_max_position_embeddings": 64,
        "right_max_position_embeddings": 8,
        "conv_depthwise_kernel_size": 31,
    }
    extractor_class = "SeamlessM4TFeatureExtractor"
    extractor_fields: Mapping[str, Any] = {"num_mel_bins": 80, "sampling_rate": 16000, "stride": 2}
    mels_field = "num_mel_bins"

    def take_preprocessor(self, preprocessor: Mapping[str, Any], published_normalise: bool | None) -> None:
        super().take_preprocessor(preprocessor, published_normalise)
        # transformers keeps the other tables of positions on the module, of the last length it met.
        self.parallel = self.config["position_embeddings_type"] in (None, "relative_key")

    @property
    def mels(self) -> int:
        return int(self.config["feature_projection_input_dim"]) // self.extractor["stride"]

    def convolutions(self) -> list[tuple[int, int]]:
        stride = self.extractor["stride"]
        return [(WINDOW, HOP), (stride, stride)]

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedWav2Vec2Bert":
        from transformers import Wav2Vec2BertModel

        model: Any = load_pretrained(Wav2Vec2BertModel, self.folder)
        model.adapter = model.intermediate_ffn = None  # the one would shorten the frames, the other prepares for it
        return LoadedWav2Vec2Bert(self, model, model.encoder, None, device, precision, outputs)


class LoadedWav2Vec2Bert(LoadedSpectrogram):
    """transformers masks attention and the causal convolutions; the mask counts frames here, not samples."""

    def attention_mask(self, lengths: Sequence[int], frames: Sequence[int], samples: int) -> "torch.Tensor":
        from encodeonce.extract.encoders.masking import frame_mask

        return frame_mask(frames, max(frames), self.device).long()

    def inputs(self, audio: "torch.Tensor", lengths: Sequence[int]) -> "torch.Tensor":
        """`[B, T, 160]`: filterbanks of two frames side by side, padded with zeros."""
        from torch.nn.utils.rnn import pad_sequence

        rows = [self.filterbanks(row[:length]) for row, length in zip(audio.to(self.device), lengths, strict=True)]
        return pad_sequence(rows, batch_first=True)

    def filterbanks(self, samples: "torch.Tensor") -> "torch.Tensor":
        """`[T, 160]` float32 of one utterance `[samples]`.

        As SeamlessM4TFeatureExtractor computes it, whose loop over frames in Python takes 7 ms a second of audio and holds
        the interpreter; this takes 3 on a CPU's core, and runs on a GPU.
        """
        import torch

        x = samples.double().unfold(0, WINDOW, HOP) * SCALE  # [F, 400]
        x = x - x.mean(1, keepdim=True)
        x = torch.cat([x[:, :1] * (1 - PREEMPHASIS), x[:, 1:] - PREEMPHASIS * x[:, :-1]], 1)
        power = torch.fft.rfft(x * x.new_tensor(self.extractor.window), FFT).abs().square()  # [F, 257]
        mels = (power @ x.new_tensor(self.extractor.mel_filters)).clamp(min=FLOOR).log().float()  # [F, 80]
        mels = (mels - mels.mean(0)) / (mels.var(0) + 1e-7).sqrt()
        stride = self.extractor.stride
        return mels[: len(mels) // stride * stride].reshape(-1, stride * mels.shape[1])
