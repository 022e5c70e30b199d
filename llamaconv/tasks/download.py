"""Download a checkpoint from the Hub: every byte that its hashes promise, or one sentence saying what stopped it."""

from __future__ import annotations

from llamaconv.hub.result import DownloadPlan, DownloadResult
from llamaconv.hub.settings import DownloadSettings
from llamaconv.hub.snapshot import download, plan

__all__ = ["DownloadPlan", "DownloadResult", "DownloadSettings", "download", "plan"]
