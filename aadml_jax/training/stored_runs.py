"""Runs in their folders: to be resumed, to be evaluated, and to be compared with each other."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aadml_jax._files import local_path
from aadml_jax.data import dataset_spec
from aadml_jax.errors import UserError
from aadml_jax.training.checkpoints import Checkpoints, Progress
from aadml_jax.training.config import (
    FIELDS,
    LaunchConfig,
    TrainConfig,
    config_from_json,
    require_parts,
)
from aadml_jax.training.evaluation import DIRECTIONS
from aadml_jax.training.local_data import is_standardization_described, is_standardized_alike
from aadml_jax.training.run_folder import (
    CONFIG_FILE,
    METRICS_FILE,
    RESULT_FILE,
    environment,
    read_run_json,
)
from aadml_jax.training.state import TrainedTowers, towers_template

# What changes no result: the launch, and the paths of the data.
_NOT_COMPARED = {field.name for field in dataclasses.fields(LaunchConfig)} | {
    name for name, field in FIELDS.items() if field.metadata["per_process"]
}
_NEEDED_OF_DATA = ("name", "source", "fingerprint", "num_classes", "test_rows")
_REMEDY = "restore it from a copy, or leave the run out"


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What a run's folder says of it.

    Attributes:
      name: of the folder, with as much of its path as tells it from the others.
      path: of the folder.
      settings: the configuration, by the names of the flags; that of another version may have other
        names.
      data: the description of the data in config.json.
      epochs: the lines of metrics.jsonl, of epochs 1, 2, …
      result: the content of result.json.
      versions: of the packages that the run was finished with.
    """

    name: str
    path: pathlib.Path
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]
    versions: Mapping[str, str]

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Epochs in which a metric was logged, and its values in them."""
        lines = [line for line in self.epochs if key in line]
        return [line["epoch"] for line in lines], [line[key] for line in lines]


def read_finished_runs(folders: Sequence[str | os.PathLike[str]]) -> list[FinishedRun]:
    """Reads the folders of finished runs; nothing in them is changed.

    Args:
      folders: the --workdir of each run; `~` is expanded.

    Returns:
      The runs in the order of the folders, each with a name of its own.

    Raises:
      UserError: if a folder is given twice, or is not that of a finished run, or is damaged.
    """
    paths = [local_path(folder) for folder in folders]
    first: dict[pathlib.Path, pathlib.Path] = {}
    for path in paths:
        real = path.resolve()
        if real in first:
            also = "" if first[real] == path else f", also as {first[real]}"
            raise UserError(f"{path} is given twice{also}; give each run once")
        first[real] = path
    names = _names([pathlib.Path(os.path.abspath(path)) for path in paths])
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def differing_settings(runs: Sequence[FinishedRun]) -> dict[str, list[Any]]:
    """The settings in which runs differ.

    Left out are those of the launch, which change no result, and the paths of the data. A setting
    that a run of another version does not know counts as None.

    Returns:
      By name, the value of each run; in the order of the flags, then of the alphabet.
    """
    known = {name for run in runs for name in run.settings} - _NOT_COMPARED
    names = [*(name for name in FIELDS if name in known), *sorted(known - FIELDS.keys())]
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {
        name: column
        for name, column in values.items()
        if any(value != column[0] for value in column)
    }


def with_the_same_test_rows(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Runs put together whose test rows are the same, as far as their folders say.

    They are if the data have one fingerprint, or if splits that differ in their training rows alone
    (--train_fraction) were taken from one source.

    Returns:
      Groups in the order of their first runs; figures of different groups are not comparable.
    """
    groups: list[list[FinishedRun]] = []
    for run in runs:
        for group in groups:
            if any(_share_test_rows(run, other) for other in group):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def repeated_by_seed(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Runs put together that differ in their seed alone, on the same rows.

    Of several runs of one seed the first counts: the others say nothing about other seeds.

    Returns:
      Groups of two or more, in the order of their first runs.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        settings = {name: run.settings[name] for name in run.settings.keys() - _NOT_COMPARED}
        settings |= {"epochs": run.settings["epochs"], "seed": None}
        key = json.dumps([settings, run.data["fingerprint"]], sort_keys=True)
        group = groups.setdefault(key, [])
        if all(run.settings.get("seed") != other.settings.get("seed") for other in group):
            group.append(run)
    return [group for group in groups.values() if len(group) > 1]


def check_resumable(stored: dict[str, Any], config: TrainConfig, data: dict[str, Any]) -> None:
    """Checks that a run folder's configuration and data are those of this run.

    The rows must be the same and so must the recipe; paths, splits that give the same rows, and
    the launch may be others.

    Args:
      stored: content of config.json.
      config: the resolved configuration of this run.
      data: its description of the data.

    Raises:
      UserError: naming what differs.
    """
    remedy = "use the same value, or another --workdir"
    of_another = f"{config.launch.workdir} holds a checkpoint of another configuration"
    has_x64 = environment()["enable_x64"]
    had_x64 = _recorded(stored.get("environment"), "enable_x64", has_x64)
    if had_x64 != has_x64:
        raise UserError(f"{of_another}: JAX_ENABLE_X64 was {had_x64}, now {has_x64}; {remedy}")
    former = config_from_json(stored.get("config"), stored.get("versions"))
    has_same_rows = recorded_data(stored)["fingerprint"] == data["fingerprint"]
    if not has_same_rows:
        changes = [f" ({change})" for change in _changes(former.data, config.data)][:1]
        raise UserError(
            f"{of_another}: the data, {data['source']}, are not those it was trained on"
            f"{''.join(changes)}; use the same data, or another --workdir"
        )
    for change in _changes(former.recipe, config.recipe):
        raise UserError(f"{of_another}: {change}; {remedy}")
    if not is_standardized_alike(recorded_data(stored), data):
        raise UserError(
            f"{config.launch.workdir} holds a checkpoint of an earlier version, which standardised "
            "features that are constant or far out in another way; evaluate it as it is, or train "
            "again with another --workdir"
        )


def _changes(former: Any, now: Any) -> Iterator[str]:
    """The settings of a part in which two configurations differ, paths aside."""
    for field in dataclasses.fields(now):
        old, new = getattr(former, field.name), getattr(now, field.name)
        if old != new and not field.metadata["per_process"]:
            yield f"--{field.name} was {old}, now {new}"


def _recorded(part: Any, name: str, default: Any) -> Any:
    return part.get(name, default) if isinstance(part, dict) else default


def recorded_data(stored: dict[str, Any]) -> dict[str, Any]:
    """The description of the data in the content of a config.json.

    Raises:
      UserError: if there is none.
    """
    data = stored.get("data")
    if isinstance(data, dict):
        # Earlier versions knew one class a clip alone, and did not record the classes' names.
        data = {"multi_label": False, "class_names": [], **data}
        texts = all(isinstance(data.get(name), str) for name in ("fingerprint", "source"))
        sizes = [data.get(name) for name in ("num_classes", "audio_dim", "visual_dim")]
        if (
            texts
            and is_standardization_described(data.get("standardization"))
            and isinstance(data["multi_label"], bool)
            and all(type(size) is int and size > 0 for size in sizes)
            and _are_names(data["class_names"], data["num_classes"])
        ):
            return data
    raise UserError(
        "config.json does not describe its data; restore it from a copy, or use another --workdir"
    )


def _are_names(names: Any, num_classes: int) -> bool:
    is_complete = isinstance(names, list) and len(names) in (0, num_classes)
    return is_complete and all(isinstance(name, str) for name in names)


def recorded_class_names(stored: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes in label order, from the content of a config.json; empty if unknown.

    Those of a published data set are known of earlier runs too, which did not record them.
    """
    data = recorded_data(stored)
    names = data["class_names"]
    if not names:
        name = config_from_json(stored.get("config"), stored.get("versions")).data.dataset
        names = dataset_spec(name).class_names
    return tuple(names) if len(names) == data["num_classes"] else ()


def restore_for_evaluation(
    workdir: pathlib.Path, stored: dict[str, Any], which: str
) -> tuple[TrainConfig, TrainedTowers, Progress]:
    """Configuration and towers of a finished or unfinished run, without touching its folder.

    The rest of the checkpoint, as the state of the optimizer, is not read.

    Args:
      workdir: the run's folder.
      stored: content of its config.json.
      which: "latest" or "best".

    Raises:
      UserError: if there is no checkpoint that can be read.
    """
    config = config_from_json(stored.get("config"), stored.get("versions"))
    data = recorded_data(stored)
    template = towers_template(
        config.recipe,
        num_classes=data["num_classes"],
        audio_dim=data["audio_dim"],
        visual_dim=data["visual_dim"],
    )
    with Checkpoints(workdir, read_only=True) as checkpoints:
        if which == "best":
            best = checkpoints.best()
            restored = None if best is None else checkpoints.restore(best[0], template)
        else:
            restored = checkpoints.restore_latest(template)
    if restored is None:
        raise UserError(
            f"{workdir} holds no {which} checkpoint yet; train there first, with "
            f"--workdir={workdir}"
        )
    return config, *restored


def _share_test_rows(a: FinishedRun, b: FinishedRun) -> bool:
    if a.data["fingerprint"] == b.data["fingerprint"]:
        return True
    training_rows = [
        (run.settings.get("train_fraction"), run.settings.get("split_seed")) for run in (a, b)
    ]
    # Data that differ though the same rows were asked for have changed in between.
    return training_rows[0] != training_rows[1] and _test_rows(a) == _test_rows(b)


def _test_rows(run: FinishedRun) -> tuple[Any, ...]:
    """Where a run's test rows come from, and what is known of them."""
    fold = run.settings.get("fold")
    return (
        *(run.data[name] for name in ("source", "num_classes", "test_rows")),
        run.settings.get("smoke"),
        fold,
        None if fold is None else run.settings.get("split_seed"),
        run.result["chance"],
    )


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """What is behind the common beginning of the paths; of a single one its last part."""
    common = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return [str(path.relative_to(common)) for path in paths]


def _read(path: pathlib.Path, name: str) -> FinishedRun:
    stored = read_run_json(path, CONFIG_FILE)
    settings, data = _flat_settings(stored, path), stored.get("data")
    if not isinstance(data, dict) or any(key not in data for key in _NEEDED_OF_DATA):
        raise UserError(f"{path / CONFIG_FILE} does not describe the run's data; {_REMEDY}")
    epochs = _read_epochs(path / METRICS_FILE)
    asked, reached = settings["epochs"], len(epochs)
    result = read_run_json(path, RESULT_FILE) if (path / RESULT_FILE).exists() else None
    # A finished run that is being continued keeps its former result until its end.
    if result is None or result.get("epochs") != asked:
        raise UserError(
            f"{path} holds a run that is not finished, at epoch {reached} of {asked}; let "
            "experiments.train finish it, or leave it out"
        )
    _check_result(result, path / RESULT_FILE)
    if reached != asked:
        raise UserError(
            f"{path / METRICS_FILE} is damaged (it has {reached} epochs of {asked}); {_REMEDY}"
        )
    return FinishedRun(name, path, settings, data, epochs, result, result["versions"])


def _flat_settings(stored: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """The settings of all parts by their names; those of other versions too."""
    parts = stored.get("config")
    if isinstance(parts, dict):
        try:
            require_parts(parts, f"in {path}, by {_writer(stored)}")
        except UserError as error:
            raise UserError(f"{error}; or leave the run out") from error
        settings = {name: value for part in parts.values() for name, value in part.items()}
        if type(settings.get("epochs")) is int:
            return settings
    raise UserError(f"{path / CONFIG_FILE} holds no configuration of a run; {_REMEDY}")


def _writer(stored: dict[str, Any]) -> str:
    return f"aadml_jax {_recorded(stored.get('versions'), 'aadml_jax', 'of an unknown version')}"


def _read_epochs(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:  # of a run that was stopped in its first epoch
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from error
    epochs = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except ValueError:
            if number == len(lines):
                break  # torn by a crash: the run has not come to its end
            values = None
        is_right = (
            isinstance(values, dict)
            and values.get("epoch") == number
            and all(map(_is_number, values.values()))
        )
        if not is_right:
            raise UserError(
                f"{path} is damaged (line {number} is not that of epoch {number}); {_REMEDY}"
            )
        epochs.append(values)
    return epochs


def _check_result(result: Mapping[str, Any], path: pathlib.Path) -> None:
    try:
        numbers = [result["chance"], result["seconds"]]
        numbers += [result[key][name] for key in ("map", "prefix_map") for name in DIRECTIONS]
        if result["best"] is not None:
            numbers += [result["best"]["epoch"], result["best"]["mean_map"]]
        is_right = all(map(_is_number, numbers)) and isinstance(result["versions"], dict)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); {_REMEDY}") from error
    if not is_right:
        raise UserError(f"{path} is damaged (it holds no numbers where they belong); {_REMEDY}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
