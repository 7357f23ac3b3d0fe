"""Grids: every combination once, what is wrong refused by its path, hashes that depend on what a training depends on alone."""

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.sweep.expand import expand, identity
from encodeonce.evaluate.sweep.grid import Grid, find_grid, grids, load_grid, parse_grid
from encodeonce.evaluate.sweep.trained import open_trained, parameters_of
from encodeonce.train.checks import check_config
from encodeonce.train.config import TrainConfig
from encodeonce.train.configure import as_values, load_config, parse_config, to_yaml
from encodeonce.train.model import build_model
from encodeonce.train.optimiser import trainable_parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_retrieval import ADAPTERS, OUTPUT, TEXTS

BASE: dict[str, Any] = {"base": "demo-qformer", "evaluate": {"splits": ["dev"]}}


def grid(**values: Any) -> Grid:
    return parse_grid("some", {**BASE, **values})


def refused(values: Mapping[str, Any], *words: str) -> str:
    with pytest.raises(EvaluationError) as error:
        expand(parse_grid("some", {**BASE, **values}, words))
    return str(error.value)


def write_checkpoint(
    folder: Path, config: TrainConfig, features: str = "0" * 64, tensors: Mapping[str, torch.Tensor] | None = None
) -> Path:
    """A folder that has what a checkpoint has."""
    folder.mkdir(parents=True)
    save_file(dict(tensors or {"some": torch.zeros(3, 4)}), folder / "adapter.safetensors")
    (folder / "config.yaml").write_text(to_yaml(config))
    found = {"encoder": "toy", "features": features, "outputs": ["letters"], "llm": None, "encodeonce": "0"}
    (folder / "fingerprints.json").write_text(json.dumps({**found, "step": 7, "dev": None}))
    return folder


AXES = {
    "queries": st.lists(st.integers(1, 400), min_size=1, max_size=3, unique=True),
    "adapter.layers": st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    "training.learning_rate": st.lists(st.floats(1e-6, 1), min_size=1, max_size=2, unique=True),
    "data.encoder": st.lists(st.sampled_from(["a", "b-1", "b_1", "c/d"]), min_size=1, max_size=2, unique=True),
}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_combination_but_the_excluded_comes_once_with_every_seed(data):
    names = data.draw(st.lists(st.sampled_from(sorted(AXES)), min_size=1, max_size=3, unique=True))
    axes = {name: data.draw(AXES[name]) for name in names}
    rules = data.draw(
        st.lists(
            st.fixed_dictionaries(
                {names[0]: st.sampled_from(axes[names[0]])},
                optional={name: st.lists(st.sampled_from(axes[name]), min_size=1) for name in names[1:]},
            ),
            max_size=2,
        )
    )
    seeds = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=2, unique=True))

    def excluded(values: Mapping[str, Any]) -> bool:
        return any(
            all(values[axis] in (some if isinstance(some, list) else [some]) for axis, some in rule.items())
            for rule in rules
        )

    wanted = [dict(zip(names, values, strict=True)) for values in product(*axes.values())]
    wanted = [values for values in wanted if not excluded(values)]
    made = grid(grid=axes, exclude=rules, seeds=seeds)
    if not wanted:
        with pytest.raises(EvaluationError, match="exclude leaves nothing"):
            expand(made)
        return
    runs = expand(made)
    assert [(run.labels, run.seed) for run in runs] == [
        ({axis: str(value) for axis, value in values.items()}, seed) for values in wanted for seed in seeds
    ]
    for key in ("name", "identity", "folder"):
        assert len({getattr(run, key) for run in runs}) == len(runs)
    for run, (values, seed) in zip(runs, product(wanted, seeds), strict=True):
        told: Any = as_values(run.config)
        assert told["seed"] == seed
        assert told["adapter"]["queries"] == values.get("queries", 32)
        assert told["training"]["learning_rate"] == values.get("training.learning_rate", 1e-3)


