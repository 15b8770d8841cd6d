"""The configuration: defaults of the contract, resolution, and one clear line for bad values."""

import dataclasses
import functools
import inspect
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

import aadml_jax as aa
from aadml_jax.data import (
    SYNTHETIC,
    PairedFeatures,
    RetrievalDataset,
    make_synthetic,
    with_fold,
    with_train_fraction,
)
from aadml_jax.errors import UserError
from aadml_jax.training import config as configuration
from aadml_jax.training import setup
from aadml_jax.training.config import FIELDS, DataConfig, LaunchConfig, RecipeConfig, TrainConfig
from aadml_jax.training.named_losses import NAMED_LOSSES, NamedLoss


def test_defaults():
    config = TrainConfig()
    assert (config.data.dataset, config.recipe.loss) == ("synthetic", "triplet")
    assert setup.resolve(config, 2000).recipe.margin == 0.3
    assert (config.recipe.anchor_aware, config.recipe.num_neighbors) == (True, 3)
    assert (config.recipe.attention, config.recipe.same_class) == ("neighbor", True)
    assert (config.recipe.distance, config.recipe.intra_modal) == ("cosine", False)
    assert (config.recipe.label_loss, config.recipe.label_weight, config.recipe.metric_weight) == (
        "cross_entropy",
        1.0,
        1.0,
    )
    assert config.recipe.standardize
    assert (config.recipe.hidden_sizes, config.recipe.dropout) == ((1024, 1024, 1024), 0.1)
    assert (config.recipe.learning_rate, config.launch.eval_every, config.recipe.seed) == (
        1e-4,
        10,
        0,
    )


def test_every_field_has_help():
    assert all(field.metadata["help"] for field in FIELDS.values())


def test_the_objective_is_made_of_what_the_configuration_says():
    outputs = np.random.default_rng(0).normal(size=(2, 6, 3))
    labels = np.array([0, 1, 2, 0, 1, 2])
    config = TrainConfig.of(
        loss="margin",
        margin=0.4,
        loss_parameters={"beta": 0.6},
        distance="euclidean",
        intra_modal=True,
        num_neighbors=2,
        attention="channel",
        label_loss="squared",
        label_weight=0.5,
        metric_weight=2.0,
    )
    actual, parts = config.recipe.objective()(*outputs, labels)
    expected, _ = aa.aadml_objective(
        *outputs,
        labels,
        metric_loss=functools.partial(aa.margin_loss, margin=0.4, beta=0.6),
        compare=aa.euclidean_distance,
        label_loss=aa.squared_label_loss,
        proxies=aa.AnchorAware(num_neighbors=2, attention="channel"),
        intra_modal=True,
        label_weight=0.5,
        metric_weight=2.0,
    )
    assert float(actual) == float(expected)
    assert "metric_loss_audio_to_audio" in parts
    plain = config.replace(anchor_aware=False).recipe.objective()(*outputs, labels)[0]
    assert float(plain) != float(expected)


@pytest.mark.parametrize("loss", ["triplet", "proxy_anchor"])
def test_the_objectives_own_losses_are_those_of_training(loss):
    objective = TrainConfig.of(loss=loss).recipe.objective()
    default = inspect.signature(objective.func).parameters["metric_loss"].default
    trained = objective.keywords["metric_loss"]
    assert (default.func, default.keywords) == (trained.func, trained.keywords)


def test_a_loss_is_added_by_one_entry(monkeypatch):
    def relevant_mean(similarities, relevance, *, sharpness, where=None):
        return jnp.mean(sharpness * jnp.where(relevance, 1 - similarities, similarities))

    entry = NamedLoss(relevant_mean, {"sharpness": 3.0}, on_similarities=True)
    monkeypatch.setitem(NAMED_LOSSES, "relevant_mean", entry)
    config = TrainConfig.of(loss="relevant_mean", anchor_aware=False, label_weight=0.0)
    configuration.check(config)
    resolved = setup.resolve(config, 500)
    assert (resolved.recipe.margin, resolved.recipe.loss_parameters) == (None, {"sharpness": 3.0})
    changed = config.replace(loss_parameters={"sharpness": 5.0})
    one_hot, labels = np.eye(2), np.array([0, 1])
    for run, sharpness in ((resolved, 3.0), (changed, 5.0)):
        # The cosine of one-hot vectors is the relevance, so either term is 0 or the sharpness.
        total, _ = run.recipe.objective()(one_hot, one_hot[::-1], labels)
        assert float(total) == pytest.approx(2 * sharpness)


