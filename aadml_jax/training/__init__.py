"""Training of the two towers: configuration, state, step, loop, checkpoints, evaluation."""
