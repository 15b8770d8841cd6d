"""Command-line binaries; they only wire the library together."""

from experiments import jax_settings, standard_streams

standard_streams.make_lasting()  # before anything opens a file or prints
jax_settings.require_readable()  # before anything else imports JAX
