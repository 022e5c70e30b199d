"""Tokens from text, and chats from messages, with the tokenizer that stands beside a checkpoint.

The checkpoint's own files alone are used: nothing is fetched, and code in a checkpoint is never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from llamaconv.errors import CalibrationError, UnsupportedError

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

__all__ = ["Message", "Tokenizer"]

Message = Mapping[str, Any]
"""One turn of a chat, as chat templates expect it: ``role``, ``content`` and whatever the template reads."""

_FAST = "tokenizer.json"
# What needs transformers' classes to be understood; tokenizer.json alone does not.
_OTHERS = (
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Any text will do that gives a token; no vocabulary lacks all of these.
_PROBES = ("a", "0", "the", "\u4e00")
_REASON = 200  # characters of another library's message that a message of ours repeats


class _Backend(Protocol):
    def ids(self, text: str, special: bool) -> list[int]: ...
    def render(self, messages: Sequence[Message]) -> str | None: ...


class Tokenizer:
    """A checkpoint's tokenizer: text in, token ids out."""

    def __init__(self, backend: _Backend, directory: Path) -> None:
        self._backend = backend
        self._directory = directory
        self._prefix: tuple[int, ...] | None = None

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The tokenizer in ``directory``, by transformers, or by tokenizers if there is tokenizer.json alone.

        Raises:
            CalibrationError: There is none, or it cannot be read.
            UnsupportedError: It needs code that comes with the checkpoint.
        """
        files = [name for name in (_FAST, *_OTHERS) if (directory / name).is_file()]
        if not files or files == ["special_tokens_map.json"]:
            raise CalibrationError(
                f"{directory}: no tokenizer is here, and text needs one.",
                hint="Put the model's tokenizer files there, or give tokens instead of text: "
                "--calibration TOKENS.npy (quantize), --text TOKENS.npy (evaluate).",
                directory=str(directory),
            )
        try:
            return cls(_Fast(directory) if files == [_FAST] else _Transformers(directory), directory)
        except Exception as error:  # tokenizers raises bare Exception, transformers what its readers raise
            if _needs_code(directory):
                raise UnsupportedError(
                    f"{directory}: its tokenizer is code that comes with the checkpoint (auto_map), "
                    "and such code is never run.",
                    hint="Give tokens instead of text: --calibration TOKENS.npy, --text TOKENS.npy.",
                    directory=str(directory),
                ) from error
            raise CalibrationError(
                f"{directory}: its tokenizer cannot be read ({_reason(error)}).",
                hint="Restore the model's tokenizer files, or give tokens instead of text.",
                directory=str(directory),
            ) from error

    def encode(self, text: str) -> list[int]:
        """The token ids of ``text``, with nothing put before or after it.

        Special tokens that are written out in the text (``<|user|>``, as chat templates do) are recognized.
        """
        return self._backend.ids(text, special=False)

    def prefix(self) -> list[int]:
        """The ids that the tokenizer itself puts before a sequence: BOS for Llama, nothing for Qwen.

        Found by tokenizing a text with and without special tokens, since no field of the configuration says
        it for every tokenizer.

        Raises:
            CalibrationError: The tokenizer changes the text's own tokens when it adds special ones.
        """
        if self._prefix is None:
            self._prefix = self._ask_for_prefix()
        return list(self._prefix)

    def _ask_for_prefix(self) -> tuple[int, ...]:
        for probe in _PROBES:
            bare, whole = self._backend.ids(probe, special=False), self._backend.ids(probe, special=True)
            for start in range(len(whole) - len(bare) + 1 if bare else 0):
                if whole[start : start + len(bare)] == bare:
                    return tuple(whole[:start])
        raise CalibrationError(
            f"{self._directory}: cannot tell what its tokenizer puts before a sequence "
            "(no test text keeps its tokens).",
            hint="Give tokens instead of text: --calibration TOKENS.npy, --text TOKENS.npy.",
            directory=str(self._directory),
        )

    def chat(self, messages: Sequence[Message]) -> str:
        """``messages`` as one text, by the tokenizer's chat template, without a prompt for a next turn.

        Templates of most models write BOS themselves; the text may therefore begin with ``prefix()``.

        Raises:
            CalibrationError: The tokenizer has no chat template, or the template refuses the messages.
        """
        try:
            text = self._backend.render(messages)
        except Exception as error:  # a template is somebody's program: it may raise anything
            raise CalibrationError(
                f"the chat template refuses the messages ({_reason(error)}).",
                hint="Chat templates expect roles in a certain order, often user and assistant by turns.",
                directory=str(self._directory),
            ) from error
        if text is None:
            raise CalibrationError(
                f"{self._directory}: its tokenizer has no chat template, and `messages` need one.",
                hint="Give the conversations as `text`, written out as the model expects them.",
                directory=str(self._directory),
            )
        return text


class _Transformers:
    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        # An absolute path: a relative one could be taken for the name of a repository on the Hub.
        loaded = AutoTokenizer.from_pretrained(
            str(directory.absolute()), local_files_only=True, trust_remote_code=False
        )
        self._tokenizer = cast("PreTrainedTokenizerBase", loaded)

    def ids(self, text: str, special: bool) -> list[int]:
        # verbose=False: no warning about texts longer than the model's maximum, they are cut later
        encoded = self._tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)
        return list(cast("list[int]", encoded["input_ids"]))

    def render(self, messages: Sequence[Message]) -> str | None:
        if not self._tokenizer.chat_template:
            return None
        plain = [dict(message) for message in messages]
        return cast(str, self._tokenizer.apply_chat_template(plain, tokenize=False))


class _Fast:
    def __init__(self, directory: Path) -> None:
        import tokenizers

        self._tokenizer: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(directory / _FAST))
        # The file may carry the settings of somebody's training run.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def ids(self, text: str, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def render(self, messages: Sequence[Message]) -> str | None:
        return None  # templates are no part of tokenizer.json


def _needs_code(directory: Path) -> bool:
    try:
        config = json.loads((directory / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return False  # then this is not what went wrong
    return isinstance(config, dict) and "AutoTokenizer" in (config.get("auto_map") or {})


def _reason(error: Exception) -> str:
    """The beginning of the error's first line: transformers adds paragraphs of advice, and lists of all models."""
    lines = str(error).strip().splitlines()
    line = lines[0].rstrip(".:") if lines else type(error).__name__
    return line if len(line) <= _REASON else line[:_REASON].rsplit(" ", 1)[0] + " …"
