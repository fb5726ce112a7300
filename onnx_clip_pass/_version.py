"""The version, in one place: the build reads it, records carry it."""

__version__ = "0.2.0.dev0"
