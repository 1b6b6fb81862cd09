"""The version, defined once: packaging and records read it here."""

__version__ = "0.1.0"
