"""Trueup: align a language model to your own preferences, from the first example to a verdict with error bars."""

__version__ = "0.1.0"
