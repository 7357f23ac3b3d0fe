"""What the objectives promise: the losses of the papers, whatever the padding, the ranks and the past."""

import copy
import itertools
import math
import socket

import pytest
import torch
from encodeonce.train.adapters.base import Adapted
from encodeonce.train.errors import TrainingError
from encodeonce.train.objectives.base import Spoken, Tokens
from encodeonce.train.objectives.config import ContrastiveConfig, GenerationConfig
from encodeonce.train.objectives.contrastive import Contrastive, queries_of
from encodeonce.train.objectives.ctc import CTC, RowHead, UnitHead, fits, least_frames
from encodeonce.train.objectives.gather import Peers, gather
from encodeonce.train.objectives.generation import Generation, generate
from encodeonce.train.objectives.matching import Matching
from encodeonce.train.objectives.pairs import Past
from encodeonce.train.objectives.texts import same_texts
from encodeonce.train.qformer import Body, QFormer, QFormerSizes, Windows
from hypothesis import given, settings
from hypothesis import strategies as st
from mean_former import Letters, MeanFormer
from torch import nn

LETTERS = Letters()
TEXTS = [[5, 6, 7], [8], [5, 9, 9, 10], [6, 6], [11, 5, 7, 8, 9]]
FRAMES = [5, 2, 9, 1, 6]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    return MeanFormer()


def speech(frames=FRAMES, seed=1):
    """Features of utterances, one by one."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 4, generator=generator) for count in frames]


def spoken(adapter, utterances, frames=12):
    """A batch of as many frames, or as many as it needs, whose padding is anything but zero."""
    lengths = torch.tensor([len(utterance) for utterance in utterances])
    features = torch.full((len(utterances), max(frames, int(lengths.max())), 4), 7.0)
    for row, utterance in zip(features, utterances, strict=True):
        row[: len(utterance)] = utterance
    return Spoken(features, lengths, adapter(features, lengths))


def gradient(parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def past_of(stc) -> Past:
    assert stc.past is not None
    return stc.past


def alone(adapter, utterance):
    return spoken(adapter, [utterance], frames=0)


def contrast(**options):
    torch.manual_seed(2)
    return Contrastive(6, LETTERS, ContrastiveConfig(width=3, **options), queries=6, peers=Peers())


def unit(vector):
    return vector / vector.norm()


def projected(adapter, stc, utterance, text):
    """An utterance's queries and its text in the space of the contrast."""
    ids = torch.tensor([[LETTERS.start, *text, LETTERS.end]])
    said = adapter.read(ids, torch.tensor([ids.shape[1]]))[0, 0]
    heard = alone(adapter, utterance).adapted.embeddings[0]
    queries = [unit(stc.speech.weight @ query + stc.speech.bias) for query in heard]
    return queries, unit(stc.text.weight @ said + stc.text.bias)


def straight_contrast(adapter, stc, utterances, texts, past=(), smoothing=0.1):
    """STC pair by pair; `past` are negatives: queries, projected text, and what the text was."""
    here = [
        (*projected(adapter, stc, utterance, text), text) for utterance, text in zip(utterances, texts, strict=True)
    ]
    total = torch.zeros(())
    for place, (queries, text, said) in enumerate(here):
        others = [candidate for i, candidate in enumerate([*here, *past]) if i == place or candidate[2] != said]
        right = next(i for i, candidate in enumerate(others) if candidate is here[place])
        to_text = torch.stack([max(query @ other[1] for query in queries) for other in others])
        to_speech = torch.stack([max(query @ text for query in other[0]) for other in others])
        for cosines in (to_text, to_speech):
            logits = cosines / stc.temperature.value
            shares = logits.exp() / logits.exp().sum()
            for i, share in enumerate(shares):
                total = total - ((i == right) * (1 - smoothing) + smoothing / len(others)) * share.log() / 2
    return total


