"""Holds the lab against published measurements of real services: `python -m bench.validate_lab`."""
