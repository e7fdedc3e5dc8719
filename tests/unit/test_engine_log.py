"""Reading an engine's output."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.controlplane.enginelog import LINE_LIMIT, Line, LineReader, alarming, cause, level, printable, progress

BOOT = "(APIServer pid=17295) INFO 11-23 21:25:23 [api_utils.py:286] "


def read(*pieces: bytes, secrets: tuple[str, ...] = ()) -> list[Line]:
    reader = LineReader(secrets)
    return [line for piece in pieces for line in reader.feed(piece)] + reader.end()


@given(st.data())
def test_lines_are_the_same_wherever_the_output_is_cut(data: st.DataObject) -> None:
    output = "one\r\ntwo é\n 10%|#\r 20%|##\r\rthe secret-of-ours\n\nlast".encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(output)))))
    pieces = [output[a:b] for a, b in zip([0, *cuts], [*cuts, len(output)], strict=True)]
    assert read(*pieces, secrets=("secret-of-ours",)) == [
        Line("one"),
        Line("two é"),
        Line(" 10%|#", passing=True),
        Line(" 20%|##", passing=True),
        Line("the ***"),
        Line("last"),
    ]


@given(st.lists(st.binary(max_size=200)))
def test_any_bytes_become_printable_lines(pieces: list[bytes]) -> None:
    for line in read(*pieces):
        assert line.text.isprintable()
        assert line.text.strip()


def test_an_endless_line_is_cut_and_costs_no_memory() -> None:
    reader = LineReader()
    lines = [line for _ in range(100) for line in reader.feed(b"x" * 10_000)]
    assert [len(line.text) for line in lines] == [LINE_LIMIT]
    assert reader.feed(b"the rest\nthe next\n") == [Line("the next")]


def test_a_secret_at_the_end_of_a_cut_line_is_not_half_shown() -> None:
    secret = "0123456789abcdef"
    for length in range(LINE_LIMIT - 40, LINE_LIMIT + 1):
        (line,) = read(b"x" * length + secret.encode() * 3 + b"\n", secrets=(secret,))
        assert "0123" not in line.text


def test_a_secret_that_begins_like_another_is_hidden_whole() -> None:
    (line,) = read(b"password password-and-more\n", secrets=("password", "password-and-more"))
    assert line.text == "*** ***"


def test_short_values_are_settings_and_stay() -> None:
    assert read(b"threads 1, mode spawn\n", secrets=("1", "spawn")) == [Line("threads 1, mode spawn")]


def test_colours_go_and_control_characters_are_written_out() -> None:
    assert printable("\x1b[1;31mred\x1b[0m \x07 \x1b]0;title\x07 \u202etext") == (
        r"red \x07 \x1b]0;title\x07 \u202etext"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (BOOT + "x", logging.INFO),
        ("(Worker pid=1) WARNING 11-23 21:25:23 [cpu.py:1] x", logging.WARNING),
        ("(EngineCore pid=1) ERROR 11-23 21:25:23 [core.py:1] Traceback", logging.ERROR),
        ("a WARNING from somebody else", logging.INFO),
    ],
)
def test_a_line_keeps_the_level_that_vllm_gave_it(line: str, expected: int) -> None:
    assert level(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (BOOT + "non-default args: {'host': '127.0.0.1'}", "reading the model's configuration"),
        (BOOT + "Resolved architecture: LlamaForCausalLM", "starting the engine's processes"),
        (
            "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00,  1.21it/s]",
            "loading weights 50 %",
        ),
        (BOOT + "Loading weights took 0.83 seconds", "weights loaded"),
        ("model.safetensors:  45%|####5     | 121M/269M [00:05<00:06]", "downloading model.safetensors 45 %"),
        ("Capturing CUDA graphs (decode, FULL):  12%|#2", "capturing CUDA graphs 12 %"),
        (BOOT + "Starting vLLM server on http://127.0.0.1:43227", "opening the API"),
        (BOOT + "Using max model len 2048", None),
    ],
)
def test_progress_is_read_from_the_log(line: str, expected: str | None) -> None:
    assert progress(line) == expected


def test_the_cause_of_a_death_is_the_error_and_not_its_echoes() -> None:
    mark = "(EngineCore pid=1) ERROR 11-23 21:25:23 [core.py:1] "
    assert cause(
        [
            "(APIServer pid=1) WARNING 11-23 21:25:23 [x.py:1] Raise it, or see `OSError: [Errno 24] Too many`",
            mark + "Traceback (most recent call last):",
            mark + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
        ]
    ) == ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")


def test_a_cause_of_which_only_the_echo_is_left_is_the_echo() -> None:
    echo = "RuntimeError: Engine core initialization failed. See root cause above."
    assert cause([BOOT + "hello", echo]) == echo


def test_a_death_without_an_error_is_told_with_the_last_line() -> None:
    assert cause(["hello", "Illegal instruction"]) == 'its log names no error and ends with "Illegal instruction"'
    assert cause([]) == ""


def test_the_death_of_the_core_is_an_alarm() -> None:
    assert alarming("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.")
    assert not alarming(BOOT + "all is well")
