"""The wheel: what is in it, whether an index would take it, how long it takes to begin, and whether it does the job.

It is built from the checkout, listed against the files that the package needs, and unpacked into an empty folder, where
the times of an import and of the first help are measured: the least of several fresh processes, since a busy machine
only adds. Then it is installed into an empty environment with what it asks for, and the quickstart runs there to its
end, outside of the checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from argparse import ArgumentParser
from pathlib import Path

from goals import Goal, finish

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]


def build(folder: Path) -> Path:
    """The wheel of this checkout."""
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*PIP, "wheel", *options, str(ROOT)], check=True)
    (wheel,) = folder.glob("tempspec-*.whl")
    return wheel


def needed() -> set[str]:
    """Every file of the package in the checkout, without what an interpreter leaves."""
    files = (path for path in (ROOT / "tempspec").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def held(wheel: Path) -> set[str]:
    """The wheel's files but its own metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}


def refused(wheel: Path, folder: Path) -> bool:
    """Whether `twine check --strict` finds fault; installs twine beside unless it is there."""
    subprocess.run([*PIP, "install", "--target", str(folder), "twine"], check=True, stderr=subprocess.DEVNULL)
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel)],
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    print(checked.stdout.strip() or checked.stderr.strip())
    return checked.returncode != 0


def seconds(arguments: list[str], folder: Path, times: int) -> float:
    """The least wall time of a fresh interpreter that finds the unpacked package in `folder`."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        found.append(time.perf_counter() - began)
    return min(found)


def installed(wheel: Path, folder: Path) -> Path:
    """The command of an environment that holds the wheel and what pip brings with it, and nothing else."""
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin/python", *PIP[1:], "install", str(wheel)], check=True)
    return folder / "bin/tempspec"


def quickstart(command: Path, folder: Path) -> int:
    """The exit code of the quickstart, from an empty folder and without this environment's paths."""
    folder.mkdir()
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    began = time.monotonic()
    code = subprocess.run([command, "quickstart"], cwd=folder, env=outside).returncode
    print(f"quickstart: exit code {code} after {time.monotonic() - began:.0f} s")
    return code


def main() -> None:
    """Build, list, check, time, install."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three processes a time instead of ten, no quickstart")
    quick = parser.parse_args().quick
    times = 3 if quick else 10
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = build(folder / "wheel")
        lacking, surplus = sorted(needed() - held(wheel)), sorted(held(wheel) - needed())
        print(f"{wheel.name}: {len(held(wheel))} files, {wheel.stat().st_size} bytes")
        print(f"lacking: {', '.join(lacking) or 'none'}; surplus: {', '.join(surplus) or 'none'}")
        fault = refused(wheel, folder / "twine")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "unpacked")
        imported = seconds(["-c", "import tempspec"], folder / "unpacked", times)
        helped = seconds(["-m", "tempspec", "--help"], folder / "unpacked", times)
        codes = [] if quick else [quickstart(installed(wheel, folder / "venv"), folder / "empty")]
    finish(
        [
            *(Goal("exit code of the quickstart in an empty environment", code, high=0, digits=0) for code in codes),
            Goal("files that the wheel lacks", len(lacking), high=0, digits=0),
            Goal("files that it does not need", len(surplus), high=0, digits=0),
            Goal("faults that twine finds", fault, high=0, digits=0),
            Goal("seconds of `import tempspec`, a new interpreter included", imported, high=0.2),
            Goal("seconds of `tempspec --help`", helped, high=0.5),
        ]
    )


if __name__ == "__main__":
    main()
