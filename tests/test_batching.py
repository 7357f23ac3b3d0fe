"""Batches and windows: every utterance and every frame once, within the limits that were set."""

from itertools import pairwise

from encodeonce.extract.batching import Window, batches, windows
from hypothesis import given, settings
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(1, 5000) | st.sampled_from([1000, 2000]), max_size=60)
LIMITS = st.integers(0, 20_000)
GEOMETRIES = st.sampled_from([(320, 400), (384, 895), (160, 400), (1, 1), (640, 400)])
"""Samples a frame and receptive field of HuBERT, Moonshine, fbank; the smallest; and frames that do not overlap."""


@given(lengths=LENGTHS, limit=LIMITS, mixes_lengths=st.booleans())
def test_every_utterance_is_in_one_batch(lengths, limit, mixes_lengths):
    made = batches(lengths, limit, mixes_lengths)
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    assert all(made)


@given(lengths=LENGTHS, limit=LIMITS, mixes_lengths=st.booleans())
def test_no_batch_pads_beyond_the_limit_unless_it_is_one_utterance(lengths, limit, mixes_lengths):
    for batch in batches(lengths, limit, mixes_lengths):
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= limit


@given(lengths=LENGTHS, limit=LIMITS)
def test_without_mixing_only_equal_lengths_share_a_batch(lengths, limit):
    for batch in batches(lengths, limit, mixes_lengths=False):
        assert len({lengths[i] for i in batch}) == 1


@given(lengths=LENGTHS, limit=LIMITS, mixes_lengths=st.booleans())
def test_batches_are_a_function_of_their_arguments_longest_first(lengths, limit, mixes_lengths):
    made = batches(lengths, limit, mixes_lengths)
    assert made == batches(tuple(lengths), limit, mixes_lengths)
    flat = [i for batch in made for i in batch]
    assert flat == sorted(flat, key=lambda i: (-lengths[i], i))


@given(lengths=LENGTHS, limit=LIMITS)
def test_a_batch_is_full_where_the_next_utterance_begins_another(lengths, limit):
    made = batches(lengths, limit, mixes_lengths=True)
    for batch, following in pairwise(made):
        assert following
        assert (len(batch) + 1) * lengths[batch[0]] > limit


def test_with_a_limit_of_zero_every_utterance_is_alone():
    assert batches([5, 9, 5], 0, True) == [[1], [0], [2]]


def frames_of(samples: int, hop: int, field: int) -> int:
    return max(0, (samples - field) // hop + 1)


@st.composite
def cuttings(draw) -> tuple[int, int, int, int, int]:
    """Samples, hop, receptive field, cut and context, with room for a frame in the cut."""
    hop, field = draw(GEOMETRIES)
    cut = draw(st.integers(field, field + 200 * hop))
    return draw(st.integers(0, 30 * (field + 100 * hop))), hop, field, cut, draw(st.integers(0, cut))


@settings(max_examples=400)
@given(cuttings())
def test_every_frame_is_kept_once_and_in_order(cutting):
    samples, hop, field, cut, context = cutting
    kept = []
    for window in windows(samples, hop, field, cut, context):
        if window.last > window.first:
            assert window.start % hop == 0
        kept += [window.start // hop + i for i in range(window.first, window.last)]
    assert kept == list(range(frames_of(samples, hop, field)))


@settings(max_examples=400)
@given(cuttings())
def test_windows_lie_in_the_audio_and_are_no_longer_than_the_cut(cutting):
    samples, hop, field, cut, context = cutting
    made = windows(samples, hop, field, cut, context)
    for window in made:
        assert 0 <= window.start <= window.stop <= samples
        if frames_of(samples, hop, field):
            assert window.stop - window.start <= cut
    if samples <= cut:
        assert made == [Window(0, samples, 0, frames_of(samples, hop, field))]


@settings(max_examples=400)
@given(cuttings())
def test_what_a_window_keeps_lies_within_its_own_frames(cutting):
    samples, hop, field, cut, context = cutting
    for window in windows(samples, hop, field, cut, context):
        assert 0 <= window.first <= window.last <= frames_of(window.stop - window.start, hop, field)


@settings(max_examples=300)
@given(cuttings())
def test_kept_frames_see_the_context_or_the_end_of_the_audio(cutting):
    """Where the context leaves room for frames at all, each kept frame has it on both sides."""
    samples, hop, field, cut, context = cutting
    around = context // hop
    if samples <= cut or 2 * around >= (cut - field) // hop + 1:
        return
    total = frames_of(samples, hop, field)
    for window in windows(samples, hop, field, cut, context):
        start, frames = window.start // hop, frames_of(window.stop - window.start, hop, field)
        assert window.first >= around or start == 0
        assert frames - window.last >= around or start + frames == total


def test_windows_are_dealt_evenly():
    sizes = [w.last - w.first for w in windows(7499 * 320 + 80, 320, 400, 60 * 16000, 5 * 16000)]
    assert sum(sizes) == 7499
    assert max(sizes) - min(sizes) <= 1