def test_contrast_is_the_straight_computation(adapter):
    stc = contrast()
    loss = stc(adapter, spoken(adapter, speech()), Tokens.of(TEXTS))
    torch.testing.assert_close(loss, straight_contrast(adapter, stc, speech(), TEXTS), **CLOSE)
    assert stc.count(Tokens.of(TEXTS)) == 5
    assert loss.dtype == torch.float32
    assert loss.ndim == 0


def test_contrast_is_that_of_torch_where_no_texts_are_equal(adapter):
    stc, batch, tokens = contrast(label_smoothing=0.2), spoken(adapter, speech()), Tokens.of(TEXTS)
    loss = stc(adapter, batch, tokens)
    logits = stc.similarities(adapter, batch, tokens)
    both = [
        nn.functional.cross_entropy(x, torch.arange(5), label_smoothing=0.2, reduction="sum")
        for x in (logits, logits.T)
    ]
    torch.testing.assert_close(loss, sum(both) / 2, **CLOSE)


def test_equal_texts_are_no_negatives(adapter):
    stc, texts = contrast(), [[5, 6], [7], [5, 6], [7], [5, 6]]
    loss = stc(adapter, spoken(adapter, speech()), Tokens.of(texts))
    torch.testing.assert_close(loss, straight_contrast(adapter, stc, speech(), texts), **CLOSE)
    same = stc(adapter, spoken(adapter, speech()), Tokens.of([[5, 6]] * 5))
    assert same.item() == 0


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=12), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_texts_have_the_same_key_exactly_if_they_are_equal(texts, more):
    tokens = Tokens.of(texts)
    keys = same_texts(tokens.ids, tokens.lengths)
    padded = nn.functional.pad(tokens.ids, (0, more), value=9)
    assert same_texts(padded, tokens.lengths).tolist() == keys.tolist()
    assert (keys[:, None] == keys).tolist() == [[a == b for b in texts] for a in texts]


def test_temperature_is_learned_and_kept_from_zero(adapter):
    stc = contrast(temperature=0.001)
    stc(adapter, spoken(adapter, speech()), Tokens.of(TEXTS)).backward()
    assert gradient(stc.temperature.value).abs() > 0
    floor = contrast(temperature=0.01)
    low = [x.similarities(adapter, spoken(adapter, speech()), Tokens.of(TEXTS)) for x in (stc, floor)]
    torch.testing.assert_close(*low)


def test_contrast_under_autocast_is_computed_in_float32(adapter):
    stc = contrast()
    with torch.autocast("cpu", torch.bfloat16):
        rough = stc(adapter, spoken(adapter, speech()), Tokens.of(TEXTS))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, stc(adapter, spoken(adapter, speech()), Tokens.of(TEXTS)), rtol=0.05, atol=0.05)


def test_past_pairs_are_negatives_and_the_oldest_leave(adapter):
    stc, past = contrast(queue=4), []
    for seed in range(4):
        utterances, texts = speech([12 - 3 * seed, 2, 1], seed), [[5, 5 + seed], [6], [7, 7]]
        expected = straight_contrast(adapter, stc, utterances, texts, past)
        batch, tokens = spoken(adapter, utterances), Tokens.of(texts)
        torch.testing.assert_close(stc(adapter, batch, tokens), expected, **CLOSE)
        past = [*past, *((*projected(adapter, stc, u, t), t) for u, t in zip(utterances, texts, strict=True))][-4:]


def test_past_gets_no_gradient_and_is_not_seen_in_validation(adapter):
    stc = contrast(queue=8)
    stc(adapter, spoken(adapter, speech()), Tokens.of(TEXTS)).backward()
    adapter.zero_grad()
    utterances, texts = speech([4, 2], 5), [[6], [9, 9]]
    stc(adapter, spoken(adapter, utterances), Tokens.of(texts)).backward()  # raises where a graph holds the past
    stc.eval()
    before = past_of(stc).keys.clone()
    loss = stc(adapter, spoken(adapter, utterances), Tokens.of(texts))
    torch.testing.assert_close(loss, straight_contrast(adapter, stc, utterances, texts), **CLOSE)
    assert torch.equal(past_of(stc).keys, before)


