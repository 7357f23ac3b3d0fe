"""The encoders with a short name, and what is known of them without loading any."""

from dataclasses import dataclass

APACHE, MIT, CC_BY, CC_BY_NC, CC_BY_NC_SA = "Apache-2.0", "MIT", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"
CARD = "see its card"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an encoder with a short name.

    Attributes:
        name: the word on the command line.
        source: a repository on the hub, or the package that holds it.
        million_parameters: of the encoder; decoders, heads and codebooks are not counted.
        frame_rate: frames a second.
        width: numbers in a frame; of a codec, codebooks.
        layers: how many there are to choose from, beside the input to the first; 0: none.
        licence: of the weights, as published with them.
        normalise: what the published preprocessor says of scaling audio to zero mean and unit variance; None: not known here.
    """

    name: str
    source: str
    million_parameters: float
    frame_rate: float
    width: int
    layers: int
    licence: str
    normalise: bool | None = None

    @property
    def on_hub(self) -> bool:
        """Whether the source is a repository on the hub."""
        return "/" in self.source

    @property
    def bytes_an_hour(self) -> int:
        """What an hour of audio takes: one layer in float16, or all codes in uint16."""
        return round(3600 * self.frame_rate * self.width * 2)


KNOWN = (
    Known("hubert-base", "facebook/hubert-base-ls960", 94.4, 50, 768, 12, APACHE, True),
    Known("hubert-large", "facebook/hubert-large-ll60k", 315.4, 50, 1024, 24, APACHE, True),
    Known("hubert-large-ft", "facebook/hubert-large-ls960-ft", 315.4, 50, 1024, 24, APACHE, True),
    Known("hubert-xlarge", "facebook/hubert-xlarge-ll60k", 962.5, 50, 1280, 48, APACHE, True),
    Known("hubert-xlarge-ft", "facebook/hubert-xlarge-ls960-ft", 962.5, 50, 1280, 48, APACHE, True),
    Known("distilhubert", "ntu-spml/distilhubert", 23.5, 50, 768, 2, APACHE),
    Known("mhubert-147", "utter-project/mHuBERT-147", 94.4, 50, 768, 12, CC_BY_NC_SA),
    Known("wav2vec2-base", "facebook/wav2vec2-base", 94.4, 50, 768, 12, APACHE, True),
    Known("wav2vec2-large", "facebook/wav2vec2-large-lv60", 315.4, 50, 1024, 24, APACHE, True),
    Known("wav2vec2-large-robust", "facebook/wav2vec2-large-robust", 315.4, 50, 1024, 24, APACHE, True),
    Known("xls-r-300m", "facebook/wav2vec2-xls-r-300m", 315.4, 50, 1024, 24, APACHE, True),
    Known("xls-r-1b", "facebook/wav2vec2-xls-r-1b", 962.5, 50, 1280, 48, APACHE, True),
    Known("xls-r-2b", "facebook/wav2vec2-xls-r-2b", 2159.3, 50, 1920, 48, APACHE, True),
    Known("mms-300m", "facebook/mms-300m", 315.4, 50, 1024, 24, CC_BY_NC),
    Known("mms-1b", "facebook/mms-1b", 962.5, 50, 1280, 48, CC_BY_NC),
    Known("w2v-bert-2.0", "facebook/w2v-bert-2.0", 580.5, 50, 1024, 24, MIT, False),
    Known("wavlm-base", "microsoft/wavlm-base", 94.4, 50, 768, 12, CARD),
    Known("wavlm-base-plus", "microsoft/wavlm-base-plus", 94.4, 50, 768, 12, CARD),
    Known("wavlm-large", "microsoft/wavlm-large", 315.5, 50, 1024, 24, CARD),
    Known("unispeech-sat-base", "microsoft/unispeech-sat-base", 94.4, 50, 768, 12, CARD),
    Known("unispeech-sat-base-plus", "microsoft/unispeech-sat-base-plus", 94.4, 50, 768, 12, CARD),
    Known("unispeech-sat-large", "microsoft/unispeech-sat-large", 315.4, 50, 1024, 24, CARD),
    Known("data2vec-audio-base", "facebook/data2vec-audio-base", 93.2, 50, 768, 12, APACHE),
    Known("whisper-tiny", "openai/whisper-tiny", 8.2, 50, 384, 4, APACHE, False),
    Known("whisper-tiny.en", "openai/whisper-tiny.en", 8.2, 50, 384, 4, APACHE, False),
    Known("whisper-base", "openai/whisper-base", 20.6, 50, 512, 6, APACHE, False),
    Known("whisper-base.en", "openai/whisper-base.en", 20.6, 50, 512, 6, APACHE, False),
    Known("whisper-small", "openai/whisper-small", 88.2, 50, 768, 12, APACHE, False),
    Known("whisper-small.en", "openai/whisper-small.en", 88.2, 50, 768, 12, APACHE, False),
    Known("whisper-medium", "openai/whisper-medium", 307.2, 50, 1024, 24, APACHE, False),
    Known("whisper-medium.en", "openai/whisper-medium.en", 307.2, 50, 1024, 24, APACHE, False),
    Known("whisper-large", "openai/whisper-large", 636.8, 50, 1280, 32, APACHE, False),
    Known("whisper-large-v2", "openai/whisper-large-v2", 636.8, 50, 1280, 32, APACHE, False),
    Known("whisper-large-v3", "openai/whisper-large-v3", 637.0, 50, 1280, 32, APACHE, False),
    Known("whisper-large-v3-turbo", "openai/whisper-large-v3-turbo", 637.0, 50, 1280, 32, MIT, False),
    Known("moonshine-tiny", "UsefulSensors/moonshine-tiny", 7.7, 16000 / 384, 288, 6, MIT, False),
    Known("moonshine-base", "UsefulSensors/moonshine-base", 20.2, 16000 / 384, 416, 8, MIT, False),
    Known("encodec-24khz", "facebook/encodec_24khz", 7.4, 75, 32, 0, CARD),
    Known("dac-16khz", "descript/dac_16khz", 21.5, 50, 12, 0, MIT),
    Known("dac-24khz", "descript/dac_24khz", 21.5, 75, 32, 0, MIT),
    Known("dac-44khz", "descript/dac_44khz", 22.3, 44100 / 512, 9, 0, MIT),
    Known("mimi", "kyutai/mimi", 38.9, 12.5, 32, 0, CC_BY),
    Known("xcodec", "hf-audio/xcodec-hubert-librispeech", 122.9, 50, 8, 0, CARD),
    Known("higgs-audio-v2", "bosonai/higgs-audio-v2-tokenizer", 161.5, 25, 8, 0, CARD),
    Known("xcodec2", "HKUSTAudio/xcodec2-hf", 442.3, 50, 1, 0, CARD),
    Known("neucodec", "neuphonic/neucodec", 442.3, 50, 1, 0, APACHE),
    Known("speechtokenizer", "fnlp/SpeechTokenizer", 67.7, 50, 8, 0, APACHE),
    Known("moonshine-tiny-onnx", "package moonshine-voice", 7.7, 16000 / 384, 288, 0, MIT),
    Known("fbank", "package torchaudio", 0, 100, 80, 0, "-"),
    Known("mfcc", "package torchaudio", 0, 100, 39, 0, "-"),
)
