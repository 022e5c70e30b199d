from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamaconv.errors import DiskFullError, OutputError, OutputExistsError, OutputLockedError, UsageError
from llamaconv.sinks.publish import Publication, require_apart
from tests.sinks.processes import run_mounted


def tree(root: Path) -> dict[str, str]:
    """Every file below ``root`` with its text; folders end in a slash, links show where they lead."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name + "/"] = ""
        else:
            found[name] = path.read_text()
    return found


def publish(out: Path, text: str = "new", overwrite: bool = False) -> None:
    """Publish a folder of two files and a manifest."""
    with Publication(out, overwrite, bytes_needed=0) as publication:
        (publication.directory / "weights").write_text(text)
        (publication.directory / "sub").mkdir()
        (publication.directory / "sub" / "config").write_text(text)
        publication.commit({"made": text})


def published(text: str) -> dict[str, str]:
    return {
        "llamaconv.json": json.dumps({"made": text}, indent=2) + "\n",
        "sub/": "",
        "sub/config": text,
        "weights": text,
    }


def refused(out: Path, kind: type[OutputError], overwrite: bool = False, bytes_needed: int = 0) -> OutputError:
    """The error of entering, which must leave everything around OUT as it was."""
    around = tree(out.parent) if out.parent.is_dir() else None
    with pytest.raises(kind) as caught, Publication(out, overwrite, bytes_needed):
        pytest.fail("entered")
    assert (tree(out.parent) if out.parent.is_dir() else None) == around
    assert type(caught.value) is kind
    assert caught.value.exit_code == 7
    return caught.value


@pytest.fixture
def in_folder(tmp_path: Path) -> Iterator[Path]:
    """An empty current directory."""
    before = Path.cwd()
    (tmp_path / "here").mkdir()
    os.chdir(tmp_path / "here")
    yield tmp_path / "here"
    os.chdir(before)


def test_an_output_appears_at_commit_and_not_before(tmp_path: Path) -> None:
    """Until commit everything is in OUT.partial; afterwards OUT holds it, and nothing else is left."""
    out = tmp_path / "out"
    with Publication(out, False, bytes_needed=1) as publication:
        assert publication.directory == tmp_path / "out.partial"
        (publication.directory / "weights").write_text("w")
        assert not out.exists()
        publication.commit({"b": 1, "a": 2})
        assert tree(out) == {"llamaconv.json": '{\n  "b": 1,\n  "a": 2\n}\n', "weights": "w"}
        with pytest.raises(ValueError, match="nothing to commit: the publication is not open"):
            publication.commit({})
    assert os.listdir(tmp_path) == ["out"]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    """The folders above OUT come into being with it."""
    publish(tmp_path / "a" / "b" / "out")
    assert tree(tmp_path / "a" / "b" / "out") == published("new")


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    """OUT may exist if it holds nothing."""
    (tmp_path / "out").mkdir()
    publish(tmp_path / "out")
    assert tree(tmp_path / "out") == published("new")


@pytest.mark.parametrize("ours", [True, False])
def test_overwrite_replaces_and_leaves_nothing(tmp_path: Path, ours: bool) -> None:
    """The old directory, made by us or not, is gone with all that was in it; its links' targets are not."""
    (tmp_path / "precious").write_text("mine")
    out = tmp_path / "out"
    if ours:
        publish(out, "old")
    else:
        (out / "deep").mkdir(parents=True)
        (out / "deep" / "link").symlink_to(tmp_path / "precious")
    assert refused(out, OutputExistsError).message == f"{out} exists and is not empty."
    publish(out, "new", overwrite=True)
    assert tree(out) == published("new")
    assert sorted(os.listdir(tmp_path)) == ["out", "precious"]


def test_leaving_with_nothing_written_leaves_no_trace(tmp_path: Path) -> None:
    """Without a commit and without a file, the working folder and the parents it needed are removed."""
    with Publication(tmp_path / "a" / "out", False, 0):
        pass
    with pytest.raises(KeyboardInterrupt), Publication(tmp_path / "a" / "out", False, 0):
        raise KeyboardInterrupt
    assert tree(tmp_path) == {}


def test_leaving_with_something_written_keeps_it_unpublished(tmp_path: Path) -> None:
    """An exception publishes nothing, keeps what was written, and gives up the lock."""
    out = tmp_path / "out"

    def fail() -> None:
        with Publication(out, False, 0) as publication:
            (publication.directory / "shard").write_text("final")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not out.exists()
    assert (tmp_path / "out.partial" / "shard").read_text() == "final"


def test_a_stale_working_folder_is_cleared_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What an unfinished run left does not get into the next one's output."""
    out = tmp_path / "out"
    with Publication(out, False, 0) as publication:
        (publication.directory / "stale").write_text("half")
    publish(out)
    assert tree(tmp_path / "out") == published("new")
    assert caplog.messages == [f"{tmp_path / 'out.partial'}: cleared what an unfinished run had left there"]


