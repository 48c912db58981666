"""The version of tinyc, where both the build and the program caches can read it."""

__version__ = "0.1.0"
