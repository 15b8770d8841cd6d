"""The study of when proxies help: `run(Options(…))`, or `python -m experiments.study`."""

from experiments.study.options import Options
from experiments.study.runs import run

__all__ = ["Options", "run"]