@pytest.mark.parametrize(
    ("dataset", "num_train", "epochs", "batch_size"),
    [("vegas", 22_482, 400, 400), ("ave", 399, 400, 399), ("synthetic", 2000, 60, 400)],
)
def test_defaults_that_depend_on_the_data(dataset, num_train, epochs, batch_size):
    config = setup.resolve(TrainConfig.of(dataset=dataset), num_train)
    assert (config.launch.epochs, config.recipe.batch_size) == (epochs, batch_size)


def test_explicit_values_win():
    config = TrainConfig.of(dataset="vegas", epochs=7, batch_size=300, margin=0.3, workdir="w")
    assert setup.resolve(config, 300) == config


@pytest.mark.parametrize(
    ("loss", "own"),
    [
        ("ntxent", {"temperature": 0.5}),
        ("margin", {"margin": 0.25, "beta": 0.75}),
        ("circle", {"margin": 0.4, "gamma": 1.0}),
    ],
)
def test_each_loss_has_parameters_of_its_own(loss, own):
    config = setup.resolve(TrainConfig.of(loss=loss), 2000)
    assert config.recipe.chosen_parameters() == own
    flags = {name: own.get(name) for name in ("margin", "temperature")}
    assert {name: getattr(config.recipe, name) for name in flags} == flags
    changed = {name: value / 2 for name, value in own.items()}
    others = {name: value for name, value in changed.items() if name not in flags}
    with_flags = {name: value for name, value in changed.items() if name in flags}
    config = TrainConfig.of(loss=loss, **with_flags, loss_parameters=others or None)
    assert setup.resolve(config, 2000).recipe.chosen_parameters() == changed


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"loss": "ntxent", "margin": 0.5}, "--margin=0.5 does not go with loss=ntxent: its"),
        (
            {"loss": "circle", "loss_parameters": {"gamma": 0.0}},
            "--loss_parameters=gamma=0 does not suit loss=circle: .*above 0",
        ),
        (
            {"loss": "multi_similarity", "loss_parameters": {"beta": -1.0}},
            "--loss_parameters=beta=-1 does not suit loss=multi_similarity: .*above 0",
        ),
        (
            {"loss_parameters": {"beta": 1.0}},
            "--loss_parameters=beta=1 does not go with loss=triplet: its parameters are margin",
        ),
        ({"loss_parameters": {"margin": 1.0}}, "--loss_parameters=margin=1 has a flag of its own"),
        (
            {"loss": "ntxent", "temperature": 0.0},
            "--temperature=0.0 does not suit loss=ntxent: .*above 0",
        ),
        ({"loss": "proxy_anchor", "intra_modal": True}, "--intra_modal=True does not go with"),
        ({"loss": "proxy_anchor", "proxy_role": "both_sides"}, "one of its sides are class"),
        ({"anchor_aware": False, "proxy_role": "beside"}, "proxy_role=beside does nothing without"),
        ({"anchor_aware": False, "neighbors_from": "other"}, "neighbors_from=other does nothing"),
        ({"loss": "supcon", "distance": "euclidean"}, "--distance=euclidean does not go with"),
        ({"class_proxies": "learned"}, "--class_proxies=learned needs .* --loss=proxy_anchor"),
    ],
)
def test_settings_that_contradict_the_loss_are_named(settings, line):
    with pytest.raises(UserError, match=line):
        configuration.check(TrainConfig.of(**settings))


def test_beta_of_the_margin_loss_is_a_distance_and_may_be_zero():
    configuration.check(TrainConfig.of(loss="margin", loss_parameters={"beta": 0.0}))


def test_a_batch_larger_than_the_data_is_an_error():
    with pytest.raises(UserError, match=r"--batch_size=301 exceeds the 300 training rows"):
        setup.resolve(TrainConfig.of(batch_size=301), 300)


