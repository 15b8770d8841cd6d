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
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.named_losses import NAMED_LOSSES, NamedLoss


def test_defaults():
    config = TrainConfig()
    assert (config.dataset, config.loss) == ("synthetic", "triplet")
    assert configuration.resolve(config, 2000).margin == 0.3
    assert (config.anchor_aware, config.num_neighbors) == (True, 3)
    assert (config.attention, config.same_class) == ("neighbor", True)
    assert (config.distance, config.intra_modal) == ("cosine", False)
    assert (config.label_loss, config.label_weight, config.metric_weight) == (
        "cross_entropy",
        1.0,
        1.0,
    )
    assert config.standardize
    assert (config.hidden_sizes, config.dropout) == ((1024, 1024, 1024), 0.1)
    assert (config.learning_rate, config.eval_every, config.seed) == (1e-4, 10, 0)


def test_every_field_has_help():
    assert all(field.metadata["help"] for field in dataclasses.fields(TrainConfig))


def test_the_objective_is_made_of_what_the_configuration_says():
    outputs = np.random.default_rng(0).normal(size=(2, 6, 3))
    labels = np.array([0, 1, 2, 0, 1, 2])
    config = TrainConfig(
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
    actual, parts = config.objective()(*outputs, labels)
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
    plain = dataclasses.replace(config, anchor_aware=False).objective()(*outputs, labels)[0]
    assert float(plain) != float(expected)


@pytest.mark.parametrize("loss", ["triplet", "proxy_anchor"])
def test_the_objectives_own_losses_are_those_of_training(loss):
    objective = TrainConfig(loss=loss).objective()
    default = inspect.signature(objective.func).parameters["metric_loss"].default
    trained = objective.keywords["metric_loss"]
    assert (default.func, default.keywords) == (trained.func, trained.keywords)


def test_a_loss_is_added_by_one_entry(monkeypatch):
    def relevant_mean(similarities, relevance, *, sharpness, where=None):
        return jnp.mean(sharpness * jnp.where(relevance, 1 - similarities, similarities))

    entry = NamedLoss(relevant_mean, {"sharpness": 3.0}, on_similarities=True)
    monkeypatch.setitem(NAMED_LOSSES, "relevant_mean", entry)
    config = TrainConfig(loss="relevant_mean", anchor_aware=False, label_weight=0.0)
    configuration.check(config)
    resolved = configuration.resolve(config, 500)
    assert (resolved.margin, resolved.loss_parameters) == (None, {"sharpness": 3.0})
    changed = dataclasses.replace(config, loss_parameters={"sharpness": 5.0})
    one_hot, labels = np.eye(2), np.array([0, 1])
    for run, sharpness in ((resolved, 3.0), (changed, 5.0)):
        # The cosine of one-hot vectors is the relevance, so either term is 0 or the sharpness.
        total, _ = run.objective()(one_hot, one_hot[::-1], labels)
        assert float(total) == pytest.approx(2 * sharpness)


@pytest.mark.parametrize(
    ("dataset", "num_train", "epochs", "batch_size"),
    [("vegas", 22_482, 400, 400), ("ave", 399, 400, 399), ("synthetic", 2000, 60, 400)],
)
def test_defaults_that_depend_on_the_data(dataset, num_train, epochs, batch_size):
    config = configuration.resolve(TrainConfig(dataset=dataset), num_train)
    assert (config.epochs, config.batch_size) == (epochs, batch_size)


def test_explicit_values_win():
    config = TrainConfig(dataset="vegas", epochs=7, batch_size=300, margin=0.3)
    assert configuration.resolve(config, 300) == config


@pytest.mark.parametrize(
    ("loss", "own"),
    [
        ("ntxent", {"temperature": 0.5}),
        ("margin", {"margin": 0.25, "beta": 0.75}),
        ("circle", {"margin": 0.4, "gamma": 1.0}),
    ],
)
def test_each_loss_has_parameters_of_its_own(loss, own):
    config = configuration.resolve(TrainConfig(loss=loss), 2000)
    assert config.chosen_parameters() == own
    flags = {name: own.get(name) for name in ("margin", "temperature")}
    assert {name: getattr(config, name) for name in flags} == flags
    changed = {name: value / 2 for name, value in own.items()}
    others = {name: value for name, value in changed.items() if name not in flags}
    with_flags = {name: value for name, value in changed.items() if name in flags}
    config = TrainConfig(loss=loss, **with_flags, loss_parameters=others or None)
    assert configuration.resolve(config, 2000).chosen_parameters() == changed


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
        configuration.check(TrainConfig(**settings))


def test_beta_of_the_margin_loss_is_a_distance_and_may_be_zero():
    configuration.check(TrainConfig(loss="margin", loss_parameters={"beta": 0.0}))


def test_a_batch_larger_than_the_data_is_an_error():
    with pytest.raises(UserError, match=r"--batch_size=301 exceeds the 300 training rows"):
        configuration.resolve(TrainConfig(batch_size=301), 300)


def test_smoke_shrinks_what_is_not_set_explicitly():
    config = TrainConfig(smoke=True, hidden_sizes=(1024, 1024, 1024))
    shrunk = configuration.apply_presets(config, {"smoke", "hidden_sizes"})
    assert shrunk.hidden_sizes == (1024, 1024, 1024)
    assert shrunk.epochs < 60
    assert configuration.resolve(shrunk, 300).batch_size == 100
    assert configuration.resolve(shrunk, 30).batch_size == 30
    assert configuration.apply_presets(TrainConfig(), set()) == TrainConfig()


def test_smoke_keeps_few_rows():
    labels = np.arange(1000) % 4
    rows = PairedFeatures(np.ones((1000, 2)), np.ones((1000, 3)), labels)
    dataset = RetrievalDataset("d", rows, rows, 4, "here")
    assert configuration.apply_splits(TrainConfig(), dataset) is dataset
    subset = configuration.apply_splits(TrainConfig(smoke=True), dataset)
    assert (len(subset.train), len(subset.test)) == (300, 100)


def test_smoke_keeps_a_row_of_each_of_many_classes():
    labels = np.arange(900) % 350
    rows = PairedFeatures(np.ones((900, 2)), np.ones((900, 3)), labels)
    dataset = RetrievalDataset("d", rows, rows, 350, "here")
    subset = configuration.apply_splits(TrainConfig(smoke=True), dataset)
    assert (len(subset.train), len(subset.test)) == (350, 350)


def test_an_unknown_data_set_is_named():
    with pytest.raises(UserError, match="unknown data set 'vegass', did you mean vegas"):
        configuration.check(TrainConfig(dataset="vegass"))
    configuration.check(TrainConfig(dataset="tfds:vegas"))


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
    shown = getattr(dataclasses.replace(TrainConfig(), **{field: value}), field)
    with pytest.raises(UserError) as error:
        configuration.check(TrainConfig(**{field: value}))
    message = str(error.value)
    assert message.startswith(f"--{field}={shown} must be ")
    assert "\n" not in message


@pytest.mark.parametrize("process_id", [-1, 2])
def test_processes_are_counted_from_zero(process_id):
    processes = {"coordinator_address": "localhost:1", "num_processes": 2}
    with pytest.raises(UserError, match=f"--process_id={process_id} must be from 0 to 1"):
        configuration.check(TrainConfig(**processes, process_id=process_id))
    configuration.check(TrainConfig(**processes, process_id=1))


def test_nothing_to_train_is_an_error():
    with pytest.raises(UserError, match="leave nothing to train"):
        configuration.check(TrainConfig(label_weight=0.0, metric_weight=0.0))


def test_configuration_survives_json():
    config = TrainConfig(
        loss="margin", hidden_sizes=(8, 9), epochs=3, margin=0.1, loss_parameters={"beta": 0.5}
    )
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert configuration.config_from_json(stored) == config


def stored(**values):
    """A configuration with another value in every field, as config.json has it."""
    config = TrainConfig(
        dataset="tfds:mine",
        data_dir="/data",
        features_file="x.h5",
        multi_label=True,
        input="stream",
        workdir="w",
        fold=2,
        train_fraction=0.5,
        split_seed=3,
        paper=True,
        smoke=True,
        epochs=7,
        loss="contrastive",
        attention_temperature=0.5,
        neighbors_from="other",
        neighbor_gradient=False,
        proxy_role="beside",
        precision="bfloat16",
        weight_decay=0.1,
        similarity="posterior",
        parallel="jit",
        steps_per_call=3,
        profile=True,
        compilation_cache="off",
    )
    return json.loads(json.dumps(dataclasses.asdict(config))) | values


# What the first version did that has no such field.
BEFORE = {
    "fold": None,
    "train_fraction": 1.0,
    "split_seed": 0,
    "paper": False,
    "temperature": None,
    "loss_parameters": None,
    "class_proxies": "one_hot",
    "attention_temperature": 1.0,
    "neighbors_from": "own",
    "neighbor_gradient": True,
    "proxy_role": "in_place",
    "precision": "float32",
    "weight_decay": 0.0,
    "similarity": "cosine",
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrainConfig)])
def test_a_field_that_another_version_did_not_store_is_filled_in_or_named(field):
    values = stored()
    del values[field]
    if field in BEFORE:
        assert getattr(configuration.config_from_json(values), field) == BEFORE[field]
    elif field in configuration.resumable_fields() - {"dataset"}:
        default = getattr(TrainConfig(), field)
        assert getattr(configuration.config_from_json(values), field) == default
    else:
        with pytest.raises(UserError) as error:
            configuration.config_from_json(values, {"aadml_jax": "0.0.7"})
        message = str(error.value)
        assert f"written by aadml_jax 0.0.7, without the field {field} that" in message
        assert "use that version, or another --workdir" in message


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


