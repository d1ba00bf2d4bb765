#!/bin/sh
# Builds the wheel of this commit and publishes it, once per version: what a training installs is what was tested.
#   INDEX_URL     where pip installs from, such as https://nexus.example.com/repository/pypi-all/simple
#   UPLOAD_URL    where twine uploads to, such as https://nexus.example.com/repository/pypi-internal/
#   NETRC         a file with the login for both, or TWINE_USERNAME and TWINE_PASSWORD for the upload
# A version that is there already must hold the same: a change without a new version would be trained as the old one.
set -eu
rm -rf dist published
python -m build --wheel --no-isolation --outdir dist .
wheel=$(basename dist/*.whl)
version=$(echo "$wheel" | cut -d- -f2)
python -m twine upload --non-interactive --skip-existing --repository-url "$UPLOAD_URL" "dist/$wheel"
python -m pip download --quiet --no-deps --no-cache-dir --index-url "$INDEX_URL" --dest published "digits==$version"
cmp "dist/$wheel" "published/$wheel" || {
  echo "digits $version is published with other contents: raise __version__ in src/digits/__init__.py" >&2
  exit 1
}
