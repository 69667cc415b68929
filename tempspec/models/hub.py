"""Where a model's name leads: folder, GGUF file, hub, cache; what is wrong there, in one line (floor 3)."""

import importlib.util
import logging
import os
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from tempspec.errors import UserError

__all__ = ["HUB_SECONDS", "Place", "hub_is_silent", "one_line", "place", "silence", "split_name", "weight_files"]

logger = logging.getLogger(__name__)

HUB_SECONDS = 10.0
"""How long the hub may take to say that a name exists before only the local cache is tried."""

GGUF = ".gguf"
_EYES = "mmproj"
"""How the GGUF file of a model's vision part begins, which lies beside that of the model."""

_EXPECTED = "expected a folder written by save_pretrained, a .gguf file, a hub name, or hub/name:file.gguf"
_RUN = ("fit/draft", "fit/model", "draft", "model")
"""Where a run's folder, and its fit folder, hold a model."""


@dataclass(frozen=True)
class Place:
    """Where to load from: `from_pretrained`'s own arguments.

    Attributes:
        path: a folder, or a hub name.
        revision: branch, tag or commit on the hub.
        local_files_only: whether the hub is not asked.
        trust_remote_code: run the Python code that a model carries.
        gguf: the GGUF file in it that holds the weights, None for safetensors.
    """

    path: str
    revision: str | None
    local_files_only: bool
    trust_remote_code: bool
    gguf: str | None = None

    def arguments(self) -> dict[str, object]:
        """The keyword arguments."""
        named = {"gguf_file": self.gguf} if self.gguf else {}
        return named | {
            "revision": self.revision,
            "local_files_only": self.local_files_only,
            "trust_remote_code": self.trust_remote_code,
        }

    @property
    def name(self) -> str:
        """What to call it."""
        if self.gguf is None:
            return self.path
        return os.path.join(self.path, self.gguf) if Path(self.path).is_dir() else f"{self.path}:{self.gguf}"


def split_name(path: str) -> tuple[str, str | None]:
    """A hub name and the GGUF file that `hub/name:file.gguf` names in it; any other path as it is, without a file.

    >>> split_name("someone/model-GGUF:model-Q4_K_M.gguf"), split_name("someone/model")
    (('someone/model-GGUF', 'model-Q4_K_M.gguf'), ('someone/model', None))
    """
    name, _, file = path.partition(":")
    return (name, file) if file.endswith(GGUF) and not _looks_local(name) else (path, None)


def place(path: str, revision: str | None, trust_remote_code: bool, *, tokenizer: bool = False) -> Place:
    """Where `path` leads.

    Args:
        path: a folder written by `save_pretrained`, a GGUF file, a folder with one, a hub name, or
            `hub/name:file.gguf`.
        revision: branch, tag or commit on the hub; ignored for a folder.
        trust_remote_code: run the Python code that the model carries.
        tokenizer: whether a tokenizer is wanted: a folder's own goes before that of its GGUF file, and the folder need
            hold no model.

    Raises:
        UserError: there is no such folder, file or hub model, or it holds weights that are not read.
    """
    if trust_remote_code:
        logger.warning("trust_remote_code is on: Python code that %s carries may run", path)
    local = _local(path)
    if local is not None:
        folder, gguf = local
        if gguf is None and not (tokenizer and (Path(folder) / "tokenizer.json").is_file()):
            gguf = _weights(path, _names(folder), "/", tokenizer)
        found = Place(folder, None, True, trust_remote_code, gguf)
    else:
        name, gguf = split_name(path)
        silent, held = _ask(name, revision)
        if gguf is None and not (tokenizer and "tokenizer.json" in held):
            gguf = _weights(name, held, ":", tokenizer)
        found = Place(name, revision, silent, trust_remote_code, gguf)
    if found.gguf is not None and importlib.util.find_spec("gguf") is None:
        raise UserError(f"{path} is a GGUF file, which needs the package gguf: pip install 'tempspec[gguf]'")
    return found


def weight_files(path: str) -> list[Path]:
    """The files that hold a model's weights, in order; none for a hub name.

    Args:
        path: a `save_pretrained` folder, a GGUF file or a folder with one, or a hub name.
    """
    named = Path(path).expanduser()
    if named.suffix == GGUF:
        return [named] if named.is_file() else []
    ggufs = [file for file in named.glob(f"*{GGUF}") if not file.name.startswith(_EYES)]
    return sorted(named.glob("*.safetensors")) or sorted(ggufs)


def hub_is_silent(ask: Callable[[], object]) -> bool:
    """Whether the hub gives no answer, so that only the local cache can be used.

    Args:
        ask: asks it once, quickly; a `UserError` of its own goes through.
    """
    try:
        ask()
    except UserError:
        raise
    except HfHubHTTPError as error:  # an answer, unless the hub itself has failed
        return error.response.status_code >= 500
    except Exception as error:  # the transport's errors have no common base across versions: no network, proxy, timeout
        logger.debug("the hub did not answer: %s", error)
        return True
    return False


# ---------------------------------------------------------------------------------------------------------------------
# Folders, files and hub names
# ---------------------------------------------------------------------------------------------------------------------


