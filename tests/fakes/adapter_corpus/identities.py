"""Adapters that say on which base model they were trained: this one, or one of the same shapes."""

import tempfile
from pathlib import Path

from adapters import Code
from adapters.identity import digests
from adapters.manifest import BASE_DIGESTS
from tests.fakes.adapter_corpus.case import Area
from tests.fakes.adapter_corpus.craft import EMBEDDING, Craft, Dimensions, write_base

AREA = Area("The base model by its name and its digests")
case = AREA.case

_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_ANOTHER = "what vLLM computes is right for the weights that it has; they are not those of the training"


def of_base(dimensions: Dimensions) -> dict[str, str]:
    """The digests of the base model that cases of these dimensions are made for."""
    with tempfile.TemporaryDirectory() as folder:
        return digests(write_base(Path(folder) / "base", dimensions))


@case("base_recorded", "base_model_digests are those of the base model", engine="serves")
def _(craft: Craft) -> None:
    craft.config[BASE_DIGESTS] = of_base(craft.dimensions)


@case("base_in_the_hubs_cache", "the base model's name is a folder of the hub's cache", engine="serves")
def _(craft: Craft) -> None:
    cache = f"models--somebody--{craft.dimensions.name}/snapshots/{_COMMIT}"
    craft.config |= {"base_model_name_or_path": f"/home/somebody/.cache/huggingface/hub/{cache}"}


@case("base_on_another_system", "the base model's name is a folder of Windows", engine="serves")
def _(craft: Craft) -> None:
    craft.config["base_model_name_or_path"] = f"C:\\models\\{craft.dimensions.name}\\"


@case("other_base_name", "base_model_name_or_path names another model", engine="serves", warnings=(Code.BASE_NAME,))
def _(craft: Craft) -> None:
    craft.config["base_model_name_or_path"] = "somebody/another-model"


@case(
    "base_recorded_with_another_configuration",
    "the recorded weights, but another config.json",
    engine="serves",
    warnings=(Code.BASE_CONFIG,),
)
def _(craft: Craft) -> None:
    craft.config[BASE_DIGESTS] = of_base(craft.dimensions) | {"config": "0" * 64}


@case("other_base_recorded", "base_model_digests of other weights", Code.BASE, engine="serves", stricter=_ANOTHER)
def _(craft: Craft) -> None:
    found = of_base(craft.dimensions)
    craft.config[BASE_DIGESTS] = found | {"weights": found["weights"].partition(":")[0] + ":" + "0" * 64}


@case(
    "other_configuration_recorded",
    "base_model_digests of another config.json, and of weights of other types",
    Code.BASE,
    engine="serves",
    stricter=_ANOTHER,
)
def _(craft: Craft) -> None:
    craft.config[BASE_DIGESTS] = {"config": "0" * 64, "weights": "F16:" + "0" * 64}


@case(
    "other_base_by_its_embedding", "peft's copy of the base model's embedding is another", Code.BASE, engine="misserves"
)
def _(craft: Craft) -> None:
    craft.embedding(craft.dimensions.vocabulary)
    copy = craft.values(craft.dimensions.vocabulary, craft.dimensions.hidden)
    craft.tensors[f"base_model.model.{EMBEDDING}.base_layer.weight"] = ("BF16", copy)
