"""The version, for the package itself and for pyproject.toml."""

__version__ = "0.1.0"
