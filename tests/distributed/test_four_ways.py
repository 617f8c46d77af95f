"""One file, four ways to run it, one loss curve: float64, shares of 37 samples that are not equal."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed")
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head on loopback with token authentication; the environment that reaches it."""
    folder = Path("/tmp") / f"rl{secrets.token_hex(3)}"  # Ray's socket paths must be short
    port, dashboard = free_port(), free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"),
        *("--num-cpus=3", "--object-store-memory=100000000", f"--temp-dir={folder}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
    ]
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{dashboard}"
    request = urllib.request.Request(
        f"{address}/api/version", headers={"Authorization": f"Bearer {env['RAY_AUTH_TOKEN']}"}
    )
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            break
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
    yield env | {"RAY_API_SERVER_ADDRESS": address, "RAY_ADDRESS": address}
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def test_all_ways_give_the_same_losses(
    config_file: Path,
    train: Callable[..., str],
    losses_of: Callable[[Path], dict[int, float]],
    head: dict[str, str],
) -> None:
    storage = config_file.parent / "runs"
    train("name=one-process")
    train("name=torchrun-2", processes=2)
    train("name=torchrun-3", processes=3)
    train("name=ray-here", "place=ray", "workers=2")
    job = [str(BIN / "ray"), "job", "submit", "--working-dir", str(ROOT / "configs"), "--"]
    job += [sys.executable, "-m", "launcher.train", str(config_file), "name=ray-job", "place=ray", "workers=3"]
    submitted = subprocess.run(job, env=head, capture_output=True, text=True, timeout=240)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr

    expected = losses_of(storage / "one-process")
    assert sorted(expected) == list(range(1, 21))
    table = {}
    for name in ("torchrun-2", "torchrun-3", "ray-here", "ray-job"):
        found = losses_of(storage / name)
        assert sorted(found) == sorted(expected), name
        table[name] = [abs(found[step] - loss) / abs(loss) for step, loss in expected.items()]
    report = "\n".join(f"{name}: step 1 {gaps[0]:.1e}, worst {max(gaps):.1e}" for name, gaps in table.items())
    print(report)
    assert all(gaps[0] < 1e-12 and max(gaps) < 1e-9 for gaps in table.values()), report
    assert max(max(gaps) for gaps in table.values()) > 0  # another summation order: the runs were not one run


def test_broken_image_ends_a_ray_run_with_65_and_is_never_retried(
    config_file: Path, digits: Path, train: Callable[..., str], attempts_of: Callable[[Path], list[dict[str, object]]]
) -> None:
    broken = config_file.parent / "broken"
    shutil.copytree(digits, broken)
    victim = sorted((broken / "train" / "3").iterdir())[0]
    victim.write_text("no image")
    output = train(f"data.root={broken}", "place=ray", "workers=2", code=65)
    assert str(victim) in output
    assert "Traceback" not in output
    ended = [line for line in attempts_of(config_file.parent / "runs" / "tiny") if line["event"] == "ended"]
    assert [line["exit_code"] for line in ended] == [65]


def test_a_killed_worker_is_replaced_and_the_losses_stay(
    config_file: Path,
    train: Callable[..., str],
    start: Callable[..., subprocess.Popen[str]],
    losses_of: Callable[[Path], dict[int, float]],
) -> None:
    storage = config_file.parent / "runs"
    train("name=untouched", processes=2)
    process = start("name=struck", "place=ray", "workers=2", "checkpoint.every=4 steps", "data.prefetch=1")
    victim = wait_for_worker(storage / "struck", process)
    os.kill(victim, 9)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "starting again: failure 1 of 3" in output
    found, expected = losses_of(storage / "struck"), losses_of(storage / "untouched")
    assert found == expected  # the same topology: bit-identical


def wait_for_worker(run: Path, driver: subprocess.Popen[str]) -> int:
    """Wait until the run has a few steps, and return the process id of one of its training workers."""
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count('"train"') >= 5):
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                maps = b"rank-" in b"".join(bytes(link.readlink()) for link in (process / "fd").iterdir())
            except OSError:
                continue
            if command.startswith(b"ray::") and maps:
                return int(process.name)
    raise AssertionError("no worker holds a rank's log file")