def test_smoke_shrinks_what_is_not_set_explicitly():
    config = TrainConfig.of(smoke=True, hidden_sizes=(1024, 1024, 1024))
    shrunk = setup.with_presets(config, {"smoke", "hidden_sizes"})
    assert shrunk.recipe.hidden_sizes == (1024, 1024, 1024)
    assert shrunk.launch.epochs < 60
    assert setup.resolve(shrunk, 300).recipe.batch_size == 100
    assert setup.resolve(shrunk, 30).recipe.batch_size == 30
    assert setup.with_presets(TrainConfig(), set()) == TrainConfig()


def test_smoke_keeps_few_rows():
    labels = np.arange(1000) % 4
    rows = PairedFeatures(np.ones((1000, 2)), np.ones((1000, 3)), labels)
    dataset = RetrievalDataset("d", rows, rows, 4, "here")
    assert setup.split(TrainConfig().data, dataset) is dataset
    subset = setup.split(TrainConfig.of(smoke=True).data, dataset)
    assert (len(subset.train), len(subset.test)) == (300, 100)


def test_smoke_keeps_a_row_of_each_of_many_classes():
    labels = np.arange(900) % 350
    rows = PairedFeatures(np.ones((900, 2)), np.ones((900, 3)), labels)
    dataset = RetrievalDataset("d", rows, rows, 350, "here")
    subset = setup.split(TrainConfig.of(smoke=True).data, dataset)
    assert (len(subset.train), len(subset.test)) == (350, 350)


def test_an_unknown_data_set_is_named():
    with pytest.raises(UserError, match="unknown data set 'vegass', did you mean vegas"):
        configuration.check(TrainConfig.of(dataset="vegass"))
    configuration.check(TrainConfig.of(dataset="tfds:vegas"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss", "arcface"),
        ("attention", "self"),
        ("distance", "manhattan"),
        ("label_loss", "hinge"),
        ("epochs", 0),
        ("precision", "float16"),
        ("parallel", "gspmd"),
        ("steps_per_call", 0),
        ("batch_size", 0),
        ("num_neighbors", 0),
        ("eval_every", 0),
        ("checkpoint_every", -1),
        ("margin", float("nan")),
        ("label_weight", -1.0),
        ("metric_weight", float("inf")),
        ("learning_rate", 0.0),
        ("weight_decay", -0.1),
        ("attention_temperature", 0.0),
        ("proxy_role", "above"),
        ("neighbors_from", "both"),
        ("similarity", "dot"),
        ("dropout", 1.0),
        ("seed", -1),
        ("hidden_sizes", (8, 0)),
    ],
)
def test_a_bad_value_is_named_with_its_flag(field, value):
    shown = TrainConfig.of(**{field: value}).flat()[field]
    with pytest.raises(UserError) as error:
        configuration.check(TrainConfig.of(**{field: value}))
    message = str(error.value)
    assert message.startswith(f"--{field}={shown} must be ")
    assert "\n" not in message


@pytest.mark.parametrize("process_id", [-1, 2])
def test_processes_are_counted_from_zero(process_id):
    processes = {"coordinator_address": "localhost:1", "num_processes": 2}
    with pytest.raises(UserError, match=f"--process_id={process_id} must be from 0 to 1"):
        configuration.check(TrainConfig.of(**processes, process_id=process_id))
    configuration.check(TrainConfig.of(**processes, process_id=1))


def test_nothing_to_train_is_an_error():
    with pytest.raises(UserError, match="leave nothing to train"):
        configuration.check(TrainConfig.of(label_weight=0.0, metric_weight=0.0))


def test_configuration_survives_json():
    config = TrainConfig.of(
        loss="margin", hidden_sizes=(8, 9), epochs=3, margin=0.1, loss_parameters={"beta": 0.5}
    )
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert configuration.config_from_json(stored) == config


def stored(**values):
    """A configuration with another value in many fields, as config.json has it."""
    config = TrainConfig.of(
        dataset="tfds:mine",
        data_dir="/data",
        multi_label=True,
        fold=2,
        train_fraction=0.5,
        split_seed=3,
        loss="contrastive",
        weight_decay=0.1,
        input="stream",
        epochs=7,
        steps_per_call=3,
        compilation_cache="off",
    )
    parts = json.loads(json.dumps(dataclasses.asdict(config)))
    for name, value in values.items():
        part = next((part for part in parts.values() if name in part), parts["recipe"])
        part[name] = value
    return parts


