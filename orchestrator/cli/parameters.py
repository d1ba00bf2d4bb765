"""Types of the words on the command line that several commands take."""

from __future__ import annotations

import click


def port(text: str) -> int:
    """The number of a TCP port.

    Raises:
        click.BadParameter: it is none.
    """
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise click.BadParameter(f"{text!r} is not a port; give a number from 1 to 65535")
    return int(text)
