"""An image to build others on, made of Debian's packages, because no registry of images is asked in tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from orchestrator_sandbox.docker_engine import DockerEngine

NAME = "debian-python:test"
PACKAGES = "python3,python3-venv,ca-certificates"
OUR_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
BOOTSTRAP_SECONDS = 1200


def debian_mirror() -> tuple[str, str]:
    """The archive that this machine's apt reads, and the release of it."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    release = next(
        line.partition("=")[2].strip()
        for line in Path("/etc/os-release").read_text().splitlines()
        if line.startswith("VERSION_CODENAME=")
    )
    uri = next(line.split()[0] for line in targets if line.split()[1:] == [release])
    return uri, release


def bootstrap(directory: Path, packages: str = PACKAGES) -> Path:
    """A tar of a small Debian with Python, which trusts whom this machine trusts; made once a folder."""
    archive = directory / "base.tar"
    if archive.exists():
        return archive
    directory.mkdir(parents=True, exist_ok=True)
    uri, release = debian_mirror()
    root = directory / "root"
    shutil.rmtree(root, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", release, str(root), uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOOTSTRAP_SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    shutil.copyfile(OUR_AUTHORITIES, root / OUR_AUTHORITIES.relative_to("/"))
    (root / "usr/bin/python").symlink_to("python3")  # as in the images of Python
    unfinished = archive.with_suffix(".part")
    without = ("./proc/*", "./sys/*", "./dev/*", "./var/cache/apt/*", "./var/lib/apt/lists/*", "./usr/share/doc/*")
    excluded = [f"--exclude={pattern}" for pattern in without]
    subprocess.run(["tar", "-C", str(root), *excluded, "-cf", str(unfinished), "."], check=True)
    shutil.rmtree(root)
    return unfinished.rename(archive)


def import_base(engine: DockerEngine, directory: Path, *, name: str = NAME, packages: str = PACKAGES) -> str:
    """Make the image; return its name."""
    authorities = f"SSL_CERT_FILE={OUR_AUTHORITIES} PIP_CERT={OUR_AUTHORITIES}"
    archive = bootstrap(directory, packages)
    engine.run("import", "--change", f"ENV {authorities}", str(archive), name, seconds=300)
    return name
