"""When do anchor-aware proxies help? `python -m experiments.study --features_file=FILE.h5`.

--stage=screen compares many settings on validation rows, which no test row is among.
--stage=confirm reports those that were chosen from that, by hand (`study.settings.CONFIRMED`), on
the test rows.

FILE.h5 needs the keys GROUP_train and GROUP_test (of --group, such as speaker): whole groups are
held out, for testing the last one, for validation the one before it. Without --features_file the
study is on generated data, whose best ranking is known.

An interrupted command resumes when it is run again. docs/study.md gives the results.
"""

import sys

from aadml_jax.training.loop import Interrupted, TrainingDiverged
from experiments import command_line
from experiments.study import Options, run


def main() -> int:
    """Runs the study as the flags say."""
    options, _ = command_line.options_from_flags(Options)
    command_line.set_up_compilation_cache(options.compilation_cache)
    try:
        page = run(options).page
    except (Interrupted, TrainingDiverged) as stop:
        print(stop, file=sys.stderr)
        return 1
    print(f"written to {page}")
    return 0


if __name__ == "__main__":
    command_line.run(main, flags_of=[Options])
