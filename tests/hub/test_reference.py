from __future__ import annotations

import subprocess
import sys

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import UsageError
from llamaconv.hub.names import unsafe
from llamaconv.hub.reference import Reference, is_hub_reference, parse

ID_HINT = (
    "It is org/name: letters, digits, '-', '_' and '.', up to 96 each; without '--' and '..', and with no '-' or '.' "
    "first or last."
)
FORMS = "Give org/name, org/name@revision or hf://org/name@revision."


def refusal(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("org/name", "org/name", None),
        ("gpt2", "gpt2", None),
        ("hf://org/name", "org/name", None),
        ("HF://gpt2@v1", "gpt2", "v1"),
        ("org/name@refs/pr/1", "org/name", "refs/pr/1"),
        ("hf://org/name@v1.0-rc@2", "org/name", "v1.0-rc@2"),
        ("https://huggingface.co/org/name", "org/name", None),
        ("https://huggingface.co/gpt2/", "gpt2", None),
        ("https://HF.co/org/name?library=x#files", "org/name", None),
        ("https://huggingface.co/org/tree", "org/tree", None),
        ("https://huggingface.co/gpt2/tree/main", "gpt2", "main"),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1", "org/name", "refs/pr/1"),
    ],
)
def test_forms_of_a_reference(text: str, repository: str, revision: str | None) -> None:
    """A repository is meant by its name, with scheme and revision or without, and by its page's address."""
    assert parse(text) == Reference(repository, revision)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "'' cannot be the name of a repository.", ID_HINT),
        ("hf://", "'' cannot be the name of a repository.", ID_HINT),
        ("../x", "'../x' cannot be the name of a repository.", ID_HINT),
        ("a--b", "'a--b' cannot be the name of a repository.", ID_HINT),
        ("org/na me", "'org/na me' cannot be the name of a repository.", ID_HINT),
        ("org/-name", "'org/-name' cannot be the name of a repository.", ID_HINT),
        ("org/name.", "'org/name.' cannot be the name of a repository.", ID_HINT),
        (
            "org/name/file",
            "'org/name/file' cannot be the name of a repository.",
            "To get it: `llamaconv download org/name file`.",
        ),
        (
            "hf://org/m/config.json",
            "'org/m/config.json' cannot be the name of a repository.",
            "To get it: `llamaconv download org/m config.json`.",
        ),
        (
            "org/m/a folder/x.bin@v1",
            "'org/m/a folder/x.bin' cannot be the name of a repository.",
            "To get it: `llamaconv download org/m@v1 'a folder/x.bin'`.",
        ),
        ("org/-m/config.json", "'org/-m/config.json' cannot be the name of a repository.", ID_HINT),
        ("org/m/", "'org/m/' cannot be the name of a repository.", ID_HINT),
        ("a/b/c@x y", "'a/b/c' cannot be the name of a repository.", ID_HINT),
        ("a" * 97, f"'{'a' * 97}' cannot be the name of a repository.", ID_HINT),
        ("hf://datasets/org/name", "'datasets/org/name' is not a model.", "Only models are downloaded."),
        ("org/name@", "'' cannot be a revision.", "Give a branch, a tag or a commit."),
        ("org/name@a..b", "'a..b' cannot be a revision.", "Give a branch, a tag or a commit."),
        ("org/name@-x", "'-x' cannot be a revision.", "Give a branch, a tag or a commit."),
        ("org/name@a\x1b", "'a\\x1b' cannot be a revision.", "Give a branch, a tag or a commit."),
        (
            "https://huggingface.co/datasets/org/name",
            "An address below huggingface.co/datasets is not a model's.",
            "Only models are downloaded.",
        ),
        (
            "https://mirror.example/org/name",
            "mirror.example is not the Hub.",
            "Give org/name, and the server with --endpoint.",
        ),
        ("s3://", "This address is not the Hub.", "Give org/name, and the server with --endpoint."),
        (
            "https://huggingface.co/org/name/blob/main/config.json",
            "This address is that of a file.",
            "To get it: `llamaconv download org/name config.json`.",
        ),
        (
            "https://hf.co/gpt2/resolve/refs%2Fpr%2F1/onnx/decoder%20model.onnx?download=true",
            "This address is that of a file.",
            "To get it: `llamaconv download gpt2@refs/pr/1 'onnx/decoder model.onnx'`.",
        ),
        (
            "https://huggingface.co/org/name/discussions/1",
            "This address is not that of a model's page.",
            f"{FORMS} Files are named after it.",
        ),
        (
            "https://huggingface.co/",
            "This address is not that of a model's page.",
            f"{FORMS} Files are named after it.",
        ),
        ("https://[x", "This address cannot be read.", FORMS),
    ],
)
def test_what_is_no_reference(text: str, message: str, hint: str) -> None:
    """What cannot be a repository or a revision is refused before anything is asked of a server."""
    error = refusal(text)
    assert (error.message, error.hint, error.exit_code) == (message, hint, 2)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:s3cret@huggingface.co/org/name",
        "https://user:s3cret@mirror.example/org/name",
        "https://user:s3cret@[x/org/name",
        "hf://user:s3cret@huggingface.co/org/name",
        "user:s3cret@huggingface.co/org/name",
        "https:/user:s3cret@huggingface.co/org/name",
        "org/name@user:s3cret@x",
        "hf://org/name/user:s3cret@x",
        "org/name/file@user:s3cret@x",
    ],
)
def test_no_password_is_repeated(text: str) -> None:
    """A user and a password in what was given are neither in the message nor in the hint."""
    error = refusal(text)
    assert "s3cret" not in f"{error.message} {error.hint} {error.facts}"
    assert error.__cause__ is None


