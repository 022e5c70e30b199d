from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from llamaconv.cli import main
from llamaconv.cli.hub import cached, source
from llamaconv.demo.hub import Hub
from llamaconv.errors import UsageError
from llamaconv.hub.reference import Reference
from tests.cli.models import MODEL, write_tokens


@pytest.fixture
def cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of commands that ask ``hub``; the tests' own environment may be offline."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("LLAMACONV_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hf://org/name", Reference("org/name")),
        ("hf://org/name@v1.0", Reference("org/name", "v1.0")),
        ("hf://name", Reference("name")),
        ("org/name", Path("org/name")),
        ("org/name@v1", Path("org/name@v1")),
        ("hf:/org/name", Path("hf:/org/name")),
        ("./hf://org/name", Path("hf:/org/name")),
        ("https://huggingface.co/org/name", Path("https:/huggingface.co/org/name")),
    ],
)
def test_a_source_is_a_path_unless_it_says_otherwise(text: str, meant: Path | Reference) -> None:
    """Only hf:// makes it a repository of the Hub."""
    assert source(text) == meant


def test_a_reference_that_is_none_is_refused() -> None:
    """It is not taken for a path."""
    with pytest.raises(UsageError, match=r"^'a/b/c' cannot be the name of a repository\.$"):
        source("hf://a/b/c")


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "model"],
        ["convert", "model", "out", "--to", "hf"],
        ["quantize", "model", "out", "--mode", "llm.int8"],
        ["evaluate", "model"],
        ["evaluate", "model", "--against", "other"],
    ],
)
def test_a_cache_for_nothing_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """--cache-dir has no effect on paths."""
    assert main([*arguments, "--cache-dir", "cache"]) == 2
    assert "Error: Without effect but with an hf:// source: --cache-dir.\n" in capsys.readouterr().err


def test_the_environments_cache_may_be_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is set for all commands."""
    monkeypatch.setenv("LLAMACONV_CACHE_DIR", "cache")
    assert main(["inspect", str(MODEL), "--json"]) == 0


def test_each_revision_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the given cache, or the platform's."""
    assert cached(Reference("org/name", "a/b"), tmp_path) == tmp_path / "org--name@a%2Fb"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cached(Reference("org/name"), None) == tmp_path / "llamaconv" / "org--name@main"


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The result of a command that succeeds."""
    code, streams = main([*arguments, "--json", "-q"]), capsys.readouterr()
    assert code == 0, streams.err
    answer = json.loads(streams.out)
    assert isinstance(answer, dict)
    return answer


def test_a_repository_is_downloaded_and_then_read(hub: Hub, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its files come from the Hub once; afterwards the commands do what they do with a path."""
    expected = answered(capsys, "inspect", str(MODEL))
    for _ in range(2):
        assert answered(capsys, "inspect", "hf://org/tiny@v1") == {**expected, "path": str(cache / "org--tiny@v1")}
    fetched = [request.path for request in hub.log if request.path.endswith("model.safetensors")]
    assert len(fetched) == len(set(fetched)) == 2  # the Hub's redirect, and the storage


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["convert", "hf://org/tiny", "OUT", "--to", "litgpt", "--dry-run"], "steps"),
        (["quantize", "hf://org/tiny", "OUT", "--mode", "llm.int8", "--dry-run"], "steps"),
        (["evaluate", "hf://org/tiny", "--against", "hf://org/tiny@v1", "--text", "TOKENS"], "kl"),
    ],
)
def test_other_commands_take_repositories_too(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], key: str
) -> None:
    """convert and quantize as SRC, evaluate as MODEL and as reference; a dry run downloads, and writes nothing else."""
    places = {"OUT": str(tmp_path / "out"), "TOKENS": str(write_tokens(tmp_path / "tokens.npy"))}
    assert key in answered(capsys, *(places.get(argument, argument) for argument in arguments))
    assert (cache / "org--tiny@main" / "model.safetensors").read_bytes() == (MODEL / "model.safetensors").read_bytes()
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cache")
def test_what_the_hub_does_not_have_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """With the exit code of a refusal, before anything else is done."""
    assert main(["inspect", "hf://org/none"]) == 4
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "org/none" in streams.err


