"""Clipping within other people's frameworks, each imported only by the module of its name."""
