"""Reproduces the paper's evaluation: `python -m experiments.reproduce --what=all --smoke`.

Trains the runs of each figure from several seeds, as few compiled programs, and writes numbers,
tables, figures and one page, `report.html`, into --workdir. Takes the flags of `experiments.train`
that say what a run is made of. An interrupted command resumes when it is run again; runs that
several figures need are trained once.
"""

from aadml_jax.training.config import TrainConfig
from experiments import command_line
from experiments.reproduce import Options, run


def main() -> None:
    """Runs the reproductions that the flags name."""
    config, explicit = command_line.options_from_flags(TrainConfig)
    options, _ = command_line.options_from_flags(Options)
    if config.recipe.deterministic:
        command_line.set_up_determinism()
    command_line.set_up_compilation_cache(config.launch.compilation_cache)
    print(f"written to {run(config, options, explicit).page}")


if __name__ == "__main__":
    command_line.run(main, flags_of=[TrainConfig, Options])
