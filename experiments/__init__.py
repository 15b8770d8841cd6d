"""Command-line binaries; they only wire the library together."""
