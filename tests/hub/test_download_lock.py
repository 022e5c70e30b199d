from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.errors import HubError, IntegrityError, LlamaconvError, NetworkError, UsageError
from llamaconv.hub.result import DownloadResult
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, contents, fetches, impatient, repository, run
from tests.hub.misbehaving import Fault, Kind, Listed, MisbehavingHub

WEIGHTS = "model.safetensors"
MANY = {**FILES, "README.md": b"# m\n", "onnx/model.onnx": b"another format"}
"""A repository of which a download leaves something out."""


def newer() -> Repository:
    """Another commit with other weights of the same size, without a tokenizer, with one file more."""
    files = {**FILES, WEIGHTS: FILES[WEIGHTS][::-1], "generation_config.json": b"{}"}
    del files["tokenizer.json"]
    return Repository("org/m", files)


def pretended(files: dict[str, bytes]) -> Repository:
    """Other files behind the commit that ``repository()`` has."""
    other = Repository("org/m", files)
    other.commit = repository().commit
    return other


def locked(hub: Hub, directory: Path, lock: Path, **settings: Any) -> DownloadResult:
    """What the lock file records, downloaded."""
    return download("org/m", directory, impatient(hub, lock=lock, locked=True, **settings))


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """The lock file of a download of ``repository()``."""
    path = tmp_path / "lock.json"
    with Hub([repository()]) as hub:
        download("org/m", tmp_path / "first", impatient(hub, lock=path))
    return path


def test_the_lock_file_records_commit_sizes_and_hashes(tmp_path: Path) -> None:
    """Of the files that were chosen, byte for byte what ``json.dumps`` makes of it; the result names the file."""
    path, commit = tmp_path / "lock.json", Repository("org/m", MANY, revisions=("main", "v1"))
    with Hub([commit]) as hub:
        result = download("org/m", tmp_path / "there", impatient(hub, lock=path, revision="v1"))
    blob = {name: b"blob %d\0" % len(data) + data for name, data in FILES.items()}
    files = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if name == WEIGHTS
        else {"size": len(data), "git-sha1": hashlib.sha1(blob[name]).hexdigest()}
        for name, data in FILES.items()
    }
    recorded = {"version": 1, "repository": "org/m", "revision": "v1", "commit": commit.commit, "files": files}
    assert path.read_text() == json.dumps(recorded, indent=2, sort_keys=True) + "\n"
    assert result.lock == path


def test_a_lock_file_reproduces_its_commit_when_there_is_a_newer_one(tmp_path: Path, lock: Path) -> None:
    """The same bytes as then, under the same names; the lock file stays as it is. Without it, the newer ones."""
    before = lock.read_bytes(), lock.stat().st_mtime_ns
    with Hub([repository()]) as hub:
        hub.push(newer())
        result = locked(hub, tmp_path / "second", lock)
        free = download("org/m", tmp_path / "third", impatient(hub))
    assert (result.commit, result.revision, result.lock) == (repository().commit, "main", None)
    assert contents(tmp_path / "second") == FILES
    assert (lock.read_bytes(), lock.stat().st_mtime_ns) == before
    assert free.commit == newer().commit


def test_a_lock_file_does_not_mind_what_was_never_chosen(tmp_path: Path) -> None:
    """A selection was recorded: the repository's other files are none of its business."""
    path = tmp_path / "lock.json"
    with Hub([Repository("org/m", MANY)]) as hub:
        download("org/m", tmp_path / "first", impatient(hub, lock=path))
        locked(hub, tmp_path / "second", path)
    assert contents(tmp_path / "second") == FILES
    with pytest.raises(NetworkError, match=r"README\.md is missing"):  # it is known that there is one
        download("org/m", tmp_path / "second", impatient("http://hub.invalid", files=("README.md",), offline=True))


def test_a_directory_with_another_commit_is_brought_back(tmp_path: Path, lock: Path) -> None:
    """Only what differs is fetched; an earlier download's files that the commit does not have go, others stay."""
    with Hub([repository(), newer()]) as hub:
        download("org/m", tmp_path / "there", impatient(hub))
        (tmp_path / "there" / "notes.json").write_bytes(b"[]")
        hub.log.clear()
        locked(hub, tmp_path / "there", lock)
        assert fetches(hub) == [(WEIGHTS, None), ("tokenizer.json", None)]
    assert contents(tmp_path / "there") == {**FILES, "notes.json": b"[]"}


