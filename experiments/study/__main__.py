"""When do anchor-aware proxies help? `python -m experiments.study --features_file=FILE.h5`.

--stage=screen compares many settings on validation rows, which no test row is among.
--stage=confirm reports those that were chosen from that, by hand (`study.settings.CONFIRMED`), on
the test rows.

FILE.h5 needs the keys GROUP_train and GROUP_test (of --group, such as speaker): whole groups are
held out, for testing the last one, for validation the one before it. Without --features_file the
study is on generated data, whose best ranking is known.

An interrupted command resumes when it is run again. docs/study.md gives the results.
"""

from experiments import command_line
from experiments.study import Options, run


def main() -> None:
    """Runs the study as the flags say."""
    options, _ = command_line.options_from_flags(Options)
    command_line.set_up_compilation_cache(options.compilation_cache)
    print(f"written to {run(options).page}")


if __name__ == "__main__":
    command_line.run(main, flags_of=[Options])
