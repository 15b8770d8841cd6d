"""From a configuration as it is asked for to one without open defaults, and its rows.

`set_up` is the only place that knows the order: check, presets, check again, open, split, resolve.
"""

from collections.abc import Set
from typing import Any

from aadml_jax.data import (
    RetrievalDataset,
    dataset_spec,
    open_dataset,
    with_class_balanced_rows,
    with_fold,
    with_train_fraction,
)
from aadml_jax.errors import UserError
from aadml_jax.training.config import (
    DEFAULT_BATCH_SIZE,
    OWN_FLAGS,
    SMOKE_BATCH_SIZE,
    SMOKE_TEST_ROWS,
    SMOKE_TRAIN_ROWS,
    DataConfig,
    RecipeConfig,
    TrainConfig,
    check,
)
from aadml_jax.training.named_losses import NAMED_LOSSES

_PAPER_MARGIN = 1.0
_PAPER_PRESET = {"label_loss": "squared", "similarity": "cosine"}
_SMOKE_PRESET = {
    "epochs": 20,
    "eval_every": 5,
    "hidden_sizes": (128, 128, 128),
    "learning_rate": 1e-3,
}


def set_up(
    config: TrainConfig, explicit: Set[str] = frozenset()
) -> tuple[TrainConfig, RetrievalDataset]:
    """Opens the data of a run, and fills in what its configuration leaves open.

    Args:
      config: as it was asked for.
      explicit: names of the settings that were asked for; presets leave them as they are.

    Returns:
      The configuration without open folder, epochs, batch size or parameters of the loss, and the
      rows to train and test on.

    Raises:
      UserError: if a value, alone or with others, cannot be; if the data cannot be opened or split;
        if the batch size exceeds the training rows.
    """
    config = with_presets(config, explicit)
    dataset = split(config.data, open_data(config.data))
    return resolve(config, len(dataset.train)), dataset


def open_data(data: DataConfig) -> RetrievalDataset:
    """Opens the data set of a configuration, with its own split.

    Raises:
      UserError: see `open_dataset`.
    """
    return open_dataset(
        data.dataset,
        data_dir=data.data_dir,
        features_file=data.features_file,
        multi_label=data.multi_label,
    )


def with_presets(config: TrainConfig, explicit: Set[str] = frozenset()) -> TrainConfig:
    """With `smoke` and `paper`, their values for the settings that are not explicit; checked.

    Raises:
      UserError: if a value cannot be, before or after the presets.
    """
    check(config)
    preset: dict[str, Any] = {}
    if config.recipe.paper:
        preset |= _PAPER_PRESET
        if config.recipe.loss == "triplet":
            preset["margin"] = _PAPER_MARGIN
    if config.data.smoke:
        preset |= _SMOKE_PRESET
    config = config.replace(
        **{name: value for name, value in preset.items() if name not in explicit}
    )
    check(config)
    return config


def split(data: DataConfig, dataset: RetrievalDataset) -> RetrievalDataset:
    """The rows that a configuration trains and tests on: fold, fraction and smoke subset.

    Args:
      data: what is asked for.
      dataset: the data set with its own split.

    Raises:
      UserError: if a class would be left without a row.
    """
    if data.fold is not None:
        dataset = with_fold(dataset, data.fold, seed=data.split_seed)
    dataset = with_train_fraction(dataset, data.train_fraction, seed=data.split_seed)
    if not data.smoke:
        return dataset
    # Where there are more classes than rows, one row of each is the least.
    return with_class_balanced_rows(
        dataset,
        max(SMOKE_TRAIN_ROWS, dataset.num_classes),
        max(SMOKE_TEST_ROWS, dataset.num_classes),
    )


def split_in_words(data: DataConfig) -> str:
    """The asked-for split behind the name of a data set, empty for all rows of the data's own."""
    words = []
    if data.fold is not None:
        words.append(f"fold {data.fold}")
    if data.train_fraction < 1:
        words.append(f"fraction {data.train_fraction:g} of the training rows")
    if words and data.split_seed:
        words.append(f"split seed {data.split_seed}")
    return "".join(f", {word}" for word in words)


def default_workdir(config: TrainConfig) -> str:
    """Where a run goes that names no folder."""
    data = config.data
    parts = [data.dataset.replace(":", "-")]
    if data.fold is not None:
        parts.append(f"fold{data.fold}")
    if data.split_seed:
        parts.append(f"split{data.split_seed}")
    if data.train_fraction < 1:
        parts.append(f"fraction{data.train_fraction:g}")
    if config.recipe.paper:
        parts.append("paper")
    if data.smoke:
        parts.append("smoke")
    return f"runs/{'-'.join(parts)}"


def resolve(config: TrainConfig, num_train: int) -> TrainConfig:
    """Fills in the defaults that depend on other settings and on the data.

    Args:
      config: a checked configuration.
      num_train: training rows at hand.

    Returns:
      A configuration without open folder, epochs, batch size or parameters of the chosen loss.

    Raises:
      UserError: if an explicit batch size exceeds the training rows.
    """
    chosen = config.recipe.batch_size
    default = min(SMOKE_BATCH_SIZE if config.data.smoke else DEFAULT_BATCH_SIZE, num_train)
    if chosen is not None and chosen > num_train:
        raise UserError(
            f"--batch_size={chosen} exceeds the {num_train} training rows; choose at most "
            f"{num_train}, or leave it out for {default}"
        )
    return config.replace(
        workdir=config.launch.workdir or default_workdir(config),
        epochs=config.launch.epochs or dataset_spec(config.data.dataset).default_epochs,
        batch_size=chosen or default,
        **_resolved_parameters(config.recipe),
    )


def _resolved_parameters(recipe: RecipeConfig) -> dict[str, Any]:
    """All parameters of the chosen loss, in the fields that hold them."""
    values = NAMED_LOSSES[recipe.loss].parameters | recipe.chosen_parameters()
    own = {name: value for name, value in values.items() if name in OWN_FLAGS}
    others = {name: value for name, value in values.items() if name not in OWN_FLAGS}
    return own | {"loss_parameters": others or None}
