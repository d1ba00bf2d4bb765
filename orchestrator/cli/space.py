"""`orchestrator space`: the repository of a Hugging Face Space."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Writes the repository of a Hugging Face Space.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--title", default="Orchestrator", show_default=True, help="What the Space is called.")
@click.option(
    "--deployment",
    default="space",
    show_default=True,
    metavar="NAME",
    help="ORCHESTRATOR_DEPLOYMENT: instances are found again by it, so it stays the same.",
)
@click.option(
    "--image", metavar="IMAGE", help="An image of the orchestrator that Hugging Face can pull, to build upon."
)
def space(*, directory: Path, title: str, deployment: str, image: str | None) -> int:
    """Write the repository of a Hugging Face Space that runs the orchestrator, with the pipelines of ORCHESTRATOR_DEFS.

    It holds no secret, and is refused if one is found in it; README.md in it says what to set in the Space.
    """
    from orchestrator.operate.home import PACKAGE
    from orchestrator.operate.space.repository import write_space
    from orchestrator.settings.groups import InstallationSettings
    from orchestrator.settings.source import SettingsSource

    for name, text in (("--title", title), ("--deployment", deployment)):
        if not all(char.isalnum() or char in "-_. " for char in text) or not text.strip():
            raise click.BadParameter(
                f"{text!r} holds more than letters, digits, blanks, dots, - and _", param_hint=name
            )
    if " " in deployment:
        raise click.BadParameter(f"{deployment!r} holds a blank", param_hint="--deployment")
    written = write_space(
        directory,
        title=title,
        deployment=deployment,
        source=PACKAGE.parent,
        image=image,
        pipelines=SettingsSource().read(InstallationSettings).defs,
    )
    click.echo(f"Wrote {', '.join(written)} to {directory}; push it to the Space, and set what its README.md lists")
    return 0
