from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from llamaconv.demo.hub import DroppingHub, Hub
from llamaconv.demo.repository import Repository
from tests.hub.fetching import fetch, plain

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "a folder/notes & more.txt": b"notes\n",
    "model.safetensors": bytes(range(251)) * 4000,
    "empty.txt": b"",
}
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | {
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

ASK = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
endpoint, folder, token, script = sys.argv[1:]
api = HfApi(endpoint=endpoint, token=token or False)
common = dict(endpoint=endpoint, local_dir=folder, token=token or False)
try:
    result = eval(script)
except Exception as error:
    result = type(error).__name__
print(json.dumps(result))
"""


def ask(hub: Hub, folder: Path, script: str, token: str = "") -> Any:
    """The value of an expression in huggingface_hub's terms, or the name of the exception."""
    command = [sys.executable, "-c", ASK, hub.endpoint, str(folder / "out"), token, script]
    environment = {**ENVIRONMENT, "HF_HOME": str(folder / "home")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and ".cache" not in file.parts
    }


def test_huggingface_hub_gets_every_file(tmp_path: Path) -> None:
    """snapshot_download delivers the bytes, over the storage for the large file and with pages of two entries."""
    with Hub([Repository("org/m", FILES)], page_size=2) as hub:
        assert ask(hub, tmp_path, "snapshot_download('org/m', **common)") == str(tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert [request.query for request in hub.log if "/tree/" in request.path] == [
        "recursive=true&expand=false",
        "recursive=true&expand=false&cursor=2",
        "recursive=true&expand=false&cursor=4",
    ]
    stored = [request for request in hub.log if request.server == "storage"]
    assert [(request.status, request.sent) for request in stored] == [(200, len(FILES["model.safetensors"]))]


def test_huggingface_hub_reads_sizes_and_hashes(tmp_path: Path) -> None:
    """The listing has the git blob's name of a small file, the SHA-256 of a large one, and directories."""
    repository = Repository("org/m", FILES)
    with Hub([repository]) as hub:
        script = (
            "[api.model_info('org/m').sha, [[e.path, getattr(e, 'size', None), getattr(e, 'blob_id', None), "
            "e.lfs.sha256 if getattr(e, 'lfs', None) else None] for e in api.list_repo_tree('org/m', recursive=True)]]"
        )
        commit, entries = ask(hub, tmp_path, script)
    weights = FILES["model.safetensors"]
    sha256 = hashlib.sha256(weights).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(weights)}\n".encode()
    assert commit == repository.commit
    assert entries == [
        ["a folder", None, None, None],
        ["a folder/notes & more.txt", 6, git_blob(b"notes\n", tmp_path), None],
        ["config.json", 23, git_blob(FILES["config.json"], tmp_path), None],
        ["empty.txt", 0, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", None],
        ["model.safetensors", len(weights), git_blob(pointer, tmp_path), sha256],
    ]


def git_blob(data: bytes, folder: Path) -> str:
    """What git itself calls a file with these contents."""
    done = subprocess.run(["git", "hash-object", "--stdin"], input=data, capture_output=True, check=True, cwd=folder)
    return done.stdout.decode().strip()


@pytest.mark.parametrize(
    ("script", "token", "exception"),
    [
        ("api.model_info('org/none')", "", "RepositoryNotFoundError"),
        ("api.model_info('org/none')", "hf_stranger", "RepositoryNotFoundError"),
        ("api.model_info('org/private')", "hf_stranger", "RepositoryNotFoundError"),
        ("api.model_info('org/private').private", "hf_member", True),
        ("api.model_info('org/m', revision='v9')", "", "RevisionNotFoundError"),
        ("hf_hub_download('org/m', 'none.json', **common)", "", "RemoteEntryNotFoundError"),
        ("hf_hub_download('org/gated', 'config.json', **common)", "", "GatedRepoError"),
        ("hf_hub_download('org/gated', 'config.json', **common)", "hf_stranger", "GatedRepoError"),
        ("open(hf_hub_download('org/gated', 'config.json', **common)).read()", "hf_member", '{"model_type": "llama"}'),
    ],
)
def test_huggingface_hub_understands_refusals(tmp_path: Path, script: str, token: str, exception: object) -> None:
    """What is missing, private or gated raises the exception that the real Hub's answer raises."""
    repositories = [
        Repository("org/m", FILES),
        Repository("org/private", FILES, private=True),
        Repository("org/gated", FILES, gated=True),
    ]
    with Hub(repositories, token="hf_member") as hub:
        assert ask(hub, tmp_path, script, token) == exception


def test_a_newer_commit_takes_the_branch() -> None:
    """After a push main is the new commit, and the old one is still there under its hash."""
    old, new = Repository("org/m", {"a.txt": b"old"}), Repository("org/m", {"a.txt": b"new"})
    with Hub([old]) as hub, plain(base_url=hub.endpoint) as client:
        hub.push(new)
        assert client.get("/api/models/org/m/revision/main").json()["sha"] == new.commit
        assert client.get("/org/m/resolve/main/a.txt").content == b"new"
        assert client.get(f"/org/m/resolve/{old.commit}/a.txt").content == b"old"


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "first", "stop"),
    [
        ("bytes=10-19", 206, "bytes 10-19/1004000", 10, 20),
        ("bytes=1003990-", 206, "bytes 1003990-1003999/1004000", 1003990, 1004000),
        ("bytes=-4", 206, "bytes 1003996-1003999/1004000", 1003996, 1004000),
        ("bytes=5-9999999", 206, "bytes 5-1003999/1004000", 5, 1004000),
        ("bytes=1004000-", 416, "bytes */1004000", 0, 0),
        ("bytes=9-5", 416, "bytes */1004000", 0, 0),
        ("lines=1-2", 200, None, 0, 1004000),
    ],
)
@pytest.mark.parametrize("in_a_file", [False, True])
def test_ranges(
    tmp_path: Path, asked: str, status: int, content_range: str | None, first: int, stop: int, in_a_file: bool
) -> None:
    """A range is answered with 206 and its bytes, one that is not there with 416, another unit with everything."""
    weights = FILES["model.safetensors"]
    (tmp_path / "weights").write_bytes(weights)
    content = tmp_path / "weights" if in_a_file else weights
    with Hub([Repository("org/m", {"model.safetensors": content})]) as hub, plain() as client:
        answer = client.get(f"{hub.endpoint}/org/m/resolve/main/model.safetensors", headers={"Range": asked})
    assert (answer.status_code, answer.headers.get("content-range")) == (status, content_range)
    assert answer.content == weights[first:stop]
    assert (hub.log[-1].status, hub.log[-1].sent) == (status, stop - first)


