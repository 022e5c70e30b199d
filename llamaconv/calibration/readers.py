"""Text that the user brings: one document in a ``.txt``, one per line in a ``.jsonl``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llamaconv.errors import CalibrationError
from llamaconv.tokenizer import Message

__all__ = ["Document", "read_jsonl", "read_text"]

_SHOWN = 10  # faulty lines that one error lists


@dataclass(frozen=True)
class Document:
    """A text, or a conversation that a chat template has yet to turn into one.

    Attributes:
        name: What an error calls it: "chats.jsonl, line 3".
        content: The text, or the messages.
    """

    name: str
    content: str | tuple[Message, ...]


class _Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")  # templates read more: name, tool_calls, …

    role: str
    content: str | list[dict[str, Any]] | None = None


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    text: str | None = None
    messages: list[_Turn] | None = Field(default=None, min_length=1)


def read_text(path: Path) -> tuple[Document, ...]:
    """The whole file as one document; a byte order mark and blank lines around the text are no part of it.

    Blank lines inside are kept: they are how a text marks its paragraphs. Line ends become ``\\n``.

    Raises:
        CalibrationError: The file is not UTF-8, or holds nothing but blanks.
    """
    text = _decoded(path).strip("\n")
    if not text.strip():
        raise _empty(path)
    return (Document(path.name, text),)


def read_jsonl(path: Path) -> tuple[tuple[Document, ...], int]:
    """One document per line, an object with either ``text`` or ``messages`` (other keys are ignored).

    Returns:
        The documents in the file's order, and how many lines had a ``text`` of blanks only, which are left
        out. Blank lines are passed over.

    Raises:
        CalibrationError: The file is not UTF-8, a line is not such an object (every such line is named, up to
            ten), or no line has a text.
    """
    documents: list[Document] = []
    faults: list[str] = []
    blank = 0
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        name = f"{path.name}, line {number}"
        try:
            content = _content(line)
        except ValueError as error:
            faults.append(f"{name}: {error}")
            continue
        if isinstance(content, str) and not content.strip():
            blank += 1
        else:
            documents.append(Document(name, content))
    if faults:
        raise _faulty_lines(faults)
    if not documents:
        raise _empty(path)
    return tuple(documents), blank


def _content(line: str) -> str | tuple[Message, ...]:
    try:
        record = _Record.model_validate_json(line)
    except ValidationError as error:
        raise ValueError(_first_fault(error)) from error
    if (record.text is None) == (record.messages is None):
        both = "has both `text` and `messages`; one is needed."
        raise ValueError("has neither `text` nor `messages`." if record.text is None else both)
    if record.text is not None:
        return record.text
    # Unset fields stay away: templates ask `if message.name is defined`.
    return tuple(turn.model_dump(exclude_unset=True) for turn in record.messages or ())


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False)[0]
    # "content" can be a text or a list, and pydantic reports on each; the place alone is meant
    place = ".".join(str(part) for part in fault["loc"] if not str(part).startswith(("list[", "str")))
    subject = f"`{place}` is" if place else "is"
    if fault["type"] == "model_type":
        return f"{subject} not a JSON object."
    if fault["type"] == "json_invalid":
        return f"is not JSON ({fault['msg'].removeprefix('Invalid JSON: ').replace(' at line 1 column', ', column')})."
    return f"`{place}`: {fault['msg'][0].lower() + fault['msg'][1:]}."


def _faulty_lines(faults: list[str]) -> CalibrationError:
    shown = faults[:_SHOWN]
    if len(faults) > _SHOWN:
        shown.append(f"… and {len(faults) - _SHOWN:,} more lines.")
    return CalibrationError(
        "\n".join(shown),
        hint='A line is one object: {"text": "…"}, or {"messages": [{"role": "user", "content": "…"}, …]}.',
        lines=len(faults),
    )


def _decoded(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path}: not valid UTF-8 (byte {error.start:,}).", hint="Save the text as UTF-8.", file=str(path)
        ) from error
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror}).", file=str(path)) from error
    return text.replace("\r\n", "\n")


def _empty(path: Path) -> CalibrationError:
    return CalibrationError(f"{path}: there is no text in it.", file=str(path))
