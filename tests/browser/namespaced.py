"""Web servers of tests that live in a namespace, where no resolver is. No test lives here."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer


class Server(ThreadingHTTPServer):
    """Serves from `begin` until `close`."""

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own asks a resolver for its name

    def begin(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.01,)).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Page(BaseHTTPRequestHandler):
    """Answers what `body` gives; `fields` stand beside the usual ones."""

    protocol_version = "HTTP/1.1"
    kind = "text/plain"

    def body(self) -> bytes:
        raise NotImplementedError

    def fields(self) -> dict[str, str]:
        return {}

    def do_GET(self) -> None:
        body = self.body()
        self.send_response(200)
        usual = {"Content-Type": self.kind, "Content-Length": str(len(body))}
        for name, value in {**usual, **self.fields()}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
