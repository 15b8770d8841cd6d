"""The paper's evaluation: `run(config, Options(…))`, or `python -m experiments.reproduce`."""

from experiments.reproduce.runs import Options, run

__all__ = ["Options", "run"]
