"""`gateway adapters compare`: both versions are asked, each answer is measured, and what is wrong is said."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.compare import read_prompts
from gateway.cli.output import Failure
from tests.unit.commands import gateway_here, nobody

A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
KEY = "sk-client-5d1f0c8be2a94477"


class Script:
    """Which model says what: pieces of text, or a number for a status, or "cut" for an answer that breaks off."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.says: dict[str, list[str] | int | str] = {f"pirate@{A}": ["Arr", "!"], f"pirate@{B}": ["Ahoy"]}
        self.adapter: str | None = None
        self.connections = 0
        self.plain = False  # whether characters beyond ASCII are written as they are, as engines do


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    with chatting(script) as url:
        yield url


@contextlib.contextmanager
def chatting(script: Script) -> Iterator[str]:
    class Chat(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            script.connections += 1
            super().setup()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            script.asked.append({**body, "key": self.headers["authorization"], "path": self.path})
            said = script.says[body["model"]]
            if isinstance(said, int):
                error = json.dumps({"error": {"message": "not\x1b[2J now", "type": "x", "param": None, "code": None}})
                self.begin(said, "application/json", script.adapter or body["model"])
                self.piece(error)
                self.piece("")
                return
            self.begin(200, "text/event-stream", script.adapter or body["model"])
            for text in said if isinstance(said, list) else ["half"]:
                self.event({"choices": [{"index": 0, "delta": {"content": text}}]})
            if said == "error":
                self.event({"error": {"message": "the engine fell"}})
            if not isinstance(said, list):
                self.close_connection = True
                return
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
            self.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(said)}})
            self.piece("data: [DONE]\n\n")
            self.piece("")

        def begin(self, status: int, kind: str, adapter: str) -> None:
            self.send_response(status)
            for name, value in (
                ("content-type", kind), ("transfer-encoding", "chunked"), ("x-gateway-adapter", adapter)
            ):  # fmt: skip
                self.send_header(name, value)
            self.end_headers()

        def event(self, chunk: dict[str, Any]) -> None:
            self.piece(f"data: {json.dumps(chunk, ensure_ascii=not script.plain)}\n\n")

        def piece(self, text: str) -> None:
            data = text.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Chat) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def compare(url: str, folder: Path, prompts: str, *more: object, b: str = B) -> subprocess.CompletedProcess[str]:
    (folder / "prompts").write_text(prompts)
    environ = {"GATEWAY_URL": url, "GATEWAY_KEY": KEY}
    return gateway_here("adapters", "compare", "pirate", A, b, "--prompts", folder / "prompts", *more, env=environ)


def test_both_versions_are_asked_the_same_each_as_itself(url, script, tmp_path):
    done = compare(url, tmp_path, "Who are you?\n\nWhere to?\n", "--max-tokens", 9)
    assert (done.returncode, done.stderr.splitlines()) == (0, ["Answering …"])
    assert [(asked["model"], asked["messages"][0]["content"]) for asked in script.asked] == [
        (f"pirate@{A}", "Who are you?"), (f"pirate@{B}", "Who are you?"),
        (f"pirate@{B}", "Where to?"), (f"pirate@{A}", "Where to?"),
    ]  # fmt: skip
    for asked in script.asked:
        assert (asked["path"], asked["key"]) == ("/v1/chat/completions", f"Bearer {KEY}")
        assert (asked["temperature"], asked["max_tokens"], asked["stream"]) == (0, 9, True)
    lines = done.stdout.splitlines()
    assert lines[0] == "1/2  Who are you?"
    (beside,) = [line for line in lines[:8] if "Arr!" in line]
    assert "Ahoy" in beside
    assert "7 + 2 tokens, ended by length" in done.stdout
    assert script.connections == 1, "an answer that is not read to its end costs a connection"
    assert "0 of 2 answers are the same." in done.stdout


