"""A small real HTTP server for tests: what it answers is a function of method, path and body."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(None)

    def do_POST(self):
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def reply(self, body):
        with self.server.lock:
            self.server.seen.append((self.path, body))
        status, content = self.server.answer(self.path, body)
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Nothing."""


@contextmanager
def serving(answer):
    """A server with an address `url`, that answers `answer(path, body)` and keeps what it has `seen`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.lock, server.seen, server.answer = threading.Lock(), [], answer
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pages(**named):
    """An answer that knows some pages, by their paths without the first slash, and no other."""
    known = {f"/{path.replace('__', '/')}": content for path, content in named.items()}
    return lambda path, body: (200, known[path]) if path in known else (404, {"detail": "Not Found"})
