"""YAML that others wrote: what is read of it, and what is refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import CheckpointError, ConfigError
from llamaconv.layouts.litgpt_yaml import MAX_BYTES, fields_in, read_fields, yaml_of

PATH = Path("model_config.yaml")


def _fault(source: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        fields_in(source, PATH)
    return str(caught.value)


def test_scalars_are_yaml_1_1() -> None:
    """As PyYAML and so litgpt take them: a float has a point, or it is a string."""
    source = b"a: 1\nb: 1.0e-05\nc: 1e-05\nd: [null, ~, yes, off, 0x10, 1_000]\ne:\n  f: 'x: y'\n"
    assert fields_in(source, PATH) == {
        "a": 1,
        "b": 1e-05,
        "c": "1e-05",
        "d": [None, None, True, False, 16, 1000],
        "e": {"f": "x: y"},
    }


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (b"", "it is no mapping"),
        (b"- 1", "it is no mapping"),
        (b"a: 1\nb: 2\na: 3", 'the key "a" stands in it twice (line 3)'),
        (b"a: {b: 1, 'b': 2}", 'the key "b" stands in it twice (line 1)'),
        (b"1: 2", "a key that is no string (line 1)"),
        (b"? [1]\n: 2", "a key that is no string (line 1)"),
        (b"<<: {a: 1}", "a key that is no string (line 1)"),
        (b"a: 1\n--- \nb: 2", "but found another document (line 2)"),
        (b"a: [", "expected the node content, but found '<stream end>' (line 1)"),
        (b"a: 2024-01-01", 'the tag "tag:yaml.org,2002:timestamp" (line 1)'),
        (b"a: !!set {x}", 'the tag "tag:yaml.org,2002:set" (line 1)'),
        (b"a: !!int ''", 'the tag "tag:yaml.org,2002:int" (line 1)'),
        (b"a: !!bool maybe", 'the tag "tag:yaml.org,2002:bool" (line 1)'),
        (b"a: .inf", "Infinity is not a finite number"),
        (b"a: 1.0e+400", "Infinity is not a finite number"),
        (b"a: " + b"9" * 5000, "a number of 5000 digits (line 1)"),
        (b"a: 0b_", "invalid literal for int() with base 2: ''"),
        (b"a: \x01", "unacceptable character #x0001: special characters are not allowed"),
        (b'a: "\\ud800"', '"\\ud800" in it is not valid Unicode'),
        (b"[" * 50_000, "nested too deeply"),
    ],
)
def test_what_json_could_not_hold_is_refused(source: bytes, fault: str) -> None:
    """With the line where there is one."""
    assert _fault(source) == f"model_config.yaml: not usable: {fault}."


def test_aliases_are_refused_before_they_are_followed() -> None:
    """Nine lines that stand for 10**9 items take no time, and a list that holds itself ends."""
    lines = [b"a0: &a0 [" + b",".join([b"0"] * 10) + b"]"]
    lines += [b"a%d: &a%d [" % (i, i) + b",".join([b"*a%d" % (i - 1)] * 10) + b"]" for i in range(1, 9)]
    begun = time.perf_counter()
    assert _fault(b"\n".join(lines)) == "model_config.yaml: not usable: something with aliases (line 1)."
    assert time.perf_counter() - begun < 1
    assert _fault(b"a: &a [*a]") == "model_config.yaml: not usable: something with aliases (line 1)."


def test_nothing_in_it_is_run(tmp_path: Path) -> None:
    """An object of Python is refused by its tag."""
    witness = tmp_path / "witness"
    source = f"a: !!python/object/apply:os.system ['touch {witness}']".encode()
    tag = "tag:yaml.org,2002:python/object/apply:os.system"
    assert _fault(source) == f'model_config.yaml: not usable: the tag "{tag}" (line 1).'
    assert not witness.exists()


def test_other_encodings_are_refused() -> None:
    """litgpt opens the file as UTF-8."""
    assert _fault("a: ä".encode("latin-1")) == "model_config.yaml: not valid UTF-8 (byte 3)."


def test_files_are_read_with_a_limit(tmp_path: Path) -> None:
    """Up to 100 kB; missing files and pipes are named."""
    path = tmp_path / "model_config.yaml"
    path.write_bytes(b"a: " + b"x" * (MAX_BYTES - 3))
    assert read_fields(path) == {"a": "x" * (MAX_BYTES - 3)}
    path.write_bytes(b"a: " + b"x" * (MAX_BYTES - 2))
    with pytest.raises(ConfigError) as caught:
        read_fields(path)
    assert str(caught.value) == f"{path}: more than 100000 bytes are too many for a configuration."
    path.unlink()
    with pytest.raises(ConfigError) as missing:
        read_fields(path)
    assert str(missing.value) == f"{path} does not exist."
    assert missing.value.hint == "It belongs beside the weights."
    os.mkfifo(path)
    with pytest.raises(CheckpointError) as pipe:
        read_fields(path)
    assert str(pipe.value) == f"{path}: not a regular file."


@given(st.binary(max_size=60) | st.text("a: -[]{}&*!?|>'\"\n0123.e_~#%@`,=<", max_size=40).map(str.encode))
def test_anything_is_read_or_refused(source: bytes) -> None:
    """No bytes end in another error."""
    try:
        fields = fields_in(source, PATH)
    except ConfigError:
        return
    assert fields_in(yaml_of(fields), PATH) == fields


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(10**38), 10**38)
            | st.text()
            | st.floats(allow_nan=False, allow_infinity=False),
            lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_what_is_written_is_read_back(fields: dict[str, object]) -> None:
    """Whatever JSON could hold, with its types."""
    assert fields_in(yaml_of(fields), PATH) == fields
