"""The configuration of a training run: one frozen dataclass with every name, default and help.

The flags of `experiments.train` and the `config.json` of a run folder are both made from it.
"""

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Set
from typing import Any

from aadml_jax._version import __version__
from aadml_jax.data import (
    DATASETS,
    NUM_FOLDS,
    RetrievalDataset,
    dataset_spec,
    with_fold,
    with_train_fraction,
)
from aadml_jax.errors import UserError
from aadml_jax.metrics import SIMILARITIES
from aadml_jax.objective import (
    DISTANCES,
    LABEL_LOSSES,
    LOSS_PARAMETERS,
    METRIC_LOSSES,
    NEIGHBORS_FROM,
    PROXY_ROLES,
    ObjectiveOptions,
    conflict,
)
from aadml_jax.training.parallel import MODES

DEFAULT_BATCH_SIZE = 400
SMOKE_BATCH_SIZE = 100
SMOKE_TRAIN_ROWS = 300
SMOKE_TEST_ROWS = 100
_TRAINABLE = [name for name, spec in DATASETS.items() if not spec.is_built]
_FLOATS = (
    "label_weight",
    "metric_weight",
    "learning_rate",
    "weight_decay",
    "attention_temperature",
)
_STORED_REMEDY = "restore config.json from a copy, or use another --workdir"
_PAPER_MARGIN = 1.0
_PAPER_PRESET = {"label_loss": "squared", "similarity": "cosine"}
_SMOKE_PRESET = {
    "epochs": 20,
    "eval_every": 5,
    "hidden_sizes": (128, 128, 128),
    "learning_rate": 1e-3,
}


def _setting(default: Any, help_text: str, **metadata: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text, **metadata})


