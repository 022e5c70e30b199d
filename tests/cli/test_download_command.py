from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from threading import Event

import pytest

from llamaconv.cli import main
from llamaconv.cli.download import command
from llamaconv.demo.answers import Answer, Request
from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.hub.reference import Reference
from llamaconv.hub.settings import DownloadSettings
from tests.cli.models import MODEL
from tests.cli.processes import command_line, environment, run

VALUED = [option.opts[0] for option in command.params if option.param_type_name == "option" and option.is_flag is False]


def parsed(*arguments: str) -> dict[str, object]:
    """What the command's body gets, by name."""
    with command.make_context("download", ["org/name", *arguments]) as context:
        return context.params


def settings_of(*arguments: str) -> DownloadSettings:
    """What the task gets, less what is no option."""
    names = {field.name for field in fields(DownloadSettings)} - {"offline"}
    found = {name: value for name, value in parsed(*arguments).items() if name in names}
    assert set(found) == names
    return DownloadSettings(**found)  # type: ignore[arg-type]


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a usage error."""
    assert main(["download", *arguments]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    return next(line for line in streams.err.splitlines() if line.startswith("Error: "))


def test_the_defaults_are_the_librarys() -> None:
    """Whoever types nothing gets what whoever writes Python gets; there is an option for every setting."""
    assert settings_of() == DownloadSettings()


def test_every_option_reaches_its_setting() -> None:
    """Each is parsed to the type that the task takes; what may be given several times keeps its order."""
    arguments = (
        "config.json tokenizer.json --revision v1 --include *.json --include a/* --exclude b/* --token hf_x "
        "--proxy socks5h://me:pw%23@localhost:1080 --endpoint http://[::1]:8080/hub --endpoint https://mirror.example "
        "--retries 0 --timeout 2.5 --max-wait 0 --deadline 3600 --max-workers 64 --verify --lock l.json --locked"
    )
    assert settings_of(*arguments.split()) == DownloadSettings(
        revision="v1",
        files=("config.json", "tokenizer.json"),
        include=("*.json", "a/*"),
        exclude=("b/*",),
        token="hf_x",
        proxy="socks5h://me:pw%23@localhost:1080",
        endpoints=("http://[::1]:8080/hub", "https://mirror.example"),
        retries=0,
        timeout=2.5,
        max_wait=0.0,
        deadline=3600.0,
        max_workers=64,
        verify=True,
        lock=Path("l.json"),
        locked=True,
    )


@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h"])
def test_proxies_are_of_four_kinds(scheme: str) -> None:
    """With a user and a password, a port, or neither."""
    for address in (f"{scheme}://proxy", f"{scheme}://me:pw@proxy:3128"):
        assert parsed("--proxy", address)["proxy"] == address


def test_the_repository_may_carry_its_revision() -> None:
    """As org/name@revision, with or without hf://."""
    for text in ("org/name@v1", "hf://org/name@v1"):
        with command.make_context("download", [text]) as context:
            assert context.params["reference"] == Reference("org/name", "v1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["o/n@v1", "--revision", "v2"], "REPO has a revision already: --revision."),
        (["o/n@v1", "--revision", "v1"], "REPO has a revision already: --revision."),
        (["o/n", "--locked"], "Without effect but with --lock: --locked."),
        (["o/n", "--local-dir", "a", "--cache-dir", "b"], "Without effect with --local-dir: --cache-dir."),
        (["o/n", "--dry-run", "--lock", "a"], "--lock has nothing to record of a --dry-run."),
        (["o/n", "a", "--include", "b"], "FILES and patterns exclude each other."),
        (["o/n", "a", "--exclude", "b"], "FILES and patterns exclude each other."),
        (["o/n", "--revision", "a..b"], "'a..b' cannot be a revision."),
        (["o/n/m"], "'o/n/m' cannot be the name of a repository."),
        ([], "Missing argument 'REPO'."),
        (
            ["o/n", "--proxy", "ftp://host"],
            "Invalid value for '--proxy': This is no such URL. It begins with http:// or https:// or socks5:// or "
            "socks5h:// and names a host. In a password, '#' is %23, and so on.",
        ),
        (
            ["o/n", "--endpoint", "socks5://host"],
            "Invalid value for '--endpoint': This is no such URL. It begins with http:// or https:// and names a host. "
            "In a password, '#' is %23, and so on.",
        ),
        (
            ["o/n", "--endpoint", "https://host/?a=b"],
            "Invalid value for '--endpoint': This URL has a query or a fragment, which a server's address has not.",
        ),
        (
            ["o/n", "--token", "two words"],
            "Invalid value for '--token': A token is one word of ASCII letters, digits and marks; this is none.",
        ),
        (["o/n", "--max-workers", "65"], "Invalid value for '--max-workers': 65 is not in the range 1<=x<=64."),
        (["o/n", "--max-workers", "0"], "Invalid value for '--max-workers': 0 is not in the range 1<=x<=64."),
        (["o/n", "--retries", "-1"], "Invalid value for '--retries': -1 is not in the range x>=0."),
        (["o/n", "--timeout", "0"], "Invalid value for '--timeout': 0.0 is not in the range 0<x<=31622400."),
        (["o/n", "--deadline", "nan"], "Invalid value for '--deadline': nan is not a finite number."),
    ],
)
def test_what_cannot_be_meant_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Before anything is asked of a network."""
    assert complaint(capsys, *arguments) == f"Error: {message}"


@pytest.mark.parametrize("option", ["--local-dir", "--cache-dir", "--lock"])
def test_places_are_paths(capsys: pytest.CaptureFixture[str], option: str) -> None:
    """A repository of the Hub is none."""
    assert complaint(capsys, "o/n", option, "hf://o/n") == (
        f"Error: Invalid value for '{option}': A path is needed here, not a repository of the Hub."
    )


def test_a_shells_globs_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """`--include *.json` in a folder with two such files is a pattern and a file."""
    assert main(["download", "o/n", "--include", "a.json", "b.json"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "Hint: Repeat --include or --exclude for each pattern, and quote patterns: the shell makes names of them."
    )


@pytest.mark.parametrize("option", VALUED)
def test_empty_values_are_refused(capsys: pytest.CaptureFixture[str], option: str) -> None:
    """An unset shell variable is neither a file, nor a pattern, nor everything."""
    assert complaint(capsys, "o/n", option, "").startswith(f"Error: Invalid value for '{option}': ")


def test_empty_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a repository nor a file has one."""
    assert complaint(capsys, "") == "Error: '' cannot be the name of a repository."
    assert complaint(capsys, "o/n", "") == "Error: Invalid value for '[FILES]...': The value is empty."


