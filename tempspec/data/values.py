"""What a value of each column must be: each function gives it in normal form, or says why it is unusable (floor 5)."""

from typing import Any

from tempspec.data.skipped import Unusable

__all__ = ["category", "ids", "is_unicode", "short", "temperature", "text", "turns"]


def text(name: str, value: Any) -> str:
    """A text, empty where it is blank.

    Raises:
        Unusable: it is none.
    """
    if value is None:
        raise Unusable(f"{name} is null")
    if not isinstance(value, str):
        raise Unusable(f"{name} is no text", f"got {type(value).__name__}")
    if not is_unicode(value):
        raise Unusable(f"{name} is no Unicode", "half of a surrogate pair")
    return value if value.strip() else ""


def is_unicode(text: str) -> bool:
    r"""Whether a text can be written as UTF-8; JSON may hold lone surrogates.

    >>> is_unicode("grün\x00"), is_unicode("\ud800")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def ids(name: str, value: Any) -> list[int]:
    """Token ids.

    Raises:
        Unusable: they are none.
    """
    if not isinstance(value, list) or not all(isinstance(token, int) and 0 <= token < 2**31 for token in value):
        raise Unusable(f"{name} is no list of token ids", f"got {short(value)}")
    return value


def turns(name: str, value: Any) -> list[str]:
    """What the user says, turn by turn; nothing where one of them is blank.

    Raises:
        Unusable: they are no texts.
    """
    if not isinstance(value, list) or not all(isinstance(turn, str) and is_unicode(turn) for turn in value):
        raise Unusable(f"{name} is no list of texts", f"one per turn, got {short(value)}")
    return value if all(turn.strip() for turn in value) else []


def category(name: str, value: Any) -> str | None:
    """A name, None where the row has none; numbers are names too.

    Raises:
        Unusable: it is none.
    """
    if value is None:
        return None
    if not isinstance(value, str | int) or not is_unicode(str(value)):
        raise Unusable(f"{name} is no name", f"got {short(value)}")
    return str(value).strip() or None


def temperature(name: str, value: Any) -> float | None:
    """A temperature of at least 0, or None where the row does not say.

    Raises:
        Unusable: it is none.
    """
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise Unusable(f"{name} is no temperature", f"expected 0 or more, got {short(value)}")
    return number


def short(value: Any, width: int = 60) -> str:
    """A value on one line."""
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= width else shown[: width - 3] + "..."
