"""Two processes with half of the batch each follow one with all of it; one that dies goes on from its checkpoint."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .ranks import CASES, train

SCRIPT = Path(__file__).with_name("ranks.py")

pytestmark = pytest.mark.distributed


def torchrun(folder: Path, *options: str) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    # By default a restarted worker finds the addresses of dead ones in the agent's own store.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"]
    command += [str(SCRIPT), str(folder), *options]
    log = folder / "log"
    with log.open("w") as stream:
        code = subprocess.run(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, timeout=240).returncode
    assert code == 0, log.read_text()[-4000:]
    result: dict[str, Any] = json.loads((folder / "done.json").read_text())
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, torchrun(folder)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("interrupted")
    return folder, torchrun(folder, "die")


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_follow_one(whole, case):
    folder, _ = whole
    got, wanted = torch.load(folder / f"{case}.pt", weights_only=True), train(case)
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_decompositions_are_shared_out(whole):
    first, second = whole[1]["solved"]
    assert first > 0
    assert second > 0
    # The linear layer's matrix is by far the largest, and has a rank to itself.
    assert first != second


@pytest.mark.parametrize("case", CASES)
def test_a_rank_that_dies_is_started_again_and_goes_on(whole, interrupted, case):
    assert interrupted[1]["attempt"] == 1
    wanted = torch.load(whole[0] / f"{case}.pt", weights_only=True)
    got = torch.load(interrupted[0] / f"{case}.pt", weights_only=True)
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name
