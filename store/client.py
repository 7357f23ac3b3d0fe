"""The client of object stores, obstore: one a bucket and process, its errors said so that one knows what to do."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from encodeonce.store.errors import DamagedError, StoreError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for another server than Amazon's, AWS_ENDPOINT_URL "
    "(with AWS_ALLOW_HTTP=true for http); AWS_SKIP_SIGNATURE=true reads a public bucket",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS; GOOGLE_SKIP_SIGNATURE=true reads a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN; "
    "AZURE_SKIP_SIGNATURE=true reads a public container",
}
"""The environment variables that hold credentials, by scheme."""

REFUSALS = (
    *("status code: 403", "status code: 401", "privileges", "credentials", "authentic"),
    *("169.254.169.254", "Account must"),
)
"""What a client's message holds where somebody may not, or did not say who he is."""

MOST_RETRIES = 10
TRANSFER_SECONDS = 900
"""How long one request may take that moves a whole object; any other ends after obstore's 30 s."""


class ConflictError(StoreError):
    """An object that is not in the state that a conditional write asked for."""


class PastEndError(DamagedError):
    """A range that begins where the object has ended already."""


_clients: dict[tuple[str, bool], "ObjectStore"] = {}
_made_in: int | None = None
_lock = Lock()


def client_of(root: str, patient: bool = False) -> "ObjectStore":
    """This process's client for a bucket or host; a patient one is for requests that move whole objects."""
    global _made_in
    if _made_in not in (None, os.getpid()):
        raise StoreError(
            f"{root} was read before this process was forked, and its client does not survive a fork: start worker processes "
            f"with the method 'spawn' or 'forkserver' (a DataLoader's multiprocessing_context), or use threads"
        )
    key = root, patient and not root.startswith("memory:")
    if key not in _clients:
        with _lock:
            if key not in _clients:
                _made_in = os.getpid()
                _clients[key] = _make_client(root, patient)
    return _clients[key]


def _make_client(root: str, patient: bool) -> "ObjectStore":
    from obstore.store import AzureStore, GCSStore, HTTPStore, MemoryStore, S3Store

    scheme, _, name = root.partition("://")
    if scheme == "memory":
        return MemoryStore()
    options: dict[str, Any] = {"timeout": f"{TRANSFER_SECONDS}s"} if patient else {}
    retries: Any = {"max_retries": MOST_RETRIES}
    with explained(root):
        if scheme in ("http", "https"):
            options["allow_http"] = scheme == "http"
            return HTTPStore.from_url(root, client_options=options, retry_config=retries)
        kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
        # As `config`, not as `client_options`, which would hide the environment's (AWS_ALLOW_HTTP, proxies).
        return kinds[scheme](name, config=options, retry_config=retries)


@contextmanager
def explained(url: object, writing: bool = False) -> Iterator[None]:
    """Turn a client's errors into ours: FileNotFoundError where an object is not there, else what to do about it."""
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    try:
        yield
    except (AlreadyExistsError, PreconditionError) as error:
        raise (ConflictError(f"{url} was written by somebody else meanwhile") if writing else rewritten(url)) from error
    except (FileNotFoundError, BaseError, ValueError) as error:
        text = str(error)
        if isinstance(error, FileNotFoundError) and not writing and "NoSuchBucket" not in text:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(url)) from error
        if _holds(text, "status code: 416", "Wanted range starting at"):
            raise PastEndError(f"{url} ends before the bytes that were asked for; run feature-store verify") from error
        raise StoreError(f"{url} cannot be {'written' if writing else 'read'}: {_reason(str(url), text)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what Rust's panics are here: no Exception
            raise
        raise StoreError(f"{url}: obstore, the client of object stores, broke down ({error}); try again") from error


def rewritten(url: object) -> StoreError:
    """An object that is not the one whose size and index were read."""
    return StoreError(f"{url} was rewritten since the store was opened; open the store again")


def _reason(url: str, text: str) -> str:
    """What a client's message means, and what to do about it."""
    said = text.partition("\n")[0].strip().rstrip(":")[:300]
    variables = VARIABLES.get(url.partition(":")[0])
    access = f"credentials come from the environment: {variables}" if variables else "ask whoever serves it"
    if "NoSuchBucket" in text or "ContainerNotFound" in text or "bucket does not exist" in text:
        return f"there is no {_root(url)}; make it first, or mend the URL ({access})"
    if "builder error" in text and "AWS_ALLOW_HTTP" not in os.environ:
        return f"{said}; a server that speaks http wants AWS_ALLOW_HTTP=true"
    if _holds(text, *REFUSALS):
        return f"no permission ({said}); {access}"
    if _holds(text, "Range request not supported", "non-partial response"):
        return (
            "the server answers no range requests; serve the store with one that does (nginx, Caddy, an object store)"
        )
    if _holds(text, "error sending request", "body error", "dns", "timed out", "Connect"):
        return f"the server cannot be reached, or the connection broke ({said}); see to the network and the address; {access}"
    return said


def _holds(text: str, *signs: str) -> bool:
    return any(sign in text for sign in signs)


def _root(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