def test_a_hash_is_that_of_what_comes_out_and_not_of_where_or_how_it_was_said(tmp_path):
    (first,) = expand(grid(set={"adapter.layers": 2, "training.learning_rate": 1e-4}))
    (other,) = expand(
        grid(
            set={"training.learning_rate": "1e-4", "training.device": "auto", "training.threads": 1},
            runs={"some": {"adapter.layers": 2}},
            output_dir=str(tmp_path),
        )
    )
    assert first.identity == other.identity
    assert first.name != other.name
    for changed in ({"adapter.layers": 3}, {"training.ema": 0.9}, {"data.encoder": "other"}):
        (run,) = expand(grid(set={"adapter.layers": 2, "training.learning_rate": 1e-4, **changed}))
        assert run.identity != first.identity
    assert identity(parse_config(as_values(first.config))) == first.identity


def test_a_run_is_found_again_under_an_older_name(tmp_path):
    (run,) = expand(grid(runs={"old name": {}}, output_dir=str(tmp_path)))
    run.folder.mkdir(parents=True)
    (renamed,) = expand(grid(runs={"new name": {}}, output_dir=str(tmp_path)))
    assert renamed.folder == run.folder
    assert renamed.name == "new-name-seed0"
    assert renamed.config.output_dir == str(run.folder / "training")
    assert renamed.config.resume_from_checkpoint == "auto"


def test_bundles_bases_runs_and_the_command_line_are_put_one_over_the_other():
    made = parse_grid(
        "some",
        {
            "base": "demo-qformer",
            "store": "here",
            "set": {"training.max_steps": 5, "adapter.queries": 7, "training.ema": 0.5},
            "grid": {"objectives": ["stg", "stc+stg"], "size": {"small": {"adapter.queries": 3}, "as it is": None}},
            "runs": {"other": {"base": "demo-bilstm-ctc", "training.ema": 0.9}},
            "evaluate": {"splits": "dev"},
            "exclude": [{"objectives": "stg", "size": "as it is"}],
        },
        ["training.max_steps=9"],
    )
    with pytest.raises(EvaluationError, match=r"run other-seed0: adapter.queries=7: no such option"):
        expand(made)
    made = parse_grid("some", {**BASE, "runs": {"a": {}, "b": {"base": "demo-bilstm-ctc"}}}, ["training.max_steps=9"])
    assert [run.config.adapter.name for run in expand(made)] == ["qformer", "bilstm"]
    assert {run.config.training.max_steps for run in expand(made)} == {9}
    made = parse_grid(
        "some",
        {
            **BASE,
            "set": {"adapter.queries": 7},
            "grid": {"objectives": ["stg", "stc+stg"], "size": {"small": {"adapter.queries": 3}, "as it is": None}},
            "exclude": [{"objectives": "stg", "size": "as it is"}],
        },
    )
    found = [(run.name, getattr(run.config.adapter, "queries", 0), run.config.objectives.stc) for run in expand(made)]
    assert [(name, queries, stc is not None) for name, queries, stc in found] == [
        ("stg-small-seed0", 3, False),
        ("stc+stg-small-seed0", 3, True),
        ("stc+stg-as-it-is-seed0", 7, True),
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True), st.booleans(), st.booleans())
def test_ways_to_evaluate_share_their_training(beams, bundled, reversed_):
    """Whichever axis is first, there is one training for each of its own settings and seeds, and a run for each way."""
    ways: Any = {str(one): {"evaluate": {"beams": one}} for one in beams} if bundled else beams
    axes = {"queries": [10, 20], "evaluate.beams": ways}
    if reversed_:
        axes = dict(reversed(axes.items()))
    common = {"splits": ["dev"], "options": {"method": "beam", "beams": 100}}
    runs = expand(grid(grid=axes, seeds=2, evaluate=common))
    assert [(run.labels["queries"], run.labels["evaluate.beams"], run.seed) for run in runs] == [
        (*(str(one) for one in (setting[::-1] if reversed_ else setting)), seed)
        for setting in product(*axes.values())
        for seed in (0, 1)
    ]
    assert len({run.name for run in runs}) == len(runs) == 4 * len(beams)
    plain = {run.training: run.folder for run in expand(grid(grid={"queries": [10, 20]}, seeds=2))}
    assert {run.training: run.folder for run in runs} == plain
    for run in runs:
        assert run.options == {"method": "beam", "beams": int(run.labels["evaluate.beams"])}
        assert run.training == f"queries{run.labels['queries']}-seed{run.seed}"


