"""Command-line binaries; they only wire the library together."""

from experiments import standard_streams

standard_streams.make_lasting()  # before anything opens a file or prints
