from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import ConfigError, OutputError
from llamaconv.hub.lockfile import Lock, differences, read_lock, require_free_of, require_place, write_lock
from llamaconv.hub.names import faults
from llamaconv.hub.repository import Digest, Listing, RemoteFile
from tests.hub.listings import listing_of, remote_file

HINT = "Write it anew with --lock, without --locked."

HEX = st.sampled_from("0123456789abcdef")
DIGESTS = st.one_of(
    st.builds(Digest, st.just("sha256"), st.text(HEX, min_size=64, max_size=64)),
    st.builds(Digest, st.just("git-sha1"), st.text(HEX, min_size=40, max_size=40)),
)
FILES = st.dictionaries(
    st.text(min_size=1, max_size=5) | st.sampled_from(["a/b.json", "é.bin"]),
    st.tuples(st.integers(0, 2**50), DIGESTS),
    max_size=4,
).filter(lambda files: not faults(files))


@given(FILES, st.text(HEX, min_size=40, max_size=40), st.sampled_from(["main", "refs/pr/1", "é"]))
def test_a_lock_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, tuple[int, Digest]], commit: str, revision: str
) -> None:
    """Any files of any size and hash come back, and nothing else lies beside the lock."""
    path = tmp_path_factory.mktemp("locks") / "model.lock"
    files = tuple(RemoteFile(name, size, digest) for name, (size, digest) in sorted(drawn.items()))
    lock = Lock(revision, Listing("org/name", commit, files))
    write_lock(path, lock)
    assert read_lock(path) == lock
    assert [entry.name for entry in path.parent.iterdir()] == ["model.lock"]


def test_literal_text_of_a_lock(tmp_path: Path) -> None:
    """The file is JSON with sorted keys, to be read and compared by people."""
    write_lock(tmp_path / "lock", Lock("main", listing_of(["model.safetensors", "config.json"])))
    assert (
        (tmp_path / "lock").read_text()
        == f"""{{
  "commit": "{"c" * 40}",
  "files": {{
    "config.json": {{
      "git-sha1": "{remote_file("config.json").digest.hexdigest}",
      "size": 11
    }},
    "model.safetensors": {{
      "sha256": "{remote_file("model.safetensors").digest.hexdigest}",
      "size": 17
    }}
  }},
  "repository": "org/name",
  "revision": "main",
  "version": 1
}}
"""
    )


def test_a_lock_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """A folder in the way or none to write to is named, and nothing unfinished stays."""
    lock = Lock("main", listing_of(["config.json"]))
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError) as caught:
        write_lock(tmp_path / "taken", lock)
    assert caught.value.message == f"{tmp_path / 'taken'}: Is a directory."
    with pytest.raises(OutputError) as caught:
        write_lock(tmp_path / "no" / "lock", lock)
    assert caught.value.message == f"{tmp_path / 'no' / 'lock'}: No such file or directory."
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert not list((tmp_path / "taken").iterdir())


def written(path: Path, **changes: Any) -> Path:
    write_lock(path, Lock("main", listing_of(["config.json"])))
    contents = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in contents.items() if value is not None}))
    return path


