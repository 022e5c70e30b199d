from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llamaconv.hub.folder import Standing
from tests.hub.test_folder import finish, opened, remote, tree


def test_threads_finish_files_of_one_folder_at_once(tmp_path: Path) -> None:
    """The folder of parts that one leaves empty is not taken from under another's feet."""
    names = [f"sub/deep/{number}" for number in range(200)]
    with opened(tmp_path) as folder, ThreadPoolExecutor(8) as workers:
        for _ in workers.map(lambda name: finish(folder, remote(name, name.encode()), name.encode()), names):
            pass
        assert {folder.standing(remote(name, name.encode())) for name in names} == {Standing.DONE}
    assert tree(tmp_path / "sub") == sorted(name.removeprefix("sub/") for name in names)
    assert not (tmp_path / ".cache" / "llamaconv" / "parts").exists()
