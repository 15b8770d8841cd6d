"""The version of the package, read by the packaging metadata and by every recorded run."""

__version__ = "0.1.0"
