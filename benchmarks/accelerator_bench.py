"""What the parts of `benchmarks.accelerator` work with: sizes, a device, a limit of time."""

import contextlib
import dataclasses
import functools
import importlib
import io
import pathlib
import re
import time
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from aadml_jax.data import RetrievalDataset, SyntheticSpec, make_synthetic
from aadml_jax.reports.tables import Table
from aadml_jax.training.accelerators import ACCELERATORS, Accelerator
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.local_data import LocalData, load_local_data
from aadml_jax.training.loop import run_training
from aadml_jax.training.named_losses import NAMED_LOSSES
from aadml_jax.training.parallel import Device, Placement
from aadml_jax.training.run_folder import RunFolder
from aadml_jax.training.setup import resolve
from benchmarks import side_by_side

# By which words of a device's description it is an accelerator whose peaks are known.
_KINDS = {
    r"\bH100\b.*\bHBM3\b": "h100",
    r"\bA100-SXM4-80GB\b": "a100",
    r"^TPU v4$": "v4",
    r"^TPU (v5 lite|v5e)$": "v5e",
    r"^TPU v5p?$": "v5p",
    r"^TPU (v6 lite|v6e)$": "v6e",
}
# JAX takes three quarters of a GPU's memory; another library in the process has less than the rest.
_PEERS_SHARE = 0.15
_PEERS_GIB = 4.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      losses: whose steps are timed.
      hidden_sizes: of the towers.
      batch_size: of all runs, and of the steps of each loss.
      batch_sizes: of the steps by batch size.
      steps: of a timed call.
      rounds: of every timed call.
      seconds: of a timed subject, after which it gets no further round.
      whole_run: data of the run that is timed as a whole, and of the stacked runs.
      whole_epochs: its epochs.
      short_run: data of the runs that are compared.
      short_epochs: of the runs whose bytes and placements are compared.
      map_epochs: of the runs whose MAP is compared.
      eval_every: epochs between evaluations.
      seeds: stacked runs.
      clips: of the large evaluation.
      checked_queries: of it, ranked on the CPU too.
      tied: shapes [rows, columns] and k of the searches of tied values.
      product: rows and columns of the matrices of the matrix product.
    """

    losses: tuple[str, ...] = tuple(NAMED_LOSSES)
    hidden_sizes: tuple[int, ...] = (1024, 1024, 1024)
    batch_size: int = 400
    batch_sizes: tuple[int, ...] = (400, 1024, 4096)
    steps: int = 20
    rounds: int = 7
    seconds: float = 3.0
    whole_run: SyntheticSpec = dataclasses.field(
        default_factory=lambda: SyntheticSpec(train_size=22_482, test_size=5_621)
    )
    whole_epochs: int = 400
    short_run: SyntheticSpec = dataclasses.field(default_factory=SyntheticSpec)
    short_epochs: int = 20
    map_epochs: int = 60
    eval_every: int = 10
    seeds: int = 10
    clips: int = 100_000
    checked_queries: int = 200
    tied: tuple[tuple[int, int, int], ...] = ((400, 400, 3), (64, 4096, 10), (8, 100_000, 100))
    product: int = 4096

    @property
    def has_published_run(self) -> bool:
        """Whether the whole run is of the size of the published one, on VEGAS."""
        return (self.whole_run.train_size, self.batch_size, self.whole_epochs) == (22_482, 400, 400)


FULL = Sizes()
SMOKE = Sizes(
    hidden_sizes=(32, 32),
    batch_size=40,
    batch_sizes=(40, 80),
    steps=5,
    rounds=2,
    seconds=0.5,
    whole_run=SyntheticSpec(train_size=300, test_size=100),
    whole_epochs=8,
    short_run=SyntheticSpec(train_size=120, test_size=60),
    short_epochs=4,
    map_epochs=8,
    eval_every=2,
    seeds=3,
    clips=1000,
    checked_queries=20,
    tied=((40, 40, 3), (8, 4096, 10)),
    product=256,
)
"""The sizes of --smoke."""


@dataclasses.dataclass
class Findings:
    """What a part found.

    Attributes:
      answer: in a few words.
      numbers: for the JSON file.
      tables: for the Markdown file.
      notes: sentences below them.
      failures: what went wrong beside that, a line each.
    """

    answer: str
    numbers: dict[str, Any]
    tables: Sequence[Table] = ()
    notes: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)


class Run(NamedTuple):
    """A training run: its folder, the content of result.json, and how long the call took."""

    folder: pathlib.Path
    result: dict[str, Any]
    seconds: float


@dataclasses.dataclass
class Bench:
    """Where the parts are measured.

    Attributes:
      device: the one that is measured.
      sizes: how much.
      folder: for runs, empty at first.
      deadline: by `time.monotonic`, after which nothing more is begun.
      deterministic: whether XLA was asked for deterministic operations.
    """

    device: Device
    sizes: Sizes
    folder: pathlib.Path
    deadline: float
    deterministic: bool = False

    @property
    def placement(self) -> Placement:
        """On the device."""
        return Placement((self.device,))

    @property
    def is_on_cpu(self) -> bool:
        """Whether the device is a CPU."""
        return self.device.platform == "cpu"

    @functools.cached_property
    def cpu(self) -> Device:
        """The CPU that the accelerator is compared with."""
        try:
            return jax.devices("cpu")[0]
        except RuntimeError as error:
            raise side_by_side.NotRunError(
                "JAX has no CPU device beside the accelerator; unset JAX_PLATFORMS"
            ) from error

    @property
    def accelerator(self) -> Accelerator | None:
        """What the device can do by its maker; None where that is not known here."""
        for pattern, name in _KINDS.items():
            if re.search(pattern, self.device.device_kind):
                return ACCELERATORS[name]
        return None

    def is_late(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() > self.deadline

    @functools.cached_property
    def whole_run(self) -> RetrievalDataset:
        """Data of the published size."""
        return make_synthetic(self.sizes.whole_run)

    @functools.cached_property
    def whole_data(self) -> LocalData:
        """The same, standardised."""
        return load_local_data(self.whole_run, self.placement)

    @functools.cached_property
    def short_run(self) -> RetrievalDataset:
        """Data of runs that are compared."""
        return make_synthetic(self.sizes.short_run)

    def config(self, dataset: RetrievalDataset, **settings: Any) -> TrainConfig:
        """A resolved configuration of a run on a data set."""
        config = TrainConfig.of(
            batch_size=self.sizes.batch_size,
            hidden_sizes=self.sizes.hidden_sizes,
            eval_every=self.sizes.eval_every,
            deterministic=self.deterministic,
            tensorboard=False,
        )
        return resolve(config.replace(**settings), len(dataset.train))

    def train(
        self, name: str, dataset: RetrievalDataset, device: Device | None = None, **settings: Any
    ) -> Run:
        """Trains, or goes on with, the run in the folder of a name.

        Args:
          name: of the folder.
          dataset: to train and test on.
          device: to train on; default the one that is measured.
          **settings: of the configuration.
        """
        device = device or self.device
        placement, folder = Placement((device,)), self.folder / name
        config = self.config(dataset, workdir=str(folder), **settings)
        began = time.perf_counter()
        with (
            jax.default_device(device),
            contextlib.redirect_stdout(io.StringIO()),  # a line an epoch
            RunFolder(folder) as run_folder,
        ):
            data = load_local_data(dataset, placement)
            result = run_training(config, data, run_folder, placement)
        return Run(folder, result, time.perf_counter() - began)

    def measure(
        self, subjects: Sequence[side_by_side.Subject]
    ) -> tuple[list[side_by_side.Result], list[str]]:
        """Times subjects in turn; returns the results, and a line for each that failed."""
        accelerator = self.accelerator
        memory = _PEERS_SHARE * accelerator.memory_bytes / 2**30 if accelerator else _PEERS_GIB
        results = side_by_side.measure(
            subjects, rounds=self.sizes.rounds, seconds=self.sizes.seconds, memory_gib=memory
        )
        failures = [
            f"{result.subject.name}: {result.reason}"
            for result in results
            if result.reason.startswith("failed")
        ]
        return results, failures

    @functools.cached_property
    def peers(self) -> tuple[types.ModuleType | None, str, str]:
        """PyTorch's side, the name of its device, and why there is none, else what it runs on."""
        try:
            module = importlib.import_module("benchmarks.torch_peers")
        except ImportError as error:
            return None, "cpu", f"PyTorch is left out ({error}): pip install -e '.[bench]'"
        if self.is_on_cpu:
            return module, "cpu", f"PyTorch {module.torch.__version__} on the CPU."
        if self.placement.is_on_gpus and module.torch.cuda.is_available():
            name = module.torch.cuda.get_device_name()
            return module, "cuda", f"PyTorch {module.torch.__version__} on {name}."
        version = module.torch.__version__
        return None, "cpu", f"PyTorch is left out: {version} finds no {self.device.platform} here."

    def in_time(self, items: Sequence[Any], left_out: list[str]) -> Iterator[Any]:
        """The items, one by one, as long as there is time; the others go into `left_out`."""
        for number, item in enumerate(items):
            if self.is_late():
                left_out += map(str, items[number:])
                return
            yield item
