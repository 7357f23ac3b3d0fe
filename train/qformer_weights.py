"""A BERT in transformers' format as the beginning of a Q-Former: its sizes, its body, its embeddings and its prediction head."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from encodeonce.train.errors import TrainingError
from encodeonce.train.pretrained import first_line
from encodeonce.train.qformer import Body, QFormer
from torch import Tensor

HEAD = "cls.predictions."
FROM_BERT = [
    (r"embedding_norm\.", r"embeddings.LayerNorm."),
    (r"layers\.(\d+)\.attention\.(query|key|value)\.", r"encoder.layer.\1.attention.self.\2."),
    (r"layers\.(\d+)\.attention\.output\.", r"encoder.layer.\1.attention.output.dense."),
    (r"layers\.(\d+)\.attention\.norm\.", r"encoder.layer.\1.attention.output.LayerNorm."),
    (r"layers\.(\d+)\.feed_(?:query|text)\.up\.", r"encoder.layer.\1.intermediate.dense."),
    (r"layers\.(\d+)\.feed_(?:query|text)\.down\.", r"encoder.layer.\1.output.dense."),
    (r"layers\.(\d+)\.feed_(?:query|text)\.norm\.", r"encoder.layer.\1.output.LayerNorm."),
    (r"text\.words\.", r"embeddings.word_embeddings."),
    (r"text\.positions\.", r"embeddings.position_embeddings."),
    (r"text\.transform\.", HEAD + r"transform.dense."),
    (r"text\.norm\.", HEAD + r"transform.LayerNorm."),
    (r"text\.bias", HEAD + r"bias"),
]
"""Our names by BERT's. Queries' feed-forwards begin as copies of BERT's; what is not named here stays as it was drawn."""
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"


def bert_body(folder: Path) -> Body:
    """The sizes of the BERT in a folder.

    Raises:
        TrainingError: there is none, or one of another kind.
    """
    config = _read_config(folder)
    try:
        body = Body(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            feed_forward=config["intermediate_size"],
            positions=config["max_position_embeddings"],
            eps=config.get("layer_norm_eps", 1e-12),
            deviation=config.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise TrainingError(f"{folder}/config.json does not say {error}: is it that of a BERT?") from None
    return body


def bert_vocabulary(folder: Path) -> int:
    """Tokens that the BERT in a folder knows."""
    return int(_read_config(folder).get("vocab_size", 0))


def load_bert(model: QFormer, folder: Path) -> None:
    """Begin a Q-Former with the weights of a BERT of its size.

    Queries, cross-attention and the embedding of the vocabulary's last token, [DEC], stay as they were drawn; so does the
    prediction head where the folder has none. Token type 0 goes into the positions, so that a text alone is what BERT makes of it.

    Raises:
        TrainingError: tensors are missing, of other shapes, or not a BERT's.
    """
    found = _read_tensors(folder)
    has_head = f"{HEAD}transform.dense.weight" in found
    wanted = {name: source for name, source in _sources(model.state_dict()) if has_head or not source.startswith(HEAD)}
    _refuse_others(folder, found, set(wanted.values()) | {TOKEN_TYPES}, model.text is not None)
    for name, mine in model.state_dict().items():
        if name in wanted:
            value = found[wanted[name]]
            if name == "text.positions.weight":
                value = value + found[TOKEN_TYPES][0]
            rows = len(mine) - 1 if name in ("text.words.weight", "text.bias") else len(mine)
            if value.shape != mine[:rows].shape:
                expected = list(mine[:rows].shape)
                raise TrainingError(f"{folder}: {wanted[name]} is {list(value.shape)}; this Q-Former needs {expected}")
            mine[:rows].copy_(value)


def _sources(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Our tensors and those of BERT that they come from."""
    for name in names:
        for ours, theirs in FROM_BERT:
            source, matches = re.subn(f"^{ours}", theirs, name)
            if matches:
                yield name, source


def _refuse_others(folder: Path, found: Mapping[str, Tensor], wanted: set[str], has_text: bool) -> None:
    """Refuse tensors that are missing, or are of a body that is not ours; heads for other tasks do no harm."""
    missing = sorted(wanted - found.keys())
    body = {name for name in found if name.startswith(("encoder.", "embeddings.") if has_text else "encoder.")}
    unknown = sorted(body - wanted)
    complaints = [f"{_few(names)} {what}" for names, what in ((missing, "missing"), (unknown, "unexpected")) if names]
    if complaints:
        raise TrainingError(f"{folder} holds no BERT of this Q-Former's size: {'; '.join(complaints)}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError:
        raise TrainingError(
            f"{folder} has no config.json that can be read: give a BERT's folder in transformers' format"
        ) from None
    except ValueError:
        raise TrainingError(f"{path} is no JSON: give a BERT's folder in transformers' format") from None
    kind = config.get("model_type", "bert")
    activation = config.get("hidden_act", "gelu")
    if kind != "bert" or activation != "gelu":
        raise TrainingError(
            f"{path} says model_type {kind}, hidden_act {activation}; a Q-Former begins with a bert that uses gelu"
        )
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """BERT's tensors under the names of its body alone, as today's transformers calls them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors, binary = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if tensors.is_file():
            found = load_file(tensors)
        elif binary.is_file():
            found = torch.load(binary, map_location="cpu", weights_only=True)
        else:
            raise TrainingError(f"{folder} has neither model.safetensors nor pytorch_model.bin: give a BERT's folder")
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise TrainingError(f"{folder}: its weights cannot be read ({first_line(error)}); fetch it again") from None
    named = {_modern(name): value for name, value in found.items()}
    return {name: value for name, value in named.items() if not name.endswith("position_ids")}


def _modern(name: str) -> str:
    """bert-base-uncased's tensors carry the prefix of a model with heads, and TensorFlow's names of LayerNorm."""
    return (
        name.removeprefix("bert.")
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias")
    )
