"""An evaluation with everything in it that a report has to bear, and the report of it."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import soundfile
from encodeonce.evaluate.evaluation import Evaluation
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.report.extras import Extras, Picture
from encodeonce.evaluate.scoring import ScoreOptions, score

RATE = 16_000
SECONDS = 1.5
HOSTILE = {
    "script": "<script>window.hacked = 1</script>",
    "image": '"><img src=x onerror="window.hacked = 1">',
    "closing": "</td></table></main><!-- --> ]]> {{ 7 * 7 }} {% raw %}",
    "quotes": "it's \"said\" 'so' &amp; `so` | a | b",
    "arabic": "مرحبا بالعالم كيف الحال",
    "override": "abc \u202egnirts desrever\u202c def",
    "combining": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘ e\u0301a\u0308",
    "long": "ab" * 2000,
    "half": "half a pair \ud800 and nothing \x00 here",
    "empty": "",
    "loop": "again and " * 300,
}
"""What a hypothesis may be, by its name."""
WORDS = [first + second + "o" for first in "bdfgklmnprst" for second in ("an", "ek", "im", "ol", "ur")]


def hypotheses(count: int = 60) -> list[Hypothesis]:
    """Hostile ones, and `count` in which every so-manieth word is wrong; of four speakers, 1 to 20 s."""
    found = [
        Hypothesis(name, text, "the reference of this one", 2.0, text[:50] or "x") for name, text in HOSTILE.items()
    ]
    for number in range(count):
        said = [WORDS[(number * 7 + place) % len(WORDS)] for place in range(2 + number % 30)]
        written = ["other" if place % 9 < number % 4 else word for place, word in enumerate(said)]
        flags = ("repetition",) if number % 10 == 0 else ()
        duration = 1 + 19 * number / count
        found.append(
            Hypothesis(
                f"u-{number:05}", " ".join(written), " ".join(said), duration, f"s{number % 4}", "en", 0.1, flags
            )
        )
    return found


def evaluate(found: list[Hypothesis], **config: object) -> Evaluation:
    """Scored without BERTScore, which would take seconds."""
    options = ScoreOptions(language="en", leave_out=("bertscore",), resamples=100, processes=1)
    return score(found, options, "<b>bold</b> & a system", config)


def extras(folder: Path, spoken: str = "loop") -> Extras:
    """A training's curves, a picture, and the audio of one utterance."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step, "losses": {"ctc": 3 / step}, "learning_rate": 1e-3 / step} for step in range(1, 30)]
    lines.append({"step": 30, "dev": {"ctc": 0.4}, "wer": 0.5, "cer": 0.2})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    matplotlib.image.imsave(folder / "attention.png", np.random.default_rng(0).random((20, 60)))
    time = np.arange(int(SECONDS * RATE)) / RATE
    soundfile.write(folder / "tone.wav", 0.3 * np.sin(2 * np.pi * 440 * time), RATE)
    pictures = [Picture(folder / "attention.png", "Where it <looks>", "Attention of the queries over time.", "loop")]
    return Extras(folder, pictures, {spoken: folder / "tone.wav"})
