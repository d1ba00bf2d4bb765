"""The repository that makes a Hugging Face Space of the orchestrator."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from orchestrator.errors import SettingsError
from orchestrator.settings.groups import all_settings, is_secret
from orchestrator.settings.source import HANDED_WITH_A_WARNING, OWN_SECRETS
from orchestrator.settings.variables import lookup_all

_HERE = Path(__file__).parent
_README = "README.md"
_ENTRYPOINT = "space-entrypoint.sh"

_PIPELINES = "pipelines"
_LEFT_OUT = ("__pycache__", ".*", "*.pem", "*.key", "*.pyc")
_ANY_CASE = frozenset({".git", ".gitattributes", _PIPELINES})

_IN_A_SPACE = f"""
# ---- A Hugging Face Space: TLS ends before it, and SSH gets out on port 443 only.
ENV UI_INSECURE=true SSH_PORT=443 KEY_PATH=/tmp/orchestrator-ssh-key ORCHESTRATOR_DEPLOYMENT=DEPLOYMENT
COPY --chmod=0755 {_ENTRYPOINT} /usr/local/bin/{_ENTRYPOINT}
ENTRYPOINT ["tini", "-g", "--", "{_ENTRYPOINT}"]
"""
_WITH_PIPELINES = "COPY --chown=1000:1000 pipelines /opt/pipelines\nENV ORCHESTRATOR_DEFS=/opt/pipelines\n"

_LOOKS_SECRET = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{40}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bhf_[A-Za-z0-9]{30,}\b"
    rb"|\bgh[pousr]_[A-Za-z0-9]{30,}\b|\b11[0-9a-f]{32}\b"
)
"""Keys and tokens by their form: of SSH, AWS, Hugging Face, GitHub, Jenkins."""


def write_space(
    directory: Path, *, title: str, deployment: str, source: Path, image: str | None, pipelines: Path | None
) -> list[str]:
    """Write the repository of a Space; nothing is written when a secret is among it.

    Args:
        directory: where to; a clone of the Space's repository may be there.
        title: what the Space is called.
        deployment: ORCHESTRATOR_DEPLOYMENT.
        source: our checkout, which is copied.
        image: built elsewhere, taken instead of our checkout.
        pipelines: ORCHESTRATOR_DEFS, which goes with it.

    Returns:
        What was written, by its names at the top.

    Raises:
        SettingsError: there is something else already, no checkout to copy, or a secret.
    """
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "space"
        tree.mkdir()
        if image is None:
            _copy_checkout(source, tree)
        dockerfile = tree / "Dockerfile"
        # Hugging Face's builder takes no build arguments, and a Space has no disk to keep SQLite on.
        text = (
            dockerfile.read_text().replace('ARG EXTRAS=""', "ARG EXTRAS=postgres")
            if image is None
            else f"FROM {image}\n"
        )
        text += _IN_A_SPACE.replace("DEPLOYMENT=DEPLOYMENT", f"DEPLOYMENT={deployment}")
        if pipelines:
            shutil.copytree(pipelines, tree / _PIPELINES, ignore=shutil.ignore_patterns(*_LEFT_OUT))
            text += _WITH_PIPELINES
        dockerfile.write_text(text)
        with (tree / ".dockerignore").open("a") as ignored:  # the last line that fits counts
            ignored.write(f"\n!{_ENTRYPOINT}\n!{_PIPELINES}\n")
        readme = (_HERE / _README).read_text(encoding="utf-8")
        (tree / _README).write_text(readme.replace("TITLE", title, 1), encoding="utf-8")
        shutil.copyfile(_HERE / _ENTRYPOINT, tree / _ENTRYPOINT)
        require_no_secret(tree)
        ours = {path.name for path in tree.iterdir()} | _ANY_CASE
        there = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
        if others := [name for name in there if name not in ours]:
            raise SettingsError(f"{directory} holds {others[0]}, which is not of a Space of ours: name an empty folder")
        for name in ours - {".git", ".gitattributes"}:
            shutil.rmtree(directory / name, ignore_errors=True)
        shutil.copytree(tree, directory, dirs_exist_ok=True)
        return sorted(path.name for path in tree.iterdir())


def _copy_checkout(source: Path, tree: Path) -> None:
    """Copy what the Dockerfile copies, and no more."""
    if not (source / "Dockerfile").is_file():
        raise SettingsError(
            f"there is no Dockerfile in {source}: run this in a checkout of the orchestrator, or name an image of it "
            "by --image"
        )
    copied = re.findall(r"^COPY (?!.*--from=)(?:--\S+ )*(.+) \S+$", (source / "Dockerfile").read_text(), re.MULTILINE)
    for name in ("Dockerfile", ".dockerignore", *(word for words in copied for word in words.split())):
        path, target = source / name, tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        else:
            shutil.copyfile(path, target)


def require_no_secret(tree: Path) -> None:
    """Check that nothing below a folder holds a secret: one that is set here, or what looks like one.

    Raises:
        SettingsError: names the file, and no secret.
    """
    names = {name for name, info in all_settings().items() if is_secret(info)} | {*OWN_SECRETS, *HANDED_WITH_A_WARNING}
    names = (names | {"SSH_PRIVATE_KEY"}) - {"MLFLOW_TRACKING_USERNAME"}
    secrets = {name: text.strip().encode() for name, text in lookup_all(sorted(names)).items() if text}
    for path in sorted(tree.rglob("*")):
        if not path.is_file():
            continue
        content, place = path.read_bytes(), path.relative_to(tree)
        found = next((name for name, text in secrets.items() if len(text) >= 8 and text in content), None)
        if found:
            raise SettingsError(f"{place} holds the value of {found}: take it out; it belongs into the Space's secrets")
        if _LOOKS_SECRET.search(content) or path.name == ".env":
            raise SettingsError(f"{place} holds what looks like a key or token: take it out, the repository is public")
