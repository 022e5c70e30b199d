from __future__ import annotations

import math
from pathlib import Path

import pytest

from llamaconv.errors import DiskFullError, OutputError
from llamaconv.sinks.manifest import write_json


def test_literal_bytes_of_json(tmp_path: Path) -> None:
    """Two spaces of indent, keys in their own order, letters as they are, a newline at the end."""
    write_json(tmp_path / "x.json", {"b": [1, 0.1, None], "a": {"é": True, "\n": "字"}})
    assert (tmp_path / "x.json").read_bytes() == (
        b'{\n  "b": [\n    1,\n    0.1,\n    null\n  ],\n'
        b'  "a": {\n    "\xc3\xa9": true,\n    "\\n": "\xe5\xad\x97"\n  }\n}\n'
    )


def test_what_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    """NaN has no JSON form, so no file with it comes into being."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": math.nan})
    assert not (tmp_path / "x.json").exists()


def test_a_full_disk_and_a_missing_folder_are_told_apart(tmp_path: Path) -> None:
    """No space left is an error of its own; other refusals are the destination's."""
    with pytest.raises(DiskFullError) as caught:
        write_json(Path("/dev/full"), {})
    assert caught.value.message == "/dev/full: No space left on device."
    assert caught.value.hint == "Free some space or write elsewhere."
    with pytest.raises(OutputError) as other:
        write_json(tmp_path / "no" / "x.json", {})
    assert type(other.value) is OutputError
    assert other.value.message == f"{tmp_path / 'no' / 'x.json'}: No such file or directory."
    assert other.value.exit_code == 7
