"""The programs behind `make serve`: their progress, their children, their keys."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deploy.engine.progress import Step, StepError, bar, bound, run
from deploy.quickstart import prepare, serve
from tests.patience import LATE


def test_a_count_is_drawn_as_a_bar() -> None:
    assert bar("0/4 begun") == "─" * 24 + " 0/4 begun"
    assert bar("1/4 loss 2.50") == "━" * 6 + "─" * 18 + " 1/4 loss 2.50"
    assert bar("4/4") == "━" * 24 + " 4/4"
    assert bar("5/4 more than all") == "━" * 24 + " 5/4 more than all"
    assert bar("0/0 nothing to do") == "0/0 nothing to do"
    assert bar("loading") == "loading"


def test_a_step_says_how_it_ended_and_how_long_it_took() -> None:
    out = io.StringIO()
    with Step("good", out):
        pass
    with pytest.raises(StepError), Step("bad", out):
        raise StepError("no")
    assert [line.split("  (")[0] for line in out.getvalue().splitlines()] == ["  ✓ good", "  ✗ bad"]


def test_a_command_s_lines_are_handed_on_and_its_failure_carries_the_last_of_them() -> None:
    lines: list[str] = []
    program = "import sys; [print(n, flush=True) for n in range(100)]; sys.exit('out of paper')"
    with pytest.raises(StepError) as raised:
        run([sys.executable, "-c", program], lines.append)
    assert lines == [*map(str, range(100)), "out of paper"]
    assert "ended with 1" in str(raised.value)
    assert str(raised.value).endswith("98\n99\nout of paper\n")
    assert "\n50\n" not in str(raised.value)


def test_a_bound_command_ends_when_its_parent_is_killed() -> None:
    sleeper = bound(["sleep", "600"])[3:]
    parent = (
        "import subprocess, sys, time; from deploy.engine.progress import bound\n"
        f"print(subprocess.Popen(bound({sleeper!r})).pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], cwd=prepare.ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        process.wait(LATE)
        psutil.wait_procs([child], timeout=3 * LATE)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_keys_are_made_once_random_and_for_their_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "KEYS", tmp_path / "keys.env")
    old = os.umask(0)
    try:
        prepare.make_keys()
    finally:
        os.umask(old)
    first = prepare.read_keys()
    assert (tmp_path / "keys.env").stat().st_mode & 0o777 == 0o600
    assert set(first) == {"GATEWAY_KEY", "GATEWAY_ADMIN_KEY"}
    assert len(set(first.values())) == 2
    prepare.make_keys()
    assert prepare.read_keys() == first


def test_the_quick_start_s_configuration_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"GATEWAY_KEY": "sk-1b8f6f0f2d7e4c55", "GATEWAY_ADMIN_KEY": "sk-77c1d0aa93be4e21"}
    gateway = Path(sys.executable).with_name("gateway")
    command = [str(gateway), "check", "--config", serve.CONFIG]
    done = subprocess.run(
        command, cwd=prepare.ROOT, env={**os.environ, **keys}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_to_type_next_names_the_url_the_key_and_every_model() -> None:
    text = serve.instructions("http://127.0.0.1:8000", "sk-secret", ["smollm2", "json-answers", "pirate"])
    assert "curl -N http://127.0.0.1:8000/v1/chat/completions" in text
    assert "OPENAI_API_BASE_URLS=http://127.0.0.1:8000/v1 OPENAI_API_KEYS=sk-secret" in text
    assert "smollm2, json-answers, pirate" in text