@pytest.mark.parametrize("kind", [DataConfig, RecipeConfig, LaunchConfig])
def test_fields_that_were_not_stored_are_filled_in_where_they_change_no_result(kind):
    for field in dataclasses.fields(kind):
        parts = stored()
        (part,) = (part for part in parts.values() if field.name in part)
        del part[field.name]
        if kind is LaunchConfig:
            config = configuration.config_from_json(parts)
            assert getattr(config.launch, field.name) == field.default
            continue
        with pytest.raises(UserError) as error:
            configuration.config_from_json(parts, {"aadml_jax": "0.0.7"})
        message = str(error.value)
        assert f"written by aadml_jax 0.0.7, without the field {field.name} that" in message
        assert "use that version, or another --workdir" in message


def test_a_configuration_of_the_former_flat_form_is_refused_with_a_remedy():
    flat = json.loads(json.dumps(TrainConfig().flat()))
    with pytest.raises(UserError) as error:
        configuration.config_from_json(flat, {"aadml_jax": "0.1.0"})
    message = str(error.value)
    assert "by aadml_jax 0.1.0, before settings were stored in the parts data, recipe" in message
    assert message.endswith("use the code that wrote it, or train again with another --workdir")
    assert "\n" not in message


@pytest.mark.parametrize("part", ["data", "recipe", "launch"])
def test_a_part_that_is_not_there_is_named(part):
    parts = stored()
    del parts[part]
    with pytest.raises(UserError, match=f"damaged \\(its part {part} is not there\\)"):
        configuration.config_from_json(parts)


def test_a_part_of_a_newer_version_is_named():
    with pytest.raises(UserError, match="does not know its part cluster"):
        configuration.config_from_json({**stored(), "cluster": {}})


def test_settings_are_found_by_their_names_alone():
    config = TrainConfig.of(dataset="ave", margin=0.2, epochs=3)
    assert (config.data.dataset, config.recipe.margin, config.launch.epochs) == ("ave", 0.2, 3)
    changed = config.replace(fold=1, seed=4, workdir="w")
    assert (changed.data.fold, changed.recipe.seed, changed.launch.workdir) == (1, 4, "w")
    assert (config.data.fold, config.recipe.seed, config.launch.workdir) == (None, 0, None)
    assert list(config.flat()) == list(FIELDS)
    with pytest.raises(ValueError, match="no setting mragin"):
        TrainConfig.of(mragin=0.2)


def test_processes_agree_in_all_flags_but_their_own():
    common = TrainConfig.of(seed=3, epochs=2, workdir="w").common_flags()
    assert (common["--seed"], common["--epochs"], common["--dataset"]) == (3, 2, "synthetic")
    own = [
        "data_dir",
        "features_file",
        "workdir",
        "tensorboard",
        "coordinator_address",
        "process_id",
    ]
    own.append("compilation_cache")
    assert set(common) == {f"--{name}" for name in FIELDS} - {f"--{name}" for name in own}


def test_no_name_is_in_two_parts():
    names = [
        f.name
        for kind in (DataConfig, RecipeConfig, LaunchConfig)
        for f in dataclasses.fields(kind)
    ]
    assert len(names) == len(set(names)) == len(FIELDS)


def test_presets_are_checked(monkeypatch):
    monkeypatch.setitem(setup._PAPER_PRESET, "similarity", "dot")
    with pytest.raises(UserError, match="--similarity=dot must be one of cosine, posterior"):
        setup.with_presets(TrainConfig.of(paper=True))


