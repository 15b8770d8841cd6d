"""The variables by which the environment sets JAX up, read as it is imported."""

import os
import sys


def require_readable() -> None:
    """Imports JAX; ends the command with one line if a variable holds what JAX cannot read."""
    try:
        import jax  # noqa: F401
    except ValueError as error:
        reason = " ".join(str(error).split())
        variables = [name for name in sorted(os.environ) if name.startswith("JAX_")]
        named = [name for name in variables if name.lower() in reason.lower()] or variables
        values = ", ".join(f"{name}={os.environ[name]}" for name in named)
        print(
            f"error: JAX cannot start with {values} ({reason}); unset it or give it another value",
            file=sys.stderr,
        )
        sys.exit(2)
