"""What the study is asked for, and what follows from that: comparisons, data, settings."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from aadml_jax.data import RetrievalDataset
from aadml_jax.errors import UserError
from aadml_jax.training.settings import COUNT, Bounds, check_settings, setting
from experiments.study.data import generated_data, grouped_data
from experiments.study.settings import CONFIRMED, SCREENED, Comparison

LEARNING_RATE = 1e-3
# By whether data are generated and measured for the test: what a seed has of its own.
_OWN_DATA = {
    (False, False): "a group of its own to validate on (most training rows are shared)",
    (False, True): "its own choice of training rows, where not all are taken, and one test group",
    (True, False): "a problem of its own",
    (True, True): "a problem of its own",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the study is asked for; the flags of `experiments.study` are made from it."""

    features_file: str | None = setting(
        None, "HDF5 feature file with groups; default generated data"
    )
    group: str = setting("speaker", "key of the groups in the feature file")
    workdir: str | None = setting(None, "folder of the study; default runs/study-<data>")
    stage: str = setting(
        "screen",
        "screen: many settings on validation rows; confirm: a few of them on the test rows",
        choices=("screen", "confirm"),
    )
    comparisons: tuple[str, ...] | None = setting(
        None, "names of some of the comparisons; default all"
    )
    fractions: tuple[str, ...] | None = setting(
        None, "parts of the training rows; default those of each comparison"
    )
    seeds: int | None = setting(
        None, "seeds of each setting; default 3, to confirm 10", bounds=Bounds(at_least=2)
    )
    data_by_seed: bool = setting(
        False,
        "data of its own for each seed: a choice of rows and, in --stage=screen, a group to "
        "validate on; of generated data, a problem",
    )
    label_noise: float = setting(
        0.0, "part of the training rows that get a wrong class", bounds=Bounds(0, at_most=0.9)
    )
    steps: int = setting(300, "training steps of each run, about", bounds=COUNT)
    hidden_sizes: tuple[int, ...] = setting(
        (256, 256, 256), "units of the towers' layers", bounds=COUNT
    )
    runs_at_a_time: int = setting(20, "most runs that one program trains in step", bounds=COUNT)
    compilation_cache: str = setting("auto", "folder of compiled programs; 'auto' or 'off'")

    def for_test(self) -> bool:
        """Whether the test rows are measured."""
        return self.stage == "confirm"

    def num_seeds(self) -> int:
        """Seeds of each setting."""
        return self.seeds or (10 if self.for_test() else 3)

    def page_name(self) -> str:
        """Name of the page's folder: the stage, and the options that are not the defaults."""
        words = [self.stage]
        for name in (
            "comparisons",
            "fractions",
            "seeds",
            "steps",
            "hidden_sizes",
            "group",
            "data_by_seed",
            "label_noise",
        ):
            value = getattr(self, name)
            if isinstance(value, tuple) and value != getattr(Options, name):
                words += map(str, value)
            elif value != getattr(Options, name):
                words += [name, str(value)]
        return "-".join(words).replace("/", "_")

    def check(self) -> None:
        """Checks every option that can be checked without the data.

        Raises:
          UserError: naming the flag, its value and what it must be.
        """
        check_settings(self)
        numbers = []
        for text in self.fractions or ():
            try:
                numbers.append(float(text))
            except ValueError:
                numbers.append(0.0)
        are_fractions = all(0 < number <= 1 for number in numbers)
        for name, is_right, what in (
            ("fractions", are_fractions, "numbers above 0, at most 1, separated by commas"),
            # In the six digits that the tables show.
            ("fractions", _differ([f"{number:g}" for number in numbers]), "different numbers"),
            ("comparisons", _differ(self.comparisons or ()), "different names"),
        ):
            if not is_right:
                raise UserError(f"--{name}={','.join(getattr(self, name))} must be {what}")


def _differ(texts: Sequence[str]) -> bool:
    return len(set(texts)) == len(texts)


def chosen_comparisons(options: Options) -> dict[str, Comparison]:
    """The comparisons that are asked for by name, or all that the options allow.

    Raises:
      UserError: if a name is unknown, or its comparison is meant for data by seed.
    """
    known = CONFIRMED if options.for_test() else SCREENED
    allowed = [name for name in known if options.data_by_seed or not known[name].data_by_seed]
    names = options.comparisons or allowed
    for name in names:
        if name not in known:
            raise UserError(
                f"--comparisons={name} is none of --stage={options.stage}: {', '.join(known)}"
            )
        if name not in allowed:
            raise UserError(f"--comparisons={name} needs data for each seed; add --data_by_seed")
    return {name: known[name] for name in names}


def drawn_data(options: Options) -> list[RetrievalDataset]:
    """One data set for all seeds, or one for each.

    Raises:
      UserError: see `grouped_data`.
    """
    draws = range(options.num_seeds() if options.data_by_seed else 1)
    for_test, path = options.for_test(), options.features_file
    if path is None:
        return [generated_data(for_test=for_test, draw=draw) for draw in draws]
    return [grouped_data(path, options.group, for_test=for_test, draw=draw) for draw in draws]


def base_of(options: Options) -> dict[str, Any]:
    """What all variants have in common."""
    return {
        "dataset": "synthetic" if options.features_file is None else "features",
        "features_file": options.features_file,
        "hidden_sizes": options.hidden_sizes,
        "learning_rate": LEARNING_RATE,
        # Said outright, so that other defaults leave the study as it is.
        "label_loss": "squared",
        "similarity": "cosine",
    }


def interval_words(options: Options) -> str:
    """What the intervals are over, in words."""
    if not options.data_by_seed:
        return "seeds of training alone, for one choice of rows and of held-out rows"
    return f"seeds, each with {_OWN_DATA[options.features_file is None, options.for_test()]}"
