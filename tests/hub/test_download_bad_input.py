from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pytest

from llamaconv.cli import main
from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.errors import HubError, UsageError
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, command_line, contents, environment, failure, impatient, repository, run

ACCESS = "hf_with_access"
OTHER = "hf_without"


def host(hub: Hub) -> str:
    return urlsplit(hub.endpoint).netloc


@pytest.mark.parametrize(
    ("token", "hint"),
    [
        ("", "Check the name; a private one needs a token, in HF_TOKEN or --token."),
        (OTHER, "Check the name, and that the token may read it."),
    ],
)
@pytest.mark.parametrize("private", [False, True])
def test_an_unknown_repository(tmp_path: Path, token: str, hint: str, private: bool) -> None:
    """One that is private looks the same to others; the hint names the token's variable."""
    files = {"org/m" if private else "org/other": FILES}
    with Hub([Repository(name, known, private=private) for name, known in files.items()], token=ACCESS) as hub:
        error = failure(hub, tmp_path / "m", token=token)
        assert isinstance(error, HubError)
        assert error.message.startswith(f"{host(hub)} has no repository org/m, or it is private.")
        assert error.hint == hint
        assert len(hub.log) == 1


def test_an_unknown_revision(tmp_path: Path) -> None:
    """It is named, and what a revision is."""
    with Hub([repository()]) as hub:
        error = failure(hub, tmp_path / "m", revision="v9")
        assert isinstance(error, HubError)
        assert error.message == "org/m has no revision v9. It says: “Invalid rev id: v9”"
        assert error.hint == "Give a branch, a tag or a whole commit hash in --revision."


@pytest.mark.parametrize(
    ("token", "status", "hint"),
    [
        ("", 401, "Ask for access at {page}, then give your account's token in HF_TOKEN or --token."),
        (OTHER, 403, "Ask for access at {page} with the account that the token belongs to."),
    ],
)
def test_a_gated_repository(tmp_path: Path, token: str, status: int, hint: str) -> None:
    """The hint names the page where access is granted and, without a token, its variable; nothing is tried again."""
    with Hub([repository(gated=True)], token=ACCESS) as hub:
        with pytest.raises(HubError) as caught:
            download("org/m", tmp_path / "m", impatient(hub, token=token, max_workers=1))
        error = caught.value
        assert error.message.startswith(f"org/m is gated: {host(hub)} gives it only to those who were granted access.")
        assert error.hint == hint.format(page=f"{hub.endpoint}/org/m")
        assert (error.facts["status"], error.facts["code"]) == (status, "GatedRepo")
        assert len([request for request in hub.log if "/resolve/" in request.path]) == 1
        assert contents(tmp_path / "m") == {}
        download("org/m", tmp_path / "m", impatient(hub, token=ACCESS))
        assert contents(tmp_path / "m") == FILES


def test_a_token_that_is_none(tmp_path: Path) -> None:
    """A blank or a line's end in it is refused before anything is asked."""
    with Hub([repository()]) as hub:
        for token in ("hf_x\n", "hf x", "hf_ü"):
            error = failure(hub, tmp_path / "m", token=token)
            assert isinstance(error, UsageError)
            assert error.message == "The token holds characters that no token has."
        assert hub.log == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("confg.json",), "org/m has no 'confg.json': did you mean 'config.json'?"),
        (("modell.safetensors", "qqq"), "org/m has no 'modell.safetensors': did you mean 'model.safetensors'?\n"
                                        "org/m has no 'qqq'."),
        (("onnx/",), "org/m has no 'onnx/'."),
    ],
)  # fmt: skip
def test_an_unknown_file(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    """Each is named, with the nearest name that there is."""
    with Hub([repository()]) as hub:
        error = failure(hub, tmp_path / "m", files=files)
    assert (error.exit_code, error.message) == (4, message)
    assert error.hint == "It has config.json, model.safetensors, tokenizer.json."


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"include": ("*.gguf", "*.json")}, 2, "org/m has no file that matches '*.gguf'."),
        ({"include": ("*.json",), "exclude": ("*",)}, 2, "No file of org/m is left to download."),
        ({"files": ("config.json",), "include": ("*",)}, 2, "Both files and patterns were given."),
        ({"locked": True}, 2, "What is to be reproduced? `locked` needs the name of a lock file."),
    ],
)
def test_selections_of_nothing(tmp_path: Path, settings: dict[str, Any], code: int, message: str) -> None:
    """What cannot mean anything is told as that."""
    with Hub([repository()]) as hub:
        error = failure(hub, tmp_path / "m", **settings)
    assert (error.exit_code, error.message) == (code, message)


@pytest.mark.parametrize(
    ("names", "there"),
    [
        (["config.json"], "no weights at all"),
        (["config.json", "model.gguf"], "only GGUF files"),
        (["adapter_model.safetensors"], "only an adapter"),
        (["config.json", "onnx/model.onnx"], "only weights in onnx/"),
        ([], "no weights at all"),
    ],
)
def test_a_repository_without_weights(tmp_path: Path, names: list[str], there: str) -> None:
    """It says what weights there are, and how to get what there is."""
    with Hub([Repository("org/m", dict.fromkeys(names, b"x"))]) as hub:
        error = failure(hub, tmp_path / "m")
    assert error.exit_code == 4
    assert error.message == f"org/m has no weights that are taken without being named: {there}."
    assert error.hint == "Name the files that you want, or choose them with --include."


