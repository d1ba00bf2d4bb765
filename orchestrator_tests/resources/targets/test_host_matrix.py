"""An inference host through many switches with many clients; minutes, for `make test-matrix`."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator_tests.support.inference_host import HAProxyHost, switched_under_load

pytestmark = pytest.mark.matrix


def test_no_request_is_lost_in_20_switches_of_which_5_fail(tmp_path: Path) -> None:
    with HAProxyHost(tmp_path) as host:
        switched_under_load(host, tmp_path, switches=20, bad={3, 4, 9, 15, 21}, clients=20)
