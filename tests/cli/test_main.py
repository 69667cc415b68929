import errno
import os
import signal
import subprocess
import sys

import pytest

from tempspec import __version__
from tempspec.__main__ import main
from tempspec.cli.commands import COMMANDS

HEAVY = "torch", "lightning", "transformers", "jsonargparse", "rich"


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], ["ft"]])
def test_the_first_stage_imports_nothing_heavy(arguments):
    code = (
        f"import sys; from tempspec.__main__ import main; main({arguments!r}); "
        f"print('imported', sorted(sys.modules.keys() & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "imported []"


def test_help_lists_every_subcommand(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tempspec {__version__}\n"


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "tempspec", "pridict"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: expected a subcommand first, got 'pridict': did you mean 'predict'? "
        f"choose from {', '.join(COMMANDS)}\n"
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOENT, errno.ENOTDIR])
def test_a_failed_file_operation_is_one_line(number, monkeypatch, capsys):
    def fail(arguments):
        raise OSError(number, os.strerror(number), "runs/x")

    monkeypatch.setattr("tempspec.__main__._dispatch", fail)
    assert main(["fit"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "runs/x" in printed
    assert "choose " in printed  # and no option's name, which differs from subcommand to subcommand
    assert printed.count("\n") == 1


def test_a_defect_keeps_its_traceback(monkeypatch):
    def fail(arguments):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr("tempspec.__main__._dispatch", fail)
    with pytest.raises(OSError, match="broken disk"):
        main(["fit"])


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143), (SystemExit(None), 0)])
def test_interruptions_have_their_exit_code(stop, code, monkeypatch):
    def fail(arguments):
        raise stop

    monkeypatch.setattr("tempspec.__main__._dispatch", fail)
    assert main(["fit"]) == code


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "--load", "false"]], ids=" ".join)
def test_a_reader_that_leaves_ends_the_command_without_a_word(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "tempspec", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