def test_weights_that_are_not_all_there(tmp_path: Path) -> None:
    """A shard that the index names and the repository lacks is named before anything is written."""
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, shards[0]: b"x"}
    with Hub([Repository("org/m", files)]) as hub:
        error = failure(hub, tmp_path / "m")
    assert error.exit_code == 4
    assert error.message == "org/m is incomplete: the shard 'model-00002-of-00002.safetensors' is missing."


@pytest.mark.parametrize("below", ["", "/deep/m"])
def test_a_file_where_the_directory_must_be(tmp_path: Path, below: str) -> None:
    """It is named, and stays."""
    (tmp_path / "file").write_bytes(b"mine")
    with Hub([repository()]) as hub:
        child = run(tmp_path, "org/m", "--local-dir", f"{tmp_path}/file{below}", "--endpoint", hub.endpoint)
    assert child.returncode == 7
    assert child.stderr.splitlines() == [
        f"Error: {tmp_path}/file is in the way: it is not a directory.",
        "Hint: Move it away, or choose another directory.",
    ]
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_directory_that_may_not_be_written() -> None:
    """Whoever may not write to it is told so before a file is asked for, and it stays as it was."""
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    with Hub([repository()]) as hub, TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        arguments = command_line("org/m", "--local-dir", f"{place}/m", "--endpoint", hub.endpoint)
        if shutil.which(nobody[0]) is None or subprocess.run([*nobody, "true"], check=False).returncode:
            pytest.skip("another user's place cannot be taken here")
        child = subprocess.run(
            [*nobody, *arguments], env=environment(Path(place)), capture_output=True, text=True, check=False
        )
        assert child.returncode == 7
        assert child.stderr.splitlines() == [f"Error: {place}/m: Permission denied."]
        assert not any("/resolve/" in request.path for request in hub.log)
        assert list(Path(place).iterdir()) == []


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """What the kernel refuses is told with the path; no file is asked for."""
    with Hub([repository()]) as hub:
        error = failure(hub, Path("/proc/llamaconv/m"))
        assert (error.exit_code, error.message) == (7, "/proc/llamaconv/m: No such file or directory.")
        assert not any("/resolve/" in request.path for request in hub.log)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["org/m/n"], "'org/m/n' cannot be the name of a repository."),
        (["../m"], "'../m' cannot be the name of a repository."),
        (["org/.m"], "'org/.m' cannot be the name of a repository."),
        (["org/a--b"], "'org/a--b' cannot be the name of a repository."),
        (["org/m@"], "'' cannot be a revision."),
        (["org/m@a..b"], "'a..b' cannot be a revision."),
        (["datasets/org/m"], "'datasets/org/m' is not a model."),
        (["https://example.org/org/m"], "example.org is not the Hub."),
        (["org/m", "--locked"], "Without effect but with --lock: --locked."),
        (["org/m", "--proxy", "localhost:3128"], "Invalid value for '--proxy': This is no such URL."),
        (["org/m", "--proxy", "socks4://localhost"], "Invalid value for '--proxy': This is no such URL."),
        (["org/m", "--proxy", "http://"], "Invalid value for '--proxy': This is no such URL."),
        (["org/m", "--proxy", "http://host:port"], "Invalid value for '--proxy': This is no such URL."),
        (["org/m", "--endpoint", "huggingface.co"], "Invalid value for '--endpoint': This is no such URL."),
        (["org/m", "--endpoint", "file:///models"], "Invalid value for '--endpoint': This is no such URL."),
        (["org/m", "--endpoint", "http://[::1"], "Invalid value for '--endpoint': This is no such URL."),
        (["org/m", "--token", ""], "Invalid value for '--token': A token is one word"),
    ],
)
def test_what_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Exit code 2, one sentence, and no directory."""
    assert main(["download", *arguments, "--local-dir", str(tmp_path / "m")]) == 2
    streams = capsys.readouterr()
    (error,) = [line for line in streams.err.splitlines() if line.startswith("Error: ")]
    assert error.removeprefix("Error: ").startswith(message)
    assert streams.out == ""
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HF_ENDPOINT", "ftp://hub.example", "The endpoint ftp://hub.example cannot be used."),
        ("HTTP_PROXY", "gopher://me:hush@proxy.example", "The proxy's URL in HTTP_PROXY cannot be used."),
        ("HF_TOKEN", "hf x", "The token holds characters that no token has."),
    ],
)
def test_variables_that_cannot_be_used(tmp_path: Path, variable: str, value: str, message: str) -> None:
    """What stands in the environment is checked as options are."""
    child = run(tmp_path, "org/m", "--local-dir", tmp_path / "m", "--retries", "0", **{variable: value})
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr.splitlines()[0] == f"Error: {message}"
    assert not (tmp_path / "m").exists()
