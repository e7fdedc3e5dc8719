"""Writes a chat template (Jinja) down as one of Ollama's (Go's text/template).

No Jinja is read: the template is asked. What it puts around the turns of a conversation is found by rendering a few
whose texts are known, and a Go template is made of these pieces. It is kept only if it gives the same text as the
original for other conversations: ChatML, Llama 3, Mistral, Gemma, Phi, Zephyr and most that are fine-tuned from them
pass. One that depends on more (the date, thoughts that it drops) does not, and then Ollama has to run the original out
of the GGUF file, which it does since it serves through llama.cpp's server.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

Message = dict[str, str]
Render = Callable[[Sequence[Message]], str]
"""A conversation as the tokenizer's template writes it, up to where the assistant begins to speak. Raises TemplateError
for one that it does not take."""


class TemplateError(Exception):
    """The chat template refuses a conversation, or cannot be written down; the text says why."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """What stands around the texts of system, user and assistant.

    `opening` … first question, without a system prompt (the model's own may be in it); `before` system `after` first
    question with one; question `answer` answer `question` question …; last question `prompt`.
    """

    opening: str
    before: str
    after: str
    answer: str
    question: str
    prompt: str

    def without(self, beginning: str) -> "Pieces":
        """Without a token at the very beginning that the engine adds by itself."""
        opening, before = (text.removeprefix(beginning) for text in (self.opening, self.before))
        return replace(self, opening=opening, before=before)

    def render(self, messages: Sequence[Message]) -> str:
        """What the Go template gives for a system prompt or none, and then questions and answers in turn."""
        system = [message["content"] for message in messages if message["role"] == "system"]
        turns = [message for message in messages if message["role"] != "system"]
        text = self.before + system[0] + self.after if system else self.opening
        for number, turn in enumerate(turns, 1):
            between = self.answer if turn["role"] == "user" else self.question
            text += turn["content"] + (between if number < len(turns) else self.prompt)
        return text

    def as_go(self) -> str:
        """Ollama's template. It joins several system prompts into one and puts it first; an answer that stands last is
        continued."""
        last = f"{{{{ if $last }}}}{_quoted(self.prompt)}{{{{ else }}}}{_quoted(self.answer)}{{{{ end }}}}"
        return (
            "{{ $first := true }}{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            '{{ if eq .Role "user" }}'
            "{{ if $first }}{{ $first = false }}"
            f"{{{{ if $.System }}}}{_quoted(self.before)}{{{{ $.System }}}}{_quoted(self.after)}"
            f"{{{{ else }}}}{_quoted(self.opening)}{{{{ end }}}}"
            "{{ end }}{{ .Content }}"
            + (_quoted(self.prompt) if self.prompt == self.answer else last)
            + '{{ else if eq .Role "assistant" }}{{ .Content }}'
            f"{{{{ if not $last }}}}{_quoted(self.question)}{{{{ end }}}}"
            "{{ end }}{{ end }}"
        )


def pieces_of(source: str, render: Render) -> Pieces:
    """The pieces of the template whose text is `source`. Raises TemplateError where they are not all there is to it."""
    if "strftime_now" in source:
        raise TemplateError("it writes the date")
    one, two, three, system = "qzFIRSTqz", "qzREPLYqz", "qzSECONDqz", "qzSYSTEMqz"
    turns = [_user(one), _assistant(two), _user(three)]
    opening, answer, question, prompt = _split(render(turns), one, two, three)
    before, after, takes_system = opening, "\n\n", True
    try:
        instructed = render([_system(system), *turns])
    except TemplateError:  # then the system prompt becomes the question's first lines, as in Ollama's own templates
        takes_system = False
    else:
        before, after, *_ = _split(instructed, system, one, two, three)
    pieces = Pieces(opening, before, after, answer, question, prompt)
    for conversation in _others(with_system=takes_system):
        if render(conversation) != pieces.render(conversation):
            raise TemplateError("what it puts around a turn depends on more than whose turn it is")
    return pieces


def _others(*, with_system: bool) -> list[list[Message]]:
    short = [_user("Wie spät?")]
    long = [_user("One\n\ntwo {{ three }}"), _assistant("<b>4</b>"), _user("5"), _assistant("6, 7"), _user('"8"')]
    return [short, long, *([[_system("Be brief.\nAlways."), *turns] for turns in (short, long)] if with_system else [])]


def _split(text: str, *marks: str) -> list[str]:
    """What stands before, between and after the marks."""
    pieces = []
    for mark in marks:
        if text.count(mark) != 1:
            raise TemplateError("it leaves out a turn, or repeats one")
        piece, _, text = text.partition(mark)
        pieces.append(piece)
    return [*pieces, text]


def _quoted(text: str) -> str:
    """Text that Go's template prints as it is."""
    return text.replace("{{", '{{ "{{" }}')


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _system(content: str) -> Message:
    return {"role": "system", "content": content}