def _loss_parameter(name: str, what: str) -> Any:
    defaults = ", ".join(
        f"{loss} {entry.parameters[name]:g}"
        for loss, entry in METRIC_LOSSES.items()
        if name in entry.parameters
    )
    help_text = f"{name} of the metric loss, {what}; default {defaults}"
    # The first version had a margin, and no loss with any other parameter.
    return _setting(None, help_text, **({} if name == "margin" else {"before": None}))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run; None stands for a default that `resolve` fills in.

    Fields whose metadata has `resumable=True` may change when a run is resumed, since they do not
    change what an epoch computes (the data are told by their fingerprint). Those with
    `per_process=True` may differ between the processes of a run. `choices` lists the values of a
    name. `before` is what versions without the field did: every new field that is not resumable
    needs it, for runs of those versions to be read.
    """

    dataset: str = _setting(
        "synthetic",
        f"data set to train on: {', '.join(_TRAINABLE)}, or tfds:NAME for one that "
        "experiments.prepare wrote, such as tfds:av_digits",
        resumable=True,
        always_stored=True,
    )
    data_dir: str | None = _setting(
        None,
        "folder with the feature file of vegas or ave, or with the data sets of tfds:NAME",
        resumable=True,
        per_process=True,
    )
    features_file: str | None = _setting(
        None, "HDF5 feature file for --dataset=features", resumable=True, per_process=True
    )
    multi_label: bool = _setting(
        False,
        "rows of the label matrix may have several ones; for --dataset=features",
        resumable=True,
    )
    input: str = _setting(
        "device",
        "training rows are kept on the devices, or read while training goes on (stream): for data "
        "larger than their memory; needs --dataset=tfds:NAME and the extra 'stream'",
        choices=("device", "stream"),
        resumable=True,
    )
    workdir: str | None = _setting(
        None,
        "folder of the run; default runs/<dataset>, with -fold0, -split3, -fraction0.1, -paper, "
        "-smoke where these are asked for",
        resumable=True,
        per_process=True,
    )
    fold: int | None = _setting(
        None,
        f"test on this one of {NUM_FOLDS} stratified folds of all rows, 0 to {NUM_FOLDS - 1}, and "
        "train on the others; default the data set's own split",
        before=None,
    )
    train_fraction: float = _setting(
        1.0,
        "part of the training rows of each class to keep, above 0, at most 1",
        before=1.0,
    )
    split_seed: int = _setting(
        0, "seed of the rows that --fold and --train_fraction choose", before=0
    )
    paper: bool = _setting(
        False,
        "the method as the paper is read here: squared label loss, margin 1 of the triplet loss, "
        "retrieval by cosine, unless set by flags of their own",
        before=False,
    )
    smoke: bool = _setting(
        False,
        f"shrink the run to seconds: {SMOKE_TRAIN_ROWS} training and {SMOKE_TEST_ROWS} test rows; "
        f"and unless set by flags of their own, 20 epochs, batch size {SMOKE_BATCH_SIZE}, towers "
        "of 128 units, learning rate 1e-3, evaluation every 5 epochs",
    )
    epochs: int | None = _setting(
        None,
        "passes over the training rows; default 400, 60 for synthetic data and av_digits",
        resumable=True,
    )
    batch_size: int | None = _setting(
        None,
        f"rows per step, a multiple of the devices that share them; default {DEFAULT_BATCH_SIZE}, "
        "or all training rows if fewer",
    )
    seed: int = _setting(
        0, "seed of initialisation, shuffling and dropout; generated data stay the same"
    )
    loss: str = _setting("triplet", "metric loss", choices=tuple(METRIC_LOSSES))
    margin: float | None = _loss_parameter("margin", "in units of the distance or similarity")
    temperature: float | None = _loss_parameter("temperature", "above 0")
    alpha: float | None = _loss_parameter("alpha", "above 0")
    beta: float | None = _loss_parameter("beta", "a scale above 0, or a distance")
    base: float | None = _loss_parameter("base", "a similarity")
    gamma: float | None = _loss_parameter("gamma", "above 0")
    class_proxies: str = _setting(
        "one_hot",
        "class vectors of --loss=proxy_anchor: fixed one-hot, or learned, starting from one-hot",
        choices=("one_hot", "learned"),
        before="one_hot",
    )
    anchor_aware: bool = _setting(True, "put anchor-aware proxies in the anchors' place")
    num_neighbors: int = _setting(
        3, "k of the correlation graph, the anchor itself counted; 1 is the method without AA"
    )
    attention: str = _setting(
        "neighbor", "reading of the anchor-aware attention", choices=("neighbor", "channel")
    )
    same_class: bool = _setting(True, "only samples of the anchor's class can be neighbours")
    attention_temperature: float = _setting(
        1.0,
        "divides the attention's logits; below 1 its weights are sharper, above 0",
        before=1.0,
    )
    neighbors_from: str = _setting(
        "own",
        "modality in which an anchor's neighbours are sought",
        choices=NEIGHBORS_FROM,
        before="own",
    )
    neighbor_gradient: bool = _setting(True, "let gradients reach the neighbours", before=True)
    proxy_role: str = _setting(
        "in_place",
        "proxies in the anchors' place, beside the anchors (the mean of both losses), or on both "
        "sides, in the place of anchors and references",
        choices=PROXY_ROLES,
        before="in_place",
    )
    distance: str = _setting(
        "cosine", "distance that the metric loss sees", choices=tuple(DISTANCES)
    )
    intra_modal: bool = _setting(
        False, "add the audio-to-audio and visual-to-visual directions to the metric loss"
    )
    label_loss: str = _setting(
        "cross_entropy", "loss that ties the outputs to the labels", choices=tuple(LABEL_LOSSES)
    )
    label_weight: float = _setting(1.0, "factor of the label loss")
    metric_weight: float = _setting(1.0, "factor of the metric loss")
    standardize: bool = _setting(
        True,
        "standardise each feature by its mean and deviation over the training rows, at most 5 "
        "deviations; features that are nearly constant there are left out",
    )
    hidden_sizes: tuple[int, ...] = _setting((1024, 1024, 1024), "tanh units of each hidden layer")
    dropout: float = _setting(0.1, "dropout rate after each hidden layer")
    precision: str = _setting(
        "float32",
        "of the towers' matrix products; parameters, losses, graph and metrics stay in float32",
        choices=("float32", "bfloat16"),
        before="float32",
    )
    learning_rate: float = _setting(1e-4, "learning rate of Adam")
    weight_decay: float = _setting(
        0.0,
        "decoupled weight decay (AdamW) of the towers' weight matrices",
        before=0.0,
    )
    similarity: str = _setting(
        "posterior",
        "by which retrieval ranks: cosine of the outputs, or posterior, log Σ p(c|query) p(c|item) "
        "of their softmax",
        choices=tuple(SIMILARITIES),
        before="cosine",
    )
    eval_every: int = _setting(
        10, "epochs between evaluations (and checkpoints) on the test rows", resumable=True
    )
    checkpoint_every: int | None = _setting(
        None, "epochs between further checkpoints; default only at evaluations", resumable=True
    )
    tensorboard: bool | None = _setting(
        None,
        "write TensorBoard events; default if the extra 'tensorboard' is installed",
        resumable=True,
        per_process=True,
    )
    parallel: str = _setting(
        "auto",
        "how a step is spread over all devices: auto is jit; the numbers do not depend on it",
        choices=MODES,
        resumable=True,
    )
    steps_per_call: int | None = _setting(
        None,
        "most steps of one call; default 64 on CPUs and with --input=stream, whose calls then take "
        "seconds, and else an epoch. A signal is answered between calls",
        resumable=True,
    )
    coordinator_address: str | None = _setting(
        None,
        "host:port of the first of several processes, which all get the same flags but for "
        "--process_id",
        resumable=True,
        per_process=True,
    )
    num_processes: int | None = _setting(None, "how many processes take part", resumable=True)
    process_id: int | None = _setting(
        None,
        "number of this process, from 0; that one writes for all",
        resumable=True,
        per_process=True,
    )
    distributed: bool = _setting(
        False,
        "find the other processes by oneself: on Cloud TPU, Slurm, Open MPI and where else "
        "jax.distributed can",
        resumable=True,
    )
    profile: bool = _setting(
        False,
        "write a trace of a few steps into profile/ in the run folder: perfetto_trace.json.gz for "
        "Perfetto, *.xplane.pb for XProf",
        resumable=True,
    )
    deterministic: bool = _setting(
        False, "identical bytes for a seed on a GPU too, at some cost; a CPU gives them always"
    )
    compilation_cache: str = _setting(
        "auto",
        "folder of compiled programs kept between runs; 'auto' is a user cache folder, 'off' none",
        resumable=True,
        per_process=True,
    )

    def objective_options(self) -> ObjectiveOptions:
        """The part that `aadml_objective` needs."""
        own = {field.name for field in dataclasses.fields(self)}
        names = [field.name for field in dataclasses.fields(ObjectiveOptions)]
        return ObjectiveOptions(**{name: getattr(self, name) for name in names if name in own})


def resumable_fields() -> frozenset[str]:
    """Names of the fields that may change when a run is resumed."""
    fields = dataclasses.fields(TrainConfig)
    return frozenset(field.name for field in fields if field.metadata.get("resumable"))


def common_fields(config: TrainConfig) -> dict[str, Any]:
    """Flags and their values in which all processes of a run must agree."""
    return {
        f"--{field.name}": getattr(config, field.name)
        for field in dataclasses.fields(config)
        if not field.metadata.get("per_process")
    }


def config_from_json(values: Any, versions: Any = None) -> TrainConfig:
    """The configuration stored by `dataclasses.asdict` as JSON.

    A field that the version which stored it did not know gets the value of what that version did,
    or its default if it changes no result.

    Args:
      values: field names and values; lists stand for tuples.
      versions: those that config.json records beside it, for the message; None if there are none.

    Raises:
      UserError: if a field is unknown, is missing and cannot be filled in, or has a value that no
        run can have.
    """
    if not isinstance(values, dict):
        raise UserError(
            f"the stored configuration is damaged (it holds no fields); {_STORED_REMEDY}"
        )
    writer = versions.get("aadml_jax") if isinstance(versions, dict) else None
    said = f"by aadml_jax {writer}" if writer else "by another version of aadml_jax"
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    if unknown := ", ".join(sorted(set(values) - fields.keys())):
        raise UserError(
            f"the stored configuration is of another version of aadml_jax: it was written {said}, "
            f"and this one, {__version__}, does not know its field {unknown}; use that version, or "
            "another --workdir"
        )
    hints = typing.get_type_hints(TrainConfig)
    known = {}
    for name, field in fields.items():
        if name not in values:
            known[name] = _value_without(field, said)
            continue
        value = values[name]
        value = tuple(value) if isinstance(value, list) else value
        if not _is_of_type(value, hints[name]):
            raise UserError(
                f"the stored configuration is damaged ({name} cannot be {value!r}); "
                f"{_STORED_REMEDY}"
            )
        choices = field.metadata.get("choices", ())
        if choices and value not in choices and field.metadata.get("resumable"):
            value = field.default  # a way to run that is gone changes no result
        known[name] = value
    config = TrainConfig(**known)
    try:
        check(config)
    except UserError as error:
        raise UserError(
            f"the stored configuration cannot be used ({error}); {_STORED_REMEDY}"
        ) from error
    return config


def _value_without(field: dataclasses.Field, said: str) -> Any:
    """What a field means in a configuration that does not have it."""
    if "before" in field.metadata:
        return field.metadata["before"]
    if field.metadata.get("resumable") and not field.metadata.get("always_stored"):
        return field.default
    raise UserError(
        f"the stored configuration is of another version of aadml_jax: it was written {said}, "
        f"without the field {field.name} that this one, {__version__}, needs; use that version, or "
        "another --workdir"
    )


def _is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; whole numbers are floats too, and bools no numbers."""
    if isinstance(hint, types.UnionType):
        return any(_is_of_type(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        (item, _) = typing.get_args(hint)
        return isinstance(value, tuple) and all(_is_of_type(each, item) for each in value)
    if hint is float and type(value) is int:
        return abs(value) <= sys.float_info.max
    if hint in (int, float):
        return isinstance(value, hint) and not isinstance(value, bool)
    return isinstance(value, hint)


def default_workdir(config: TrainConfig) -> str:
    """Where a run goes that names no folder."""
    parts = [config.dataset.replace(":", "-")]
    if config.fold is not None:
        parts.append(f"fold{config.fold}")
    if config.split_seed:
        parts.append(f"split{config.split_seed}")
    if config.train_fraction < 1:
        parts.append(f"fraction{config.train_fraction:g}")
    for preset in ("paper", "smoke"):
        if getattr(config, preset):
            parts.append(preset)
    return f"runs/{'-'.join(parts)}"


def check(config: TrainConfig) -> None:
    """Checks every value that can be checked without the data.

    Raises:
      UserError: naming the flag, its value and what it must be.
    """
    for field in dataclasses.fields(config):
        choices, value = field.metadata.get("choices"), getattr(config, field.name)
        if choices and value not in choices:
            raise UserError(f"--{field.name}={value} must be one of {', '.join(choices)}")

    dataset_spec(config.dataset)

    def require(name: str, is_right: bool, what: str) -> None:
        if not is_right:
            raise UserError(f"--{name}={getattr(config, name)} must be {what}")

    for name in (
        "epochs",
        "batch_size",
        "num_neighbors",
        "eval_every",
        "checkpoint_every",
        "steps_per_call",
        "num_processes",
    ):
        value = getattr(config, name)
        require(name, value is None or value >= 1, "at least 1")
    for name in (*LOSS_PARAMETERS, *_FLOATS):
        value = getattr(config, name)
        require(name, value is None or math.isfinite(value), "finite")
    for name in ("label_weight", "metric_weight", "weight_decay"):
        require(name, getattr(config, name) >= 0, "at least 0")
    for name in ("learning_rate", "attention_temperature"):
        require(name, getattr(config, name) > 0, "above 0")
    require("dropout", 0 <= config.dropout < 1, "at least 0 and below 1")
    for name in ("seed", "split_seed"):
        require(name, 0 <= getattr(config, name) < 2**32, "from 0 to 2³² − 1")
    require("train_fraction", 0 < config.train_fraction <= 1, "above 0 and at most 1")
    if config.fold is not None:
        require("fold", 0 <= config.fold < NUM_FOLDS, f"from 0 to {NUM_FOLDS - 1}")
    elif config.train_fraction == 1 and config.split_seed:
        raise UserError(
            f"--split_seed={config.split_seed} chooses nothing; add --fold or --train_fraction, or "
            "leave it out"
        )
    require("hidden_sizes", all(size >= 1 for size in config.hidden_sizes), "positive numbers")
    if contradiction := conflict(config):
        raise UserError(f"--{contradiction}")
    # The margin loss's beta is a distance; all the others divide or multiply exponents.
    for name in ("temperature", "alpha", "gamma", *(() if config.loss == "margin" else ("beta",))):
        value = getattr(config, name)
        require(name, value is None or value > 0, "above 0")
    if config.class_proxies != "one_hot" and not METRIC_LOSSES[config.loss].on_class_proxies:
        losses = [name for name, entry in METRIC_LOSSES.items() if entry.on_class_proxies]
        raise UserError(
            f"--class_proxies={config.class_proxies} needs a loss on class proxies: "
            f"--loss={' or '.join(losses)}"
        )
    explicit = [config.coordinator_address, config.num_processes, config.process_id]
    if any(value is not None for value in explicit) and None in explicit:
        raise UserError(
            "--coordinator_address, --num_processes and --process_id go together; give all three, "
            "or --distributed where the cluster tells them"
        )
    if config.process_id is not None:
        what = f"from 0 to {config.num_processes - 1}"
        require("process_id", 0 <= config.process_id < config.num_processes, what)
    if config.label_weight == config.metric_weight == 0:
        raise UserError("--label_weight=0 and --metric_weight=0 leave nothing to train")


def apply_presets(config: TrainConfig, explicit: Set[str]) -> TrainConfig:
    """With `smoke` and `paper`, their values for the fields that are not set explicitly."""
    preset: dict[str, Any] = {}
    if config.paper:
        preset |= _PAPER_PRESET
        if config.loss == "triplet":
            preset["margin"] = _PAPER_MARGIN
    if config.smoke:
        preset |= _SMOKE_PRESET
    return dataclasses.replace(
        config, **{name: value for name, value in preset.items() if name not in explicit}
    )


def split_in_words(config: TrainConfig) -> str:
    """The asked-for split behind the name of a data set, empty for all rows of the data's own."""
    words = []
    if config.fold is not None:
        words.append(f"fold {config.fold}")
    if config.train_fraction < 1:
        words.append(f"fraction {config.train_fraction:g} of the training rows")
    if words and config.split_seed:
        words.append(f"split seed {config.split_seed}")
    return "".join(f", {word}" for word in words)


def apply_splits(config: TrainConfig, dataset: RetrievalDataset) -> RetrievalDataset:
    """The rows that a configuration trains and tests on: fold, fraction and smoke subset."""
    if config.fold is not None:
        dataset = with_fold(dataset, config.fold, seed=config.split_seed)
    dataset = with_train_fraction(dataset, config.train_fraction, seed=config.split_seed)
    if not config.smoke:
        return dataset
    # Where there are more classes than rows, one row of each is the least.
    return dataset.class_balanced_subset(
        max(SMOKE_TRAIN_ROWS, dataset.num_classes), max(SMOKE_TEST_ROWS, dataset.num_classes)
    )


def resolve(config: TrainConfig, num_train: int) -> TrainConfig:
    """Fills in the defaults that depend on the data set.

    Args:
      config: a checked configuration.
      num_train: training rows at hand.

    Returns:
      A configuration without open epochs, batch size or parameters of the chosen loss.

    Raises:
      UserError: if an explicit batch size exceeds the training rows.
    """
    default_batch_size = min(SMOKE_BATCH_SIZE if config.smoke else DEFAULT_BATCH_SIZE, num_train)
    if config.batch_size is not None and config.batch_size > num_train:
        raise UserError(
            f"--batch_size={config.batch_size} exceeds the {num_train} training rows; "
            f"choose at most {num_train}, or leave it out for {default_batch_size}"
        )
    return dataclasses.replace(
        config,
        epochs=config.epochs or dataset_spec(config.dataset).default_epochs,
        batch_size=config.batch_size or default_batch_size,
        **config.objective_options().loss_parameters(),
    )
