import math
import time
from pathlib import Path

import pytest

from yaml_files import MAX_BYTES, dump_yaml, load_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("1e-3", 0.001),
        ("1.5", 1.5),
        ("-.inf", -math.inf),
        ("1_000", 1000),
        ("-3", -3),
        # YAML 1.1 reads these as the numbers 8, 31 and 45045, and as a date.
        ("010", "010"),
        ("0x1f", "0x1f"),
        ("12:30:45", "12:30:45"),
        ("2026-01-31", "2026-01-31"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("9" * 5000, "9" * 5000),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_core_schema(text: str, value: object):
    assert load_yaml(text) == value


def test_values_survive_a_round_trip():
    shared = (0.0, 1.0)
    settings = {
        "texts": [
            "no",
            "1e-3",
            "null",
            "2026-01-31",
            "010",
            "",
            "~",
            "true",
            "0",
            "é\u2028",
            "\t",
            "- a",
            "&a",
            "1:30",
        ],
        "numbers": [1e-7, 1e300, math.inf, 0, -3, 123456789.123456789],
        "others": [None, True, False],
        "first": shared,
        "second": shared,
    }
    expected = settings | {"first": [0.0, 1.0], "second": [0.0, 1.0]}
    assert load_yaml(dump_yaml(settings)) == expected
    assert math.isnan(load_yaml(dump_yaml({"nan": math.nan}))["nan"])


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", r"anchors and aliases are not supported \(line 1, column 4\)"),
        (BOMB, "anchors and aliases are not supported"),
        ("a: &a {b: 1}\nc:\n  <<: *a", "anchors and aliases are not supported"),
        ("a: !!python/object/apply:os.system [ls]", "tags are not supported"),
        ("a: !!timestamp x", "tags are not supported"),
        ("[" * 2000, "more than 16 levels"),
        ("- " * 2000, "more than 16 levels"),
        ("a: {" * 2000, "more than 16 levels"),
        ("seed: 1\nseed: 2", r"'seed' appears twice \(line 2, column 1\)"),
        ("? [a]\n: b", "keys must be names"),
        ("\tseed: 1", "cannot start any token"),
        ("a: b: c", "mapping values are not allowed here"),
        ("a: 'b", "unexpected end of stream"),
        ("a: \x00", "special characters are not allowed"),
        ("---\na: 1\n---\nb: 2", "another document"),
        ('"\\Uffffffff"', "invalid escape sequence"),
        ("%TAG ! " + "x" * 5000, "^.{0,300}$"),
    ],
    ids=lambda value: value[:20],
)
def test_unsupported_yaml(text: str, message: str):
    start = time.monotonic()
    with pytest.raises(ValueError, match=message):
        load_yaml(text)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1 # " + b"x" * MAX_BYTES, "at most 100,000 bytes"),
        ("output_dir: é".encode("latin-1"), "encoded in UTF-8"),
        ("seed: 1".encode("utf-16"), "encoded in UTF-8"),
        (b"", "must contain a mapping"),
        (b"[1, 2]", "must contain a mapping"),
        (b"seed", "must contain a mapping"),
        (b"a: *b", "anchors and aliases"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_invalid_files(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value)


def test_only_regular_files_are_read(tmp_path: Path):
    for path, message in ((tmp_path, "not a file"), (Path("/dev/zero"), "not a file"), (tmp_path / "x", "not exist")):
        with pytest.raises(ValueError, match=message):
            read_yaml(path)


def test_byte_order_mark_is_ignored(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("seed: 1", encoding="utf-8-sig")
    assert read_yaml(tmp_path / "config.yaml") == {"seed": 1}
