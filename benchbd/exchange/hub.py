"""A repository of the Hugging Face Hub: its files are fetched, or committed. Nothing here imports torch."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from benchbd.base.errors import BenchbdError, DataAbsentError, DataError, UsageError, fault, shown

PATIENCE = 0.5  # seconds for a first answer of the Hub, so that a command without a network fails within one

_DATASETS = "datasets/"  # what the ids of data sets begin with, as the Hub's addresses do

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Repository:
    """A repository by its id, USER/NAME. revision: a branch, tag or commit; None: the newest."""

    identity: str
    kind: Literal["model", "dataset"]
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> Self:
        """The repository USER/NAME or datasets/USER/NAME, either with @REVISION; UsageError if the text is neither."""
        name, _, revision = text.partition("@")
        identity = name.removeprefix(_DATASETS)
        odd = len(identity) > 96 or "--" in identity or ".." in identity or identity.endswith((".git", "-", "."))
        if odd or not _ID.fullmatch(identity):
            raise UsageError(f"repository {shown(text)}: it must be USER/NAME, of letters, digits, '-', '_' and '.'")
        return cls(identity, "dataset" if name.startswith(_DATASETS) else "model", revision or None)

    def check(self, *, writing: bool = False) -> None:
        """Raise an error before any work if the Hub's library or, for writing, a token is absent, or if the Hub cannot
        be reached: UsageError, DataError."""
        with self._hub() as hub:
            if writing and not hub.get_token():
                raise UsageError("pushing needs a token of the Hub: set HF_TOKEN, or run hf auth login")

    def fetch(self, names: Sequence[str], folder: Path) -> None:
        """Write those of these files that the repository has below a folder. DataAbsentError if there is no such
        repository, DataError if the Hub refuses."""
        patterns = [name.replace("[", "[[]") for name in names]
        with self._hub() as hub:
            hub.snapshot_download(
                self.identity,
                repo_type=self.kind,
                revision=self.revision,
                local_dir=folder,
                allow_patterns=patterns,
            )

    def commit(self, files: Mapping[str, bytes], message: str) -> str:
        """Commit files to the repository, made if it does not exist, and return its address. DataError if the Hub
        refuses."""
        with self._hub() as hub:
            api = hub.HfApi()
            address = api.create_repo(self.identity, repo_type=self.kind, exist_ok=True)
            adding = [hub.CommitOperationAdd(name, content) for name, content in files.items()]
            api.create_commit(self.identity, adding, commit_message=message, repo_type=self.kind)
        return str(address)

    @contextmanager
    def _hub(self) -> Iterator[Any]:
        """huggingface_hub, for the block, in which any of its errors becomes one line."""
        if find_spec("huggingface_hub") is None:
            raise UsageError("the Hub needs a library: pip install 'benchbd[hub]'")
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise DataError(f"{self.identity}: HF_HUB_OFFLINE is set, so the Hub is not asked")
        _reach(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
        import huggingface_hub as hub
        from huggingface_hub import errors

        try:
            yield hub
        except BenchbdError:
            raise
        except errors.RevisionNotFoundError as error:
            raise DataError(f"{self.identity}: the repository has no such revision") from error
        except errors.RepositoryNotFoundError as error:
            told = f"{self.identity}: the Hub has no such {self.kind}, or the token may not read it"
            raise DataAbsentError(told) from error
        except errors.HfHubHTTPError as error:
            code = getattr(error.response, "status_code", 0)
            reason = {401: "the token is not valid", 403: "the token may not write there"}.get(code, fault(error))
            raise DataError(f"{self.identity}: the Hub refuses: {reason}") from error
        except Exception as error:  # of the network, in the library's own ways
            raise DataError(f"{self.identity}: the Hub does not answer ({fault(error)})") from error


def _reach(endpoint: str) -> None:
    """DataError if no connection to the Hub, or to the proxy before it, can be opened within PATIENCE."""
    address = urlsplit(endpoint)
    proxy = getproxies().get(address.scheme, "")
    if proxy and not proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy if "//" in proxy else f"//{proxy}", "http")
    place = (address.hostname or "", address.port or (80 if address.scheme == "http" else 443))
    failed: list[str] = ["no answer"]

    def connect() -> None:
        try:
            socket.create_connection(place, PATIENCE).close()
            failed.clear()
        except OSError as error:
            failed[:] = [error.strerror or str(error) or "no answer"]

    thread = threading.Thread(target=connect, daemon=True)  # looking up a name has no time-out
    thread.start()
    thread.join(PATIENCE)
    if failed:
        raise DataError(f"{place[0]} cannot be reached ({failed[0]}); push --to FOLDER and pull FOLDER need no network")
