"""The distributed contract: DistributedDataParallel on two processes against one process with the whole batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import counterflow  # noqa: F401 - enters the methods in the registry
from counterflow.registry import methods

from . import broken

SCRIPT = Path(__file__).with_name("ranks.py")
CASES = [f"{method.key}-{example.name}" for method in methods().values() for example in method.examples]
BROKEN = [
    f"{method.key}-{example.name}"
    for method, contract in broken.METHODS
    if contract == "ddp"
    for example in method.examples
]

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    out = tmp_path_factory.mktemp("ranks") / "found.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Each process imports torch for itself, and one thread is enough for each.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    logs = [out.with_name(f"rank{rank}.log") for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as stream:
            command = [sys.executable, str(SCRIPT), str(rank), str(port), str(out)]
            processes.append(subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-4000:] for log in logs)
    result: dict[str, str | None] = json.loads(out.read_text())
    return result


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(found: dict[str, str | None], case: str) -> None:
    assert found[case] is None, found[case]


@pytest.mark.parametrize("case", BROKEN)
def test_a_method_that_forgets_the_other_ranks_is_rejected(found: dict[str, str | None], case: str) -> None:
    assert found[case] is not None
    assert "two ranks" in found[case]
