"""The configuration of a training run: its data, its recipe, its launch.

The flags of `experiments.train` and the `config.json` of a run folder are made from these classes.
The class of a setting says what may change when a run is resumed:

- `DataConfig`: which rows. Paths and splits may change as long as the rows are the same, which
  their fingerprint tells.
- `RecipeConfig`: what an epoch computes from its rows. Nothing of it may change.
- `LaunchConfig`: how far, where and on what the run goes. All of it may change.
"""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any

from aadml_jax._version import __version__
from aadml_jax.anchor_aware import ATTENTIONS
from aadml_jax.data import DATASETS, NUM_FOLDS, dataset_spec
from aadml_jax.errors import UserError
from aadml_jax.models import PRECISIONS
from aadml_jax.objective import (
    NEIGHBORS_FROM,
    PROXY_ROLES,
    AnchorAware,
    Objective,
    aadml_objective,
    class_proxy_objective,
)
from aadml_jax.similarity import DISTANCES, SIMILARITIES
from aadml_jax.training.named_losses import (
    LABEL_LOSSES,
    NAMED_LOSSES,
    compared_by,
    flag_defaults,
    named_loss,
)
from aadml_jax.training.parallel import MODES
from aadml_jax.training.settings import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    Bounds,
    check_settings,
    is_of_type,
    setting,
)

