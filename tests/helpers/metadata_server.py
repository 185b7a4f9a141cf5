"""A metadata server as Compute Engine has it, for tests of what it gives notice of."""

import contextlib
import http.server
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def metadata_server() -> Iterator[tuple[str, dict[str, str], list[tuple[str, str]]]]:
    """Yields its address, what it answers (to be changed), and (path, flavor) of every request."""
    answers = {'maintenance-event': 'NONE', 'preempted': 'FALSE'}
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers['Metadata-Flavor']))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[self.path.rsplit('/', 1)[1]].encode())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'127.0.0.1:{server.server_port}', answers, asked
    finally:
        server.shutdown()
        server.server_close()