@pytest.mark.parametrize(
    ("offered", "token", "error", "message", "hint"),
    [
        (
            pretended({**FILES, WEIGHTS: b"other", "config.json": b"{}"}),
            None,
            IntegrityError,
            "{lock}: not what org/m has at {commit}:\n"
            "config.json: 2 bytes with git-sha1 {offered[config.json].oid} instead of "
            "{there[config.json].size} bytes with git-sha1 {there[config.json].oid}\n"
            "model.safetensors: 5 bytes with sha256 {offered[model.safetensors].sha256} instead of "
            "{there[model.safetensors].size} bytes with sha256 {there[model.safetensors].sha256}",
            "One of them was changed. Without --locked the lock file is written anew.",
        ),
        (
            pretended({WEIGHTS: FILES[WEIGHTS], "config.json": FILES["config.json"]}),
            None,
            IntegrityError,
            "{lock}: not what org/m has at {commit}:\ntokenizer.json is missing",
            "One of them was changed. Without --locked the lock file is written anew.",
        ),
        (
            newer(),
            None,
            IntegrityError,
            "The lock file cannot be reproduced: org/m has no revision {commit}. It says: “Invalid rev id: {commit}”",
            "The repository was changed or removed; another --endpoint may still have this commit.",
        ),
        (
            Repository("org/other", FILES),
            "hf_x",
            IntegrityError,
            "The lock file cannot be reproduced: {host} has no repository org/m, or it is private. "
            "It says: “Repository not found”",
            "The repository was changed or removed; another --endpoint may still have this commit.",
        ),
        (
            Repository("org/other", FILES),
            None,
            HubError,
            "{host} has no repository org/m, or it is private.",
            "Check the name; a private one needs a token, in HF_TOKEN or --token.",
        ),
    ],
    ids=["other hashes", "a file gone", "the commit gone", "the repository gone", "perhaps private"],
)
def test_what_cannot_be_reproduced_is_refused(
    tmp_path: Path,
    lock: Path,
    offered: Repository,
    token: str | None,
    error: type[LlamaconvError],
    message: str,
    hint: str,
) -> None:
    """Before a byte of a file is asked for, naming all that differs; the directory is not even made."""
    there = tmp_path / "second"
    with Hub([offered]) as hub, pytest.raises(error) as caught:
        locked(hub, there, lock, token=token or "")
    host = hub.endpoint.removeprefix("http://")
    facts = {"lock": lock, "commit": repository().commit, "host": host, "offered": offered.files}
    assert type(caught.value) is error
    assert caught.value.message == message.format(**facts, there=repository().files)
    assert caught.value.hint == hint
    assert fetches(hub) == []
    assert not there.exists()


def test_a_file_gone_from_the_commit_it_is_listed_in_is_a_broken_promise(tmp_path: Path, lock: Path) -> None:
    """The listing is right, the file is answered with 404."""

    class Forgetful(Hub):
        def answer(self, request: Any) -> Any:
            if request.path.endswith("/tokenizer.json"):
                return super().answer(replace(request, path=request.path + ".gone"))
            return super().answer(request)

    with Forgetful([repository()]) as hub, pytest.raises(IntegrityError) as caught:
        locked(hub, tmp_path / "second", lock)
    assert caught.value.message == (
        f"The lock file cannot be reproduced: org/m has no file tokenizer.json at revision {repository().commit}. "
        "It says: “Entry not found”"
    )
    assert "tokenizer.json" not in contents(tmp_path / "second")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "org/m",
            {"files": ("config.json",)},
            "A lock file says which files are downloaded: none can be chosen beside it.",
        ),
        ("org/m", {"include": ("*",)}, "A lock file says which files are downloaded: none can be chosen beside it."),
        ("org/m", {"exclude": ("x",)}, "A lock file says which files are downloaded: none can be chosen beside it."),
        ("org/n", {}, "{lock} is of org/m, not of org/n."),
        ("org/m", {"revision": "v2"}, "{lock} is of revision main ({commit}), not of v2."),
        ("org/m", {"lock": None}, "What is to be reproduced? `locked` needs the name of a lock file."),
    ],
)
@pytest.mark.parametrize("offline", [False, True])
def test_what_a_lock_file_contradicts_is_a_usage_error(
    tmp_path: Path, lock: Path, name: str, settings: dict[str, Any], message: str, offline: bool
) -> None:
    """Files or patterns, another repository, another revision; the Hub is not asked."""
    with Hub([repository()]) as hub, pytest.raises(UsageError) as caught:
        download(name, tmp_path / "x", impatient(hub, **{"lock": lock, "locked": True, "offline": offline, **settings}))
    assert caught.value.message == message.format(lock=lock, commit=repository().commit)
    assert hub.log == []
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("revision", ["main", repository().commit])
def test_a_lock_files_own_revision_may_be_repeated(tmp_path: Path, lock: Path, revision: str) -> None:
    """By the name that was asked for then, which the result has, or by the commit."""
    with Hub([repository()]) as hub:
        result = locked(hub, tmp_path / "second", lock, revision=revision)
    assert (result.revision, result.commit) == ("main", repository().commit)
    assert contents(tmp_path / "second") == FILES


def test_a_download_that_fails_leaves_the_lock_file_alone(tmp_path: Path, lock: Path) -> None:
    """It records what is there, not what was meant to be."""
    before = lock.read_bytes()
    with MisbehavingHub([newer()], Listed({WEIGHTS: [Fault(Kind.RESET, after=10)]})) as hub:
        with pytest.raises(NetworkError):
            download("org/m", tmp_path / "first", impatient(hub, lock=lock, retries=0))
        assert lock.read_bytes() == before
        download("org/m", tmp_path / "first", impatient(hub, lock=lock))
    assert json.loads(lock.read_text())["commit"] == newer().commit


def test_the_command_ends_with_6(tmp_path: Path, lock: Path) -> None:
    """Where the Hub has other bytes now; with 0 where it has the same."""
    arguments = ("org/m", "--local-dir", tmp_path / "x", "--lock", lock, "--locked", "-q")
    with Hub([pretended({**FILES, "config.json": b"{}"})]) as changed, Hub([repository()]) as same:
        broken, kept = (run(tmp_path, *arguments, "--endpoint", hub.endpoint) for hub in (changed, same))
    assert broken.returncode == 6
    assert broken.stderr.splitlines()[0] == f"Error: {lock}: not what org/m has at {repository().commit}:"
    assert (kept.returncode, kept.stderr) == (0, "")
    assert contents(tmp_path / "x") == FILES
