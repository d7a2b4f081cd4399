"""Pinchpoint: stress-test a large-language-model service and find what gives way first."""

__version__ = "0.1.0"