def test_json_has_every_answer_and_the_sums(url, script, tmp_path):
    script.says[f"pirate@{B}"] = ["Arr!"]
    done = compare(url, tmp_path, '{"prompt": "One?"}\n{"messages": [{"role": "user", "content": "Two?"}]}\n', "--json")
    document = json.loads(done.stdout)
    assert document["versions"] == {"a": f"pirate@{A}", "b": f"pirate@{B}"}
    first = document["prompts"][0]
    assert (first["a"]["text"], first["b"]["text"], first["same"]) == ("Arr!", "Arr!", True)
    assert 0 < first["a"]["first_byte"] <= first["a"]["total"]
    sums = document["summary"]
    assert (sums["prompts"], sums["same"]) == (2, 2)
    assert (sums["a"]["answered"], sums["a"]["prompt_tokens"], sums["a"]["completion_tokens"]) == (2, 14, 4)
    assert sums["b"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (503, "not\\x1b[2J now"),
        ("cut", "the answer broke off"),
        ("error", "the engine fell"),
        (["x" * (9 << 20)], "a line exceeds 8388608 bytes"),
    ],
    ids=["refused", "cut", "error", "endless"],
)
def test_a_version_that_does_not_answer_is_told_and_the_other_shown(url, script, tmp_path, said, reason):
    script.says[f"pirate@{B}"] = said
    done = compare(url, tmp_path, "Who are you?")
    assert done.returncode == 1
    assert "1 of 2 requests were not answered" in done.stderr
    assert reason in done.stdout
    assert "Arr!" in done.stdout
    assert "\x1b" not in done.stdout


def test_two_that_do_not_answer_are_not_the_same(url, script, tmp_path):
    script.says = {f"pirate@{A}": 503, f"pirate@{B}": 503}
    document = json.loads(compare(url, tmp_path, "Who are you?", "--json").stdout)
    assert (document["prompts"][0]["same"], document["summary"]["same"]) == (False, 0)


def test_an_answer_may_hold_any_kind_of_line_break(url, script, tmp_path):
    script.plain = True
    script.says[f"pirate@{B}"] = ["one\u2028two\x85three"]
    document = json.loads(compare(url, tmp_path, "Who are you?", "--json").stdout)
    assert document["prompts"][0]["b"]["error"] == ""
    assert document["prompts"][0]["b"]["text"] == "one\u2028two\x85three"


def test_an_answer_of_another_version_is_no_answer(url, script, tmp_path):
    script.adapter = f"pirate@{A}"
    document = json.loads(compare(url, tmp_path, "Who are you?", "--json").stdout)
    assert document["prompts"][0]["a"]["error"] == ""
    assert "answered by pirate@aaaaaaaaaaaa" in document["prompts"][0]["b"]["error"]


def test_a_version_may_be_written_whole_or_with_its_name_and_not_otherwise(url, script, tmp_path):
    assert compare(url, tmp_path, "x", b="b" * 64).returncode == 0
    assert compare(url, tmp_path, "x", b=f"pirate@{B}").returncode == 0
    for wrong in ("bbbb", f"parrot@{B}", "current"):
        assert f"{wrong} is no version of pirate" in compare(url, tmp_path, "x", b=wrong).stderr


def test_without_a_gateway_nothing_is_compared(tmp_path):
    with nobody() as url:
        done = compare(url, tmp_path, "x\n" * 100)
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not answer" in done.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 prompts"),
        (b"x\n" * 1001, "1001 prompts"),
        (b"\xff", "cannot be read"),
        (b'{"prompt": "x"}\nplain', "line 2: this is not JSON"),
        (b'{"prompt": 1}', "line 1: write"),
        (b'{"messages": []}', "line 1: write"),
        (b'{"prompt": "x"}\n\n[1]', "line 3: write"),
        (b"x" * ((8 << 20) + 1), "more than 8 MiB"),
        (b"x" * (8 << 20) + "ä".encode(), "more than 8 MiB"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused_with_its_line(tmp_path, content, reason):
    file = tmp_path / "prompts"
    file.write_bytes(content)
    with pytest.raises(Failure, match=reason):
        read_prompts(file)
    with pytest.raises(Failure, match="cannot be read"):
        read_prompts(tmp_path / "nowhere")


def test_only_the_end_of_a_line_ends_a_prompt(tmp_path):
    file = tmp_path / "prompts"
    file.write_bytes('{"prompt": "a\u2028b"}\r\n{"prompt": "c\x85d"}\n'.encode("utf-8-sig"))
    assert [messages[0]["content"] for messages in read_prompts(file)] == ["a\u2028b", "c\x85d"]
