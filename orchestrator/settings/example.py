"""The text of `.env.example`; `python -m orchestrator.settings.example > .env.example` renews it."""

from __future__ import annotations

import json
import sys

from orchestrator.settings.groups import GROUPS, env_name


def env_example() -> str:
    """The text of `.env.example`: every setting with its meaning and default."""
    lines = [
        "# Settings of orchestrator. Copy this file to .env and fill in what has no default.",
        "",
        "# ---- AWS: read by boto3 itself; leave them out where a role or ~/.aws provides them",
        "#AWS_ACCESS_KEY_ID=",
        "#AWS_SECRET_ACCESS_KEY=",
        "#AWS_DEFAULT_REGION=",
        "#AWS_ENDPOINT_URL=",
    ]
    for group in GROUPS:
        lines += ["", f"# ---- {group.title}: {(group.__doc__ or '').splitlines()[0]}"]
        for info in group.model_fields.values():
            lines.append(f"# {info.description}")
            if info.is_required():
                lines.append(f"{env_name(info)}=")
            else:
                lines.append(f"#{env_name(info)}={_as_written(info.default)}")
    return "\n".join(lines) + "\n"


def _as_written(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(default)
    if default is None or isinstance(default, str):
        return default or ""
    return json.dumps(default)


if __name__ == "__main__":
    sys.stdout.write(env_example())