def test_an_evaluation_takes_options_away_and_leaves_the_training_alone():
    common = {"splits": ["dev"], "options": {"method": "beam", "beams": 4, "report": False}}
    told = {"greedy": {"evaluate": {"method": None, "beams": None}}, "beam": {}, "more": {"evaluate.beams": 9}}
    greedy, beam, more = expand(grid(runs=told, evaluate=common))
    assert greedy.options == {"report": False}
    assert beam.options == common["options"]
    assert more.options == {**beam.options, "beams": 9}
    assert {run.folder for run in (greedy, beam, more)} == {greedy.folder}
    assert {run.training for run in (greedy, beam, more)} == {"greedy-seed0"}
    (alone,) = expand(grid(grid={"evaluate.method": ["greedy"]}))
    assert (alone.name, alone.training) == ("greedy-seed0", "demo-qformer-seed0")


def test_a_checkpoint_is_one_run_whatever_the_seeds_and_is_known_by_what_is_in_it(tmp_path):
    config = load_config("demo-qformer", ["seed=5", "data.store=there"])
    first = write_checkpoint(tmp_path / "a" / "step-000007", config)
    (tmp_path / "a" / "last").symlink_to("step-000007")
    moved = write_checkpoint(tmp_path / "b", config)
    other = write_checkpoint(tmp_path / "c", config, tensors={"some": torch.ones(3, 4)})

    def of(folder: Path, **values: Any) -> dict[str, Any]:
        return {"checkpoint": str(folder), **values}

    told = {"new": {}, "old": of(tmp_path / "a"), "beam": of(moved, evaluate={"method": "beam"}), "other": of(other)}
    runs = expand(grid(runs=told, seeds=2, store="here", output_dir=str(tmp_path / "out")))
    assert [run.name for run in runs] == ["new-seed0", "new-seed1", "old", "beam", "other"]
    old, beam, others = runs[2:]
    assert old.checkpoint is not None
    assert old.checkpoint.folder == first
    assert (old.seed, old.config.data.store, old.options, beam.options) == (5, "here", {}, {"method": "beam"})
    assert old.folder == beam.folder != others.folder
    assert parameters_of(old.checkpoint) == 12
    axes = {"system": {"a": of(tmp_path / "a"), "c": of(other)}, "evaluate.method": ["greedy", "beam"]}
    runs = expand(parse_grid("some", {"grid": axes, "evaluate": {"splits": "dev"}}))  # which needs no base
    assert [(run.name, run.training) for run in runs] == [
        ("a-greedy", "a"),
        ("a-beam", "a"),
        ("c-greedy", "c"),
        ("c-beam", "c"),
    ]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"runs": {"a": {"checkpoint": "nowhere"}}}, "run a: there is no folder nowhere"),
        ({"runs": {"a": {"checkpoint": "."}}}, "run a: . is no checkpoint"),
        ({"runs": {"a": {"checkpoint": 3}}}, "runs.a.checkpoint=3: take a text"),
        ({"runs": {"a": {"checkpoint": "A", "base": "x"}}}, "runs.a.base: what has a checkpoint is evaluated"),
        ({"runs": {"a": {"checkpoint": "A", "adapter.queries": 3}}}, "runs.a.adapter.queries: what has a checkpoint"),
        ({"runs": {"a": {"checkpoint": "A", "seed": 3}}}, "leave out seed, or checkpoint"),
        ({"runs": {"a": {"checkpoint": "A"}}}, "base: nothing is trained, as all runs have a checkpoint"),
        ({"runs": {"a": {"checkpoint": "A"}}, "base": None, "set": {"seed": 1}}, "set: a sweep sets seed"),
        ({"runs": {"a": {"checkpoint": "A"}}, "base": None, "set": {"training.ema": 1}}, "set: nothing is trained"),
        ({"runs": {"a": {"checkpoint": "A"}}, "base": None, "seeds": 3}, "seeds: nothing is trained"),
        ({"runs": {"a": {"checkpoint": "A"}, "b": {}}, "base": None}, "run b-seed0: base is not given"),
        (
            {"runs": {"a": {"checkpoint": "A"}, "b": {"checkpoint": "A/"}}},
            "a (run a) and b (run b) have the same configuration",
        ),
        (
            {"grid": {"system": {"a": {"checkpoint": "A"}, "b": None}, "queries": [1, 2]}},
            "run a-queries1: adapter.queries of 1 has no use with the checkpoint A",
        ),
        (
            {"grid": {"one": {"a": {"checkpoint": "A"}}, "two": {"b": {"checkpoint": "B"}}}},
            "run a-b: checkpoint of b has no use with the checkpoint A",
        ),
        ({"grid": {"checkpoint": ["A"]}}, "give it a name, such as checkpoint: {small: {checkpoint: A}}"),
        ({"set": {"checkpoint": "A"}}, "set: checkpoint is no option of a training"),
        ({"set": {"evaluate.beams": 3}}, "set: evaluate.beams is no option of a training"),
        ({"runs": {"a": {"evaluate": 3}}}, "runs.a.evaluate=3: take names with values"),
        ({"runs": {"a": {"evaluate": {"split": "x"}}}}, "runs.a.evaluate.split: a sweep sets it itself"),
        ({"runs": {"a": {"evaluate": {"splits": "x"}}}}, "runs.a.evaluate.splits is of the whole sweep"),
        ({"runs": {"a": {"evaluate": {"beams": [None]}}}}, "runs.a.evaluate.beams=[None]: take a text"),
        ({"grid": {"evaluate.output": ["x"]}}, "grid.evaluate.output: a sweep sets it itself"),
        ({"runs": {"a": {"evaluate": {"beams": 3}}, "b": {"evaluate.beams": 3}}}, "have the same configuration"),
        (
            {"grid": {"queries": [3], "evaluate.beams": [1]}, "runs": {"queries3": {"adapter.queries": 4}}},
            "have the same name, queries3-seed0: give one another name",
        ),
    ],
)
def test_what_is_wrong_with_checkpoints_and_evaluations_is_refused(values, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "A", load_config("demo-qformer"))
    assert told in refused(values)


