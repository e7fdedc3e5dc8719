"""Chat templates in Ollama's language.  The templates here are Python functions that write what the models' own Jinja
writes; that the Go templates print the same was tried with Go's text/template."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from adapters.export.chattemplate import Message, Pieces, TemplateError, pieces_of
from adapters.export.modelfile import modelfile

SYSTEM, BRIEF = "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "Be brief."


def chatml(messages: Sequence[Message], default: str | None = None) -> str:
    told = [] if default is None or messages[0]["role"] == "system" else [{"role": "system", "content": default}]
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in (*told, *messages)]
    return "".join(turns) + "<|im_start|>assistant\n"


def smollm2(messages: Sequence[Message]) -> str:
    return chatml(messages, SYSTEM)


def llama3(messages: Sequence[Message]) -> str:
    turns = [f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content']}<|eot_id|>" for m in messages]
    return "<|begin_of_text|>" + "".join(turns) + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def gemma3(messages: Sequence[Message]) -> str:
    """The system prompt is the beginning of the first question."""
    system, turns = (
        (messages[0]["content"] + "\n\n", messages[1:]) if messages[0]["role"] == "system" else ("", messages)
    )
    names = {"user": "user", "assistant": "model"}
    parts = [f"<start_of_turn>{names[m['role']]}\n{m['content']}<end_of_turn>\n" for m in turns]
    parts[0] = parts[0].replace("<start_of_turn>user\n", f"<start_of_turn>user\n{system}")
    return "<bos>" + "".join(parts) + "<start_of_turn>model\n"


def gemma2(messages: Sequence[Message]) -> str:
    if messages[0]["role"] == "system":
        raise TemplateError("System role not supported")
    return gemma3(messages)


def thinking(messages: Sequence[Message]) -> str:
    """What the assistant begins with is not what stands before its earlier answers."""
    return chatml(messages) + "<think>\n"


def talk(*contents: str, system: str | None = None) -> list[Message]:
    turns = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
    return [*([{"role": "system", "content": system}] if system else []), *turns]


@pytest.mark.parametrize("template", [chatml, smollm2, llama3, gemma3, gemma2, thinking])
def test_the_pieces_give_what_the_template_gives(template: Callable[[Sequence[Message]], str]) -> None:
    pieces = pieces_of("", template)
    conversations = [talk("a"), talk("a", "b", "c"), talk("a\nb", "{{ c }}", "d", "e", "f")]
    if template is not gemma2:
        conversations += [talk("a", system="s"), talk("a", "b", "c", system="s")]
    for conversation in conversations:
        assert pieces.render(conversation) == template(conversation)


def test_a_go_template_has_the_model_s_own_system_prompt_where_nobody_gives_another() -> None:
    assert pieces_of("", smollm2).as_go() == (
        "{{ $first := true }}{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "user" }}{{ if $first }}{{ $first = false }}'
        "{{ if $.System }}<|im_start|>system\n{{ $.System }}<|im_end|>\n<|im_start|>user\n"
        f"{{{{ else }}}}<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{{{{ end }}}}{{{{ end }}}}"
        "{{ .Content }}<|im_end|>\n<|im_start|>assistant\n"
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ if not $last }}<|im_end|>\n<|im_start|>user\n{{ end }}'
        "{{ end }}{{ end }}"
    )


def test_the_end_of_the_prompt_may_differ_from_the_middle() -> None:
    middle = "<|im_end|>\n<|im_start|>assistant\n"
    text = pieces_of("", thinking).as_go()
    assert f"{{{{ if $last }}}}{middle}<think>\n{{{{ else }}}}{middle}{{{{ end }}}}" in text


def test_a_system_prompt_that_the_template_refuses_leads_the_question() -> None:
    text = pieces_of("", gemma2).render(talk("a", system=BRIEF))
    assert text == "<bos><start_of_turn>user\nBe brief.\n\na<end_of_turn>\n<start_of_turn>model\n"


def test_the_token_that_the_engine_adds_is_not_written_twice() -> None:
    pieces = pieces_of("", llama3).without("<|begin_of_text|>")
    assert pieces.render(talk("a")).startswith("<|start_header_id|>user")
    assert pieces.render(talk("a", system="s")).startswith("<|start_header_id|>system")


def test_braces_are_text() -> None:
    pieces = Pieces("{{", "", "", "a", "b{{c}}", "a")
    assert '{{ else }}{{ "{{" }}{{ end }}' in pieces.as_go()
    assert 'b{{ "{{" }}c}}' in pieces.as_go()


def forgets(messages: Sequence[Message]) -> str:
    return chatml(messages[-1:])


def numbered(messages: Sequence[Message]) -> str:
    return "".join(f"{n} {m['role']}: {m['content']}\n" for n, m in enumerate(messages))


def system_last(messages: Sequence[Message]) -> str:
    return chatml(sorted(messages, key=lambda m: m["role"] == "system"))


@pytest.mark.parametrize(
    ("source", "template", "reason"),
    [
        ("", forgets, "leaves out a turn"),
        ("", numbered, "depends on more"),
        ("", system_last, "leaves out a turn"),
        ("{{ strftime_now('%d %b %Y') }}", chatml, "writes the date"),
    ],
)
def test_one_that_does_more_than_this_is_not_written_down(
    source: str, template: Callable[[Sequence[Message]], str], reason: str
) -> None:
    with pytest.raises(TemplateError, match=reason):
        pieces_of(source, template)


def test_a_modelfile_says_where_the_model_is_and_how_it_ends() -> None:
    text = modelfile("./model.gguf", "{{ .Content }}\n", ["<|im_end|>", 'a"b'])
    assert text == (
        'FROM ./model.gguf\nTEMPLATE """{{ .Content }}\n"""\nPARAMETER stop "<|im_end|>"\nPARAMETER stop "a\\"b"\n'
    )
    assert "TEMPLATE" not in modelfile(".", 'x"""y', []) + modelfile(".", None, [])
