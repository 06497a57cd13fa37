"""Order of class names."""

from collections.abc import Iterable


def sort_class_names(names: Iterable[str]) -> list[str]:
    """Sorts class names: numerically if all names are integers, alphabetically otherwise."""
    names = sorted(names)
    if all(name.isascii() and name.isdecimal() for name in names):
        names.sort(key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name))
    return names