@given(st.text(st.sampled_from("ab-._/ A1é\n"), max_size=8))
def test_the_hubs_own_rule_decides(text: str) -> None:
    """A name is a repository's exactly if huggingface_hub takes it."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        with pytest.raises(UsageError):
            Reference(text)
    else:
        assert Reference(text).repository == text


REFERENCES = st.builds(
    lambda organization, name, revision: (f"{organization}/{name}" if organization else name, revision),
    st.sampled_from(["", "a", "a-b", "a_b", "a" * 96]),
    st.sampled_from(["a", "b", "a-b", "b_a", "a.b", "b" * 96]),
    st.none() | st.text(st.sampled_from("ab/-_@#+éß'~"), min_size=1, max_size=40),
)


def built(drawn: tuple[str, str | None]) -> Reference | None:
    try:
        return Reference(*drawn)
    except UsageError:
        return None


@given(REFERENCES, REFERENCES)
def test_each_reference_has_a_folder_of_its_own(one: tuple[str, str | None], other: tuple[str, str | None]) -> None:
    """Folder names are safe parts of a path, the same for the same reference and different for different ones."""
    first, second = built(one), built(other)
    if not first or not second:
        return
    assert unsafe(first.folder_name) is None
    assert "/" not in first.folder_name
    assert len(first.folder_name) <= 200
    same = (first.repository, first.revision or "main") == (second.repository, second.revision or "main")
    assert (first.folder_name == second.folder_name) == same


def test_literal_folder_names() -> None:
    """Odd characters are quoted; a long name is cut and ends in a hash."""
    assert Reference("org/name").folder_name == "org--name@main"
    assert Reference("gpt2", "refs/pr/1").folder_name == "gpt2@refs%2Fpr%2F1"
    assert Reference("org/name", "é@1").folder_name == "org--name@%C3%A9%401"
    long, longer = Reference("a" * 96 + "/" + "b" * 96, "x" * 40), Reference("a" * 96 + "/" + "b" * 96, "x" * 41)
    start = "a" * 96 + "--" + "b" * 69 + "~"
    assert long.folder_name[:-32] == longer.folder_name[:-32] == start
    assert long.folder_name != longer.folder_name


def test_what_says_of_itself_that_it_is_a_reference() -> None:
    """Only the scheme tells a reference from a path."""
    assert is_hub_reference("hf://org/name")
    assert not is_hub_reference("org/name")
    assert not is_hub_reference("hf:/org/name")
    assert not is_hub_reference("./hf://org/name")


def test_a_reference_needs_no_torch() -> None:
    """Neither parsing nor refusing imports torch or transformers."""
    code = (
        "import sys, llamaconv.hub.lockfile, llamaconv.hub.selection, llamaconv.hub.reference as reference\n"
        "reference.parse('hf://org/name@main')\n"
        "print([name for name in ('numba', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
