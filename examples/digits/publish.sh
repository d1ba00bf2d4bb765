#!/bin/sh
# Builds the wheel of this commit and publishes it: what a training installs is what was tested.
#   UPLOAD_URL    where it goes, such as https://nexus.example.com/repository/pypi-internal/
#   INDEX_URL     where pip finds it, such as https://nexus.example.com/repository/pypi-all/simple
#   NETRC         a file with the login for that host
# It needs hatchling and uv. A version is published once: another build of the same commit finds it there, and must be the same.
set -eu
version=$(python version.py)
case $version in
  *.changed) echo "Files differ from the commit: $version is not published" >&2; exit 1 ;;
esac
rm -rf dist
python -m hatchling build -t wheel -d dist
publish() { uv --no-cache publish --publish-url "$UPLOAD_URL" --check-url "$INDEX_URL" dist/*.whl; }
publish || publish # two builds of one commit at the same time: who comes second finds the other's wheel now
echo "Published digits $version"