DEFAULT_BATCH_SIZE = 400
SMOKE_BATCH_SIZE = 100
SMOKE_TRAIN_ROWS = 300
SMOKE_TEST_ROWS = 100
_TRAINABLE = [name for name, spec in DATASETS.items() if not spec.is_built]
_SEED = Bounds(at_least=0, below=2**32, words="from 0 to 2³² − 1")
# Parameters of losses with flags of their own; the others are in `loss_parameters`.
OWN_FLAGS = ("margin", "temperature")
_STORED_REMEDY = "restore config.json from a copy, or use another --workdir"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which rows a run trains and tests on."""

    dataset: str = setting(
        "synthetic",
        f"data set to train on: {', '.join(_TRAINABLE)}, or tfds:NAME for one that "
        "experiments.prepare wrote, such as tfds:av_digits",
    )
    data_dir: str | None = setting(
        None,
        "folder with the feature file of vegas or ave, or with the data sets of tfds:NAME",
        per_process=True,
    )
    features_file: str | None = setting(
        None, "HDF5 feature file for --dataset=features", per_process=True
    )
    multi_label: bool = setting(
        False, "label matrix whose rows may have several ones; for --dataset=features"
    )
    fold: int | None = setting(
        None,
        f"fold to test on, 0 to {NUM_FOLDS - 1}, of {NUM_FOLDS} stratified folds of all rows, of "
        "which the others are trained on; default the data set's own split",
        bounds=Bounds(at_least=0, at_most=NUM_FOLDS - 1),
    )
    train_fraction: float = setting(
        1.0,
        "part of the training rows of each class to keep, above 0, at most 1",
        bounds=Bounds(above=0, at_most=1),
    )
    split_seed: int = setting(
        0, "seed of the rows that --fold and --train_fraction choose", bounds=_SEED
    )
    smoke: bool = setting(
        False,
        f"run of seconds: {SMOKE_TRAIN_ROWS} training and {SMOKE_TEST_ROWS} test rows; and unless "
        f"set by flags of their own, 20 epochs, batch size {SMOKE_BATCH_SIZE}, towers of 128 "
        "units, learning rate 1e-3, evaluation every 5 epochs",
    )


def _loss_parameter(name: str, what: str) -> Any:
    return setting(None, f"{name} of the metric loss, {what}; default {flag_defaults(name)}")


def _other_defaults() -> str:
    """Of the parameters without flags of their own, the values that each loss has."""
    names = dict.fromkeys(name for loss in NAMED_LOSSES.values() for name in loss.parameters)
    return "; ".join(f"{name} of {flag_defaults(name)}" for name in names if name not in OWN_FLAGS)


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """What an epoch computes from its rows; None stands for a default that depends on others."""

    paper: bool = setting(
        False,
        "method as the paper is read here: squared label loss, margin 1 of the triplet loss, "
        "retrieval by cosine, unless set by flags of their own",
    )
    batch_size: int | None = setting(
        None,
        f"rows per step, a multiple of the number of devices; default {DEFAULT_BATCH_SIZE}, "
        "or all training rows if fewer",
        bounds=COUNT,
    )
    seed: int = setting(
        0,
        "seed of initialisation, shuffling and dropout; generated data stay the same",
        bounds=_SEED,
    )
    loss: str = setting("triplet", "metric loss", choices=NAMED_LOSSES)
    margin: float | None = _loss_parameter("margin", "in units of the distance or similarity")
    temperature: float | None = _loss_parameter("temperature", "above 0")
    loss_parameters: Mapping[str, float] | None = setting(
        None,
        "other parameters of the metric loss, such as alpha=2,beta=50; default "
        f"{_other_defaults()}",
    )
    class_proxies: str = setting(
        "one_hot",
        "class vectors of --loss=proxy_anchor: fixed one-hot, or learned, starting from one-hot",
        choices=("one_hot", "learned"),
    )
    anchor_aware: bool = setting(True, "anchor-aware proxies in the anchors' place")
    num_neighbors: int = setting(
        3,
        "k of the correlation graph, the anchor itself counted; 1 is the method without AA",
        bounds=COUNT,
    )
    attention: str = setting(
        "neighbor", "reading of the anchor-aware attention", choices=ATTENTIONS
    )
    same_class: bool = setting(True, "neighbours of the anchor's class alone")
    attention_temperature: float = setting(
        1.0,
        "divisor of the attention's logits; below 1 its weights are sharper, above 0",
        bounds=POSITIVE,
    )
    neighbors_from: str = setting(
        "own", "modality in which an anchor's neighbours are sought", choices=NEIGHBORS_FROM
    )
    neighbor_gradient: bool = setting(True, "gradients that reach the neighbours")
    proxy_role: str = setting(
        "in_place",
        "proxies in the anchors' place, beside the anchors (the mean of both losses), or on both "
        "sides, in the place of anchors and references",
        choices=PROXY_ROLES,
    )
    distance: str = setting("cosine", "distance that the metric loss sees", choices=DISTANCES)
    intra_modal: bool = setting(
        False, "audio-to-audio and visual-to-visual directions in the metric loss, too"
    )
    label_loss: str = setting(
        "cross_entropy", "loss that ties the outputs to the labels", choices=LABEL_LOSSES
    )
    label_weight: float = setting(1.0, "factor of the label loss", bounds=NOT_NEGATIVE)
    metric_weight: float = setting(1.0, "factor of the metric loss", bounds=NOT_NEGATIVE)
    standardize: bool = setting(
        True,
        "standardisation of each feature by its mean and deviation over the training rows, at most "
        "5 deviations; features that are nearly constant there are left out",
    )
    hidden_sizes: tuple[int, ...] = setting(
        (1024, 1024, 1024),
        "tanh units of each hidden layer",
        bounds=Bounds(at_least=1, words="positive numbers"),
    )
    dropout: float = setting(
        0.1, "dropout rate after each hidden layer", bounds=Bounds(at_least=0, below=1)
    )
    precision: str = setting(
        "float32",
        "type of the towers' matrix products; parameters, losses, graph and metrics stay in "
        "float32. float32_high makes each of three products of narrower numbers on accelerators",
        choices=PRECISIONS,
    )
    learning_rate: float = setting(1e-4, "learning rate of Adam", bounds=POSITIVE)
    weight_decay: float = setting(
        0.0, "decoupled weight decay (AdamW) of the towers' weight matrices", bounds=NOT_NEGATIVE
    )
    similarity: str = setting(
        "posterior",
        "score by which retrieval ranks: cosine of the outputs, or posterior, "
        "log Σ p(c|query) p(c|item) of their softmax",
        choices=tuple(SIMILARITIES),
    )
    deterministic: bool = setting(
        False, "identical bytes for a seed on a GPU too, at some cost; a CPU gives them always"
    )

    def chosen_parameters(self) -> dict[str, Any]:
        """The parameters of the metric loss that are set, by name."""
        own = {name: getattr(self, name) for name in OWN_FLAGS}
        set_here = {name: value for name, value in own.items() if value is not None}
        return set_here | dict(self.loss_parameters or {})

    def objective(
        self,
        *,
        max_neighbors: int | None = None,
        stacked: bool = False,
        block_size: int | None = None,
    ) -> Objective:
        """The objective that the configuration names.

        Args:
          max_neighbors: the largest k, where `num_neighbors` is traced.
          stacked: see `aadml_objective`.
          block_size: see `aadml_objective`.
        """
        proxies = None
        if self.anchor_aware:
            proxies = AnchorAware(
                num_neighbors=self.num_neighbors,
                attention=self.attention,
                same_class=self.same_class,
                temperature=self.attention_temperature,
                neighbors_from=self.neighbors_from,
                neighbor_gradient=self.neighbor_gradient,
                role=self.proxy_role,
                max_neighbors=max_neighbors,
            )
        made_of = {
            "metric_loss": named_loss(self.loss, self.chosen_parameters()),
            "compare": compared_by(self.loss, self.distance),
            "label_loss": LABEL_LOSSES[self.label_loss],
            "proxies": proxies,
            "label_weight": self.label_weight,
            "metric_weight": self.metric_weight,
            "stacked": stacked,
            "block_size": block_size,
        }
        if NAMED_LOSSES[self.loss].on_class_proxies:
            return functools.partial(class_proxy_objective, **made_of)
        return functools.partial(aadml_objective, intra_modal=self.intra_modal, **made_of)


@dataclasses.dataclass(frozen=True)
class LaunchConfig:
    """How far, where and on what a run goes; changes nothing that an epoch computes."""

    epochs: int | None = setting(
        None,
        "passes over the training rows; default 400, 60 for synthetic data and av_digits",
        bounds=COUNT,
    )
    workdir: str | None = setting(
        None,
        "folder of the run; default runs/<dataset>, with -fold0, -split3, -fraction0.1, -paper, "
        "-smoke where these are asked for",
        per_process=True,
    )
    input: str = setting(
        "device",
        "place of the training rows: the devices, or a stream that is read while training goes on, "
        "for data larger than their memory; needs --dataset=tfds:NAME and the extra 'stream'",
        choices=("device", "stream"),
    )
    eval_every: int = setting(
        10, "epochs between evaluations (and checkpoints) on the test rows", bounds=COUNT
    )
    checkpoint_every: int | None = setting(
        None, "epochs between further checkpoints; default only at evaluations", bounds=COUNT
    )
    tensorboard: bool | None = setting(
        None,
        "TensorBoard events in the run folder; default if the extra 'tensorboard' is installed",
        per_process=True,
    )
    parallel: str = setting(
        "auto",
        "way to spread a step over all devices: auto is jit; the numbers do not depend on it",
        choices=MODES,
    )
    steps_per_call: int | None = setting(
        None,
        "largest number of steps in one call; default 64 on CPUs and with --input=stream, whose "
        "calls then take seconds, and else an epoch. A signal is answered between calls",
        bounds=COUNT,
    )
    coordinator_address: str | None = setting(
        None,
        "host:port of the first of several processes, which all get the same flags but for "
        "--process_id",
        per_process=True,
    )
    num_processes: int | None = setting(None, "number of processes of the run", bounds=COUNT)
    process_id: int | None = setting(
        None, "number of this process, from 0; that one writes for all", per_process=True
    )
    distributed: bool = setting(
        False,
        "automatic detection of the other processes: on Cloud TPU, Slurm, Open MPI and in other "
        "environments that jax.distributed supports",
    )
    profile: bool = setting(
        False,
        "trace of a few steps in profile/ in the run folder: perfetto_trace.json.gz for Perfetto, "
        "*.xplane.pb for XProf",
    )
    compilation_cache: str = setting(
        "auto",
        "folder of compiled programs kept between runs; 'auto' is a user cache folder, 'off' none",
        per_process=True,
    )


_PARTS = {"data": DataConfig, "recipe": RecipeConfig, "launch": LaunchConfig}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run; see `set_up` for what fills in open defaults.

    The settings of all parts have different names, so that flags and programs need not say in which
    part one is:

        config = TrainConfig.of(dataset="vegas", margin=0.2, epochs=100)
        config.recipe.margin                 # 0.2
        config.replace(seed=1, fold=0)       # a copy with other settings
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    recipe: RecipeConfig = dataclasses.field(default_factory=RecipeConfig)
    launch: LaunchConfig = dataclasses.field(default_factory=LaunchConfig)

    @classmethod
    def of(cls, **settings: Any) -> "TrainConfig":
        """A configuration of settings by their names, with the defaults of the others.

        Raises:
          ValueError: for a name that is no setting.
        """
        return cls().replace(**settings)

    def replace(self, **settings: Any) -> "TrainConfig":
        """A copy in which some settings, given by their names, are others.

        Raises:
          ValueError: for a name that is no setting.
        """
        if unknown := ", ".join(settings.keys() - FIELDS.keys()):
            raise ValueError(f"TrainConfig has no setting {unknown}; it has {', '.join(FIELDS)}")
        parts = {}
        for part, kind in _PARTS.items():
            names = [field.name for field in dataclasses.fields(kind) if field.name in settings]
            parts[part] = dataclasses.replace(
                getattr(self, part), **{name: settings[name] for name in names}
            )
        return TrainConfig(**parts)

    def flat(self) -> dict[str, Any]:
        """All settings by their names."""
        return {name: value for part in _PARTS for name, value in vars(getattr(self, part)).items()}

    def common_flags(self) -> dict[str, Any]:
        """Flags and their values in which all processes of a run must agree."""
        return {
            f"--{name}": value
            for name, value in self.flat().items()
            if not FIELDS[name].metadata["per_process"]
        }


FIELDS: dict[str, dataclasses.Field] = {
    field.name: field for kind in _PARTS.values() for field in dataclasses.fields(kind)
}
"""The fields of all parts of `TrainConfig` by their names, in the order of the flags."""


def config_from_json(values: Any, versions: Any = None) -> TrainConfig:
    """The configuration stored by `dataclasses.asdict` as JSON.

    Args:
      values: the parts by their names, and in each the values of its fields; lists stand for
        tuples.
      versions: those that config.json records beside it, for the message; None if there are none.

    Raises:
      UserError: if a part or a field is unknown or missing, or has a value that no run can have.
        Fields of `LaunchConfig`, which change no result, take their defaults instead.
    """
    if not isinstance(values, dict):
        raise UserError(
            f"the stored configuration is damaged (it holds no fields); {_STORED_REMEDY}"
        )
    writer = versions.get("aadml_jax") if isinstance(versions, dict) else None
    said = f"by aadml_jax {writer}" if writer else "by another version of aadml_jax"
    require_parts(values, said)
    parts = {part: _part_from_json(kind, values[part], said) for part, kind in _PARTS.items()}
    config = TrainConfig(**parts)
    try:
        check(config)
    except UserError as error:
        raise UserError(
            f"the stored configuration cannot be used ({error}); {_STORED_REMEDY}"
        ) from error
    return config


def require_parts(values: Mapping[str, Any], written: str) -> None:
    """Checks that a stored configuration has the three parts.

    Args:
      values: the content of `config` in config.json.
      written: by whom it was written, for the message.

    Raises:
      UserError: if it has none of them, as those of earlier versions; if one is missing or is no
        part at all.
    """
    if not any(isinstance(values.get(part), dict) for part in _PARTS):
        raise UserError(
            f"the stored configuration was written {written}, before settings were stored in the "
            f"parts {', '.join(_PARTS)}, and is not read any more; use the code that wrote it, or "
            "train again with another --workdir"
        )
    for part in _PARTS:
        if not isinstance(values.get(part), dict):
            raise UserError(
                f"the stored configuration is damaged (its part {part} is not there); "
                f"{_STORED_REMEDY}"
            )
    if unknown := ", ".join(sorted(set(values) - _PARTS.keys())):
        raise UserError(
            f"the stored configuration was written {written}, and this version, {__version__}, "
            f"does not know its part {unknown}; use that version, or another --workdir"
        )


def _part_from_json(kind: type, values: dict[str, Any], said: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    of_another = (
        f"the stored configuration is of another version of aadml_jax: it was written {said}"
    )
    if unknown := ", ".join(sorted(set(values) - fields.keys())):
        raise UserError(
            f"{of_another}, and this one, {__version__}, does not know its field {unknown}; use "
            "that version, or another --workdir"
        )
    hints = typing.get_type_hints(kind)
    known = {}
    for name, field in fields.items():
        changes_no_result = kind is LaunchConfig
        if name not in values:
            if not changes_no_result:
                raise UserError(
                    f"{of_another}, without the field {name} that this one, {__version__}, needs; "
                    "use that version, or another --workdir"
                )
            known[name] = field.default
            continue
        value = values[name]
        value = tuple(value) if isinstance(value, list) else value
        if not is_of_type(value, hints[name]):
            raise UserError(
                f"the stored configuration is damaged ({name} cannot be {value!r}); "
                f"{_STORED_REMEDY}"
            )
        choices = field.metadata["choices"]
        is_gone = changes_no_result and choices and value not in choices
        known[name] = field.default if is_gone else value
    return kind(**known)


def check(config: TrainConfig) -> None:
    """Checks every value that can be checked without the data.

    Raises:
      UserError: naming the flag, its value and what it must be.
    """
    for part in _PARTS:
        check_settings(getattr(config, part))
    dataset_spec(config.data.dataset)
    data = config.data
    if data.fold is None and data.train_fraction == 1 and data.split_seed:
        raise UserError(
            f"--split_seed={data.split_seed} chooses nothing; add --fold or --train_fraction, or "
            "leave it out"
        )
    _check_recipe(config.recipe)
    _check_processes(config.launch)


def _check_processes(launch: LaunchConfig) -> None:
    explicit = [launch.coordinator_address, launch.num_processes, launch.process_id]
    if any(value is not None for value in explicit) and None in explicit:
        raise UserError(
            "--coordinator_address, --num_processes and --process_id go together; give all three, "
            "or --distributed where the cluster tells them"
        )
    if launch.process_id is not None and launch.num_processes is not None:
        numbers = Bounds(at_least=0, at_most=launch.num_processes - 1)
        if not numbers.hold(launch.process_id):
            raise UserError(f"--process_id={launch.process_id} must be {numbers}")


def _check_recipe(recipe: RecipeConfig) -> None:
    """Checks the metric loss's parameters, and what does not go with it."""
    chosen = NAMED_LOSSES[recipe.loss]
    given = recipe.loss_parameters or {}
    for name in OWN_FLAGS:
        if name in given:
            raise UserError(
                f"--loss_parameters={name}={given[name]:g} has a flag of its own; set --{name}"
            )
    for name, value in recipe.chosen_parameters().items():
        flag = f"{name}={value}" if name in OWN_FLAGS else f"loss_parameters={name}={value:g}"
        if name not in chosen.parameters:
            raise UserError(
                f"--{flag} does not go with loss={recipe.loss}: its parameters are "
                f"{', '.join(chosen.parameters)}"
            )
        try:
            named_loss(recipe.loss, {name: value})
        except ValueError as error:
            raise UserError(f"--{flag} does not suit loss={recipe.loss}: {error}") from error
    conflicts = {
        "distance": chosen.on_similarities
        and recipe.distance != "cosine"
        and "it compares cosine similarities",
        "intra_modal": chosen.on_class_proxies
        and recipe.intra_modal
        and "it compares samples with class proxies",
        "proxy_role": chosen.on_class_proxies
        and recipe.proxy_role == "both_sides"
        and "one of its sides are class proxies",
    }
    for name, reason in conflicts.items():
        if reason:
            value = getattr(recipe, name)
            raise UserError(f"--{name}={value} does not go with loss={recipe.loss}: {reason}")
    for name, default in (("proxy_role", "in_place"), ("neighbors_from", "own")):
        if not recipe.anchor_aware and getattr(recipe, name) != default:
            raise UserError(f"--{name}={getattr(recipe, name)} does nothing without anchor_aware")
    if recipe.class_proxies != "one_hot" and not chosen.on_class_proxies:
        losses = [name for name, entry in NAMED_LOSSES.items() if entry.on_class_proxies]
        raise UserError(
            f"--class_proxies={recipe.class_proxies} needs a loss on class proxies: "
            f"--loss={' or '.join(losses)}"
        )
    if recipe.label_weight == recipe.metric_weight == 0:
        raise UserError("--label_weight=0 and --metric_weight=0 leave nothing to train")
