"""An object store far away: moto's S3 server with a delay before each answer, ours against zarr-python, utterance by utterance."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output
from synthetic import draw_lengths

BUCKET = "features"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


def serve(delay_seconds: float, pipe: Connection) -> None:
    """Run the server in this process; its port, and the number of requests whenever asked, go through the pipe."""
    import logging
    import threading

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    application = DomainDispatcherApplication(create_backend_app)
    requests = 0

    def delayed(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        nonlocal requests
        requests += 1
        time.sleep(delay_seconds)
        return application(environ, start_response)

    server = make_server("127.0.0.1", 0, delayed, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_port)
    while pipe.recv():
        pipe.send(requests)


@contextmanager
def far_away(delay_seconds: float) -> Iterator[Callable[[], int]]:
    """A bucket on a server of its own, which the environment leads to; gives the count of requests so far."""
    import urllib.request

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(delay_seconds, theirs), daemon=True)
    process.start()
    before = dict(os.environ)
    try:
        endpoint = f"http://127.0.0.1:{ours.recv()}"
        os.environ |= {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()

        def count() -> int:
            ours.send(True)
            return ours.recv()

        yield count
    finally:
        process.terminate()
        os.environ.clear()
        os.environ |= before


def compare(utterances: int, width: int, delay_seconds: float, rounds: int) -> dict[str, Any]:
    """Seconds and requests an utterance, of both, in a random order; the values are compared first."""
    frames = draw_lengths(utterances, seed=3).tolist()
    names = [f"utterance-{i}" for i in range(utterances)]
    values = dict(
        zip(
            names,
            (np.random.default_rng(i).random((t, width)).astype(np.float16) for i, t in enumerate(frames)),
            strict=True,
        )
    )
    with far_away(delay_seconds) as requests:
        url = f"s3://{BUCKET}/store"
        output = Output("features", width, "float16", "random numbers")
        writer = FeatureWriter(url, "synthetic", "train", [output], {"seed": 3}, 16_000, 320)
        writer.write([NewUtterance(name, len(values[name])) for name in names], values.__getitem__)
        store = FeatureStore(url, cache_bytes=0)
        array = open_plainly(str(writer.path).removeprefix(f"s3://{BUCKET}/"))
        rows = dict(zip(store.table["id"].to_pylist(), store.table["row"].to_pylist(), strict=True))

        def ours(name: str) -> np.ndarray:
            return store[name].features

        def plain(name: str) -> np.ndarray:
            return np.asarray(array[rows[name] : rows[name] + len(values[name])])

        order = np.random.default_rng(0).permutation(names).tolist()
        for name in order[:3]:
            assert np.array_equal(ours(name), values[name])
            assert np.array_equal(plain(name), values[name])
        found: dict[str, Any] = {"utterances": utterances, "delay_seconds": delay_seconds, "rounds": []}
        for _ in range(rounds):
            timed = {}
            for system, read in (("encodeonce", ours), ("zarr-python", plain)):
                begun, asked = time.perf_counter(), requests()
                for name in order:
                    read(name)
                spent = (time.perf_counter() - begun) / utterances
                timed[system] = {
                    "seconds_an_utterance": spent,
                    "requests_an_utterance": (requests() - asked) / utterances,
                }
            found["rounds"].append(timed)
        ratios = [
            r["zarr-python"]["seconds_an_utterance"] / r["encodeonce"]["seconds_an_utterance"] for r in found["rounds"]
        ]
        return found | {"times_as_fast": float(np.median(ratios))}


def open_plainly(split: str) -> Any:
    """The array by zarr-python over its own object store."""
    import zarr
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    bucket: Any = S3Store(
        BUCKET,
        prefix=f"{split}/features.zarr/features",
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        client_options={"allow_http": True},
    )
    return zarr.open_array(ObjectStore(bucket, read_only=True), mode="r")
