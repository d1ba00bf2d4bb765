"""The version of the package: of its release and of the very commit, such as `1.0.0+g0123456789ab`.

Jenkins publishes the wheel of a commit under it, and a training of the commit asks the index for it. Both work it out
from their checkout, a shallow one, too: nobody raises a number for each commit, and no training gets another's wheel.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

RELEASE = "1.0.0"


def version() -> str:
    """The version; it ends in `.changed` where files differ from the commit, which nobody publishes."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, stdout=subprocess.PIPE, text=True).stdout
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."], check=False).returncode != 0
    return f"{RELEASE}+g{commit[:12]}{'.changed' if changed else ''}"


if __name__ == "__main__":
    print(version())
