"""A vLLM on the loopback, of a folder with `venv/bin/vllm` that serves on this machine's CPU."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["VllmServer", "free_port", "served"]

PATIENCE = 1800
"""Seconds until it must be healthy: on a busy machine it loads for many minutes."""


class VllmServer:
    """A server that runs until it is ended.

    Args:
        vllm: the folder.
        target: what is served.
        options: of `vllm serve`.
        log: the file that its output goes to.
        speculation: its `--speculative-config`; None for a plain server.
        port: where; a free one by default.
    """

    def __init__(
        self,
        vllm: Path,
        target: str | Path,
        *options: str,
        log: Path,
        speculation: Mapping[str, Any] | None = None,
        port: int | None = None,
    ) -> None:
        self.port, self.log = port or free_port(), log
        self.url = f"http://127.0.0.1:{self.port}"
        line = [str(vllm / "venv/bin/vllm"), "serve", str(target), "--host", "127.0.0.1", "--port", str(self.port)]
        line += ["--enforce-eager", "--max-num-seqs", "16", "--seed", "0", "--dtype", "float32"]
        if speculation is not None:
            line += ["--speculative-config", json.dumps(speculation), "--per-request-spec-decode-metrics", "summary"]
        with log.open("a") as written:
            self._process = subprocess.Popen(
                [*line, *options],
                env=_environment(vllm),
                stdout=written,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers.

        Raises:
            RuntimeError: it has ended, or does not answer in time.
        """
        for _ in range(PATIENCE):
            if self._process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
            except OSError:
                time.sleep(1)
            else:
                return
        raise RuntimeError(f"vLLM did not start: see {self.log}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it with all its processes.

        Args:
            number: the signal.
        """
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return
        self._process.wait()


def _environment(vllm: Path) -> dict[str, str]:
    preload = next(iter(sorted((vllm / "venv").rglob("libiomp5.so"))), None)
    own = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    own |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "VLLM_NO_USAGE_STATS": "1"}
    own |= {"VLLM_ENGINE_READY_TIMEOUT_S": str(PATIENCE)}
    own |= {"LD_PRELOAD": str(preload)} if preload else {}
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(*args: Any, **options: Any) -> Iterator[VllmServer]:
    """A healthy server, ended afterwards; arguments are those of `VllmServer`."""
    server = VllmServer(*args, **options)
    try:
        server.wait()
        yield server
    finally:
        server.end()
