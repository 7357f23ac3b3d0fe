"""A split decoded: what each line says, that a killed run and a whole one write the same, and what is refused."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from encodeonce.evaluate.decoding import run as decoding
from encodeonce.evaluate.decoding.batches import plan_batches, read_batches
from encodeonce.evaluate.decoding.lines import LINES, ORIGIN
from encodeonce.evaluate.decoding.options import DecodeOptions
from encodeonce.evaluate.decoding.run import BUSY, Decoded, decode_split
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.hypotheses import Hypothesis, read_hypotheses
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output
from encodeonce.store.errors import StoreError
from encodeonce.store.locks import lock
from encodeonce.train.batch import FeatureIdentity
from encodeonce.train.checkpoint import Checkpoint, Fingerprints, load_checkpoint, save_checkpoint
from encodeonce.train.configure import parse_config
from encodeonce.train.errors import TrainingError
from encodeonce.train.model import AdapterModel, build_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_transcriber import save_llm

COUNT, HOP = 23, 320
SMALL = DecodeOptions(frames_per_batch=60, utterances_per_batch=4)
OUTPUTS = [
    Output("layer-9", 6, "float16", "made up"),
    Output("codes", 2, "uint16", "made up", codebook_sizes=(7, 70_000 // 2)),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A made-up split with texts in two languages, speakers and metadata."""
    folder, rng = tmp_path_factory.mktemp("decoded"), np.random.default_rng(1)
    values = {
        f"u-{i:02d}": {
            "layer-9": 2 * rng.standard_normal((length, 6)).astype(np.float32),
            "codes": rng.integers(0, 7, (length, 2)).astype(np.uint16),
        }
        for i, length in enumerate(rng.integers(5, 50, COUNT).tolist())
    }
    utterances = [
        NewUtterance(
            name,
            len(outputs["layer-9"]),
            text=f"Utterance {name}" if number else None,
            speaker=f"s{number % 3}",
            language="en",
            translations={"de": f"\N{LATIN CAPITAL LETTER U WITH DIAERESIS}ber {name}"},
            metadata={"intent": "go", "number": number},
        )
        for number, (name, outputs) in enumerate(values.items())
    ]
    writer = FeatureWriter(folder / "store", "toy", "test", OUTPUTS, {}, 16_000, HOP)
    assert not writer.write(utterances, lambda name: values[name]).failed
    return FeatureStore(folder / "store", split="test")


def make(store: FeatureStore, folder: Path, **config: Any) -> tuple[Checkpoint, AdapterModel]:
    """A random model that was trained for nothing, and its checkpoint."""
    values = {
        "output_dir": str(folder),
        "adapter": {"name": "bilstm", "hidden": 8},
        "objectives": {"ctc": {}},
        "training": {"max_steps": 1, "device": "cpu"},
        "data": {"outputs": ["layer-9"]},
        **config,
    }
    parsed = parse_config(values)
    torch.manual_seed(2)
    outputs = [store.spec(name) for name in parsed.data.outputs]
    model = build_model(parsed, outputs, ["abc de", "fgh"]).eval()
    for weight in model.parameters():
        weight.data.mul_(2.5)
    identity = FeatureIdentity(store.encoder, store.fingerprint, tuple(parsed.data.outputs))
    save_checkpoint(folder, 1, parsed, model, Fingerprints.of(identity, model), None, {}, best=True)
    return load_checkpoint(folder), model


@pytest.fixture(scope="module")
def trained(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, AdapterModel]:
    return make(store, tmp_path_factory.mktemp("run"))


@dataclass
class Watched:
    """Remembers what it is told; may do something each time."""

    then: Callable[[int], None] = lambda done: None
    lines: list[str] = field(default_factory=list)
    done: list[tuple[int, int]] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, done: int, total: int) -> None:
        self.done.append((done, total))
        self.then(done)


