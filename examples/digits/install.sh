#!/bin/sh
# Before a training: installs the wheel that Jenkins has published of this very commit, from the private index, which the
# orchestrator names in PIP_INDEX_URL (its login is in the file NETRC). It goes into .wheel, for this checkout alone, so an
# environment that other trainings use stays as it is. What the package needs is in python_env.yaml.
set -eu
rm -rf .wheel
if [ -z "${PIP_INDEX_URL:-}" ]; then
  echo "No private index (PIP_INDEX_URL): training with src/ as it is"
  exit 0
fi
version=$(python version.py)
case $version in
  *.changed)
    echo "Files differ from the commit: training with src/ as it is"
    exit 0 ;;
esac
python -m pip install --quiet --no-deps --no-cache-dir --only-binary :all: --target .wheel "digits==$version" || {
  echo "digits $version cannot be installed from the private index: has Jenkins' build of this commit published it?" >&2
  exit 1
}
echo "Installed digits $version, the wheel of this commit"
