"""Object stores for the tests: moto's S3 server on loopback, a plain web server with ranges, a store in memory."""

import logging
import re
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from encodeonce.store.objects import ObjectPath, store_path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server, which the environment names for as long as the tests last."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str) -> ObjectPath:
    """An empty bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    urlopen(Request(f"{s3_server}/{name}", method="PUT")).close()
    return objects(f"s3://{name}")


@pytest.fixture
def memory() -> ObjectPath:
    """An empty store in this process's memory."""
    return objects(f"memory://{uuid.uuid4().hex[:12]}")


def objects(url: str) -> ObjectPath:
    """The path of a URL that is no local one."""
    path = store_path(url)
    assert isinstance(path, ObjectPath)
    return path


class WebServer:
    """Serves a folder over plain HTTP with ranges, and counts the requests."""

    def __init__(self, folder: Path) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: WebServer, *arguments: Any, **options: Any) -> None:
        self._counts = server.requests
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        self._counts["GET", self.path] += 1
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        size, first = len(data), 0
        if found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            status, (start, end) = 206, found.groups()
            first = int(start) if start else max(0, size - int(end))
            data = data[first : int(end) + 1] if start and end else data[first:]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    """A web server over tmp_path."""
    server = WebServer(tmp_path)
    yield server
    server.close()