def test_past_goes_on_from_a_checkpoint(adapter):
    stc, again = contrast(queue=4), contrast(queue=4)
    for seed, count in enumerate((11, 5)):
        stc(adapter, spoken(adapter, speech([count, 2, 1], seed)), Tokens.of(TEXTS[:3]))
    again(adapter, spoken(adapter, speech([8])), Tokens.of(TEXTS[:1]))
    again.load_state_dict(stc.state_dict())
    batch, tokens = spoken(adapter, speech([7, 3], 9)), Tokens.of(TEXTS[3:])
    assert torch.equal(stc(adapter, batch, tokens), again(adapter, batch, tokens))
    assert torch.equal(past_of(stc).speech, past_of(again).speech)


def ranks_batch(rank):
    """What each of two ranks has: unlike in utterances, frames and tokens; one text is on both."""
    part = slice(0, 3) if rank == 0 else slice(3, 5)
    return speech()[part], [[5, 6, 7], [8], [6, 6], [6, 6], [11, 5, 7, 8, 9]][part]


def contrasts(adapter, utterances, texts, peers=None):
    """Two steps' losses with a queue, and one's without where each rank pads as it likes; all gradients; the queue; then validation."""
    stc, plain = contrast(queue=8), contrast()
    stc.peers = plain.peers = peers
    losses = [stc(adapter, spoken(adapter, utterances), Tokens.of(texts)) for _ in range(2)]
    losses.append(plain(adapter, spoken(adapter, utterances, frames=0), Tokens.of(texts)))
    torch.stack(losses).sum().backward()
    parameters = [*adapter.parameters(), *stc.parameters(), *plain.parameters()]
    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    return torch.stack(losses).detach(), gradients, past_of(stc).state_dict()