def test_parameters_of_a_checkpoint_are_those_that_were_trained(tmp_path):
    """Buffers lie in it too: moments of the input, and pairs of the past."""
    values = {
        "output_dir": "nowhere",
        "adapter": ADAPTERS["qformer"],
        "objectives": {"stc": {"queue": 8}, "stg": {}},
        "input": {"normalise": "moments"},
        "text": {"tokenizer": "words"},
        "training": {"max_steps": 1, "best": "loss"},
    }
    config = parse_config(values)
    model = build_model(config, [OUTPUT], TEXTS)
    tensors = {name: value.detach().clone() for name, value in model.trainable().items()}
    trained = sum(weight.numel() for weight in trainable_parameters(model).values())
    assert trained < sum(value.numel() for value in tensors.values())
    write_checkpoint(tmp_path / "some", config, tensors=tensors)
    assert parameters_of(open_trained(str(tmp_path / "some"), "best")) == trained


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"gird": {}}, "gird: no such key (did you mean grid?)"),
        ({"evaluate": {"split": ["dev"]}}, "evaluate.split: no such key (did you mean splits?)"),
        ({"evaluate": None, "base": None}, "evaluate.splits=None: take a list of names"),
        ({"evaluate": {"splits": ["dev", "dev"]}}, "evaluate.splits has dev twice"),
        ({"evaluate": {"splits": "dev", "checkpoint": "first"}}, "evaluate.checkpoint=first: take one of best, last"),
        ({"evaluate": {"splits": "dev", "options": {"store": "x"}}}, "evaluate.options.store: a sweep sets it itself"),
        ({"grid": {"queries": 50}}, "grid.queries=50: take a list of values"),
        ({"grid": {"queries": [50, 50]}}, "grid.queries has 50 twice"),
        ({"grid": {"queries": []}}, "grid.queries is empty"),
        ({"grid": {"adapter": [{"name": "bilstm"}]}}, "give it a name"),
        ({"grid": {"seed": [1, 2]}}, "a sweep sets seed of every run itself; give seeds"),
        (
            {"grid": {"queries": [50]}, "exclude": [{"quries": 50}]},
            "exclude.0.quries: no such key (did you mean queries?)",
        ),
        ({"grid": {"queries": [50]}, "exclude": [{"queries": 51}]}, "exclude.0.queries=51: not on that axis"),
        ({"grid": {"queries": [50]}, "exclude": [{}]}, "exclude.0 names no axis"),
        ({"exclude": "all"}, "exclude=all: take a list"),
        ({"set": {"output_dir": "x"}}, "set: a sweep sets output_dir of every run itself"),
        ({"runs": {"a": {"data.store": "x"}}}, "runs.a: a sweep sets data.store of every run itself; give store"),
        ({"seeds": []}, "seeds=[]: take how many"),
        ({"seeds": [0, 0]}, "seeds has 0 twice"),
        ({"seeds": True}, "seeds=True"),
        ({"seeds": 0}, "seeds=0"),
        ({"base": None}, "base is not given"),
        ({"base": "demo-qformr"}, "no recipe of that name (did you mean demo-qformer?)"),
        ({"set": {"adapter.quries": 3}}, "adapter.quries=3: no such option (did you mean queries?)"),
        ({"grid": {"queries": ["many"]}}, "adapter.queries=many: take a whole number"),
        (
            {"runs": {"a": {}, "b": {}}},
            "a-seed0 (run a, seed 0) and b-seed0 (run b, seed 0) have the same configuration",
        ),
        ({"runs": {"a b": {}, "a-b": {"adapter.queries": 3}}}, "have the same name"),
        ({"set": 3}, "set=3: take names with values"),
        ({"store": 3}, "store=3: take a text"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place_and_the_way_out(values, told):
    assert told in refused(values)


def test_words_change_the_grid_or_every_training(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# Mine.\nbase: demo-qformer\nevaluate: {splits: [dev]}\n")
    made = load_grid(path, ["store=elsewhere", "seeds=[3]", "evaluate.splits=[a,b]", "adapter.queries=5"])
    (run,) = expand(made)
    assert (made.name, made.store, made.seeds, made.evaluate.splits) == ("mine", "elsewhere", (3,), ("a", "b"))
    assert (run.config.data.store, run.config.seed, getattr(run.config.adapter, "queries", 0)) == ("elsewhere", 3, 5)
    with pytest.raises(EvaluationError, match="the command line: a sweep sets seed"):
        load_grid(path, ["seed=3"])
    with pytest.raises(EvaluationError, match=r"no grid of that name \(did you mean demo\?\)"):
        find_grid("demmo")


@pytest.mark.parametrize("name", grids())
def test_every_shipped_grid_is_whole_and_all_its_configurations_are_valid(name):
    made = load_grid(name)
    runs = expand(made)
    assert len(runs) > 1
    for run in runs:
        check_config(run.config)
    assert grids()[name].read_text().startswith("# ")


def test_the_thesis_grid_is_the_thesis_recipes():
    runs = {run.name: run.config for run in expand(load_grid("thesis-asr"))}
    assert len(runs) == 6
    for encoder in ("speechtokenizer", "hubert-base", "hubert-large"):
        for queries in (50, 100):
            recipe = load_config(f"thesis-asr-{encoder}-{queries}")
            assert identity(runs[f"{encoder}-queries{queries}-seed0"]) == identity(recipe)


def test_the_strategies_are_the_recipes_where_there_is_one():
    runs = {run.labels["strategy"]: run.config for run in expand(load_grid("thesis-strategies")) if run.seed == 0}
    for strategy in ("stc", "stg", "stc+stg", "stm+stg", "stc+stm+stg"):
        assert identity(runs[strategy]) == identity(load_config(f"thesis-joint-{strategy.replace('+', '-')}")), strategy
