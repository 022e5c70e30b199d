"""The index of a repository's weights: which files its tensors are in."""

from __future__ import annotations

from llamaconv.errors import HubError
from llamaconv.hub.repository import Listing, RemoteFile
from llamaconv.json_files import parse_object, shown

__all__ = ["shards_of"]


def shards_of(listing: Listing, index: RemoteFile, data: bytes, suffix: str) -> list[str]:
    """The names that an index has for shards, each once, sorted; nobody says that they are in the repository.

    Args:
        listing: For the messages.
        suffix: That shards must have.
        index: ``model.safetensors.index.json``, or torch's.
        data: Its contents: a JSON object whose ``weight_map`` has the name of a shard for each tensor.

    Raises:
        HubError: It is something else.
    """
    try:
        weight_map = parse_object(data).get("weight_map")
    except ValueError as error:
        raise _malformed(listing, index, f"it is {error}") from error
    if not isinstance(weight_map, dict):
        raise _malformed(listing, index, f"its weight_map is {shown(weight_map)}, not an object")
    if not weight_map:
        raise _malformed(listing, index, "its weight_map is empty")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise _malformed(listing, index, f"its shard of {shown(tensor)} is {shown(shard)}, not a name")
        if not shard.endswith(suffix):
            raise _malformed(listing, index, f"its shard of {shown(tensor)} is {shown(shard)}, no {suffix} file")
    return sorted(set(weight_map.values()))


def _malformed(listing: Listing, index: RemoteFile, fault: str) -> HubError:
    return HubError(
        f"{listing.repository}: {index.name} cannot be used: {fault}.",
        hint="Take another revision; or name the files that you want all the same.",
        repository=listing.repository,
        file=index.name,
    )