def rank_main(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    made = contrasts(MeanFormer(), *ranks_batch(rank))
    rows = gather(torch.full((rank + 1, 2 - rank), float(rank + 1)), Peers.here())
    if rank == 0:  # validation asks nobody: the other rank may have no such batch
        contrast().eval()(MeanFormer(), spoken(MeanFormer(), speech()), Tokens.of(TEXTS))
    torch.save((made, rows.tensor, rows.first), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_contrast_of_two_ranks_is_that_of_one(adapter, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank_main, (port, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    batches = [ranks_batch(rank) for rank in range(2)]
    utterances, texts = [u for batch, _ in batches for u in batch], [text for _, batch in batches for text in batch]
    losses, gradients, past = contrasts(adapter, utterances, texts, Peers())
    (first, *_), (second, *_) = ranks
    torch.testing.assert_close(first[0] + second[0], losses, **CLOSE)
    for whole, *parts in zip(gradients, first[1], second[1], strict=True):
        torch.testing.assert_close(sum(parts), whole, **CLOSE)
    for rank, (made, rows, own) in enumerate(ranks):
        assert rows.tolist() == [[1, 1], [2, 0], [2, 0]]
        assert own == rank
        torch.testing.assert_close(made[2]["text"], past["text"], **CLOSE)
        assert torch.equal(made[2]["keys"], past["keys"])
        assert torch.equal(made[2]["counts"], past["counts"])


def test_a_step_that_went_wrong_leaves_no_pairs_in_the_past(adapter):
    stc, bad = contrast(queue=8), speech([4, 3, 2])
    bad[1][:] = torch.nan
    assert not stc(adapter, spoken(adapter, bad), Tokens.of([[5], [6], [7]])).isfinite()
    utterances, texts = speech([4, 2]), [[8], [9]]
    past = [(*projected(adapter, stc, bad[i], [5 + i]), [5 + i]) for i in (0, 2)]
    expected = straight_contrast(adapter, stc, utterances, texts, past)
    torch.testing.assert_close(stc(adapter, spoken(adapter, utterances), Tokens.of(texts)), expected, **CLOSE)


def test_a_queue_needs_as_many_queries_for_every_utterance(adapter):
    assert queries_of(small_qformer()) == 3
    assert queries_of(adapter) is None
    with pytest.raises(TrainingError, match=r"objectives\.stc\.queue=4 needs an adapter with as many queries"):
        Contrastive(6, LETTERS, ContrastiveConfig(queue=4))


def straight_matching(adapter, stm, pairs):
    """STM one pair after the other: speech, text, whether they belong together."""
    total = torch.zeros(())
    for utterance, text, label in pairs:
        ids = torch.tensor([[LETTERS.start, *text, LETTERS.end]])
        queries = adapter.match(
            utterance[None], torch.tensor([len(utterance)]), ids, torch.tensor([ids.shape[1]])
        ).embeddings[0]
        logits = stm.head.weight @ (sum(queries) / len(queries)) + stm.head.bias
        total = total - (logits.exp() / logits.exp().sum())[label].log()
    return total


def drawn(logits, texts):
    """Places of negatives, as BLIP-2 draws them: the softmax without the pair itself, or its equals."""
    same = torch.tensor([[a == b for b in texts] for a in texts])
    return torch.multinomial(logits.masked_fill(same, -torch.inf).softmax(1), 1)[:, 0].tolist()


@pytest.mark.parametrize("texts", [TEXTS, [[5, 6], [7], [5, 6], [7], [8]]], ids=["different", "repeated"])
def test_matching_is_the_straight_computation_on_the_same_negatives(adapter, texts):
    stc, batch, tokens, utterances = contrast(), spoken(adapter, speech()), Tokens.of(texts), speech()
    stm = Matching(6, LETTERS, stc.similarities)
    logits = stc.similarities(adapter, batch, tokens)
    torch.manual_seed(3)
    text_of, speech_of = drawn(logits, texts), drawn(logits.T, texts)
    pairs = [(u, t, 1) for u, t in zip(utterances, texts, strict=True)]
    pairs += [(u, texts[i], 0) for u, i in zip(utterances, text_of, strict=True)]
    pairs += [(utterances[i], t, 0) for t, i in zip(texts, speech_of, strict=True)]
    torch.manual_seed(3)
    loss = stm(adapter, batch, tokens)
    torch.testing.assert_close(loss, straight_matching(adapter, stm, pairs), **CLOSE)
    assert stm.count(tokens) == 15


def test_negatives_follow_the_similarities_and_are_never_the_same_text(adapter):
    texts = [[5], [6], [5], [7]]
    batch, tokens = spoken(adapter, speech(FRAMES[:4])), Tokens.of(texts)
    logits = torch.tensor([[9.0, 1, 9, 0], [3, 9, 0, 1], [9, 0, 9, 0], [0, 2, 1, 9]])
    stm = Matching(6, LETTERS, lambda *_: logits)
    torch.manual_seed(0)
    picked = [stm._negatives(adapter, batch, tokens) for _ in range(1500)]
    for of_speech, scores in (
        (torch.stack([a for a, _ in picked]), logits),
        (torch.stack([b for _, b in picked]), logits.T),
    ):
        same = torch.tensor([[a == b for b in texts] for a in texts])
        shares = torch.stack([(of_speech == place).float().mean(0) for place in range(4)], 1)
        assert (shares[same] == 0).all()
        torch.testing.assert_close(shares, scores.masked_fill(same, -torch.inf).softmax(1), rtol=0, atol=0.06)


def test_matching_without_a_wrong_text_is_that_of_the_pairs(adapter):
    stm = Matching(6, LETTERS, contrast().similarities)
    for utterances, texts in ((speech([5]), [[5, 6]]), (speech([5, 2]), [[5, 6]] * 2)):
        pairs = [(u, t, 1) for u, t in zip(utterances, texts, strict=True)]
        loss = stm(adapter, spoken(adapter, utterances), Tokens.of(texts))
        torch.testing.assert_close(loss, straight_matching(adapter, stm, pairs), **CLOSE)
        assert stm.count(Tokens.of(texts)) == len(texts)


def test_matching_uses_what_the_contrast_has_just_seen(adapter, monkeypatch):
    stc, batch, tokens = contrast(queue=4), spoken(adapter, speech()), Tokens.of(TEXTS)
    stc(adapter, batch, tokens)
    kept = stc.similarities(adapter, batch, tokens)
    torch.testing.assert_close(kept, stc.similarities(adapter, spoken(adapter, speech()), tokens), **CLOSE)
    assert not kept.requires_grad
    monkeypatch.setattr(adapter, "read", None)
    stc.similarities(adapter, batch, tokens)  # reads no text again


def test_a_copy_of_the_model_draws_by_its_own_contrast(adapter):
    stc = contrast()
    stm = Matching(6, LETTERS, stc.similarities)
    other_stc, other_stm = copy.deepcopy(nn.ModuleList([stc, stm]))
    assert other_stm.similarities == other_stc.similarities
    assert other_stm.similarities != stm.similarities
    assert set(stm.state_dict()) == {"head.weight", "head.bias"}


def test_diverged_similarities_end_in_the_loss_not_in_the_draw(adapter):
    stm = Matching(6, LETTERS, lambda *_: torch.full((5, 5), torch.nan))
    assert stm(adapter, spoken(adapter, speech()), Tokens.of(TEXTS)).isfinite()


def straight_generation(adapter, utterance, text, smoothing=0.1):
    """STG token by token, each from a pass of its own over what is before it."""
    queries, total = alone(adapter, utterance).adapted, torch.zeros(())
    said = [LETTERS.decode_start]
    for right in [*text, LETTERS.end]:
        logits = adapter.logits(adapter.write(torch.tensor([said]), queries)[0][0, -1])
        shares = logits.exp() / logits.exp().sum()
        total = (
            total
            - (1 - smoothing) * shares[right].log()
            - smoothing * sum(share.log() for share in shares) / len(shares)
        )
        said.append(right)
    return total


def test_generation_is_the_straight_computation_of_each_utterance_alone(adapter):
    texts = [*TEXTS[:3], [], TEXTS[4]]
    stg, tokens = Generation(LETTERS, GenerationConfig()), Tokens.of(texts)
    loss = stg(adapter, spoken(adapter, speech()), tokens)
    expected = sum(straight_generation(adapter, u, t) for u, t in zip(speech(), texts, strict=True))
    torch.testing.assert_close(loss, expected, **CLOSE)
    assert stg.count(tokens) == sum(len(text) + 1 for text in texts)
    assert loss.dtype == torch.float32


def straight_greedy(adapter, utterance, most):
    queries, said = alone(adapter, utterance).adapted, [LETTERS.decode_start]
    while len(said) <= most:
        said.append(int(adapter.logits(adapter.write(torch.tensor([said]), queries)[0][0, -1]).argmax()))
        if said[-1] == LETTERS.end:
            return said[1:-1]
    return said[1:]


def test_greedy_text_of_an_utterance_does_not_depend_on_its_batch(adapter):
    with torch.no_grad():
        adapter.out.bias[LETTERS.end] += 0.5
    utterances = speech(list(range(1, 25)))
    texts = generate(adapter, spoken(adapter, utterances).adapted, LETTERS, 8)
    assert texts == [straight_greedy(adapter, utterance, 8) for utterance in utterances]
    lengths = {len(text) for text in texts}
    assert len(lengths) > 2, "some end early, some later: else this shows little"
    assert max(lengths) == 8
    assert generate(adapter, spoken(adapter, utterances[:2]).adapted, LETTERS, 0) == [[], []]


def straight_ctc(shares, units):
    """The likelihood of units, by going through every path."""
    total = 0.0
    for path in itertools.product(range(shares.shape[1]), repeat=len(shares)):
        if [k for k, _ in itertools.groupby(path) if k] == units:
            total += math.prod(float(shares[t, k]) for t, k in enumerate(path))
    return -math.log(total)


@pytest.mark.parametrize("emissions", [1, 2])
def test_ctc_is_the_sum_over_all_paths_of_each_utterance_alone(adapter, emissions):
    torch.manual_seed(4)
    head = UnitHead(6, 4, emissions)
    ctc = CTC(head)
    utterances, texts = speech([5, 3, 6, 4]), [[1, 2], [3], [2, 2], []]
    tokens = Tokens.of(texts)
    loss = ctc(adapter, spoken(adapter, utterances), tokens)
    expected = 0.0
    for utterance, text in zip(utterances, texts, strict=True):
        rows = head.linear(alone(adapter, utterance).adapted.embeddings[0]).detach()
        expected += straight_ctc(rows.reshape(len(rows) * emissions, 4).softmax(1), text)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert ctc.count(tokens) == 2 + 1 + 2 + 1


def test_ctc_of_a_batch_is_that_of_its_utterances_and_so_is_its_gradient(adapter):
    ctc, utterances, texts = CTC(UnitHead(6, 12, 3)), speech(), [[5, 6, 7], [8], [5, 9, 9, 10], [6], [11, 5, 7]]
    adapter.zero_grad()
    ctc(adapter, spoken(adapter, utterances), Tokens.of(texts)).backward()
    together = [gradient(p).clone() for p in [*ctc.parameters(), *adapter.speech.parameters()]]
    ctc.zero_grad()
    adapter.zero_grad()
    for utterance, text in zip(utterances, texts, strict=True):
        ctc(adapter, alone(adapter, utterance), Tokens.of([text])).backward()
    for whole, parameter in zip(together, [*ctc.parameters(), *adapter.speech.parameters()], strict=True):
        torch.testing.assert_close(whole, parameter.grad, **CLOSE)


def test_best_path_has_no_repetitions_no_blanks_and_no_padding(adapter):
    head = UnitHead(5, 5)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(5))
        head.linear.bias.zero_()
    paths, lengths = [[0, 1, 1, 0, 1, 2], [3, 3, 0, 4, 4, 4], [0, 0, 0, 0, 2, 2]], torch.tensor([6, 4, 3])
    embeddings = nn.functional.one_hot(torch.tensor(paths), 5).float()
    assert CTC(head).decode(Adapted(embeddings, lengths)) == [[1, 1, 2], [3, 4], []]


@given(st.lists(st.integers(1, 3), max_size=6), st.integers(1, 8))
@settings(deadline=None, max_examples=80)
def test_what_fits_has_a_loss(units, emissions):
    embeddings = torch.zeros(1, emissions, 4)
    ctc = CTC(UnitHead(4, 4))
    adapted = Adapted(embeddings, torch.tensor([emissions]))
    loss = ctc(MeanFormer(), Spoken(embeddings, adapted.lengths, adapted), Tokens.of([units]))
    assert bool(loss.isfinite()) == fits(units, emissions)
    assert fits(units, emissions) == (least_frames(units) <= emissions)


def test_rows_of_the_language_model_are_classes_by_cosine(adapter):
    torch.manual_seed(5)
    projection, rows, ids = nn.Linear(6, 8), torch.randn(3, 8, requires_grad=True), [40, 7, 19]
    head = RowHead(projection, rows, ids, temperature=0.5)
    assert head.encode([7, 7, 5, 40]) == [2, 2, 1]
    assert head.decode([2, 2, 1]) == [7, 7, 40]
    batch = spoken(adapter, speech())
    logits = head(batch.adapted.embeddings)
    for t, embedding in enumerate(batch.adapted.embeddings[2]):
        put = projection.weight @ embedding + projection.bias
        expected = [unit(put) @ unit(row) / 0.5 for row in [head.blank[0], *rows]]
        torch.testing.assert_close(logits[2, t], torch.stack(expected), **CLOSE)
    CTC(head)(adapter, batch, Tokens.of([[1], [2], [3, 3], [1], [2, 1]])).backward()
    assert rows.grad is None
    for trained in (projection.weight, head.blank, head.temperature.value, adapter.speech.weight):
        assert gradient(trained).abs().sum() > 0
    assert set(head.state_dict()) == {"blank", "temperature.value"}


def test_projection_is_copied_once_with_the_model():
    projection = nn.Linear(6, 8)
    model = nn.ModuleList([projection, RowHead(projection, torch.randn(3, 8), [1, 2, 3])])
    copied, head = copy.deepcopy(model)
    for parameter in copied.parameters():
        nn.init.zeros_(parameter)
    assert (head(torch.randn(1, 1, 6)) == 0).all()
    assert len(list(model.parameters())) == len(list(head.parameters())) + 2 == 4


def small_qformer(windows=None):
    torch.manual_seed(6)
    body = Body(hidden=16, layers=3, heads=2, feed_forward=24, positions=32)
    sizes = QFormerSizes(body=body, features=4, queries=3, dropout=0.0, vocabulary=LETTERS.size, windows=windows)
    model = QFormer(sizes)
    for (
        parameter
    ) in model.parameters():  # away from the small values of the start, where every utterance is nearly alike
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    "windows", [None, Windows(frames=3, stride=3, self_attention="global")], ids=["whole", "windows"]
)
def test_objectives_train_the_qformer_whatever_the_padding(windows):
    qformer, config = small_qformer(windows), ContrastiveConfig(width=8, queue=0 if windows else 4)
    stc = Contrastive(16, LETTERS, config, queries_of(qformer), Peers())
    objectives = [stc, Matching(16, LETTERS, stc.similarities), Generation(LETTERS, GenerationConfig())]
    sums = []
    for frames in (0, 16):
        batch, tokens = spoken(qformer, speech(), frames), Tokens.of(TEXTS)
        torch.manual_seed(0)
        if stc.past is not None:
            stc.past.counts.zero_()
        sums.append(torch.stack([objective(qformer, batch, tokens) for objective in objectives]))
    torch.testing.assert_close(*sums, **CLOSE)
    sums[1].sum().backward()
    assert not [name for name, parameter in qformer.named_parameters() if parameter.grad is None]
    assert not [name for x in objectives for name, parameter in x.named_parameters() if parameter.grad is None]
    stg = objectives[2]
    one_by_one = sum(stg(qformer, alone(qformer, u), Tokens.of([t])) for u, t in zip(speech(), TEXTS, strict=True))
    torch.testing.assert_close(sums[1][2], one_by_one, **CLOSE)


def test_qformer_learns_to_write_what_was_spoken_alone_and_in_a_batch():
    qformer, stg = small_qformer(), Generation(LETTERS, GenerationConfig())
    utterances, texts = (
        [utterance[:1].expand(3 - i, 4) for i, utterance in enumerate(speech([1, 1, 1]))],
        [[5, 6, 7], [8], []],
    )
    optimiser = torch.optim.Adam(qformer.parameters(), 5e-3)
    for _ in range(80):
        optimiser.zero_grad()
        stg(qformer, spoken(qformer, utterances), Tokens.of(texts)).backward()
        optimiser.step()
    assert generate(qformer, spoken(qformer, utterances).adapted, LETTERS, 5) == texts
    assert [generate(qformer, alone(qformer, u).adapted, LETTERS, 5)[0] for u in utterances] == texts


def test_objectives_run_under_autocast():
    qformer = small_qformer()
    stc = Contrastive(16, LETTERS, ContrastiveConfig(width=8, queue=4), 3, Peers())
    ctc = CTC(RowHead(nn.Linear(16, 8), torch.randn(11, 8), list(range(11))))
    for objective in (stc, Matching(16, LETTERS, stc.similarities), Generation(LETTERS, GenerationConfig()), ctc):
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(qformer, spoken(qformer, speech([9, 8, 9, 9, 9])), Tokens.of([[5], [6, 7], [8], [], [9]]))
        assert loss.dtype == torch.float32
        loss.backward()
        assert all(gradient(parameter).isfinite().all() for parameter in objective.parameters())


class Frames(nn.Module):
    """An adapter that knows no text."""


def test_objectives_of_text_say_that_they_need_a_qformer(adapter):
    batch, tokens = spoken(adapter, speech()), Tokens.of(TEXTS)
    for objective in (contrast(), Matching(6, LETTERS), Generation(LETTERS, GenerationConfig())):
        with pytest.raises(TrainingError, match=rf"{objective.name} needs an adapter that reads text.*Frames does not"):
            objective(Frames(), batch, tokens)