@pytest.mark.parametrize("mode", [[], ["--json"]])
@pytest.mark.parametrize(
    "arguments",
    [
        ["o/n", "--proxy", "ftp://me:hunter2@host"],
        ["o/n", "--proxy", "http://me:hunter2#@host"],
        ["o/n", "--proxy", "http://me:hunter2@[host"],
        ["o/n", "--proxy", "http://me:hunter2@host:99999"],
        ["o/n", "--proxy", "hunter2"],
        ["o/n", "--proxy=http://me:hunter2 @host"],
        ["o/n", "--endpoint", "https://me:hunter2@host?x"],
        ["o/n", "--endpoint", "https://me:hunter2@"],
        ["o/n", "--endpoint", "https://host:hunter2"],
        ["o/n", "--token", "hunter2\n"],
        ["o/n", "--token", "hunter2 é"],
        ["o/n", "--tokn=hunter2"],
        ["o/n", "--tokn", "hunter2"],
        ["--token", "hunter2"],
        ["https://me:hunter2@huggingface.co/o/n"],
        ["https://me:hunter2@elsewhere.example/o/n"],
        ["me:hunter2@huggingface.co/o/n"],
    ],
)
def test_secrets_are_not_repeated(capsys: pytest.CaptureFixture[str], arguments: list[str], mode: list[str]) -> None:
    """Whatever is wrong with a token or a URL, the message does not quote it."""
    assert main(["download", *arguments, *mode]) == 2
    streams = capsys.readouterr()
    assert "Error: " in streams.err
    assert "hunter2" not in streams.out + streams.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["org/name", "--lock", "none.json", "--locked"], 3), (["org/name", "--revision", ".."], 2)],
)
def test_the_command_loads_no_torch(tmp_path: Path, arguments: list[str], code: int) -> None:
    """Neither for its help nor for its work."""
    script = (
        "import sys; from llamaconv.cli import main; code = main(sys.argv[1:]);"
        "print('loaded:', {'torch', 'numba', 'transformers'} & set(sys.modules)); sys.exit(code)"
    )
    call = [sys.executable, "-c", script, "download", *arguments]
    done = subprocess.run(
        call, capture_output=True, text=True, check=False, env=environment(HF_HUB_OFFLINE="1"), cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "loaded: set()"
    assert done.returncode == code, done.stderr


def test_the_cache_is_where_it_is_said_to_be(hub: Hub, tmp_path: Path) -> None:
    """--cache-dir goes before LLAMACONV_CACHE_DIR, that before the platform's; each revision has a folder."""
    online = environment(HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="0", XDG_CACHE_HOME=str(tmp_path / "platform"))
    online.pop("LLAMACONV_CACHE_DIR", None)
    named = {**online, "LLAMACONV_CACHE_DIR": str(tmp_path / "named")}
    for cache, env, arguments in (
        (tmp_path / "platform" / "llamaconv", online, ["org/tiny"]),
        (tmp_path / "named", named, ["org/tiny@v1"]),
        (tmp_path / "given", named, ["org/tiny", "--revision", "v1", "--cache-dir", str(tmp_path / "given")]),
    ):
        done = run("download", *arguments, "config.json", "--json", env=env)
        assert done.returncode == 0, done.stderr
        directory = Path(json.loads(done.stdout)["directory"])
        assert directory == cache / f"org--tiny@{'main' if arguments == ['org/tiny'] else 'v1'}"
        assert (directory / "config.json").read_bytes() == (MODEL / "config.json").read_bytes()


def test_a_dry_run_writes_nothing(hub: Hub, tmp_path: Path) -> None:
    """It prints what a run would fetch, for people or as an object."""
    arguments = ["org/tiny", "--dry-run", "--local-dir", str(tmp_path / "there"), "--endpoint", hub.endpoint]
    for mode in ([], ["--json"]):
        done = run("download", *arguments, *mode, env=environment(HF_HUB_OFFLINE="0"))
        assert (done.returncode, done.stderr) == (0, "")
        assert "model.safetensors" in done.stdout
    planned = json.loads(done.stdout)
    assert planned["missing_bytes"] == sum(file["size"] for file in planned["files"])
    assert {file["state"] for file in planned["files"]} == {"missing"}
    assert os.listdir(tmp_path) == []


class SilentHub(Hub):
    """Has files, and never sends one."""

    asked, over = Event(), Event()

    def answer(self, request: Request) -> Answer:
        if "/resolve/" in request.path:
            self.asked.set()
            self.over.wait(30)
        return super().answer(request)


def test_an_interrupted_download_says_how_it_goes_on(tmp_path: Path) -> None:
    """At once, although connections are waiting."""
    with SilentHub([Repository.of_directory("org/tiny", MODEL)]) as hub:
        arguments = ["download", "org/tiny", "--local-dir", tmp_path / "there", "--endpoint", hub.endpoint, "-q"]
        with subprocess.Popen(
            command_line(*arguments), stderr=subprocess.PIPE, text=True, env=environment(HF_HUB_OFFLINE="0")
        ) as process:
            assert hub.asked.wait(30)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        hub.over.set()
    assert process.returncode == 130, errors
    assert errors == "Interrupted; what was fetched stays; the same command goes on from there.\n"
