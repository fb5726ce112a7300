"""The version, in one place: the build reads it, records carry it."""

__version__ = "0.1.0"
