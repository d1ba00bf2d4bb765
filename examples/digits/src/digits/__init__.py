"""Reads handwritten digits: 8x8 pictures, a linear classifier."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version(__name__)
except PackageNotFoundError:  # used as it is in a checkout
    __version__ = "not installed"
