"""What a run computes, held against float32 and one utterance at a time: the choice of a precision, and the check before a run."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from encodeonce.extract.batching import batches
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.encoders.base import Encoder, EncoderError, LoadedEncoder, sound
from encodeonce.extract.progress import Progress
from encodeonce.extract.sample import SAMPLE_SECONDS, sample_of
from encodeonce.store.layout import Output
from encodeonce.store.quantize import NotStorableError

if TYPE_CHECKING:
    from encodeonce.extract.encode import BatchEncoder
    from encodeonce.store.derive.chain import Stored

EQUAL_FRAME = 1e-4
"""Latents of a codec are equal within this relative error, or they are sums of other vectors."""
CPU_SECONDS = 5.0
"""The longest utterance of the sample on a CPU, where 20 s would keep a user waiting."""
FINEST_FIRST = ("float32", "float16", "bfloat16")
"""float16 rounds eight times finer than bfloat16."""
AS_FAST = 1.05
"""Within this of the fastest, what rounds finer is taken: passes over the sample differ by as much."""
PASSES = 3
"""Over the sample, of which the fastest counts."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an output has to keep: more than this cosine in every frame, at most this relative error in every utterance,
    and at least this share of equal codes."""

    cosine: float
    error: float
    equal: float


EXACT = Limits(0.99999, 1e-4, 0.999)
"""Asked of float32: another order of the same sums."""
SOUND = Limits(0.99, math.inf, 0.9)
"""Asked of 16 bits: below, something is broken and not rounded."""
FAITHFUL = Limits(0.9999, math.inf, 0.999)
"""Asked of 16 bits that nobody asked for."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one output agrees with float32: the least cosine of a frame and the greatest relative error of an utterance;
    of codes, units and codecs' latents the share that is equal. All are NaN where a value is NaN or infinite that float32 has."""

    cosine: float = 1.0
    error: float = 0.0
    equal: float = 1.0

    def keeps(self, limits: Limits) -> bool:
        """Whether it is within the limits."""
        return self.cosine > limits.cosine and self.error <= limits.error and self.equal >= limits.equal


@dataclass(frozen=True, slots=True)
class Check:
    """How a precision did on so many utterances, by `Output.what`."""

    precision: str
    utterances: int
    outputs: Mapping[str, Agreement]

    def keeps(self, limits: Limits) -> bool:
        """Whether every output is within the limits."""
        return all(agreement.keeps(limits) for agreement in self.outputs.values())

    def __str__(self) -> str:
        """For example: "least cosine 0.99997, greatest relative error 3e-03"."""
        found = self.outputs.values()
        if not self.utterances:
            return "float32 itself gives NaN or infinity"
        if any(math.isnan(agreement.equal) for agreement in found):
            return "NaN or infinity"
        cosine, error = min(a.cosine for a in found), max(a.error for a in found)
        equal = min(a.equal for a in found)
        features = f"least cosine {_floored(cosine, 6)}, greatest relative error {error:.1e}"
        codes = f"{_floored(100 * equal, 2)} % of codes equal"
        said = [text for text, differs in ((features, (cosine, error) != (1.0, 0.0)), (codes, equal < 1.0)) if differs]
        return ", ".join(said) or "no difference"


@dataclass(frozen=True, slots=True)
class Trial:
    """How a precision did on the sample, and how fast: 0 times real time where it is not as good as float32, and was not timed."""

    check: Check
    times_real_time: float

    def __str__(self) -> str:
        """For example: "float16: 812 times real time, least cosine 0.999997, greatest relative error 3e-03"."""
        speed = f"{self.times_real_time:.0f} times real time, " if self.times_real_time else ""
        return f"{self.check.precision}: {speed}{self.check}"


def _floored(value: float, digits: int) -> str:
    """A number rounded down, so that it never reads as more than it is."""
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def chooses_precision(device: str) -> bool:
    """Whether --precision auto may mean 16 bits on a device. On a CPU they are fast only where it has AMX or AVX512_BF16,
    and a store should not depend on the machine that it was begun on."""
    return device.startswith("cuda")


def has_fast_bfloat16(loaded: LoadedEncoder) -> bool:
    """Whether an encoder on a CPU has a forward pass that uses the processor's bfloat16 instructions, and the processor has them."""
    from encodeonce.extract.encoders.packed import LoadedPacked
    from encodeonce.extract.encoders.packed_layers import Computing

    return isinstance(loaded, LoadedPacked) and Computing.best("cpu", "bfloat16").fused


def checks_itself(device: str, precision: str) -> bool:
    """Whether a run begins with the check: on a CPU, float32 is what it would be compared with."""
    return device.startswith("cuda") or precision != "float32"


