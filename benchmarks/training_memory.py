"""What a recipe takes of memory, computed and measured: python benchmarks/training_memory.py FOLDER RECIPE ... [--steps 2].

Trains some steps on a CPU, in a process of its own, on random features of the width that the recipe's encoder has, for
texts and lengths like LibriSpeech's, with models of the recipe's sizes and random weights: bytes do not depend on values.
Computed is what `--dry-run` says; measured is the process at its peak, what its imports take beside it. Prints a table. Linux.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from encodeonce.store import FeatureWriter, NewUtterance, Output
from encodeonce.train.configure import find_config
from encodeonce.train.pretrained import find_bert
from synthetic import FRAME_RATE, draw_lengths

UTTERANCES = 400
WIDTHS = {"hubert-large": 1024, "hubert-base": 768, "speechtokenizer": 1024, "moonshine-tiny-onnx": 288}
WORDS_A_SECOND = 2.7
LANGUAGES = ("de", "fr")
LLAMAS: dict[str, dict[str, Any]] = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": {
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "dtype": "bfloat16",
    }
}
"""Fields of LlamaConfig as they are published."""
BERTS = {"bert-base-uncased": 30_522, "bert-base-multilingual-cased": 119_547}
"""Entries of the vocabulary; all else is BERT base."""
IMPORTS = "import encodeonce.train.run, encodeonce.train.llm.frozen, transformers.models.bert.modeling_bert"


def make_store(folder: Path, width: int) -> Path:
    """Random features with random texts in MiniLM's whole words, one split."""
    store = folder / f"store-{width}"
    if store.exists():
        return store
    generator = np.random.default_rng(0)
    vocabulary = (find_bert("minilm-l6") / "vocab.txt").read_text().splitlines()
    words = np.array([word for word in vocabulary if word.isalpha() and word.isascii()])
    frames = draw_lengths(UTTERANCES)
    texts = [" ".join(generator.choice(words, max(1, round(n / FRAME_RATE * WORDS_A_SECOND)))) for n in frames.tolist()]
    utterances = [
        NewUtterance(f"u{i}", n, text=text, translations=dict.fromkeys(LANGUAGES, text))
        for i, (n, text) in enumerate(zip(frames.tolist(), texts, strict=True))
    ]
    output = Output("features", width, "float16", "random numbers")
    writer = FeatureWriter(store, "synthetic", "train", [output], {"seed": 1}, 16_000, 16_000 // FRAME_RATE)
    report = writer.write(
        utterances,
        lambda name: generator.standard_normal((frames[int(name[1:])], width), np.float32).astype(np.float16),
    )
    assert not report.failed
    return store


def make_bert(folder: Path, name: str) -> Path:
    """BERT base with random weights and MiniLM's word pieces."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = folder / name
    if not path.exists():
        PreTrainedTokenizerFast.from_pretrained(find_bert("minilm-l6")).save_pretrained(path)
        BertModel(BertConfig(vocab_size=BERTS[name])).save_pretrained(path)
    return path


def make_llama(folder: Path, name: str) -> Path:
    """A LLaMA of the published sizes, with MiniLM's word pieces."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = folder / name.replace("/", "--")
    if not path.exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            find_bert("minilm-l6"), bos_token="[CLS]", eos_token="[SEP]"
        )
        tokenizer.save_pretrained(path)
        config = LlamaConfig(**LLAMAS[name], bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
        torch.set_default_dtype(torch.bfloat16)
        LlamaForCausalLM(config).save_pretrained(path)
        torch.set_default_dtype(torch.float32)
    return path


def overrides_of(folder: Path, recipe: str, steps: int) -> list[str]:
    """The recipe on the random store and models, some steps of its last phase, on a CPU."""
    plain = yaml.safe_load(find_config(recipe).read_text())
    found = [
        f"data.store={make_store(folder, WIDTHS[plain['data']['encoder']])}",
        "data.encoder=null",
        "data.outputs=[features]",
        "data.train=[train]",
        "data.dev=[]",
        "data.train_where=null",
        "data.dev_where=null",
        "phases=[]",
        f"training.max_steps={steps}",
        "training.warmup_steps=0",
        "training.device=cpu",
    ]
    if bert := plain["adapter"].get("bert"):
        found.append(f"adapter.bert={make_bert(folder, bert) if bert in BERTS else bert}")
    if (model := plain.get("llm", {}).get("model")) in LLAMAS:
        found.append(f"llm.model={make_llama(folder, model)}")
    return found


def peak(command: list[str]) -> tuple[int, str]:
    """Bytes of a process's own memory at its peak, looked at 20 times a second, and its last line.

    Mapped files, such as checkpoints while they are read, do not count: the kernel takes them back when it needs to.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    status, most = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        if found := re.search(r"RssAnon:\s+(\d+) kB", status.read_text()):
            most = max(most, int(found[1]) * 1024)
        time.sleep(0.05)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return most, lines[-1] if lines else ""


def measure(folder: Path, recipe: str, steps: int, overrides: list[str]) -> dict[str, Any]:
    """Computed and measured bytes of one recipe."""
    command = [str(Path(sys.executable).with_name("train-adapter")), recipe, *overrides_of(folder, recipe, steps)]
    with TemporaryDirectory(dir=folder) as runs:
        command += [f"output_dir={runs}/run", "--json", "--quiet", *overrides]
        _, planned = peak([*command, "--dry-run"])
        idle, _ = peak([sys.executable, "-c", IMPORTS])
        most, _ = peak(command)
    return {"recipe": recipe, "computed": json.loads(planned)["memory"], "idle": idle, "peak": most}


def main() -> None:
    """Measure the recipes one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the store, the models and the trainings")
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--steps", type=int, default=2, help="of the optimiser")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="over the recipe")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print("| recipe | computed | measured | of it imported |\n|---|---|---|---|")
    for recipe in options.recipes:
        found = measure(options.folder, recipe, options.steps, options.set)
        computed = found["computed"]["total"]
        print(f"| `{recipe}` | {computed / 1e9:.2f} GB | {found['peak'] / 1e9:.2f} GB | {found['idle'] / 1e9:.2f} GB |")
        print(json.dumps(found), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
