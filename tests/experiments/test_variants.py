"""Variants and seeds: which configurations are trained, and what is read from their histories."""

from types import SimpleNamespace

import pytest

from aadml_jax.errors import UserError
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.sweep import RunHistory
from experiments.variants import TrainedVariants, Variant, configs_by_seed, train_variants


def history(*maps):
    reports = [{"mean": {"map": value}, "loss": 10 * value} for value in maps]
    return RunHistory({}, {"test": {"epochs": list(range(len(maps))), "reports": reports}})


TRAINED = TrainedVariants(
    {"plain": Variant({}), "k=3": Variant({}, "plain")},
    {"plain": [history(0.9, 0.1), history(0.8, 0.4)], "k=3": [history(0, 0.2), history(0, 0.9)]},
)


def test_gains_are_over_the_baseline_of_the_same_seed():
    assert TRAINED.gain("plain", "test") is None
    gain = TRAINED.gain("k=3", "test")
    # 0.2 − 0.1 and 0.9 − 0.4
    assert gain.mean == pytest.approx(0.3) and gain.count == 2
    # Both are 0.2 from their mean: a standard error of 0.2, and 12.706 is the t of one degree.
    assert (gain.low, gain.high) == pytest.approx(
        (0.3 - 12.706 * 0.2, 0.3 + 12.706 * 0.2), abs=1e-3
    )


def test_numbers_are_of_the_last_epoch_or_of_each():
    assert TRAINED.last("plain", "test", "mean", "map") == [0.1, 0.4]
    assert TRAINED.by_epoch("plain", "test", "loss") == [[9, 1], [8, 4]]
    spread = TRAINED.spread("plain", "test", "loss")
    assert (spread.mean, spread.count) == (2.5, 2)
    assert spread.std == pytest.approx(4.5**0.5)  # (1.5² + 1.5²) / (2 − 1)


def test_changes_are_to_the_base_and_presets_fill_in_the_rest():
    base = TrainConfig.of(paper=True, seed=9, epochs=3)
    variants = {"a": Variant({"loss": "margin"}), "b": Variant({"label_weight": 0.5})}
    configs = configs_by_seed(variants, base, [4, 5], 30)
    assert list(configs) == [("a", 4), ("a", 5), ("b", 4), ("b", 5)]
    assert [config.recipe.seed for config in configs.values()] == [4, 5, 4, 5]
    # The paper's margin is that of the triplet loss alone.
    assert (configs["a", 4].recipe.margin, configs["b", 4].recipe.margin) == (0.25, 1.0)
    assert configs["b", 5].recipe.label_weight == 0.5
    assert {config.recipe.batch_size for config in configs.values()} == {30}
    with pytest.raises(UserError, match="--dropout=2"):
        configs_by_seed({"c": Variant({"dropout": 2.0})}, base, [0], 30)


def test_steps_stand_for_epochs_and_no_batch_is_above_all_rows():
    variants = {"whole": Variant({}), "tens": Variant({"batch_size": 10})}
    configs = configs_by_seed(variants, TrainConfig.of(), [0], 35, steps=10)
    chosen = [(config.recipe.batch_size, config.launch.epochs) for config in configs.values()]
    # A step an epoch; three an epoch, so that four epochs are the first with ten steps or more.
    assert chosen == [(35, 10), (10, 4)]
    large = {"large": Variant({"batch_size": 50})}
    (config,) = configs_by_seed(large, TrainConfig.of(), [0], 35, steps=10).values()
    assert config.recipe.batch_size == 35


def test_histories_stand_by_variant_in_order_of_the_seeds(monkeypatch):
    """With made-up runs: one's MAP is told by its data, k and seed, such as 0.132."""
    swept = []

    def made_up(configs, data, probes, **options):
        assert (probes, options) == ({"test": data}, {"folder": "here", "most_runs": 3})
        recipes = [config.recipe for config in configs]
        swept.append((data.name, [(recipe.num_neighbors, recipe.seed) for recipe in recipes]))
        return [
            history(int(data.name) / 10 + recipe.num_neighbors / 100 + recipe.seed / 1000)
            for recipe in recipes
        ]

    monkeypatch.setattr("experiments.variants.run_sweep", made_up)
    first, second = (
        SimpleNamespace(name=name, num_train=num_train) for name, num_train in (("1", 50), ("2", 9))
    )
    variants = {"a": Variant({}), "b": Variant({"num_neighbors": 1}, "a")}
    options = {"folder": "here", "most_runs": 3}

    def maps(draws):
        trained = train_variants(
            variants, TrainConfig.of(), draws, lambda data: {"test": data}, **options
        )
        return [trained.last(name, "test", "mean", "map") for name in variants]

    assert maps([((2, 4), first)]) == [
        pytest.approx([0.132, 0.134]),
        pytest.approx([0.112, 0.114]),
    ]
    assert swept == [("1", [(3, 2), (3, 4), (1, 2), (1, 4)])]
    assert maps([((0,), first), ((1,), second)]) == [
        pytest.approx([0.130, 0.231]),
        pytest.approx([0.110, 0.211]),
    ]