def _looks_local(path: str) -> bool:
    """Whether `path` can only mean a folder or a file: a hub name is `name` or `organisation/name`."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path or path.endswith(("/", GGUF))


def _local(path: str) -> tuple[str, str | None] | None:
    """The folder that `path` names, with its file where it names a GGUF file; None for a hub name.

    Raises:
        UserError: it can only be a folder or a file, and there is none, or the file is no model.
    """
    named = Path(path).expanduser()
    if path and named.is_dir():
        return str(named), None
    if named.is_file():
        if named.suffix == GGUF:
            return str(named.parent), named.name
        hint = "; a checkpoint goes to --ckpt_path" if named.suffix == ".ckpt" else ""
        raise UserError(f"{path} is a file; {_EXPECTED}{hint}")
    if not path or _looks_local(split_name(path)[0]):
        kind = "file" if path.endswith(GGUF) else "folder"
        raise UserError(f"no such {kind}: {path!r}; {_EXPECTED}")
    return None


def _ask(name: str, revision: str | None) -> tuple[bool, set[str]]:
    """Whether the hub is silent, and else the names of the files that a model has there.

    Raises:
        UserError: the hub answers that there is no such model, no such revision, or no permission.
    """
    held: set[str] = set()

    def ask() -> None:
        try:
            siblings = HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS).siblings
        except GatedRepoError as error:
            raise UserError(
                f"{name} needs permission: accept its terms on the hub, then run `hf auth login`"
            ) from error
        except RevisionNotFoundError as error:
            raise UserError(
                f"{name} has no revision {revision!r} on the hub; expected a branch, a tag or a commit"
            ) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            file = "; a GGUF file in it is named hub/name:file.gguf" if ":" in name else ""
            raise UserError(
                f"no folder and no hub model called {name!r}; check the spelling, or run `hf auth login` if it is "
                f"private{file}"
            ) from error
        held.update(sibling.rfilename for sibling in siblings or ())

    return hub_is_silent(ask), held


def _names(folder: str) -> set[str]:
    """The names of a folder's files.

    Raises:
        UserError: it is a run's folder, and the model is further in.
    """
    names = {file.name for file in Path(folder).iterdir()}
    if "config.json" not in names and not any(name.endswith(GGUF) for name in names):
        for inner in _RUN:
            if (Path(folder) / inner / "config.json").is_file():
                raise UserError(f"{folder} is the folder of a run: name the model in it, {os.path.join(folder, inner)}")
    return names


def _weights(path: str, names: Collection[str], joint: str, tokenizer: bool) -> str | None:
    """The GGUF file among a model's files; None where it has safetensors, or nothing is known of it.

    Raises:
        UserError: its weights are of a kind that is not read, or a GGUF file must be named.
    """
    if "adapter_config.json" in names and not tokenizer:
        raise UserError(
            f"{path} is a LoRA adapter, not a model: merge it first, with peft: AutoPeftModelForCausalLM"
            f".from_pretrained({path!r}).merge_and_unload().save_pretrained(FOLDER), and save the tokenizer there"
        )
    if any(name.endswith(".safetensors") for name in names):
        return None
    files = sorted(name for name in names if name.endswith(GGUF) and not name.startswith(_EYES))
    if len(files) > 1 or (files and joint == ":"):  # of the hub's the name must be known without network as well
        listed = ", ".join(f"{path}{joint}{name}" for name in files[:8]) + (", ..." if len(files) > 8 else "")
        raise UserError(f"{path} holds GGUF files, and one must be named: {listed}")
    if files:
        return files[0]
    if not tokenizer and any(name.startswith("pytorch_model") for name in names):
        raise UserError(
            f"{path} holds pytorch_model.bin, and only safetensors are read: convert it, if you trust it, by "
            f"AutoModelForCausalLM.from_pretrained({path!r}).save_pretrained(FOLDER), and save the tokenizer there"
        )
    return None


# ---------------------------------------------------------------------------------------------------------------------
# One line
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def silence() -> Iterator[None]:
    """Keep transformers' reports and bars off the screen."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


_LOADING = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    ImportError,
    TypeError,
    AttributeError,
    struct.error,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises over a folder that is not what it says."""


@contextmanager
def one_line(what: str, found: Place) -> Iterator[None]:
    """Turn whatever loading can raise into one line."""
    # transformers shows a bar of its own over a GGUF file, which nothing else turns off.
    bars = redirect_stderr(StringIO()) if found.gguf is not None else nullcontext()
    try:
        with silence(), bars:
            yield
    except _LOADING as error:
        raise UserError(f"cannot load a {what} from {found.name}: {_reason(error, found)}") from error


def _reason(error: Exception, found: Place) -> str:
    """The first line of an error, or what it means where transformers says it at length."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, struct.error):
        return "the file is truncated, or it is no GGUF file"
    if isinstance(error, StrictDataclassError):
        return " ".join(text.split())
    if found.local_files_only and not Path(found.path).is_dir():
        return "there is no such folder, it is not in the local cache, and the hub cannot be reached; give a folder"
    if isinstance(error, OSError):
        hidden = [file.name for file in Path(found.path).glob("*.safetensors") if not os.access(file, os.R_OK)]
        if hidden:  # which safetensors and transformers call missing
            return f"{hidden[0]} is there but cannot be read: change its permissions, or fix the link that it is"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"it needs the package {error.name}: pip install {error.name}"
    if "trust_remote_code" in text:
        return "it needs code of its author's; read that code, then set trust_remote_code: true"
    if "ignore_mismatched_sizes" in text:
        return "its weights have other shapes than its config.json says: a checkpoint of another model"
    if "Unrecognized configuration class" in text:
        return "it is not a causal language model"
    if "backend tokenizer" in text:
        return "it holds no tokenizer; expected tokenizer.json"
    return text.splitlines()[0].rstrip(".")