def test_a_range_of_another_version_is_everything() -> None:
    """If-Range with the ETag of the same server keeps the range, with any other it does not."""
    with Hub([Repository("org/m", FILES)]) as hub, plain(base_url=hub.endpoint) as client:
        for name, tag in (("config.json", None), ("model.safetensors", None), ("model.safetensors", '"other"')):
            path = f"/org/m/resolve/main/{name}"
            headers = {"Range": "bytes=3-", "If-Range": tag or client.head(path).headers["ETag"]}
            answer = client.get(path, headers=headers)
            assert answer.content == (FILES[name][3:] if tag is None else FILES[name])


def test_the_storage_wants_a_signature() -> None:
    """Without the query of the redirect it refuses."""
    with Hub([Repository("org/m", FILES)]) as hub, plain() as client:
        signed = client.head(f"{hub.endpoint}/org/m/resolve/main/model.safetensors").url
        assert str(signed).startswith(hub.storage + "/")
        assert client.get(signed.copy_with(query=None)).status_code == 403
        assert client.get(signed).content == FILES["model.safetensors"]


def test_the_log_tells_who_showed_a_token() -> None:
    """The Authorization header is there to see, on either server."""
    with Hub([Repository("org/m", FILES)]) as hub, plain(headers={"Authorization": "Bearer hf_me"}) as client:
        client.get(f"{hub.endpoint}/org/m/resolve/main/model.safetensors")
    assert [(request.server, request.token) for request in hub.log] == [("hub", "hf_me"), ("storage", None)]


def test_one_connection_is_dropped() -> None:
    """The first body that is long enough ends in a reset after exactly the bytes asked for, the next is whole."""
    with DroppingHub([Repository("org/m", FILES)], after=300_000) as hub, plain() as client:
        url = f"{hub.endpoint}/org/m/resolve/main/model.safetensors"
        dropped = fetch(client, url)
        assert (dropped.body, dropped.error) == (FILES["model.safetensors"][:300_000], httpx2.ReadError)
        assert client.get(url).content == FILES["model.safetensors"]
    assert [request.sent for request in hub.log if request.server == "storage"] == [300_000, 1_004_000]


def test_it_ends_with_clients_still_connected() -> None:
    """The end of the block closes the connections that clients keep alive."""
    with plain() as client:
        with Hub([Repository("org/m", FILES)]) as hub:
            client.get(f"{hub.endpoint}/org/m/resolve/main/config.json")
        with pytest.raises(httpx2.TransportError):
            client.get(f"{hub.endpoint}/org/m/resolve/main/config.json")