@pytest.mark.parametrize("command", [["convert", "--to", "litgpt"], ["quantize", "--mode", "llm.int8"]])
def test_an_output_in_the_way_is_found_before_the_download(
    hub: Hub, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """Not a request is made for what could not be used."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "theirs").touch()
    before = len(hub.log)
    assert main([*command, "hf://org/tiny", str(out)]) == 7
    assert f"{out} exists and is not empty." in capsys.readouterr().err
    assert len(hub.log) == before
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["evaluate", "none", "--against", "hf://org/tiny"], "none does not exist."),
        (["evaluate", "hf://org/tiny", "--against", "none"], "none does not exist."),
        (["evaluate", "hf://org/tiny", "--text", "none.txt"], "none.txt: does not exist."),
        (["evaluate", "MODEL", "--against", "hf://org/tiny", "--text", "none.npy"], "none.npy: does not exist."),
        (["quantize", "hf://org/tiny", "q", "--mode", "gptq.int4", "--calibration", "."], ".: is not a file."),
        (
            ["quantize", "hf://org/tiny", "q", "--mode", "gptq.int4", "--calibration", "a.md", "--dry-run"],
            "a.md: not a kind of file that holds text or tokens.",
        ),
    ],
)
def test_what_else_is_read_is_missed_before_the_download(
    hub: Hub,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    error: str,
) -> None:
    """As it would be after it, and with not a request made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.md").touch()
    before = len(hub.log)
    assert main([str(MODEL) if argument == "MODEL" else argument for argument in arguments]) == 3
    assert f"Error: {error}\n" in capsys.readouterr().err
    assert len(hub.log) == before
    assert not cache.exists()


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["convert", "m", "hf://o/n", "--to", "hf"], "DST"),
        (["quantize", "m", "hf://o/n", "--mode", "llm.int8"], "DST"),
        (["quantize", "m", "q", "--mode", "llm.int8", "--report", "hf://o/n"], "--report"),
        (["demo", "--out", "hf://o/n"], "--out"),
        (["inspect", "m", "--cache-dir", "hf://o/n"], "--cache-dir"),
    ],
)
def test_nothing_is_written_to_the_hub(capsys: pytest.CaptureFixture[str], command: list[str], option: str) -> None:
    """A place to write to is a path."""
    assert main(command) == 2
    error = f"Error: Invalid value for '{option}': A path is needed here, not a repository of the Hub.\n"
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("org/name", True),
        ("org/Llama-3.1-8B", True),
        ("hf:/org/name", True),
        ("hf:org", False),
        ("../name", False),
        ("org/model.safetensors", False),
        ("a/b/c", False),
        ("/name", False),
    ],
)
def test_a_repository_without_its_scheme_is_suspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str, hint: bool
) -> None:
    """Where a path that looks like one is not there."""
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", given]) == 3
    told = "Hint: A repository of the Hub is given as hf://org/name.\n" if hint else ""
    assert capsys.readouterr().err == f"Error: {given} does not exist.\n{told}"


@pytest.mark.parametrize(
    "command",
    [["convert", "--to", "hf"], ["convert", "--to", "litgpt", "--verify"], ["quantize", "--mode", "llm.int8"]],
)
def test_the_manifest_names_repository_and_commit(
    hub: Hub, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """As long as every file that was read is as it was downloaded."""
    commit = answered(capsys, "download", "org/tiny", "--cache-dir", str(cache))["commit"]
    answered(capsys, *command, "hf://org/tiny", str(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "llamaconv.json").read_text())
    assert found["downloaded_from"] == {"repository": "org/tiny", "commit": commit}
    assert "config.json" in found["source"]
    (cache / "org--tiny@main" / "config.json").touch()
    answered(capsys, *command, str(cache / "org--tiny@main"), str(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "llamaconv.json").read_text())["downloaded_from"] is None
