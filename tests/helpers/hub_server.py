"""A Hugging Face Hub as far as huggingface_hub needs one to read and to write models."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

TOKEN = 'hf_averysecrettoken'
COMMIT = 'c0ffee' + '0' * 34


class Hub:
    """What the server holds.

    Attributes:
      files: 'owner/name' -> file -> content.
      private: names of private repositories.
      messages: of the commits.
      status: what commits are answered with, 200 for success.
    """

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.messages: list[str] = []
        self.status = 200


@contextlib.contextmanager
def hub_server() -> Iterator[tuple[str, Hub]]:
    """Yields the address of a server, and what it holds (to be changed)."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def send(self, content: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace('_', '-'), value)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            if self.command != 'HEAD':
                self.wfile.write(content)

        def send_json(self, content, status: int = 200, **headers: str) -> None:
            self.send(json.dumps(content).encode(), status, **headers)

        def allowed(self) -> bool:
            return self.headers.get('Authorization') == f'Bearer {TOKEN}'

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            if match := re.fullmatch(r'/api/models/([^/]+/[^/]+)(/.*)?', path):
                self.answer_about(match[1], match[2] or '')
            elif match := re.fullmatch(r'/([^/]+/[^/]+)/resolve/[^/]+/(.+)', path):
                content = hub.files.get(match[1], {}).get(match[2])
                if content is None:
                    self.send(b'', 404, X_Error_Code='EntryNotFound')
                else:
                    etag = f'"{hashlib.sha1(content).hexdigest()}"'
                    self.send(content, ETag=etag, X_Repo_Commit=COMMIT)
            else:
                self.send(b'', 404)

        do_HEAD = do_GET

        def answer_about(self, name: str, rest: str) -> None:
            if name not in hub.files or (name in hub.private and not self.allowed()):
                self.send_json({}, 401, X_Error_Code='RepoNotFound')
            elif '/tree/' in rest:
                entries = [
                    {'type': 'file', 'path': path, 'size': len(content), 'oid': 'a' * 40}
                    for path, content in hub.files[name].items()
                ]
                self.send_json(entries)
            elif rest in ('', '/revision/main', '/revision/v1'):
                about = {'id': name, 'sha': COMMIT, 'private': name in hub.private, 'siblings': []}
                self.send_json(about)
            else:
                self.send_json({}, 404, X_Error_Code='RevisionNotFound')

        def do_POST(self):
            content = self.rfile.read(int(self.headers['Content-Length']))
            path = unquote(urlsplit(self.path).path)
            if not self.allowed():
                self.send_json({'error': 'Invalid credentials'}, 401)
            elif path == '/api/repos/create':
                asked = json.loads(content)
                name = f'{asked.get("organization") or "me"}/{asked["name"]}'
                new = name not in hub.files
                hub.files.setdefault(name, {})
                if new and (asked.get('private') or asked.get('visibility') == 'private'):
                    hub.private.add(name)
                url = {'url': f'http://{self.headers["Host"]}/{name}'}
                self.send_json(url, 200 if new else 409)
            elif '/preupload/' in path:
                modes = [
                    {'path': file['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
                    for file in json.loads(content)['files']
                ]
                self.send_json({'files': modes})
            elif match := re.fullmatch(r'/api/models/([^/]+/[^/]+)/commit/main', path):
                if hub.status == 200:
                    self.commit(match[1], content)
                url = f'http://{self.headers["Host"]}/{match[1]}/commit/{COMMIT}'
                self.send_json({'commitUrl': url, 'commitOid': COMMIT}, hub.status)
            else:
                self.send_json({'type': 'model'})

        def commit(self, name: str, content: bytes) -> None:
            for line in map(json.loads, content.splitlines()):
                value = line['value']
                if line['key'] == 'header':
                    hub.messages.append(value['summary'])
                else:
                    hub.files[name][value['path']] = base64.b64decode(value['content'])

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}', hub
    finally:
        server.shutdown()
        server.server_close()
