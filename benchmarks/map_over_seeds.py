"""MAP over several seeds, with and without anchor awareness, beside the references.

    python -m benchmarks.map_over_seeds --dataset=synthetic
    python -m benchmarks.map_over_seeds --dataset=features --features_file=FILE.h5

Takes every flag of `experiments.train` but --workdir, --seed and --anchor_aware; each run starts in
a folder of its own that is removed afterwards.
"""

import contextlib
import io
import statistics
import tempfile
import time

from absl import flags

from aadml_jax.errors import UserError
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.evaluation import DIRECTIONS
from aadml_jax.training.local_data import load_local_data
from aadml_jax.training.loop import run_training
from aadml_jax.training.run_folder import RunFolder, versions
from aadml_jax.training.setup import set_up
from experiments import command_line

_SEEDS = flags.DEFINE_integer("seeds", 5, "number of seeds: 0, 1, …", lower_bound=2)


def main() -> None:
    """Runs all seeds of both variants and prints mean ± standard deviation."""
    config, explicit = command_line.options_from_flags(TrainConfig)
    for name in explicit & {"workdir", "seed", "anchor_aware"}:
        raise UserError(f"--{name} is set by this benchmark; leave it out")
    if config.recipe.deterministic:
        command_line.set_up_determinism()
    command_line.set_up_compilation_cache(config.launch.compilation_cache)
    config, dataset = set_up(config, explicit)
    data = load_local_data(dataset, standardized=config.recipe.standardize)
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print(
        f"{dataset.name}: {len(dataset.train)} / {len(dataset.test)} rows, "
        f"{config.launch.epochs} epochs, batch size {config.recipe.batch_size}, "
        f"{_SEEDS.value} seeds\n"
    )
    print(f"{'MAP':22}{'audio→visual':>16}{'visual→audio':>16}{'mean':>16}{'s a run':>9}")
    result = {}
    for name, anchor_aware in (("plain", False), ("anchor-aware", True)):
        maps, seconds = [], []
        for seed in range(_SEEDS.value):
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as workdir, RunFolder(workdir) as folder:
                one = config.replace(workdir=workdir, seed=seed, anchor_aware=anchor_aware)
                with contextlib.redirect_stdout(io.StringIO()):
                    result = run_training(one, data, folder)
            maps.append(result["map"])
            seconds.append(time.monotonic() - started)
        cells = []
        for direction in DIRECTIONS:
            values = [values[direction] for values in maps]
            cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}")
        row = "".join(f"{cell:>16}" for cell in cells)
        print(f"{name:22}{row}{statistics.median(seconds):>9.0f}", flush=True)
    if result["bayes_reference"] is not None:
        values = result["bayes_reference_map"]
        row = "".join(f"{values[direction]:>16.3f}" for direction in DIRECTIONS)
        print(f"{'Bayes reference':22}{row}")
    print(
        f"{'chance':22}{result['chance']:>16.3f}{result['chance']:>16.3f}{result['chance']:>16.3f}"
    )


if __name__ == "__main__":
    command_line.run(main, flags_of=[TrainConfig])
