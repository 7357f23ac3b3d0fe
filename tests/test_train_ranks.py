"""Training the real model on two ranks is training it on one: whole trainings, and a contrast over the pairs of both."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output
from encodeonce.train.batch import TrainBatch
from encodeonce.train.config import TrainConfig
from encodeonce.train.configure import parse_config
from encodeonce.train.corpus import open_corpus
from encodeonce.train.metrics import read_metrics
from encodeonce.train.model import AdapterModel, build_model
from encodeonce.train.objectives.base import Tokens
from encodeonce.train.progress import TrainingProgress
from encodeonce.train.randomness import seed_all
from encodeonce.train.ranks import Ranks
from encodeonce.train.run import run_training
from encodeonce.train.step import Stepper
from safetensors.torch import load_file, save_file
from torch import Tensor, multiprocessing

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
WIDTH = 24
CONTRAST: dict[str, Any] = {
    "adapter": {"name": "qformer", "hidden": 32, "layers": 2, "queries": 3, "dropout": 0},
    "objectives": {"stc": {"width": 16, "queue": 6}, "stg": {"weight": 0.5}},
}
WINDOWS: dict[str, Any] = {
    "adapter": {"name": "window-qformer", "hidden": 32, "layers": 2, "window_frames": 9, "dropout": 0},
    "objectives": {"stg": {}, "ctc": {"weight": 0.3, "emissions": 8}},
}
PARTS = ([0, 1, 2], [3, 4, 5, 6, 7])
"""Utterances of each rank's batch."""


@dataclass(frozen=True)
class Place:
    """Where the store is, and where trainings go."""

    folder: Path

    def config(self, name: str, model: dict[str, Any], **loop: Any) -> TrainConfig:
        data = {
            "store": str(self.folder / "features"),
            "train": ["train"],
            "dev_where": "speaker == 'b'",
            "frames_per_batch": 150,
        }
        training = {
            "max_steps": 6,
            "eval_steps": 3,
            "log_steps": 1,
            "learning_rate": 1e-2,
            "device": "cpu",
            "threads": 1,
            **loop,
        }
        return parse_config(
            {
                "output_dir": str(self.folder / name),
                "data": data,
                "text": {"tokenizer": "words"},
                **model,
                "training": training,
            }
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(0)
    lengths = rng.integers(18, 45, 44)
    said = [" ".join(WORDS[w] for w in rng.integers(0, len(WORDS), 1 + i % 3)) for i in range(len(lengths))]
    features = {f"u{i:02d}": rng.standard_normal((n, WIDTH)).astype(np.float32) for i, n in enumerate(lengths)}
    utterances = [
        NewUtterance(name, len(values), text=text, speaker="ab"[i % 5 == 0])
        for i, ((name, values), text) in enumerate(zip(features.items(), said, strict=True))
    ]
    writer = FeatureWriter(
        folder / "features",
        "toy",
        "train",
        [Output("all", WIDTH, "float32", "noise")],
        {"made": "for tests"},
        16_000,
        320,
    )
    assert not writer.write(utterances, lambda name: {"all": features[name]}).failed
    return Place(folder)


def two_steps(
    place: Place, config: TrainConfig, parts: Sequence[Sequence[int]]
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The weights after two steps, each on the batch of these utterances that is this rank's, and the losses."""
    ranks, corpus = Ranks(config.training), open_corpus(config)
    seed_all(0)
    model = build_model(config, [corpus.train.store.spec("all")], corpus.train.texts)
    stepper = Stepper(model.train(), ranks, 1.0, find_unused=False)
    stepper.optimise(torch.optim.SGD(model.parameters(), lr=0.0))
    weights = {"stc": 1.0, "stg": 0.5}
    found = []
    for first in (0, 8):
        rows = [first + row for row in parts[ranks.rank]]
        found.append(stepper.step([batch_of(model, corpus.train.store, rows)], weights, 0.5, str).losses)
    return {name: value.detach().clone() for name, value in model.trainable().items()}, found


def batch_of(model: AdapterModel, store: FeatureStore, rows: Sequence[int]) -> TrainBatch:
    chosen = [store[row] for row in rows]
    lengths = torch.tensor([utterance.frames for utterance in chosen])
    values = torch.zeros(len(rows), int(lengths.max()), WIDTH)
    for row, utterance in zip(values, chosen, strict=True):
        row[: utterance.frames] = torch.from_numpy(np.array(utterance.features))
    encode = model.encoders()["stc"]
    tokens = Tokens.of([encode(utterance.text or "") for utterance in chosen])
    return TrainBatch([u.id for u in chosen], [values], lengths, {"stc": tokens, "stg": tokens}, int(lengths.sum()))


def on_a_rank(rank: int, port: int, place: Place) -> None:
    """One of two processes, by torchrun's environment."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    run_training(place.config("two", WINDOWS), TrainingProgress(quiet=True))
    weights, losses = two_steps(place, place.config("contrast", CONTRAST), PARTS)
    torch.save(losses, place.folder / f"losses-{rank}.pt")
    save_file(weights, place.folder / f"contrast-{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(place: Place) -> Place:
    """The same place, after two ranks have trained there."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    multiprocessing.spawn(on_a_rank, (port, place), nprocs=2)
    return place


def assert_close(weights: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(
            value, others[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_training_on_two_ranks_is_one_with_twice_the_batches(ranks):
    outcome = run_training(ranks.config("one", WINDOWS, gradient_accumulation_steps=2), TrainingProgress(quiet=True))
    assert outcome.report.steps == 6
    one, two = (load_file(ranks.folder / name / "last" / "adapter.safetensors") for name in ("one", "two"))
    assert_close(one, two)
    lines = [read_metrics(ranks.folder / name) for name in ("one", "two")]
    for mine, theirs in zip(*lines, strict=True):
        for key in ("losses", "dev", "wer", "gradient_norm"):
            assert mine.get(key) == pytest.approx(theirs.get(key), abs=1e-4)


def test_a_contrast_over_two_ranks_is_that_of_all_their_pairs_in_one_batch(ranks):
    weights, losses = two_steps(ranks, ranks.config("contrast", CONTRAST), [[*PARTS[0], *PARTS[1]]])
    for rank in (0, 1):
        theirs = load_file(ranks.folder / f"contrast-{rank}.safetensors")
        assert_close(weights, theirs)
        for mine, found in zip(losses, torch.load(ranks.folder / f"losses-{rank}.pt"), strict=True):
            assert mine == pytest.approx(found, abs=1e-5)


LEAVING = """
import atexit, sys, torch
from encodeonce.train import cli, ranks
from encodeonce.train.errors import TrainingError

def train(*_):
    if sys.argv[1] == "with others":
        torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=0, world_size=1)
    print("trained")
    if sys.argv[3] == "2":
        raise TrainingError("no")

atexit.register(print, "Python ended")
cli.show_recipes = train
cli.main(["--list-recipes"])
"""


@pytest.mark.parametrize("company", ["alone", "with others"])
@pytest.mark.parametrize("status", [0, 2])
def test_a_rank_leaves_before_python_ends(tmp_path: Path, company: str, status: int) -> None:
    """Freeing what gloo's threads hold while Python ends would abort a training that is done."""
    command = [sys.executable, "-c", LEAVING, company, str(tmp_path / "meet"), str(status)]
    left = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"})
    assert left.returncode == status, left.stderr
    assert left.stderr == ("error: no\n" if status else "")
    assert left.stdout.split("\n")[:-1] == ["trained", *(["Python ended"] if company == "alone" else [])]