# Of a version with a field for each parameter, which also stored those of other losses as null.
FORMER = {"alpha": None, "beta": None, "base": None, "gamma": None}


@pytest.mark.parametrize(
    ("former", "parameters"),
    [
        ({"loss": "triplet", "margin": 0.3}, None),
        ({"loss": "circle", "margin": 0.4, "gamma": 2.0}, {"gamma": 2.0}),
        (
            {"loss": "multi_similarity", "alpha": 2.0, "beta": 50, "base": 0.5},
            {"alpha": 2.0, "beta": 50, "base": 0.5},
        ),
    ],
)
def test_parameters_that_had_fields_of_their_own_become_loss_parameters(former, parameters):
    values = stored(**FORMER) | former
    del values["loss_parameters"]
    config = configuration.config_from_json(values)
    assert config.loss_parameters == parameters
    assert config.margin == former.get("margin")
    resolved = configuration.resolve(config, 1000)  # as it was stored: no default is missing
    assert resolved.chosen_parameters() == config.chosen_parameters()


def test_a_former_parameter_that_cannot_be_is_named():
    values = stored(**FORMER) | {"loss": "circle", "gamma": -1.0}
    del values["loss_parameters"]
    with pytest.raises(UserError, match=r"cannot be used \(--loss_parameters=gamma=-1 .*above 0"):
        configuration.config_from_json(values)
    with pytest.raises(UserError, match="does not know its field alpha"):
        configuration.config_from_json(stored(alpha=2.0))


