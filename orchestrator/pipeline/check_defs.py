"""`python -m orchestrator.pipeline.check_defs [FOLDER ...]`: name what is wrong with each pipeline, by file and line.

`dg check yaml` without a path looks at one file per component type only; this looks at every folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.errors import SettingsError
from orchestrator.pipeline.defs_folder import folder_of_pipelines, load_defs_folder


def faults_in(folders: Sequence[Path]) -> Iterator[str]:
    """A `file:line: sentence` for each fault in these folders of pipelines."""
    for folder in folders:
        try:
            yield from (broken.fault for broken in load_defs_folder(folder).broken)
        except SettingsError as error:
            yield str(error)


def main(arguments: Sequence[str]) -> int:
    """Check these folders, else the one that the code location loads.

    Returns:
        The exit status: 1 when there is a fault.
    """
    faults = list(faults_in([Path(argument) for argument in arguments] or [folder_of_pipelines()]))
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
