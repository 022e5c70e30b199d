from __future__ import annotations

from pathlib import Path

import pytest

from llamaconv.calibration.readers import Document, read_jsonl, read_text
from llamaconv.errors import CalibrationError

HINT = 'A line is one object: {"text": "…"}, or {"messages": [{"role": "user", "content": "…"}, …]}.'


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    """Blank lines inside stay, those around go, and so do a byte order mark and carriage returns."""
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbf\r\n\nOne.\r\n\r\n\r\n  Two.\n\n")
    assert read_text(path) == (Document("a.txt", "One.\n\n\n  Two."),)


@pytest.mark.parametrize("data", ["", "\n \t\r\n"])
def test_a_text_file_without_text_is_refused(tmp_path: Path, data: str) -> None:
    """An empty file and one of blanks are the same: no text."""
    path = write(tmp_path / "a.txt", data)
    with pytest.raises(CalibrationError) as caught:
        read_text(path)
    assert str(caught.value) == f"{path}: there is no text in it."


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_what_is_not_utf8_is_refused(tmp_path: Path, name: str) -> None:
    """The offset of the first bad byte is named."""
    path = write(tmp_path / name, b"caf\xe9")
    with pytest.raises(CalibrationError) as caught:
        (read_text if name == "a.txt" else read_jsonl)(path)
    assert str(caught.value) == f"{path}: not valid UTF-8 (byte 3)."
    assert caught.value.hint == "Save the text as UTF-8."


def test_jsonl_gives_a_document_per_line(tmp_path: Path) -> None:
    """Texts and conversations may alternate; a record's other keys go, a message's stay for the template."""
    path = write(
        tmp_path / "a.jsonl",
        '{"text": "One.\\u2028Still one.", "source": 3}\r\n\n'
        '{"messages": [{"role": "user", "content": "Hé?", "name": "Ann"}, {"role": "assistant"}]}',
    )
    assert read_jsonl(path) == (
        (
            Document("a.jsonl, line 1", "One.\u2028Still one."),
            Document("a.jsonl, line 3", ({"role": "user", "content": "Hé?", "name": "Ann"}, {"role": "assistant"})),
        ),
        0,
    )


def test_texts_of_blanks_are_counted_and_left_out(tmp_path: Path) -> None:
    """Rows without text, which many data sets have, are no fault, but the caller is told."""
    path = write(tmp_path / "a.jsonl", '{"text": ""}\n{"text": "x"}\n{"text": " \\n"}\n')
    assert read_jsonl(path) == ((Document("a.jsonl, line 2", "x"),), 2)


@pytest.mark.parametrize("data", ["", "\n\n", '{"text": ""}\n'])
def test_a_jsonl_file_without_text_is_refused(tmp_path: Path, data: str) -> None:
    """No line, no line with a text: nothing to calibrate on."""
    path = write(tmp_path / "a.jsonl", data)
    with pytest.raises(CalibrationError) as caught:
        read_jsonl(path)
    assert str(caught.value) == f"{path}: there is no text in it."


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "is not JSON (EOF while parsing an object, column 1)."),
        ('"text"', "is not a JSON object."),
        ("{}", "has neither `text` nor `messages`."),
        ('{"text": "a", "messages": [{"role": "user"}]}', "has both `text` and `messages`; one is needed."),
        ('{"text": 3}', "`text`: input should be a valid string."),
        ('{"messages": "a"}', "`messages`: input should be a valid array."),
        ('{"messages": []}', "`messages`: list should have at least 1 item after validation, not 0."),
        ('{"messages": [3]}', "`messages.0` is not a JSON object."),
        ('{"messages": [{"content": "a"}]}', "`messages.0.role`: field required."),
        ('{"messages": [{"role": "a", "content": 3}]}', "`messages.0.content`: input should be a valid string."),
    ],
)
def test_a_faulty_line_is_named_with_its_fault(tmp_path: Path, line: str, fault: str) -> None:
    """What is wrong with a line is said with the file, the line's number and the field."""
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n' + line)
    with pytest.raises(CalibrationError) as caught:
        read_jsonl(path)
    assert str(caught.value) == f"a.jsonl, line 2: {fault}"
    assert (caught.value.hint, caught.value.exit_code) == (HINT, 3)


def test_all_faulty_lines_are_in_one_error_up_to_ten(tmp_path: Path) -> None:
    """Ten lines are listed, the rest is counted."""
    path = write(tmp_path / "a.jsonl", "{}\n" * 1013)
    with pytest.raises(CalibrationError) as caught:
        read_jsonl(path)
    lines = str(caught.value).split("\n")
    assert lines[9:] == ["a.jsonl, line 10: has neither `text` nor `messages`.", "… and 1,003 more lines."]
    assert caught.value.facts == {"lines": 1013}
