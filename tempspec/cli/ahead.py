"""What options and configurations say before there is a parser: `task` chooses which one is built, and `run`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tempspec.errors import UserError

__all__ = ["look_ahead", "option_pairs"]


def look_ahead(arguments: list[str]) -> dict[str, Any]:
    """`task` and `run` as the last of the options and configurations that names them says; `run` has a default."""
    found: dict[str, Any] = {"run": "runs/default"}
    for option, value in option_pairs(arguments):
        if option in ("-c", "--config"):
            config = _read(value)
            found |= {"run": f"runs/{Path(value).stem}"} | {
                key: config[key] for key in ("task", "run") if config.get(key)
            }
        elif option in ("--task", "--run"):
            found[option.removeprefix("--")] = value
    return found


def option_pairs(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Options with their values, written `--name value` or `--name=value`."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        yield option, value if equals else following


def _read(path: str) -> dict[str, Any]:
    """A configuration's mapping; empty for what the parser will complain about.

    Raises:
        UserError: the file is not text, or no mapping.
    """
    try:
        config = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x}; convert it"
        ) from error
    except RecursionError as error:
        raise UserError(f"{path}: expected sections and options, got brackets nested by the hundred") from error
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(config, dict | None):
        raise UserError(f"{path}: expected sections such as model: and data:, got a {type(config).__name__}")
    return config or {}
