"""Options that had another name in an earlier version: read under that name, with one line that says so (floor 6)."""

from typing import Any

from tempspec.errors import UserError

__all__ = ["MOVED", "RENAMED", "new_name", "rename_keys"]

RENAMED: dict[str, str] = {"data.fold_whitespace": "data.collapse_whitespace"}
"""Former option to today's, from the section on; `*` is any one name, as in `data.prompts.*.limit`.

In a section that is a list, as `data.train` may be, each element is meant.
"""

MOVED: dict[str, str] = {
    "tempspec.plugins.lossy.": "tempspec.plugins.lossy_verifiers.",
    "tempspec.plugins.verifiers.Typical": "tempspec.plugins.lossy_verifiers.Typical",
}
"""Former beginning of a class's path to today's: configurations that a run has left name classes so."""


def new_name(option: str) -> str:
    """Today's name of an option of the command line, or of a part of one.

    >>> new_name("data.fold_whitespace"), new_name("data.max_length")
    ('data.collapse_whitespace', 'data.max_length')
    """
    parts = option.split(".")
    for former, today in RENAMED.items():
        names = former.split(".")
        pairs = list(zip(names, parts, strict=False))
        if len(pairs) == len(names) and all(name in ("*", part) for name, part in pairs):
            free = iter([part for name, part in pairs if name == "*"])
            return ".".join([*(next(free) if name == "*" else name for name in today.split(".")), *parts[len(names) :]])
    return option


def rename_keys(config: dict[str, Any]) -> list[str]:
    """Give a configuration today's keys, in place; returns a line for each former one.

    Raises:
        UserError: an option is given under both names.
    """
    lines = []
    for former, today in RENAMED.items():
        try:
            if _rename(config, former.split("."), today.split(".")):
                lines.append(f"{former} is called {today} now: rename it")
        except KeyError as error:
            raise UserError(f"{former} is called {today} now, got both: leave out the former") from error
    return [*lines, *_move_classes(config)]


def _move_classes(section: Any, above: tuple[int, ...] = ()) -> list[str]:
    """Give every class of a configuration today's path, in place; returns a line for each former one.

    YAML's aliases may put a section within itself: the parser says so, and nothing is looked for there.
    """
    if not isinstance(section, list | dict) or id(section) in above:
        return []
    lines = []
    if isinstance(section, list):
        return [line for each in section for line in _move_classes(each, (*above, id(section)))]
    if isinstance(path := section.get("class_path"), str):
        for former, today in MOVED.items():
            if path.startswith(former):
                section["class_path"] = today + path.removeprefix(former)
                lines.append(f"{path} is called {section['class_path']} now: rename it")
    return lines + [line for each in section.values() for line in _move_classes(each, (*above, id(section)))]


def _rename(section: Any, former: list[str], today: list[str]) -> bool:
    """Whether a section, or one of a list of sections, had the former name."""
    if isinstance(section, list):
        return any([_rename(each, former, today) for each in section])
    if not isinstance(section, dict):
        return False
    section = section.get("init_args", section)
    if former[0] == today[0] and min(len(former), len(today)) > 1:
        below = list(section.values()) if former[0] == "*" else [section.get(former[0])]
        return any([_rename(each, former[1:], today[1:]) for each in below])
    return _move(section, former, today)


def _move(section: dict[str, Any], former: list[str], today: list[str]) -> bool:
    """Whether a section had a value at one path, which is now at the other.

    Raises:
        KeyError: it has one there, too.
    """
    place: Any = section
    for name in former[:-1]:
        place = place.get(name) if isinstance(place, dict) else None
    if not isinstance(place, dict) or former[-1] not in place:
        return False
    value = place.pop(former[-1])
    for name in today[:-1]:
        section = section.setdefault(name, {})
    if today[-1] in section:
        raise KeyError(today[-1])
    section[today[-1]] = value
    return True