def test_a_field_of_a_newer_version_is_named():
    with pytest.raises(UserError) as error:
        configuration.config_from_json(stored(rank=3, ties="x"), {"aadml_jax": "9.0"})
    message = str(error.value)
    assert "written by aadml_jax 9.0" in message and "does not know its field rank, ties" in message
    with pytest.raises(UserError, match="by another version of aadml_jax, and this one"):
        configuration.config_from_json(stored(rank=3))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", "7"),
        ("epochs", 7.0),
        ("seed", True),
        ("seed", None),
        ("learning_rate", "fast"),
        ("learning_rate", [1e-3]),
        ("hidden_sizes", 16),
        ("hidden_sizes", [16, "16"]),
        ("anchor_aware", 1),
        ("loss", None),
        ("loss", {"name": "triplet"}),
        ("data_dir", 3),
        ("loss_parameters", 2.0),
        ("loss_parameters", [2.0]),
        ("loss_parameters", {"beta": "2"}),
        ("loss_parameters", {"beta": None}),
    ],
)
def test_a_stored_value_of_another_type_is_named(field, value):
    with pytest.raises(UserError, match=f"damaged \\({field} cannot be .*restore config.json"):
        configuration.config_from_json(stored(**{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", -1), ("dropout", math.nan), ("loss", "arcface"), ("hidden_sizes", [0])],
)
def test_a_stored_value_out_of_range_is_named(field, value):
    with pytest.raises(UserError, match=f"cannot be used \\(--{field}=.*restore config.json"):
        configuration.config_from_json(stored(**{field: value}))


def test_a_whole_number_may_stand_for_a_float():
    assert configuration.config_from_json(stored(learning_rate=1)).recipe.learning_rate == 1


def test_a_way_to_spread_steps_that_is_gone_changes_nothing():
    assert configuration.config_from_json(stored(parallel="xmap")).launch.parallel == "auto"


def test_default_workdir_tells_smoke_runs_apart():
    assert setup.default_workdir(TrainConfig.of(dataset="ave")) == "runs/ave"
    assert setup.default_workdir(TrainConfig.of(smoke=True)) == "runs/synthetic-smoke"


def test_splits_go_before_the_smoke_subset():
    dataset = make_synthetic(dataclasses.replace(SYNTHETIC, train_size=600, test_size=400))
    config = TrainConfig.of(fold=2, train_fraction=0.5, split_seed=3, smoke=True)
    chosen = setup.split(config.data, dataset)
    by_hand = with_train_fraction(with_fold(dataset, 2, seed=3), 0.5, seed=3)
    assert (len(by_hand.test), len(chosen.train), len(chosen.test)) == (200, 300, 100)
    rows = {row.tobytes() for row in by_hand.train.audio}
    assert {row.tobytes() for row in chosen.train.audio} < rows


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fold": 5}, "--fold=5 must be from 0 to 4"),
        ({"fold": -1}, "--fold=-1 must be from 0 to 4"),
        ({"train_fraction": 0.0}, "--train_fraction=0.0 must be above 0 and at most 1"),
        ({"train_fraction": math.nan}, "--train_fraction=nan must be above 0"),
        ({"split_seed": -1, "fold": 0}, "--split_seed=-1 must be from 0"),
        ({"split_seed": 2}, "--split_seed=2 chooses nothing; add --fold or --train_fraction"),
    ],
)
def test_splits_that_cannot_be_are_refused(fields, message):
    with pytest.raises(UserError) as caught:
        configuration.check(TrainConfig.of(**fields))
    assert message in str(caught.value)


def test_the_papers_reading_is_one_flag_away():
    config = setup.with_presets(TrainConfig.of(paper=True), {"paper"})
    assert (config.recipe.label_loss, config.recipe.similarity, config.recipe.margin) == (
        "squared",
        "cosine",
        1.0,
    )
    contrastive = setup.with_presets(
        TrainConfig.of(paper=True, loss="contrastive"), {"paper", "loss"}
    )
    assert contrastive.recipe.margin is None
    config = setup.with_presets(
        TrainConfig.of(paper=True, smoke=True, similarity="posterior"), {"similarity"}
    )
    assert (config.recipe.label_loss, config.recipe.similarity, config.launch.epochs) == (
        "squared",
        "posterior",
        20,
    )
    assert setup.default_workdir(config) == "runs/synthetic-paper-smoke"
    assert TrainConfig().recipe.similarity == "posterior"


def test_the_default_folder_names_the_split():
    config = TrainConfig.of(dataset="tfds:vegas", fold=0, train_fraction=0.1, smoke=True)
    assert setup.default_workdir(config) == "runs/tfds-vegas-fold0-fraction0.1-smoke"
    assert setup.default_workdir(TrainConfig()) == "runs/synthetic"
    assert setup.split_in_words(TrainConfig().data) == ""
    assert setup.split_in_words(config.data) == ", fold 0, fraction 0.1 of the training rows"