def check(batch: "BatchEncoder", float32: LoadedEncoder, sample: Sequence[np.ndarray], batch_samples: int) -> Check:
    """Encode a sample in batches, as the run makes them, and each utterance by itself in float32, on one device.

    Utterances of which float32 makes NaN or infinity are left out: the run names them as failures.

    Args:
        float32: the same encoder loaded in float32.
        sample: `[samples]` float32 each, prepared.
        batch_samples: the limit of a batch, padding included.

    Raises:
        EncoderError: it cannot encode them.
    """
    # Both as float32, for which nothing is encoded again: what is not finite has to be seen here.
    own, exact = replace(batch, precision="float32"), replace(batch, loaded=float32, precision="float32")
    found: list[dict[str, np.ndarray]] = [{}] * len(sample)
    with batch.failing_plainly(_about_sample(sample)):
        for group in _groups(batch, sample, batch_samples):
            for i, frames in zip(group, own.encode([sample[i] for i in group]), strict=True):
                found[i] = frames
        expected = [exact.encode([x])[0] for x in sample]
    usable = [i for i, e in enumerate(expected) if all(sound(values) for values in e.values())]
    outputs = {
        what: agreement([found[i][what] for i in usable], [expected[i][what] for i in usable], what)
        for what in expected[0]
    }
    return Check(batch.precision, len(usable), outputs)


def check_handover(
    batch: "BatchEncoder", outputs: Sequence[Output], sample: Sequence[np.ndarray], batch_samples: int
) -> None:
    """Hold what a device that works by itself hands over, twice, against the frames themselves: stored alike, bit for bit.

    The batches of the sample are all under way before the first is waited for.

    Raises:
        EncoderError: it is something else, or cannot be had.
    """
    from encodeonce.extract.device import kept_or_refused

    if not batch.by_itself:
        return
    own = replace(batch, precision="float32")
    groups = [[sample[i] for i in group] for group in _groups(batch, sample, batch_samples)]
    with batch.failing_plainly(_about_sample(sample)):
        under_way = [own.begin(audio, outputs) for audio in groups for _ in range(2)]
        if not any(pending.in_flight for pending in under_way):
            return
        expected = [frames for audio in groups for _ in range(2) for frames in own.encode(audio)]
        found = [kept for pending in under_way for kept in pending.stored()]
    for frames, kept in zip(expected, found, strict=True):
        for output in outputs:
            if not _same(kept[output.name], kept_or_refused(frames[output.what], output)):
                raise EncoderError(
                    f"{batch.encoder.name} in {batch.precision} on {batch.device}: {output.name} of a sample is stored as "
                    f"other values than were computed; please report it, and take --device cpu"
                )


def _same(found: "Stored | NotStorableError", expected: "Stored | NotStorableError") -> bool:
    if isinstance(found, NotStorableError) or isinstance(expected, NotStorableError):
        return str(found) == str(expected)
    # Not the ratio: its sums are made in another order.
    return all(
        np.array_equal(own, other) if own is not None and other is not None else own is other
        for own, other in zip(found[:2], expected[:2], strict=True)
    )


def _groups(batch: "BatchEncoder", sample: Sequence[np.ndarray], batch_samples: int) -> list[list[int]]:
    """The sample in batches, as the run makes them."""
    encoder = batch.encoder
    return batches([max(len(x), encoder.pads_to) for x in sample], batch_samples, encoder.mixes_lengths)


def _about_sample(sample: Sequence[np.ndarray]) -> str:
    return f"a sample of {len(sample)} utterances before the run"


def agreement(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], what: str) -> Agreement:
    """How the frames `[T, D]` of some utterances agree with what they should be, finite themselves."""
    if not found:
        return Agreement()
    if not all(sound(values) for values in found):
        return Agreement(math.nan, math.nan, math.nan)
    if np.issubdtype(expected[0].dtype, np.integer):
        same = [(f == e).ravel() for f, e in zip(found, expected, strict=True)]
        return Agreement(equal=float(np.mean(np.concatenate(same))))
    pairs = [(f.astype(np.float64), e.astype(np.float64)) for f, e in zip(found, expected, strict=True)]
    off = [np.linalg.norm(f - e, axis=1) for f, e in pairs]
    size = [np.linalg.norm(e, axis=1) for _, e in pairs]
    if what.startswith("latents"):
        return Agreement(equal=float(np.mean(np.concatenate(off) <= EQUAL_FRAME * np.concatenate(size))))
    cosines = np.concatenate([_cosines(f, e) for f, e in pairs])
    errors = [_ratio(np.linalg.norm(o), np.linalg.norm(s)) for o, s in zip(off, size, strict=True)]
    return Agreement(float(cosines.min()), float(max(errors)))


def _cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The cosine of each frame; 1 where both are nothing but zeros."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    same = (found == expected).all(axis=1)
    return np.where(same, 1.0, (found * expected).sum(axis=1) / np.where(norms > 0, norms, np.inf))


def _ratio(part: np.floating, whole: np.floating) -> float:
    return float(part / whole) if whole > 0 else math.inf if part > 0 else 0.0


def choose_precision(
    offered: Sequence[str], load: "Callable[[str], BatchEncoder]", sample: Sequence[np.ndarray], batch_samples: int
) -> tuple[str, list[Trial]]:
    """The fastest precision on offer that keeps every frame's cosine above 0.9999, and how each did, the finest first."""
    float32 = load("float32")
    tried: list[Trial] = []
    for precision in FINEST_FIRST:
        if precision in offered:
            batch = float32 if precision == "float32" else load(precision)
            found = check(batch, float32.loaded, sample, batch_samples)
            good = precision == "float32" or (found.utterances and found.keeps(FAITHFUL))
            tried.append(Trial(found, times_real_time(batch, sample, batch_samples) if good else 0.0))
    fastest = max(trial.times_real_time for trial in tried)
    return next(t.check.precision for t in tried if AS_FAST * t.times_real_time >= fastest), tried


