"""A chat endpoint on loopback that answers, fails, babbles or drips, as the question says."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub(ThreadingHTTPServer):
    """Behaviour is chosen by a word in the rollout's answer; `seen` counts requests by that word."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen, self.busy, self.most, self.lock = {}, 0, 0, threading.Lock()
        self.bodies = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = body["messages"][0]["content"].split("<answer>")[1]
        word = said.split()[0]
        with server.lock:
            server.bodies.append(body)
            count = server.seen[word] = server.seen.get(word, 0) + 1
            server.busy += 1
            server.most = max(server.most, server.busy)
        try:
            self.answer(word.rstrip("0123456789"), count)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with server.lock:
                server.busy -= 1

    def answer(self, word, count):
        if word == "limited" and count < 3:
            return self.send(429, {"error": {"message": "slow down"}})
        if word == "broken" or (word == "flaky" and count < 2):
            return self.send(500, {"error": {"message": "oh"}})
        if word == "key":
            return self.send(401, {"error": {"message": "no such key"}})
        if word == "slow":
            time.sleep(3)
        if word == "drip":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(60):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
            return None
        if word == "garbage":
            return self.send(200, b'{"choices": [')
        if word == "page":
            return self.send(200, b"<html>hello</html>", "text/html")
        if word == "void":
            return self.send(200, {"id": "x", "object": "chat.completion", "choices": []})
        text = {
            "babble": "SCORE: 3 I think, or SCORE: 2",
            "refuse": "I'm sorry, I cannot judge this.",
            "second": "hm" if count == 1 else "It is mixed.\nSCORE: 2",
        }.get(word, "A pirate speaks.\nSCORE: 3")
        time.sleep(0.02)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return self.send(
            200, {"id": "x", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice]}
        )

    def send(self, status, body, kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
