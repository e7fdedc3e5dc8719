"""Ranks, scales, and modules that the configuration states otherwise than the tensors."""

from adapters import Code
from tests.fakes.adapter_corpus.case import Area
from tests.fakes.adapter_corpus.craft import FIRST, Craft

AREA = Area("Ranks, scales and targets that lie")
case = AREA.case
configured = AREA.configured
without = AREA.without


@case("rank_64", "more than the engine's --max-lora-rank", Code.RANK_TOO_LARGE, engine="refuses")
def _(craft: Craft) -> None:
    craft.config["r"] = 64
    for name in craft.dimensions.modules():
        craft.factors(name, 64)


configured(
    "rank_declared_too_large",
    "a rank_pattern for a module that is not there",
    Code.RANK_TOO_LARGE,
    engine="refuses",
    rank_pattern={"no_such_module": 64},
)
configured("rank_of_a_million", "r is 1,000,000", Code.RANK, engine="refuses", r=1_000_000)
configured("rank_zero", "r is 0", Code.RANK, engine="refuses", r=0)
configured("rank_negative", "r is -8", Code.RANK, engine="refuses", r=-8)
configured("rank_as_text", 'r is "8"', Code.FIELD, engine="refuses", r="8")
configured("rank_as_truth", "r is true", Code.FIELD, engine="misserves", r=True)
configured(
    "rank_as_fraction", "r is 8.0", Code.FIELD, engine="serves", r=8.0, like="plain",
    stricter="peft cannot load it, so it is not what was trained",
)  # fmt: skip
configured("rank_that_lies", "r is 4, the tensors have 8", Code.RANK_MISMATCH, engine="misserves", r=4)
configured(
    "rank_pattern_that_lies",
    "rank_pattern says 16, the tensors have 8",
    Code.RANK_MISMATCH,
    engine="misserves",
    rank_pattern={"k_proj": 16},
)
configured("rank_pattern_as_list", "rank_pattern is [8]", Code.FIELD, engine="refuses", rank_pattern=[8])
without("no_rank", "no r", "r", Code.FIELD, engine="refuses")


@case("one_module_of_another_rank", "one pair of tensors has rank 4", Code.RANK_MISMATCH, engine="misserves")
def _(craft: Craft) -> None:
    craft.factors(FIRST, 4)


configured("alpha_as_text", 'lora_alpha is "16"', Code.FIELD, engine="refuses", lora_alpha="16")
configured("alpha_of_nothing", "lora_alpha is null", Code.FIELD, engine="refuses", lora_alpha=None)
configured("alpha_beyond_measure", "lora_alpha is 1e30", Code.SCALE, engine="misserves", lora_alpha=1e30)
without("no_alpha", "no lora_alpha", "lora_alpha", Code.FIELD, engine="refuses")
without("no_target_modules", "no target_modules", "target_modules", Code.FIELD, engine="refuses")
configured("target_modules_of_nothing", "target_modules is null", Code.TARGET, engine="misserves", target_modules=None)
configured(
    "tensors_that_no_target_names",
    "target_modules names q_proj and v_proj, the tensors are of seven modules",
    Code.TARGET,
    engine="misserves",
    target_modules=["q_proj", "v_proj"],
)
configured(
    "tensors_that_an_expression_leaves_out",
    "a regular expression names layer 1, the tensors are of both",
    Code.TARGET,
    engine="misserves",
    target_modules=r"model\.layers\.1\..*_proj",
)
configured(
    "tensors_that_are_excluded",
    "exclude_modules names modules that have tensors",
    Code.TARGET,
    engine="misserves",
    exclude_modules=["up_proj"],
)
configured(
    "tensors_of_other_layers",
    "layers_to_transform names layer 1, the tensors are of both",
    Code.TARGET,
    engine="misserves",
    layers_to_transform=[1],
)
configured(
    "target_named_twice",
    "target_modules and target_parameters both name k_proj",
    Code.TARGET,
    engine="misserves",
    target_parameters=["k_proj.weight"],
)
