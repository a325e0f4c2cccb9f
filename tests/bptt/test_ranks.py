"""Within DistributedDataParallel, two processes with a part of the batch each get the gradients of the whole."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.mark.distributed
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as stream:
            command = [sys.executable, str(SCRIPT), str(rank), str(port), str(out)]
            processes.append(subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-4000:] for log in logs)
    found = json.loads(out.read_text())
    assert found == {"plain": None, "find_unused_parameters": None, "static_graph": None}