SHA256 = {"sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"version": 2}, "version is 2: input should be 1."),
        ({"commit": None}, "commit is missing."),
        ({"commit": "C" * 40}, f"commit is \"{'C' * 40}\": string should match pattern '\\A[0-9a-f]{{40}}\\z'."),
        ({"token": "x"}, 'token is "x": extra inputs are not permitted.'),
        ({"repository": "a--b"}, "'a--b' cannot be the name of a repository."),
        ({"revision": "a b"}, "'a b' cannot be a revision."),
        ({"files": {"x": {"size": -1, **SHA256}}}, "files.x.size is -1: input should be greater than or equal to 0."),
        ({"files": {"x": {"size": True, **SHA256}}}, "files.x.size is true: input should be a valid integer."),
        ({"files": {"x": {"size": 1.0, **SHA256}}}, "files.x.size is 1.0: input should be a valid integer."),
        (
            {"files": {"x": {"size": 1, "sha256": "0" * 40}}},
            f"files.x.sha256 is \"{'0' * 40}\": string should match pattern '\\A[0-9a-f]{{64}}\\z'.",
        ),
        (
            {"files": {"x": {"size": 1}}},
            'files.x is {"size": 1}: value error, one of sha256 and git-sha1 must be there.',
        ),
        (
            {"files": {"x": {"size": 1, "git-sha1": "0" * 40, "sha256": "0" * 64}}},
            'files.x is {"size": 1, "git-sha1": "0000000000000000000000000000000000000000", "sha256": "…: '
            "value error, one of sha256 and git-sha1 must be there.",
        ),
        ({"files": {"../x": {"size": 1, **SHA256}}}, "the file name \"../x\" has '..' in it."),
    ],
)
def test_what_is_no_lock_is_refused(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    """Keys missing, unknown or impossible, and names that may not be used on disk, are named."""
    path = written(tmp_path / "lock", **changes)
    with pytest.raises(ConfigError) as caught:
        read_lock(path)
    assert (caught.value.message, caught.value.hint) == (f"{path}: {fault}", HINT)


def test_a_lock_that_is_not_there_or_no_json(tmp_path: Path) -> None:
    """A missing file is said with the way to get one; what is no JSON is an error too."""
    with pytest.raises(ConfigError) as caught:
        read_lock(tmp_path / "lock")
    assert (caught.value.message, caught.value.hint) == (f"{tmp_path / 'lock'} does not exist.", HINT)
    (tmp_path / "lock").write_text("[]")
    with pytest.raises(ConfigError) as caught:
        read_lock(tmp_path / "lock")
    assert caught.value.message == f"{tmp_path / 'lock'}: not a JSON object."


def test_differences_are_a_line_for_each_file() -> None:
    """Files that are gone, new, or of other size or hash have a line; the same listing has none."""
    expected = listing_of(["a.json", "b.json", "c.json"])
    changed = replace(remote_file("b.json"), size=7, digest=Digest("sha256", "f" * 64))
    actual = replace(expected, files=(remote_file("a.json"), changed, remote_file("d.json")))
    assert differences(expected, actual) == [
        f"b.json: 7 bytes with sha256 {'f' * 64} instead of "
        f"6 bytes with git-sha1 {remote_file('b.json').digest.hexdigest}",
        "c.json is missing",
        "d.json is new",
    ]
    assert differences(expected, expected) == []


def refused(path: Path, directory: Path, names: list[str] | None = None) -> tuple[str, str | None]:
    """What keeps a lock from its place: message and hint."""
    with pytest.raises(OutputError) as caught:
        require_place(path, directory) if names is None else require_free_of(path, directory, names)
    assert caught.value.exit_code == 7
    assert caught.value.facts == {"file": str(path)}
    return caught.value.message, caught.value.hint


NO_FOLDER = "Make its folder, or give --lock another place."
ELSEWHERE = "Give --lock another name, or a place outside of the directory."


def test_a_place_for_a_lock(tmp_path: Path) -> None:
    """Any folder that is there or that the download makes; a file that is there will be replaced. Nothing is made."""
    (tmp_path / "old.lock").touch()
    for name in ("model.lock", "old.lock", "new/m/model.lock", "new/m/sub/model.lock", "new/model.lock"):
        require_place(tmp_path / name, tmp_path / "new" / "m")
    assert os.listdir(tmp_path) == ["old.lock"]


def test_a_lock_that_could_not_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    """A folder that is missing, a file in its place, and something else under the name, each with what to do."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, fault, hint in [
        (tmp_path / "none" / "model.lock", "No such file or directory.", NO_FOLDER),
        (tmp_path / "file" / "model.lock", "Not a directory.", "Give --lock a place that can be written."),
        (tmp_path, "not a regular file.", "Give --lock the name of a file."),
        (tmp_path / "pipe", "not a regular file.", "Give --lock the name of a file."),
    ]:
        assert refused(path, tmp_path / "m") == (f"{path}: {fault}", hint)


def test_a_folder_that_may_not_be_written_takes_no_lock() -> None:
    """Whoever may not write there is told so."""
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    if shutil.which(nobody[0]) is None or subprocess.run([*nobody, "true"], check=False).returncode:
        pytest.skip("another user's place cannot be taken here")
    code = (
        "import sys; from pathlib import Path; from llamaconv.hub.lockfile import require_place\n"
        "try: require_place(Path('/model.lock'), Path('/m'))\n"
        "except Exception as error: print(error.message, error.hint)"
    )
    done = subprocess.run([*nobody, sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout == "/model.lock: Permission denied. Give --lock a place that can be written.\n", done.stderr


NAMES = ["config.json", "onnx/model.onnx"]


@pytest.mark.parametrize(
    ("name", "fault", "hint"),
    [
        ("m/config.json", "is one of the files that are downloaded.", ELSEWHERE),
        ("m/onnx/../config.json", "is one of the files that are downloaded.", ELSEWHERE),
        ("link/config.json", "is one of the files that are downloaded.", ELSEWHERE),
        ("m/onnx/model.onnx", "is one of the files that are downloaded.", ELSEWHERE),
        ("m/onnx", "is a folder of what is downloaded.", ELSEWHERE),
        ("m", "is a folder of what is downloaded.", ELSEWHERE),
        ("m/config.json/lock", "lies below a file that is downloaded.", ELSEWHERE),
        ("m/.cache/llamaconv/listing.json", "lies among the download's own records.", ELSEWHERE),
        ("m/.cache/llamaconv", "lies among the download's own records.", ELSEWHERE),
        ("m/sub/lock", "No such file or directory.", NO_FOLDER),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_lock_must_not_lie_where_the_download_does(
    tmp_path: Path, name: str, fault: str, hint: str, there: bool
) -> None:
    """Neither over one of its files, whatever the way there, nor in its way, nor among its records."""
    directory = tmp_path / "m"
    (tmp_path / "link").symlink_to(directory)
    if there:
        (directory / "onnx").mkdir(parents=True)
    path = Path(f"{tmp_path}/{name}")
    colon = ":" if hint is NO_FOLDER else ""
    assert refused(path, directory, NAMES) == (f"{path}{colon} {fault}", hint)


def test_a_lock_may_lie_beside_the_files(tmp_path: Path) -> None:
    """Under names that the download does not bring, in folders that there are or that it makes."""
    directory = tmp_path / "m"
    (directory / "mine").mkdir(parents=True)
    for name in ("m/model.lock", "m/onnx/model.lock", "m/mine/model.lock", "m/.cache/lock", "config.json", "m.lock"):
        require_free_of(tmp_path / name, directory, [*NAMES, ".cache/huggingface"])
    (tmp_path / "m" / "alias").symlink_to(tmp_path)
    require_free_of(directory / "alias" / "config.json", directory, NAMES)
