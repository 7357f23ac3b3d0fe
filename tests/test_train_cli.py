"""train-adapter end to end on a small store, and what it says of bad input: a line, and exit status 2."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commands import Done, run
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output
from encodeonce.store.errors import StoreError
from encodeonce.train.cli import main
from encodeonce.train.configure import parse_config
from encodeonce.train.corpus import open_corpus, targets
from encodeonce.train.crowding import OtherProcesses
from encodeonce.train.data import TokenTable, TrainingData
from encodeonce.train.run import moments

LETTERS = "abcdef "
FRAMES = 3
COUNT = 40


def text_of(number: int) -> str:
    """Letters that never stand beside their like."""
    rng = np.random.default_rng(number)
    return "a" + "".join(LETTERS[i] for i in rng.integers(1, 6, 8).cumsum() % 6) + "b"


def one_hot(text: str) -> np.ndarray:
    """Frames `[3 * letters, 7]` that say their letter."""
    return np.repeat(np.eye(len(LETTERS), dtype=np.float32)[[LETTERS.index(c) for c in text]], FRAMES, axis=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits train (forty utterances of four speakers, two without text) and other (five without any text)."""
    folder = tmp_path_factory.mktemp("store")
    outputs = [Output("letters", len(LETTERS), "float16", "one-hot")]
    for split, count in (("train", COUNT), ("other", 5)):
        said = {f"{split}-{i:02d}": text_of(i) for i in range(count)}
        utterances = [
            NewUtterance(
                name,
                FRAMES * len(text),
                text=None if split == "other" or i in (7, 9) else text.upper(),
                speaker="wxyz"[i % 4],
                translations={"de": f"Satz {i}"} if i % 2 else {},
                metadata={"intent": "LIGHTS on", "slots": ["a", "b"], "size": i},
            )
            for i, (name, text) in enumerate(said.items())
        ]
        writer = FeatureWriter(folder, "toy", split, outputs, {"made": "for tests"}, 16_000, 320)
        assert not writer.write(utterances, lambda name, said=said: {"letters": one_hot(said[name])}).failed
    return folder