def test_a_whole_number_may_stand_for_a_float():
    assert configuration.config_from_json(stored(learning_rate=1)).learning_rate == 1


def test_a_way_to_spread_steps_that_is_gone_changes_nothing():
    assert configuration.config_from_json(stored(parallel="xmap")).parallel == "auto"


def test_default_workdir_tells_smoke_runs_apart():
    assert configuration.default_workdir(TrainConfig(dataset="ave")) == "runs/ave"
    assert configuration.default_workdir(TrainConfig(smoke=True)) == "runs/synthetic-smoke"


def test_splits_go_before_the_smoke_subset():
    dataset = make_synthetic(dataclasses.replace(SYNTHETIC, train_size=600, test_size=400))
    config = TrainConfig(fold=2, train_fraction=0.5, split_seed=3, smoke=True)
    chosen = configuration.apply_splits(config, dataset)
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
        configuration.check(TrainConfig(**fields))
    assert message in str(caught.value)


def test_the_papers_reading_is_one_flag_away():
    config = configuration.apply_presets(TrainConfig(paper=True), {"paper"})
    assert (config.label_loss, config.similarity, config.margin) == ("squared", "cosine", 1.0)
    contrastive = configuration.apply_presets(
        TrainConfig(paper=True, loss="contrastive"), {"paper", "loss"}
    )
    assert contrastive.margin is None
    config = configuration.apply_presets(
        TrainConfig(paper=True, smoke=True, similarity="posterior"), {"similarity"}
    )
    assert (config.label_loss, config.similarity, config.epochs) == ("squared", "posterior", 20)
    assert configuration.default_workdir(config) == "runs/synthetic-paper-smoke"
    assert TrainConfig().similarity == "posterior"


def test_the_default_folder_names_the_split():
    config = TrainConfig(dataset="tfds:vegas", fold=0, train_fraction=0.1, smoke=True)
    assert configuration.default_workdir(config) == "runs/tfds-vegas-fold0-fraction0.1-smoke"
    assert configuration.default_workdir(TrainConfig()) == "runs/synthetic"
    assert configuration.split_in_words(TrainConfig()) == ""
    assert configuration.split_in_words(config) == ", fold 0, fraction 0.1 of the training rows"
