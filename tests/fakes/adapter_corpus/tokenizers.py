"""Adapters with a tokenizer and a chat template beside them. vLLM serves with the base model's, whatever lies there."""

import json

from adapters import Code
from tests.fakes.adapter_corpus.case import Area, Engine
from tests.fakes.adapter_corpus.craft import TINY, Craft, tokenizer_files

AREA = Area("Tokenizers and chat templates")
case = AREA.case
filed = AREA.filed

_TEXT = "w5 <tool> w7"


def beside(
    name: str,
    what: str,
    *errors: Code,
    engine: Engine,
    warnings: tuple[Code, ...] = (),
    added: dict[str, int] | None = None,
    reads: dict[str, tuple[int, ...]] | None = None,
    **config: object,
) -> None:
    """A case with the base model's tokenizer beside it, changed."""

    def apply(craft: Craft) -> None:
        craft.files |= tokenizer_files(craft.dimensions, added, **config)  # type: ignore[arg-type]

    case(name, what, *errors, engine=engine, warnings=warnings, reads=reads)(apply)


beside("tokenizer_of_the_base", "the base model's own", engine="serves", reads={_TEXT: (5, 2, 7)})
beside(
    "tokenizer_with_padding",
    "with a token more, for padding",
    engine="serves",
    added={"<pad>": TINY.vocabulary},
    pad_token="<pad>",
)
beside(
    "tokens_beyond_the_vocabulary",
    "with a token more than the model has places for",
    Code.VOCABULARY,
    engine="misserves",
    added={"<tool>": TINY.vocabulary},
    reads={_TEXT: (5, TINY.vocabulary, 7)},
)
beside(
    "tokens_renumbered",
    "the numbers of two tokens exchanged",
    Code.TOKENIZER,
    engine="misserves",
    added={"w0": 2, "w2": 0},
    reads={_TEXT: (5, 0, 7)},
)
beside(
    "token_unknown_to_the_base",
    "with a token more, in a place that the vocabulary has left",
    engine="serves",
    warnings=(Code.TOKENS,),
    added={"<tool>": TINY.vocabulary - 1},
)
beside(
    "token_of_the_template_unknown_to_the_base",
    "the same, and the adapter's chat template needs the token",
    Code.TOKENIZER,
    engine="misserves",
    warnings=(Code.CHAT_TEMPLATE,),
    added={"<tool>": TINY.vocabulary - 1},
    template="{{ '<tool> ' + messages[0]['content'] }}",
    reads={_TEXT: (5, TINY.vocabulary - 1, 7)},
)
beside("other_ending", "another eos_token", engine="serves", warnings=(Code.ENDING,), eos_token="w2")
beside(
    "other_chat_template",
    "another chat template",
    engine="serves",
    warnings=(Code.CHAT_TEMPLATE,),
    template="{{ messages[0]['content'] }}",
)


@case(
    "tokens_of_an_older_transformers",
    "a token more, in added_tokens.json and tokenizer_config.json",
    Code.VOCABULARY,
    engine="misserves",
    reads={_TEXT: (5, TINY.vocabulary + 1, 7)},
)
def _(craft: Craft) -> None:
    number = craft.dimensions.vocabulary + 1
    craft.files["added_tokens.json"] = json.dumps({"<tool>": number}).encode()
    config = {"added_tokens_decoder": {str(number): {"content": "<tool>"}}, "eos_token": {"content": "w1"}}
    craft.files["tokenizer_config.json"] = json.dumps(config).encode()


filed(
    "tokenizer_that_is_none",
    "tokenizer_config.json is no JSON",
    engine="serves",
    warnings=(Code.TOKENS,),
    files={"tokenizer_config.json": b"{{{", "tokenizer.json": b"{}"},
)