def times_real_time(batch: "BatchEncoder", sample: Sequence[np.ndarray], batch_samples: int) -> float:
    """How fast a sample is encoded, in batches as the run makes them; they have been encoded before, to warm up."""
    own = replace(batch, precision="float32")  # as in `check`: nothing is encoded again
    groups = [[sample[i] for i in group] for group in _groups(batch, sample, batch_samples)]
    seconds = []
    for _ in range(PASSES):
        begun = time.perf_counter()
        for audio in groups:
            own.encode(audio)
        seconds.append(time.perf_counter() - begun)
    return sum(map(len, sample)) / batch.encoder.sample_rate / min(seconds)


def require(found: Check, name: str, device: str) -> None:
    """Refuse to go on where a check failed.

    Raises:
        EncoderError: it did; with the numbers and the way out.
    """
    exact = found.precision == "float32"
    limits = EXACT if exact else SOUND
    if found.keeps(limits):
        return
    needed = f"cosine {limits.cosine}, " + (f"relative error {limits.error:g}, " if exact else "")
    way_out = (
        "this machine computes batches wrongly, please report it; --batch-seconds 0 encodes one utterance at a time"
        if exact
        else "take --precision float32"
    )
    raise EncoderError(
        f"{name} in {found.precision} on {device} fails its check against float32 on {found.utterances} utterances: {found} "
        f"(needed: {needed}{100 * limits.equal:g} % of codes equal); {way_out}"
    )


class Checked(Protocol):
    """What a check has to know of a run; see `extract.run.Run`."""

    encoder: Encoder
    progress: Progress

    def find_device(self) -> str: ...

    def batch_samples(self) -> int: ...

    def load_in(self, precision: str, outputs: Sequence[Output]) -> "BatchEncoder": ...

    def utterances(self) -> Sequence[Utterance]: ...


class SelfCheck:
    """The checks of one run, each made once."""

    def __init__(self, run: Checked) -> None:
        self.run = run
        self._sample: list[np.ndarray] = []
        self._chosen = ""
        self._unmeasured = False
        self._compared: set[tuple[str, frozenset[str]]] = set()
        self._done: set[tuple[str, frozenset[str]]] = set()

    def choose(self, offered: Sequence[str], outputs: Sequence[Output]) -> str:
        """What a new feature set is computed in: the first on offer, or on a GPU the fastest that is as good as float32."""
        run = self.run
        if len(offered) == 1 or not chooses_precision(run.find_device()):
            self._unmeasured = len(offered) > 1
            return offered[0]
        if not self._chosen:
            load = partial(run.load_in, outputs=outputs)
            self._chosen, tried = choose_precision(offered, load, self.sample(), run.batch_samples())
            told = "; ".join(map(str, tried))
            run.progress.say(
                f"Picked {self._chosen} for {run.encoder.name}: on {len(self.sample())} utterances against float32, {told} "
                f"(least cosine needed: {FAITHFUL.cosine})"
            )
            if self._chosen != "float32":
                self._compared.add(_about(self._chosen, outputs))
            if run.find_device().startswith("cuda"):
                import torch

                torch.cuda.empty_cache()  # another process may be what encodes on this device
        return self._chosen

    def make(self, encoder: "BatchEncoder", outputs: Sequence[Output]) -> None:
        """Hold what a loaded encoder computes against float32, where `checks_itself` asks for it.

        Raises:
            EncoderError: it is not what it should be.
        """
        run, device, precision = self.run, self.run.find_device(), encoder.precision
        if self._unmeasured and has_fast_bfloat16(encoder.loaded):
            self._unmeasured = False
            run.progress.say(
                f"On a CPU the default is {precision}; --precision bfloat16 is faster on this processor, at a relative error of "
                f"about 1e-2 for {run.encoder.name}"
            )
        about = _about(precision, outputs)
        if about in self._done or not checks_itself(device, precision):
            return
        if about not in self._compared:
            float32 = encoder.loaded if precision == "float32" else encoder.load_float32()
            found = check(encoder, float32, self.sample(), run.batch_samples())
            require(found, run.encoder.name, device)
            run.progress.say(f"Checked {run.encoder.name} in {precision} on {found.utterances} utterances: {found}")
        check_handover(encoder, outputs, self.sample(), run.batch_samples())
        self._done.add(about)

    def sample(self) -> list[np.ndarray]:
        """What checks are made with; see `sample_of`."""
        if not self._sample:
            seconds = SAMPLE_SECONDS if self.run.find_device().startswith("cuda") else CPU_SECONDS
            self._sample = sample_of(self.run.utterances(), self.run.encoder, seconds)
        return self._sample


def _about(precision: str, outputs: Sequence[Output]) -> tuple[str, frozenset[str]]:
    return precision, frozenset(output.what for output in outputs)