def digests(folder: Path) -> dict[Path, str]:
    """The sha256 of every file of a store."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def values(store: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """A configuration that trains in seconds."""
    return {
        "output_dir": str(folder / "run"),
        "data": {"store": str(store), "train": ["train"], "dev_where": "speaker == 'w'", "frames_per_batch": 200},
        "adapter": {"name": "concat-mlp", "concat": 1, "hidden": 32},
        "objectives": {"ctc": {}},
        "training": {"learning_rate": 3e-2, "max_steps": 60, "eval_steps": 30, "device": "cpu", "threads": 1},
        **changes,
    }


def train(config: dict[str, Any], folder: Path, *arguments: str) -> Done:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return run(main, [str(folder / "config.yaml"), *arguments])


def test_a_small_training_learns_and_goes_on_where_it_stopped(store, tmp_path):
    config, before = values(store, tmp_path), digests(store)
    done = train(config, tmp_path, "training.max_steps=30", "--json")
    assert digests(store) == before, "a training only reads"
    assert done.status == 0, done.err
    report = done.json
    assert (report["ended"], report["steps"]) == ("finished", 30)
    assert report["utterances"] == {"train": 28, "dev": 10}
    assert [entry["why"] for entry in report["left_out"]["train"]] == ["are in the dev set", "have no text"]
    assert sum(report["parameters"]["trained"].values()) < 1000
    assert 0 <= report["wait_share"] <= 1
    assert "Trained 30 of 30 steps" in done.out
    assert "2 have no text (train-0" in done.err
    assert "Loss of ctc: ln(classes) for every emission" in done.err
    assert [line.partition(" for ")[2] for line in done.err.splitlines() if line.startswith("Time: about")] == [
        "30 steps, beside 1 validation",
        "30 steps, 1 validation of 0 s included",
    ]

    refused = train(config, tmp_path)
    assert refused.status == 2
    assert "resume_from_checkpoint=auto goes on" in refused.err

    on = train(config, tmp_path, "resume_from_checkpoint=auto", "--json", "--quiet")
    assert on.status == 0, on.err
    assert on.err == ""
    assert (on.json["steps"], on.json["ended"]) == (60, "finished")
    assert on.json["wer"] < 0.2
    assert (tmp_path / "run" / "best" / "adapter.safetensors").is_file()
    assert (
        parse_config(yaml.safe_load((tmp_path / "run" / "last" / "config.yaml").read_text())).training.max_steps == 60
    )
    less = train(config, tmp_path, "resume_from_checkpoint=auto", "training.max_steps=40")
    assert less.status == 0
    assert "is at step 60, beyond the 40 that are asked for; raise training.max_steps" in less.out


def test_a_training_goes_on_with_smaller_batches_and_without_an_utterance(store, tmp_path):
    """What the errors of memory and of a loss that is not finite advise; the vocabulary of words stays what it was."""
    words = {"objectives": {"ctc": {"units": "text"}}, "text": {"tokenizer": "words"}}
    config = values(store, tmp_path, **words)
    done = train(config, tmp_path, "training.max_steps=9", "--json")
    assert done.status == 0, done.err
    parameters = done.json["parameters"]
    without = ["data.train_where=id != 'train-03'", "data.frames_per_batch=100"]
    more = ["training.gradient_accumulation_steps=2", "training.max_steps=20", "resume_from_checkpoint=auto", "--json"]
    on = train(config, tmp_path, *without, *more)
    assert on.status == 0, on.err
    assert "begins anew; now against then: utterances: 27 against 28" in on.err
    assert "frames_per_batch: 100 against 200" in on.err
    assert on.json["steps"] == 20
    assert on.json["parameters"] == parameters


def test_too_little_memory_before_the_first_step_is_a_line(store, tmp_path, monkeypatch):
    def exhaust(*arguments, **options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("encodeonce.train.run.build_model", exhaust)
    done = train(values(store, tmp_path), tmp_path)
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith("error: out of memory before the first step")
    assert "data.frames_per_batch (200)" in done.err


def test_moments_are_learnt_from_batches_of_their_own_size(store, tmp_path, monkeypatch):
    data = {"store": str(store), "train": ["train"], "frames_per_batch": 10**9}
    config = parse_config(values(store, tmp_path, data=data, input={"normalise": "moments"}))
    corpus, sizes, stream = open_corpus(config), [], FeatureStore.stream
    monkeypatch.setattr(
        FeatureStore,
        "stream",
        lambda self, **options: sizes.append(options["frames_per_batch"]) or stream(self, **options),
    )
    ((mean, _),) = moments(config, corpus.train, [corpus.train.store.spec("letters")]) or []
    frames = np.concatenate([one_hot(text) for text in corpus.train.texts])
    np.testing.assert_allclose(mean, frames.mean(0), rtol=1e-6)
    assert sizes
    assert max(sizes) <= 10_000


def test_a_dry_run_tells_counts_and_memory_and_writes_nothing(store, tmp_path):
    done = train(values(store, tmp_path), tmp_path, "--dry-run", "--json")
    assert done.status == 0, done.err
    assert done.json["utterances"] == {"train": 28, "dev": 10}
    assert done.json["memory"]["total"] == sum(v for k, v in done.json["memory"].items() if k != "total")
    assert done.json["epoch_batches"] >= 3
    assert not (tmp_path / "run").exists()
    missing = train(values(store, tmp_path), tmp_path, "--dry-run", "init_from=runs/nowhere")
    assert missing.status == 0, missing.err
    assert "init_from=runs/nowhere: no such folder yet" in missing.err
    assert (
        "error: init_from=runs/nowhere: no such folder"
        in train(values(store, tmp_path), tmp_path, "init_from=runs/nowhere").err
    )


def test_the_clock_stops_a_training_that_a_later_one_goes_on_with(store, tmp_path):
    config = values(store, tmp_path)
    done = train(config, tmp_path, "training.max_steps=100000", "--max-minutes", "0.005", "--json")
    assert done.status == 0, done.err
    assert done.json["ended"] == "minutes"
    assert 0 < done.json["steps"] < 100_000
    more = train(
        config, tmp_path, "training.max_steps=100000", "--max-minutes", "0.005", "resume_from_checkpoint=auto", "--json"
    )
    assert more.json["steps"] > done.json["steps"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["data.train=[other]"], "none of the 2 utterances of"),
        (["data.train=[trian]"], "no split 'trian'"),
        (["data.store=nowhere"], "nowhere is no folder"),
        (["data.outputs=[layer-9]"], "no output 'layer-9'"),
        (["data.target=translation:fr"], "did you mean translation:de?"),
        (["data.target=metadata:intents"], "did you mean intent?"),
        (["data.target=words"], "has no such column"),
        (["data.train_where=lenght < 3"], "no column 'lenght'"),
        (["data.train_where=speaker == 'w'"], "are in the dev set"),
        (["data.frames_per_batch=20"], "longer than data.frames_per_batch=20"),
        (["data.max_seconds=0.1"], "longer than data.max_seconds=0.1"),
        (["adapter.concat=9"], "emissions for, by adapter.concat=9 and objectives.ctc.emissions=1"),
        (["output_dir=/dev/null/x"], "output_dir=/dev/null/x cannot be made: /dev/null is a file: give a folder"),
        (["llm.model=./nowhere", "objectives.llm={}"], "nowhere"),
        (["training.learnig_rate=1"], "did you mean learning_rate?"),
    ],
)
def test_bad_input_is_a_line_and_writes_nothing(store, tmp_path, changes, told):
    done = train(values(store, tmp_path), tmp_path, *changes)
    assert done.status == 2, done.out + done.err
    assert done.err.splitlines()[-1].startswith("error: ")
    assert told in done.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_recipes_and_adapters_are_listed():
    recipes, adapters = (run(main, [option, "--json"]).json for option in ("--list-recipes", "--list-adapters"))
    assert "slam-asr-linear" in recipes["recipes"]
    assert adapters["adapters"]["window-qformer"]["options"]["window_frames"] == 17
    assert "concat-mlp" in run(main, ["--list-adapters"]).out
    missing = run(main, [])
    assert missing.status == 2
    assert "CONFIG is missing" in missing.err


def test_targets_are_any_text_of_the_table(store):
    split = FeatureStore(store, split="train")
    said = {
        target: dict(zip(split.ids, targets(split, target), strict=True))
        for target in ("text", "translation:de", "metadata:intent", "metadata:slots", "metadata:size", "speaker")
    }
    assert [said["text"][name] for name in ("train-00", "train-07")] == [text_of(0).upper(), None]
    assert [said["translation:de"][name] for name in ("train-00", "train-01")] == [None, "Satz 1"]
    assert said["metadata:intent"]["train-00"] == "LIGHTS on"
    assert said["metadata:slots"]["train-00"] == "a b"
    assert said["metadata:size"]["train-03"] == "3"
    assert [said["speaker"][name] for name in ("train-00", "train-01")] == ["w", "x"]
    corpus = open_corpus(
        parse_config(values(store, Path(), data={"store": str(store), "train": ["train"], "target": "metadata:intent"}))
    )
    assert set(corpus.train.texts) == {"lights on"}


def test_a_limit_takes_the_same_utterances_every_time_and_more_of_them_with_a_larger_one(store):
    def chosen(limit: int, seed: int = 0) -> set[str]:
        data = {"store": str(store), "train": ["train"], "limit": limit}
        return set(open_corpus(parse_config(values(store, Path(), data=data, seed=seed))).train.ids)

    assert chosen(10) == chosen(10) < chosen(20)
    assert chosen(10) != chosen(10, seed=1)


class Spelling:
    """A model as data see it: letters by number; ten of them at most."""

    def encoders(self) -> dict[str, Any]:
        return {"stg": self.spell, "llm": self.spell, "ctc": lambda text: [len(text)]}

    def spell(self, text: str) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def excess(self, objective: str, frames: torch.Tensor, texts: Any) -> dict[str, torch.Tensor]:
        return {"f early": torch.tensor([objective == "stg" and text[1] == 5 for text in texts])}


def test_batches_hold_each_utterance_with_its_own_tokens_and_none_that_does_not_fit(store):
    config = parse_config(values(store, Path()))
    data = TrainingData(config, open_corpus(config), Spelling())
    split, seen = FeatureStore(store, split="train"), []
    for batch in data.train:
        assert batch.tokens["stg"] is batch.tokens["llm"]
        assert batch.frames == int(batch.lengths.sum())
        for row, name in enumerate(batch.ids):
            text = (split[name].text or "").lower()
            assert batch.texts[row] == text
            assert batch.tokens["stg"].ids[row, : batch.tokens["stg"].lengths[row]].tolist() == Spelling().spell(text)
            assert batch.tokens["ctc"].ids[row].tolist() == [len(text)]
            np.testing.assert_array_equal(batch.outputs[0][row, : batch.lengths[row]].numpy(), one_hot(text))
            assert text[1] != "f"
            seen.append(name)
    with_f = [e for e in data.left_out["train"] if e.why == "have f early"]
    assert len(seen) == len(set(seen)) == 28 - with_f[0].count
    assert not set(seen) & set(data.dev_ids)
    first, again = ([list(batch.ids) for batch in data.dev] for _ in range(2))
    assert first == again
    assert sorted(name for batch in first for name in batch) == sorted(data.dev_ids)


def test_a_stream_goes_on_where_its_state_says(store):
    config = parse_config(values(store, Path()))
    corpus = open_corpus(config)
    whole = [list(batch.ids) for batch in TrainingData(config, corpus, Spelling()).train]
    half = TrainingData(config, corpus, Spelling()).train
    batches = iter(half)
    taken = [list(next(batches).ids), list(next(batches).ids)]
    state = json.loads(json.dumps(half.state_dict()))
    rest = TrainingData(config, corpus, Spelling()).train
    rest.load_state_dict(state)
    assert taken + [list(batch.ids) for batch in rest] == whole


def test_token_tables_keep_every_text():
    table = TokenTable([[1, 2], [], [3]])
    assert [table[row].tolist() for row in range(len(table))] == [[1, 2], [], [3]]


def test_the_dev_set_has_to_be_of_the_same_features(tmp_path):
    for split, made in (("train", "one way"), ("dev", "another")):
        outputs = [Output("letters", len(LETTERS), "float16", "one-hot")]
        writer = FeatureWriter(tmp_path, "toy", split, outputs, {"made": made}, 16_000, 320)
        assert not writer.write([NewUtterance(split, 6, text="ab")], lambda name: {"letters": one_hot("ab")}).failed
    data = {"store": str(tmp_path), "train": ["train"], "dev": ["dev"]}
    with pytest.raises(StoreError, match="has several feature sets that fit"):
        open_corpus(parse_config(values(tmp_path, tmp_path, data=data)))


def test_the_dev_set_has_to_have_the_same_outputs(tmp_path):
    for split, more in (("train", [Output("few", 7, "float16", "fewer")]), ("dev", [])):
        outputs = [Output("letters", len(LETTERS), "float16", "one-hot"), *more]
        writer = FeatureWriter(tmp_path, "toy", split, outputs, {"made": "alike"}, 16_000, 320)
        features = {output.name: one_hot("ab") for output in outputs}
        assert not writer.write([NewUtterance(split, 6, text="ab")], lambda name, found=features: found).failed
    data = {"store": str(tmp_path), "train": ["train"], "dev": ["dev"], "outputs": ["few"]}
    with pytest.raises(StoreError, match=r"no output 'few' in .*dev"):
        open_corpus(parse_config(values(tmp_path, tmp_path, data=data)))


def test_a_dry_run_counts_the_words_of_the_texts(store, tmp_path):
    config = values(store, tmp_path, adapter={"name": "qformer", "hidden": 32, "layers": 1}, objectives={"stg": {}})
    done = train({**config, "text": {"tokenizer": "words"}}, tmp_path, "--dry-run", "--json")
    trained = train({**config, "text": {"tokenizer": "words"}}, tmp_path, "training.max_steps=1", "--json")
    planned, found = done.json["parameters"], trained.json["parameters"]
    assert planned == found


def test_texts_that_have_changed_end_what_was_learnt_with_their_vocabulary(tmp_path):
    """The same utterances with other texts, whose characters are as many: ids would mean other letters."""
    model = {"adapter": {"name": "concat-mlp", "concat": 1, "hidden": 8}, "objectives": {"ctc": {}}}
    for folder, text in (("old", "ab"), ("new", "ac")):
        outputs = [Output("letters", len(LETTERS), "float16", "one-hot")]
        writer = FeatureWriter(tmp_path / folder, "toy", "train", outputs, {"made": "alike"}, 16_000, 320)
        assert not writer.write([NewUtterance("u", 6, text=text)], lambda name: {"letters": one_hot("ab")}).failed
        config = values(
            tmp_path / folder, tmp_path, **model, data={"store": str(tmp_path / folder), "train": ["train"]}
        )
        loop = ["training.max_steps=2"] if folder == "old" else ["training.max_steps=4"]
        last = train(config, tmp_path, *loop, "resume_from_checkpoint=auto")
    assert last.status == 2
    assert "the texts that are trained on now hold what its vocabulary (ctc) lacks" in last.err
    begun = train(config, tmp_path, *loop, f"init_from={tmp_path / 'run'}", f"output_dir={tmp_path / 'anew'}")
    assert begun.status == 0, begun.err
    assert "Began with 2 tensors" in begun.err
    assert "another vocabulary, so words and classes are learnt anew" in begun.err


def test_a_training_goes_on_where_its_memory_cannot_be_told(store, tmp_path, monkeypatch):
    def unknown(*arguments, **options):
        raise AttributeError("'OddConfig' object has no attribute 'hidden_size'")

    monkeypatch.setattr("encodeonce.train.run.estimate", unknown)
    done = train(values(store, tmp_path), tmp_path, "training.max_steps=1")
    assert done.status == 0, done.err
    assert "Memory: unknown ('OddConfig' object has no attribute 'hidden_size')" in done.err


def test_cores_that_others_hold_are_told_with_the_threads_that_are_left(store, tmp_path, monkeypatch):
    monkeypatch.setattr("encodeonce.train.crowding.cores_of_process", lambda: frozenset((0, 1)))
    told = {}
    for busy in (0.2, 1.2, None):
        monkeypatch.setattr("encodeonce.train.run.OtherProcesses.busy", lambda self, busy=busy: busy)
        run = f"output_dir={tmp_path / str(busy)}"
        told[busy] = train(values(store, tmp_path), tmp_path, "training.max_steps=1", "training.threads=2", run).err
    assert "other processes" not in told[0.2] + told[None]
    assert "other processes keep 1.2 of 2 cores busy" in told[1.2]
    assert "training.threads=1" in told[1.2]


def test_what_others_compute_is_what_is_not_idle_nor_ones_own(tmp_path, monkeypatch):
    def passed(seconds: float, own: float, stat: str) -> None:
        monkeypatch.setattr("time.monotonic", lambda: seconds)
        monkeypatch.setattr("time.process_time", lambda: own)
        (tmp_path / "stat").write_text(stat)

    monkeypatch.setattr("encodeonce.train.crowding.CPU_TIMES", tmp_path / "stat")
    monkeypatch.setattr("encodeonce.train.crowding.cores_of_process", lambda: frozenset((0, 2)))
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    idle = "cpu  9 9 9 9\ncpu0 100 0 0 500 7 0 0 0 50 0\ncpu1 0 0 0 0 0 0 0 0 0 0\ncpu2 0 0 0 600 0 0 0 0 0 0\nintr 5\n"
    passed(10.0, 1.0, idle)
    others = OtherProcesses()
    assert others.busy() is None, "no time has passed"
    passed(
        14.0,
        4.0,
        idle.replace("cpu0 100 0 0", "cpu0 400 0 100").replace("cpu2 0", "cpu2 120").replace("cpu1 0", "cpu1 400"),
    )
    assert others.busy() == pytest.approx((5.2 - 3.0) / 4), "4 s of core 0, 1.2 of core 2, 3 of them one's own"
    monkeypatch.setattr("encodeonce.train.crowding.CPU_TIMES", tmp_path / "none")
    assert others.busy() is None
    assert OtherProcesses().busy() is None
