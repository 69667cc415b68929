"""Real engines on the loopback: a vLLM or a llama-server that serves on this machine's CPU."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["LlamaServer", "VllmServer", "free_port", "served"]

Server = TypeVar("Server", bound="EngineServer")

PATIENCE = 1800
"""Seconds until it must be healthy: on a busy machine it loads for many minutes."""


class EngineServer:
    """A server that runs until it is ended.

    Args:
        line: the command.
        environment: its variables.
        log: the file that its output goes to.
        port: where it listens.
    """

    def __init__(self, line: Sequence[str], environment: Mapping[str, str], log: Path, port: int) -> None:
        self.port, self.log, self.url = port, log, f"http://127.0.0.1:{port}"
        with log.open("a") as written:
            self._process = subprocess.Popen(
                line, env=dict(environment), stdout=written, stderr=subprocess.STDOUT, start_new_session=True
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
        raise RuntimeError(f"{type(self).__name__} did not start: see {self.log}")

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


class VllmServer(EngineServer):
    """A vLLM.

    Args:
        vllm: the folder with `venv/bin/vllm`, which serves on this machine's CPU.
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
        port = port or free_port()
        line = [str(vllm / "venv/bin/vllm"), "serve", str(target), "--host", "127.0.0.1", "--port", str(port)]
        line += ["--enforce-eager", "--max-num-seqs", "16", "--seed", "0", "--dtype", "float32"]
        if speculation is not None:
            line += ["--speculative-config", json.dumps(speculation), "--per-request-spec-decode-metrics", "summary"]
        super().__init__([*line, *options], _environment(vllm), log, port)


class LlamaServer(EngineServer):
    """A llama-server of llama.cpp with four slots.

    Args:
        program: the file.
        target: a GGUF file.
        options: of llama-server.
        log: the file that its output goes to.
    """

    def __init__(self, program: Path, target: str | Path, *options: str, log: Path) -> None:
        port = free_port()
        line = [str(program), "-m", str(target), "--host", "127.0.0.1", "--port", str(port), "--metrics"]
        line += ["-fa", "off", "-ctk", "f32", "-ctv", "f32", "-ctkd", "f32", "-ctvd", "f32"]  # else half precision
        line += ["-np", "4", "-t", os.environ.get("OMP_NUM_THREADS", "1"), "--no-warmup", "--jinja"]
        super().__init__([*line, *options], os.environ, log, port)


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
def served(kind: Callable[..., Server], *args: Any, **options: Any) -> Iterator[Server]:
    """A healthy server, ended afterwards; arguments are those of its kind."""
    server = kind(*args, **options)
    try:
        server.wait()
        yield server
    finally:
        server.end()
