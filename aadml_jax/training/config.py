"""The configuration of a training run: one frozen dataclass with every name, default and help.

The flags of `experiments.train` and the `config.json` of a run folder are both made from it.
"""

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Mapping, Set
from typing import Any

from aadml_jax._version import __version__
from aadml_jax.anchor_aware import ATTENTIONS
from aadml_jax.data import (
    DATASETS,
    NUM_FOLDS,
    RetrievalDataset,
    dataset_spec,
    with_class_balanced_rows,
    with_fold,
    with_train_fraction,
)
from aadml_jax.errors import UserError
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
# Parameters of losses with flags of their own; the others are in `loss_parameters`.
_OWN_FLAGS = ("margin", "temperature")
# Fields of versions before `loss_parameters`, in which each parameter had one.
_FORMER_PARAMETERS = ("alpha", "beta", "base", "gamma")
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
    help_text = f"{name} of the metric loss, {what}; default {flag_defaults(name)}"
    # The first version had a margin, and no loss with any other parameter.
    return _setting(None, help_text, **({} if name == "margin" else {"before": None}))


def _other_defaults() -> str:
    """Of the parameters without flags of their own, the values that each loss has."""
    names = dict.fromkeys(name for loss in NAMED_LOSSES.values() for name in loss.parameters)
    return "; ".join(f"{name} of {flag_defaults(name)}" for name in names if name not in _OWN_FLAGS)


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
    loss: str = _setting("triplet", "metric loss", choices=NAMED_LOSSES)
    margin: float | None = _loss_parameter("margin", "in units of the distance or similarity")
    temperature: float | None = _loss_parameter("temperature", "above 0")
    loss_parameters: Mapping[str, float] | None = _setting(
        None,
        "other parameters of the metric loss, such as alpha=2,beta=50; default "
        f"{_other_defaults()}",
        before=None,
    )
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
        "neighbor", "reading of the anchor-aware attention", choices=ATTENTIONS
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
    distance: str = _setting("cosine", "distance that the metric loss sees", choices=DISTANCES)
    intra_modal: bool = _setting(
        False, "add the audio-to-audio and visual-to-visual directions to the metric loss"
    )
    label_loss: str = _setting(
        "cross_entropy", "loss that ties the outputs to the labels", choices=LABEL_LOSSES
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

    def chosen_parameters(self) -> dict[str, Any]:
        """The parameters of the metric loss that are set, by name."""
        own = {name: getattr(self, name) for name in _OWN_FLAGS}
        set_here = {name: value for name, value in own.items() if value is not None}
        return set_here | (self.loss_parameters or {})

    def objective(self, *, max_neighbors: int | None = None) -> Objective:
        """The objective that the configuration names.

        Args:
          max_neighbors: the largest k, where `num_neighbors` is traced.
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
        }
        if NAMED_LOSSES[self.loss].on_class_proxies:
            return functools.partial(class_proxy_objective, **made_of)
        return functools.partial(aadml_objective, intra_modal=self.intra_modal, **made_of)


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
    or its default if it changes no result. Fields of an older version that became
    `loss_parameters` are taken there.

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
    values = _with_loss_parameters(values)
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


def _with_loss_parameters(values: dict[str, Any]) -> dict[str, Any]:
    """Of a configuration with a field for each parameter of a loss, those that are set, as one.

    {"loss": "circle", "alpha": null, "gamma": 1.0}  →  {"loss": "circle", "loss_parameters":
    {"gamma": 1.0}}; where none is set, there are no `loss_parameters`.
    """
    if "loss_parameters" in values:
        return values
    kept = {name: value for name, value in values.items() if name not in _FORMER_PARAMETERS}
    former = {name: values[name] for name in _FORMER_PARAMETERS if values.get(name) is not None}
    return kept | ({"loss_parameters": former} if former else {})


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
    if typing.get_origin(hint) is Mapping:
        (key, item) = typing.get_args(hint)
        return isinstance(value, Mapping) and all(
            _is_of_type(name, key) and _is_of_type(each, item) for name, each in value.items()
        )
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
    for name in (*_OWN_FLAGS, *_FLOATS):
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
    _check_loss(config)
    if config.class_proxies != "one_hot" and not NAMED_LOSSES[config.loss].on_class_proxies:
        losses = [name for name, entry in NAMED_LOSSES.items() if entry.on_class_proxies]
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


def _check_loss(config: TrainConfig) -> None:
    """Checks the metric loss's parameters, and what does not go with it."""
    chosen = NAMED_LOSSES[config.loss]
    in_parameters = sorted(set(config.loss_parameters or ()) & set(_OWN_FLAGS))
    if in_parameters:
        name = in_parameters[0]
        raise UserError(
            f"--loss_parameters={name}={config.loss_parameters[name]:g} has a flag of its own; set "
            f"--{name}"
        )
    for name, value in config.chosen_parameters().items():
        flag = f"{name}={value}" if name in _OWN_FLAGS else f"loss_parameters={name}={value:g}"
        if name not in chosen.parameters:
            raise UserError(
                f"--{flag} does not go with loss={config.loss}: its parameters are "
                f"{', '.join(chosen.parameters)}"
            )
        try:
            named_loss(config.loss, {name: value})
        except ValueError as error:
            raise UserError(f"--{flag} does not suit loss={config.loss}: {error}") from error
    culprit = None
    if chosen.on_similarities and config.distance != "cosine":
        culprit, reason = "distance", "it compares cosine similarities"
    if chosen.on_class_proxies and config.intra_modal:
        culprit, reason = "intra_modal", "it compares samples with class proxies"
    if chosen.on_class_proxies and config.proxy_role == "both_sides":
        culprit, reason = "proxy_role", "one of its sides are class proxies"
    if culprit is not None:
        raise UserError(
            f"--{culprit}={getattr(config, culprit)} does not go with loss={config.loss}: {reason}"
        )
    for name, default in (("proxy_role", "in_place"), ("neighbors_from", "own")):
        if not config.anchor_aware and getattr(config, name) != default:
            raise UserError(f"--{name}={getattr(config, name)} does nothing without anchor_aware")


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
    return with_class_balanced_rows(
        dataset,
        max(SMOKE_TRAIN_ROWS, dataset.num_classes),
        max(SMOKE_TEST_ROWS, dataset.num_classes),
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
        **_resolved_parameters(config),
    )


def _resolved_parameters(config: TrainConfig) -> dict[str, Any]:
    """All parameters of the chosen loss, in the fields that hold them."""
    values = NAMED_LOSSES[config.loss].parameters | config.chosen_parameters()
    own = {name: value for name, value in values.items() if name in _OWN_FLAGS}
    others = {name: value for name, value in values.items() if name not in _OWN_FLAGS}
    return own | {"loss_parameters": others or None}
