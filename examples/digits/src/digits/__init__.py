"""Reads handwritten digits: 8x8 pictures, a linear classifier."""

__version__ = "1.0.0"
