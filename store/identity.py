"""What makes two feature sets the same: canonical JSON, fingerprints, audio hashes, member keys."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

import numpy as np


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(identity: Mapping[str, Any]) -> str:
    """sha256 of an identity's canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def audio_hash(samples: np.ndarray, rate: int | None = None) -> str:
    """sha256 of decoded, mixed audio `[samples]` as little-endian float32, 64 hex digits.

    Audio that is still to be resampled has "@" and its own `rate` behind its samples.
    """
    digest = hashlib.sha256(np.ascontiguousarray(samples, dtype="<f4").data)
    if rate is not None:
        digest.update(f"@{rate}".encode())
    return digest.hexdigest()


def member_key(utterance_id: str) -> str:
    """An utterance id as the name of its tar members: percent-encoded, no '.', no '/'; `utterance_id` gives it back."""
    return quote(utterance_id, safe="").replace(".", "%2E")


def utterance_id(key: str) -> str:
    """The utterance id that `member_key` encoded."""
    return unquote(key)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two identities differ, as (dotted path, ours, theirs); a side that lacks the field gives None."""
    for key in sorted({*ours, *theirs}):
        a, b, path = ours.get(key), theirs.get(key), f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{path}.")
        elif a != b:
            yield path, a, b


def describe_difference(path: str, ours: Any, theirs: Any) -> str:
    """One difference in a line, long values shortened in the middle."""

    def short(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
        return text if len(text) <= 60 else f"{text[:40]}...{text[-12:]}"

    return f"{path}: {short(ours)} against {short(theirs)}"