def timeless(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    return [replace(one, seconds=None) for one in hypotheses]


def test_a_line_says_what_was_written_and_what_the_table_says(
    store: FeatureStore, trained: tuple[Checkpoint, AdapterModel], tmp_path: Path
) -> None:
    checkpoint, model = trained
    watched = Watched()
    found = decode_split(checkpoint, store, tmp_path / "new" / "folder", SMALL, progress=watched)
    assert [one.id for one in found.hypotheses] == store.ids
    assert found.hypotheses == read_hypotheses(found.path)
    for one in found.hypotheses:
        number, features = int(one.id[2:]), torch.tensor(store[one.id].features).float()[None]
        assert one.pred_text == model.transcribe([features], torch.tensor([features.shape[1]]))[0]
        assert one.duration == pytest.approx(features.shape[1] * HOP / 16_000)
        assert one.text == (f"Utterance {one.id}" if number else None)  # as it is, not in lower case
        assert (one.speaker, one.language) == (f"s{number % 3}", "en")
        assert one.seconds is not None
        assert one.seconds > 0
        score = one.metadata["score"]
        assert one.metadata == {
            "intent": "go",
            "number": number,
            "translation_de": f"\u00dcber {one.id}",
            "score": score,
        }
        assert score < 0
    assert len({one.pred_text for one in found.hypotheses}) > 5
    assert watched.done[-1] == (COUNT, COUNT)
    assert found.audio_seconds == pytest.approx(sum(store.frames) * HOP / 16_000)
    assert found.real_time_factor == pytest.approx(
        sum(one.seconds or 0 for one in found.hypotheses) / found.audio_seconds
    )
    assert found.load_seconds > 0
    assert (found.writer, found.resumed) == ("ctc", 0)
    assert sorted(path.name for path in found.path.parent.iterdir()) == [ORIGIN, LINES]
    assert json.loads((found.path.parent / ORIGIN).read_text())["utterances"]["count"] == COUNT


@pytest.fixture(scope="module")
def written(
    store: FeatureStore, trained: tuple[Checkpoint, AdapterModel], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Decoded, bytes]:
    """A whole run, and the bytes that it had written before it put the lines in order."""
    folder, pieces = tmp_path_factory.mktemp("whole"), []
    watched = Watched(lambda _: pieces.append((folder / LINES).read_bytes()))
    return decode_split(trained[0], store, folder, SMALL, model=trained[1], progress=watched), pieces[-1]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_a_run_killed_at_any_byte_goes_on_to_the_same_file(
    share: float,
    store: FeatureStore,
    trained: tuple[Checkpoint, AdapterModel],
    written: tuple[Decoded, bytes],
    tmp_path: Path,
) -> None:
    (whole, in_order), folder = written, tmp_path / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(whole.path.parent / ORIGIN, folder)
    kept = in_order[: round(share * len(in_order))]
    (folder / LINES).write_bytes(kept)
    watched = Watched()
    found = decode_split(trained[0], store, folder, SMALL, model=trained[1], progress=watched)
    assert timeless(found.hypotheses) == timeless(whole.hypotheses) == timeless(read_hypotheses(found.path))
    stripped = [
        [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]
        for path in (found.path, whole.path)
    ]
    assert stripped[0] == stripped[1]
    standing = [json.loads(line) for line in kept.decode(errors="ignore").splitlines(keepends=True) if line[-1] == "\n"]
    assert found.resumed == len(standing)
    seconds = {one.id: one.seconds for one in found.hypotheses}
    assert all(seconds[line["id"]] == line["seconds"] for line in standing)
    assert bool(watched.lines) == (0 < len(standing) < COUNT)


def test_an_interrupted_run_keeps_whole_batches_and_goes_on(
    store: FeatureStore, trained: tuple[Checkpoint, AdapterModel], written: tuple[Decoded, bytes], tmp_path: Path
) -> None:
    def stop(done: int) -> None:
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_split(trained[0], store, tmp_path, SMALL, progress=Watched(stop))
    kept = read_hypotheses(tmp_path / LINES)
    longest = sorted((one.duration or 0.0 for one in written[0].hypotheses), reverse=True)
    assert [one.duration for one in kept] == longest[: len(kept)]  # so that too little memory shows at once
    found = decode_split(
        trained[0], store, tmp_path, replace(SMALL, frames_per_batch=50), progress=(watched := Watched())
    )
    assert watched.lines == [f"going on: {len(kept)} of {COUNT} utterances are written in {tmp_path / LINES}"]
    assert timeless(found.hypotheses) == timeless(written[0].hypotheses)


def test_a_run_that_is_done_is_not_decoded_again(
    store: FeatureStore,
    trained: tuple[Checkpoint, AdapterModel],
    written: tuple[Decoded, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoding, "open_model", None)
    before = written[0].path.stat().st_mtime_ns
    found = decode_split(trained[0], store, written[0].path.parent, SMALL)
    assert found == replace(written[0], load_seconds=0.0, resumed=COUNT)
    assert written[0].path.stat().st_mtime_ns == before


def test_hypotheses_of_something_else_are_not_gone_on_with(
    store: FeatureStore, trained: tuple[Checkpoint, AdapterModel], written: tuple[Decoded, bytes], tmp_path: Path
) -> None:
    folder = written[0].path.parent
    others: list[tuple[dict[str, Any], str]] = [
        ({"options": DecodeOptions(method="beam")}, "decoding.method=beam against greedy; take another folder"),
        (
            {"where": "speaker == 's1'"},
            r"utterances.where=speaker == 's1' against None; utterances.count=8 against 23; .*ids",
        ),
        ({"limit": 5}, "utterances.limit=5 against None; utterances.count=5 against 23"),
        ({"text_column": "translation:de"}, "here against there: utterances.text=translation:de against text; take"),
    ]
    for changed, message in others:
        asked: dict[str, Any] = {"options": SMALL, **changed}
        with pytest.raises(EvaluationError, match=message):
            decode_split(trained[0], store, folder, **asked)
    other = shutil.copytree(trained[0].folder, tmp_path / "other")
    weights = (other / "adapter.safetensors").read_bytes()
    (other / "adapter.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(EvaluationError, match=r"here against there: checkpoint.adapter_sha256=.* against .*; take"):
        decode_split(load_checkpoint(other), store, folder, SMALL)
    shutil.copy(written[0].path, tmp_path / LINES)
    with pytest.raises(EvaluationError, match=rf"{LINES} is there, and no {ORIGIN} that says"):
        decode_split(trained[0], store, tmp_path, SMALL)
    shutil.copy(folder / ORIGIN, tmp_path)
    (tmp_path / LINES).write_text("{}\n" + (tmp_path / LINES).read_text())
    with pytest.raises(EvaluationError, match=f"{LINES}, line 1: no id and no pred_text"):
        decode_split(trained[0], store, tmp_path, SMALL)


def test_another_language_model_under_the_same_name_and_another_precision_are_not_gone_on_with(
    store: FeatureStore, tmp_path: Path
) -> None:
    checkpoint, model = make(
        store, tmp_path / "run", training={"max_steps": 1, "device": "cpu", "mixed_precision": "bf16"}
    )
    save_llm("llama", tmp_path / "llm")
    fused = replace(SMALL, method="beam", beams=3, language_model=str(tmp_path / "llm"))
    found = decode_split(checkpoint, store, tmp_path / "out", fused, limit=2, model=model)
    again = decode_split(checkpoint, store, tmp_path / "out", fused, limit=2, model=model)
    assert (again.resumed, again.hypotheses) == (2, found.hypotheses)
    with pytest.raises(EvaluationError, match=r"here against there: decoding.precision=bfloat16 against float32; take"):
        decode_split(checkpoint, store, tmp_path / "out", fused, limit=2, device="cuda")
    save_llm("llama", tmp_path / "llm")  # other weights
    with pytest.raises(EvaluationError, match=r"there: decoding.language_model_fingerprint=\w+ against \w+; take"):
        decode_split(checkpoint, store, tmp_path / "out", fused, limit=2, model=model)
    shutil.rmtree(tmp_path / "llm")
    with pytest.raises(TrainingError, match="llm"):
        decode_split(checkpoint, store, tmp_path / "out", fused, limit=2, model=model)


def test_other_recordings_under_the_same_ids_are_not_gone_on_with(
    store: FeatureStore, trained: tuple[Checkpoint, AdapterModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_split(trained[0], store, tmp_path, SMALL)
    table = store.columns

    def noisy(names: Sequence[str]) -> pa.Table:
        found = table(names)
        other = pa.array(["f" * 64] * len(found))
        return found.set_column(found.column_names.index("audio_sha256"), "audio_sha256", other)

    monkeypatch.setattr(store, "columns", lambda names: noisy(names) if "audio_sha256" in names else table(names))
    with pytest.raises(EvaluationError, match=r"here against there: utterances.audio_sha256=\w+ against \w+; take"):
        decode_split(trained[0], store, tmp_path, SMALL)


def test_references_are_the_store_s_also_where_they_were_corrected_since(
    store: FeatureStore, trained: tuple[Checkpoint, AdapterModel], tmp_path: Path
) -> None:
    found = decode_split(trained[0], store, tmp_path, SMALL)
    lines = found.path.read_text()
    assert "Utterance" in lines
    found.path.write_text(lines.replace("Utterance", "Uterance"))
    assert decode_split(trained[0], store, tmp_path, SMALL).hypotheses == found.hypotheses


def test_what_cannot_be_decoded_is_refused_before_anything_is_written(
    store: FeatureStore, trained: tuple[Checkpoint, AdapterModel], tmp_path: Path
) -> None:
    checkpoint, folder = trained[0], tmp_path / "new"
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (EvaluationError, "none of its 23 utterances is one where duration > 99", {"where": "duration > 99"}),
        (EvaluationError, "limit=0: take 1 or more", {"limit": 0}),
        (EvaluationError, "writer=llm: this checkpoint was trained for ctc", {"options": DecodeOptions(writer="llm")}),
        (TrainingError, "no such column", {"text_column": "txt"}),
        (StoreError, "no column 'nothing'", {"where": "nothing == 1"}),
    ]
    for kind, message, asked in refused:
        with pytest.raises(kind, match=message):
            decode_split(checkpoint, store, folder, **asked)
    foreign = replace(checkpoint, fingerprints=replace(checkpoint.fingerprints, features="other"))
    with pytest.raises(TrainingError, match="trained on something else, here against there: features"):
        decode_split(foreign, store, folder)
    assert not folder.exists()
    folder.mkdir()
    with lock(folder / BUSY), pytest.raises(StoreError):
        decode_split(checkpoint, store, folder)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        decode_split(checkpoint, store, tmp_path / "file" / "below")


def test_a_part_of_a_split_and_another_text(
    store: FeatureStore, trained: tuple[Checkpoint, AdapterModel], written: tuple[Decoded, bytes], tmp_path: Path
) -> None:
    checkpoint, model = trained
    whole = {one.id: one for one in written[0].hypotheses}
    some = decode_split(checkpoint, store, tmp_path / "limit", SMALL, limit=7, model=model).hypotheses
    assert len(some) == 7
    assert [one.id for one in some] == [name for name in store.ids if name in {one.id for one in some}]
    assert [one.pred_text for one in some] == [whole[one.id].pred_text for one in some]
    fewer = decode_split(checkpoint, store, tmp_path / "fewer", SMALL, limit=3, model=model).hypotheses
    assert {one.id for one in fewer} < {one.id for one in some}
    german = decode_split(
        checkpoint, store, tmp_path / "de", SMALL, where="speaker == 's1'", text_column="translation:de", model=model
    )
    assert {one.speaker for one in german.hypotheses} == {"s1"}
    for one in german.hypotheses:
        assert (one.text, one.language, one.metadata["source_language"]) == (f"\u00dcber {one.id}", "de", "en")
        assert one.metadata["transcript"] == f"Utterance {one.id}"
    intents = decode_split(checkpoint, store, tmp_path / "in", SMALL, text_column="metadata:intent", model=model)
    assert {one.text for one in intents.hypotheses} == {"go"}


def test_several_outputs_are_read_as_the_stream_reads_them(store: FeatureStore) -> None:
    names, found = ["layer-9", "codes"], {}
    for batch in store.stream(frames_per_batch=500, outputs=names, shuffle="none", dtype="float32"):
        for row, (name, length) in enumerate(zip(batch.ids, batch.lengths.tolist(), strict=True)):
            found[name] = [values[row, :length] for values, _ in batch.outputs.values()]
    for batch in read_batches(store, names, plan_batches(store.frames, 60, 4)):
        for row, (position, length) in enumerate(zip(batch.positions.tolist(), batch.lengths.tolist(), strict=True)):
            for values, wanted in zip(batch.outputs, found.pop(store.ids[position]), strict=True):
                assert values.dtype == wanted.dtype
                assert torch.equal(values[row, :length], wanted)
                assert not values[row, length:].any()
    assert not found


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120), st.integers(1, 9))
def test_batches_hold_every_utterance_once_the_longest_first(frames: list[int], most: int, utterances: int) -> None:
    plan = plan_batches(np.array(frames, np.int32), most, utterances)
    order = [place for batch in plan for place in batch.tolist()]
    assert sorted(order) == list(range(len(frames)))
    assert [frames[place] for place in order] == sorted(frames, reverse=True)
    for batch, after in zip(plan, [*plan[1:], None], strict=True):
        longest = frames[batch[0]]
        assert len(batch) == 1 or len(batch) * longest <= most
        assert len(batch) <= utterances
        assert after is None or len(batch) == utterances or (len(batch) + 1) * longest > most


def test_an_empty_text_and_one_that_did_not_end_are_flagged(store: FeatureStore, tmp_path: Path) -> None:
    adapter = {"name": "qformer", "hidden": 16, "layers": 2, "heads": 2, "queries": 4}
    checkpoint, model = make(
        store, tmp_path / "run", adapter=adapter, objectives={"stg": {}}, text={"tokenizer": "words"}
    )  # fmt: skip
    options = replace(SMALL, base_tokens=1, tokens_per_second=1)
    found = decode_split(checkpoint, store, tmp_path / "out", options, model=model)
    for one in found.hypotheses:
        assert ("empty" in one.flags) == (one.pred_text == "")
    assert {flag for one in found.hypotheses for flag in one.flags} & {"empty", "unfinished"}