def test_a_live_run_is_left_alone(tmp_path: Path) -> None:
    """While one run writes, another to the same OUT is refused and changes nothing."""
    out = tmp_path / "out"
    with Publication(out, False, 0) as publication:
        (publication.directory / "shard").write_text("half")
        message = refused(out, OutputLockedError).message
        assert message == f"{tmp_path / 'out.partial'} is being written by another process ({os.getpid()})."
        publication.commit({})
    assert tree(out) == {"llamaconv.json": "{}\n", "shard": "half"}


def test_what_is_not_ours_beside_out_is_not_cleared(tmp_path: Path) -> None:
    """A folder that happens to be called OUT.partial is refused, not emptied."""
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "precious").write_text("mine")
    message = refused(tmp_path / "out", OutputExistsError).message
    assert message == f"{tmp_path / 'out.partial'} is in the way: no unfinished run left it."


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_or_a_link_in_outs_place_is_refused(tmp_path: Path, overwrite: bool) -> None:
    """--overwrite replaces directories only; through a link it would delete what lies elsewhere."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("mine")
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert refused(tmp_path / "file", OutputExistsError, overwrite).message == f"{tmp_path / 'file'} is a file."
    for name, target in [("link", "elsewhere"), ("dangling", "nowhere")]:
        error = refused(tmp_path / name, OutputExistsError, overwrite)
        assert error.message == f"{tmp_path / name} is a symbolic link to {target}."
        assert error.hint == "Name the directory itself, or remove the link."


def test_a_link_above_out_is_resolved(tmp_path: Path) -> None:
    """A folder reached through a link is as good as any; the link stays."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    publish(tmp_path / "link" / "out", "old")
    publish(tmp_path / "link" / ".." / "link" / "out", "new", overwrite=True)
    assert tree(tmp_path / "real" / "out") == published("new")
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_the_current_and_the_home_directory_are_not_replaced(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip of the hand with --overwrite must not take a whole home with it."""
    (in_folder / "precious").write_text("mine")
    monkeypatch.setenv("HOME", str(in_folder.parent / "home" / "user"))
    (in_folder.parent / "home" / "user").mkdir(parents=True)
    home = in_folder.parent / "home"
    for out in (Path("."), Path(".."), Path("/"), home, home / "user" / ".."):
        with pytest.raises(OutputExistsError, match=r" holds the current or the home directory and is not "):
            Publication(out, True, 0).__enter__()
    assert tree(in_folder) == {"precious": "mine"}


def test_too_little_space_is_told_with_both_numbers(tmp_path: Path) -> None:
    """Before anything is written, the free space is compared with what is needed."""
    out = tmp_path / "a" / "out"
    error = refused(out, DiskFullError, bytes_needed=2**62)
    free = error.facts["free"]
    assert error.message == f"{out}: the output takes {2**62} bytes, but only {free} are free there."

    assert error.facts["needed"] == 2**62
    assert tree(tmp_path) == {}


def test_a_place_that_cannot_be_written_is_told_at_once() -> None:
    """Missing permission and a file among the parents are errors of the output, and leave nothing behind."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name).resolve()
        base.chmod(0o755)
        (base / "file").touch()
        error = refused(base / "file" / "a" / "out", OutputError)
        assert error.message == f"{base / 'file' / 'a' / 'out'}: Not a directory."
        (base / "closed").mkdir(mode=0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may write anywhere
            error = refused(base / "closed" / "out", OutputError)
        finally:
            os.seteuid(user)
        assert error.message == f"{base / 'closed' / 'out'}: Permission denied."
        assert tree(base) == {"closed/": "", "file": ""}


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """Who publishes first wins; the loser's result stays in its working folder."""
    out = tmp_path / "out"
    with Publication(out, False, 0) as publication:
        out.mkdir()
        (out / "precious").write_text("mine")
        with pytest.raises(OutputExistsError, match="exists and is not empty"):
            publication.commit({})
    assert tree(out) == {"precious": "mine"}
    assert (tmp_path / "out.partial" / "llamaconv.json").exists()


def test_a_leftover_of_replacing_stops_the_next_run_early(tmp_path: Path) -> None:
    """Where directories cannot be exchanged, a kill may leave the old one aside: that is never deleted."""
    out, aside = tmp_path / "out", tmp_path / "out.replaced"
    publish(out, "old")
    aside.mkdir()
    error = refused(out, OutputExistsError, overwrite=True)
    assert error.message == f"{out} was being replaced when a run was killed; {aside} is what it held."


def test_the_current_directory_is_filled_in_place(in_folder: Path) -> None:
    """An empty current directory becomes the output without being renamed away under the shell."""
    inode = in_folder.stat().st_ino
    with Publication(Path("."), False, 0) as publication:
        assert publication.directory == in_folder / ".partial"
        (publication.directory / "weights").write_text("w")
        assert os.listdir(in_folder) == [".partial"]
        publication.commit({})
    assert tree(in_folder) == {"llamaconv.json": "{}\n", "weights": "w"}
    assert in_folder.stat().st_ino == inode


MOUNTED = """
import os, sys
from pathlib import Path
from llamaconv.errors import LlamaconvError
from llamaconv.sinks.publish import Publication

out = Path(sys.argv[1])
(out / "lost+found").mkdir()
for text, overwrite in [("old", False), ("none", False), ("new", True)]:
    try:
        with Publication(out, overwrite, 1) as publication:
            assert publication.directory == out / ".partial"
            (publication.directory / "sub").mkdir()
            (publication.directory / "sub" / "w").write_text(text)
            if text == "old":
                (publication.directory / "only-old").touch()
            publication.commit({"made": text})
    except LlamaconvError as error:
        print(error)
print(sorted(os.listdir(out)), (out / "sub" / "w").read_text())
try:
    Publication(out, True, 1 << 20).__enter__()
except LlamaconvError as error:
    print(type(error).__name__, error.facts["needed"], error.facts["free"] < 1 << 20)
try:
    with Publication(out, True, 1) as publication:
        with publication.directory.joinpath("big").open("wb") as file:
            file.write(bytes(1 << 20))
        publication.commit({})
except OSError as error:
    print(error.strerror)
print(sorted(os.listdir(out)), (out / "sub" / "w").read_text())
"""


def test_a_mount_point_is_filled_in_place(tmp_path: Path) -> None:
    """On a volume of its own OUT stays where it is, lost+found is nobody's, a full disk leaves the old one."""
    (tmp_path / "out").mkdir()
    done = run_mounted('mount -t tmpfs -o size=256k none "$1"', MOUNTED, tmp_path / "out")
    assert done.stdout.splitlines() == [
        f"{tmp_path / 'out'} exists and is not empty.",
        "['llamaconv.json', 'lost+found', 'sub'] new",
        "DiskFullError 1048576 True",
        "No space left on device",
        "['.partial', 'llamaconv.json', 'lost+found', 'sub'] new",
    ], done.stderr


FULL = """
import sys
from pathlib import Path
import torch
from llamaconv.errors import DiskFullError
from llamaconv.tensors import TensorSpec
from tests.sinks.files import SafetensorsWriter

try:
    SafetensorsWriter(Path(sys.argv[1]) / "x", [TensorSpec("a", (3, 100000), torch.float32)])
except DiskFullError as error:
    print(error)
print(list(Path(sys.argv[1]).iterdir()))
"""


def test_a_disk_that_fills_up_shows_before_the_first_tensor(tmp_path: Path) -> None:
    """Reserving the file's size is what fails, and the stump is removed."""
    done = run_mounted('mount -t tmpfs -o size=256k none "$1"', FULL, tmp_path)
    assert done.stdout.splitlines() == [f"{tmp_path / 'x'}: No space left on device.", "[]"], done.stderr


@pytest.mark.parametrize(
    ("source", "out", "relation"),
    [
        ("model", "model", "are the same"),
        ("model", "model/../model/.", "are the same"),
        ("link", "model", "are the same"),
        ("model", "link", "are the same"),
        ("model", "model/q4", "must lie apart, but the output is inside the source"),
        ("model", "link/q4/deep", "must lie apart, but the output is inside the source"),
        ("model/sub", "model", "must lie apart, but the source is inside the output"),
        ("model/weights", "model", "must lie apart, but the source is inside the output"),
        ("out.partial", "out", "must lie apart, but the output is prepared in {tmp}/out.partial"),
        ("out.partial/weights", "out", "must lie apart, but the output is prepared in {tmp}/out.partial"),
    ],
)
def test_source_and_output_must_lie_apart(tmp_path: Path, source: str, out: str, relation: str) -> None:
    """By any of their names, neither may contain the other, nor the source the working folder."""
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "weights").touch()
    (tmp_path / "link").symlink_to("model")
    with pytest.raises(UsageError) as caught:
        require_apart(tmp_path / source, tmp_path / out)
    assert caught.value.exit_code == 2
    assert caught.value.message == (
        f"The source {tmp_path / source} and the output {tmp_path / out} {relation.format(tmp=tmp_path)}."
    )


@pytest.mark.parametrize(("source", "out"), [("model", "model-q4"), ("model/weights", "model/q4"), ("a/b", "a/c")])
def test_neighbours_lie_apart(tmp_path: Path, source: str, out: str) -> None:
    """A common beginning of two names, or a common folder, is no containment."""
    require_apart(tmp_path / source, tmp_path / out)
