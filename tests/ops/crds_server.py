"""A CRDS server as far as fetching a context goes: answers the client's calls and hands out the files of a cache."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.stages.small_crds import CONTEXT, SmallCrds


@dataclass
class CrdsServer:
    """The server's files and its address; what it hands out can be spoilt."""

    source: SmallCrds
    url: str = ""
    spoilt: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def files(self) -> dict[str, Path]:
        return {
            path.name: path for folder in (self.source.mappings, self.source.references) for path in folder.iterdir()
        }

    def content(self, name: str) -> bytes:
        data = self.files()[name].read_bytes()
        return data[:-1] + bytes([data[-1] ^ 1]) if name in self.spoilt else data

    def answer(self, method: str, parameters: list[Any]) -> Any:
        if method == "get_server_info":
            return self._info()
        if method == "get_mapping_names" and parameters == [CONTEXT]:
            return sorted(path.name for path in self.source.mappings.iterdir())
        raise KeyError(method)

    def _info(self) -> dict[str, Any]:
        sums = {
            name: {"size": str(path.stat().st_size), "sha1sum": hashlib.sha1(path.read_bytes()).hexdigest()}  # noqa: S324
            for name, path in self.files().items()
        }
        packed = base64.b64encode(gzip.compress(json.dumps(sums).encode())).decode()
        where = {"roman": f"{self.url}/files"}
        return {
            "observatory": "roman", "latest_context": CONTEXT, "operational_context": CONTEXT, "status": "ok",
            "bad_files": "", "bad_files_list": [], "force_remote_mode": False, "crds_version": {"str": "14.0.0"},
            "reference_url": where, "mapping_url": where, "last_synced": "2026-01-01 00:00:00",
            "download_metadata": {"crds_encoded": "1.0", "crds_payload": packed},
        }  # fmt: skip


@contextmanager
def crds_server(source: SmallCrds) -> Iterator[CrdsServer]:
    """Serve the files of a cache."""
    served = CrdsServer(source)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                answer = {"result": served.answer(call["method"], call["params"]), "error": None}
            except KeyError as error:
                answer = {"result": None, "error": {"message": f"no such method or file: {error}"}}
            self._send(json.dumps({**answer, "id": call["id"]}).encode())

        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            served.asked.append(name)
            self._send(served.content(name))

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        served.url = f"http://localhost:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            http.shutdown()
            thread.join()
