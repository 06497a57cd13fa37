"""Random changes of the bytes of a file."""

from collections.abc import Iterable

from hypothesis import strategies as st


# The type of change, the position as a fraction of the length, and a value.
Change = tuple[str, float, int]


def changes(*kinds: str) -> st.SearchStrategy[Change]:
    """Generates changes of the given types, of which many are near the start."""
    return st.tuples(
        st.sampled_from(kinds), st.floats(0, 1, exclude_max=True) | st.floats(0, 0.1), st.integers(0, 255)
    )


def damage_bytes(content: bytes, damage: Iterable[Change]) -> bytes:
    changed = bytearray(content)
    for kind, fraction, value in damage:
        position = int(fraction * len(changed))
        end = position + 1 + value % 8
        if kind == "truncate":
            del changed[position:]
        elif kind == "delete":
            del changed[position:end]
        elif kind == "insert":
            changed[position:position] = bytes([value]) * (1 + value % 8)
        elif kind in ("zeros", "ones"):
            changed[position:end] = (b"\0" if kind == "zeros" else b"\xff") * len(changed[position:end])
        elif changed:
            changed[position] = changed[position] ^ (1 << value % 8) if kind == "flip" else value
    return bytes(changed)
