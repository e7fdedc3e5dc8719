"""The weights' file: its header, its tensors' names, its values."""

import json

from adapters import Code
from tests.fakes.adapter_corpus.case import Area
from tests.fakes.adapter_corpus.craft import FIRST, WEIGHTS, Craft, factor, with_header

AREA = Area("The weights' file")
case = AREA.case
header = AREA.header
rewritten = AREA.rewritten


def entry(dtype: str = "F32", shape: str = "[1]", offsets: str = "[0, 4]") -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}'


rewritten(
    "weights_truncated",
    "the second half is missing",
    Code.HEADER,
    engine="refuses",
    change=lambda data: data[: len(data) // 2],
)
rewritten("weights_with_a_tail", "a byte too many", Code.HEADER, engine="refuses", change=lambda data: data + b"\0")
rewritten("weights_empty", "an empty file", Code.HEADER, engine="refuses", change=lambda data: b"")
rewritten("weights_garbage", "100 bytes of 255", Code.HEADER, engine="refuses", change=lambda data: b"\xff" * 100)
rewritten(
    "weights_a_pickle", "begins as a pickle", Code.HEADER, engine="refuses", change=lambda data: b"\x80\x04\x95" + data
)
header("header_a_list", "the header is []", Code.HEADER, engine="refuses", data=b"[]")
header("header_of_nothing", "no tensors", Code.UNPAIRED, engine="refuses", data=b"{}")
header(
    "header_with_gap",
    "bytes that belong to no tensor",
    Code.HEADER,
    engine="refuses",
    data=f'{{"a": {entry(offsets="[4, 8]")}}}'.encode(),
    payload=b"\0" * 8,
)
header(
    "header_with_overlap",
    "two tensors share bytes",
    Code.HEADER,
    engine="refuses",
    data=f'{{"a": {entry()}, "b": {entry(offsets="[2, 6]")}}}'.encode(),
    payload=b"\0" * 6,
)
header(
    "header_of_two_names",
    "one name stands twice",
    Code.HEADER,
    engine="refuses",
    data=f'{{"a": {entry()}, "a": {entry(offsets="[4, 8]")}}}'.encode(),
    payload=b"\0" * 8,
)
header(
    "header_negative",
    "a negative size",
    Code.HEADER,
    engine="refuses",
    data=f'{{"a": {entry(shape="[-1]")}}}'.encode(),
    payload=b"\0" * 4,
)
header(
    "header_overflowing",
    "sizes whose product overflows",
    Code.HEADER,
    engine="refuses",
    data=f'{{"a": {entry(shape="[4294967296, 4294967296]", offsets="[0, 0]")}}}'.encode(),
)
header(
    "header_of_unknown_dtype",
    "a type that does not exist",
    Code.HEADER,
    engine="refuses",
    data=f'{{"a": {entry("F12")}}}'.encode(),
    payload=b"\0" * 4,
)


@case("header_of_100_megabytes", "a header that says it has 100 MB", Code.HEADER, engine="refuses")
def _(craft: Craft) -> None:
    craft.files[WEIGHTS] = (100 << 20).to_bytes(8, "little") + b"{}"


@case(
    "header_with_unknown_fields",
    "a tensor with a field more",
    Code.HEADER,
    engine="serves",
    stricter="two readers that understand a header differently are how one content is checked and another served",
)
def _(craft: Craft) -> None:
    described, payload = {}, bytearray()
    for name, (_, values) in craft.tensors.items():
        begin = len(payload)
        payload += values.tobytes()
        offsets = [begin, len(payload)]
        described[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": offsets, "more": 1}
    craft.files[WEIGHTS] = with_header(json.dumps(described).encode(), bytes(payload))


@case("lora_b_missing", "a lora_A without its lora_B", Code.UNPAIRED, engine="refuses")
def _(craft: Craft) -> None:
    del craft.tensors[factor(FIRST, "B")]


@case("lora_a_missing", "a lora_B without its lora_A", Code.UNPAIRED, engine="misserves")
def _(craft: Craft) -> None:
    del craft.tensors[factor(FIRST, "A")]


@case("adapter_name_in_tensor_names", "lora_A.default.weight", Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.tensors = {name.replace(".weight", ".default.weight"): tensor for name, tensor in craft.tensors.items()}


@case("one_module_twice", "with and without base_model.model.", Code.TENSOR_NAME, engine="misserves")
def _(craft: Craft) -> None:
    for side, sign in (("A", 1), ("B", -1)):
        dtype, values = craft.tensors[factor(FIRST, side)]
        craft.tensors[f"{FIRST}.lora_{side}.weight"] = (dtype, values * sign)


@case("hostile_tensor_name", "control characters and a path", Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.tensors["base_model.model.\x1b[2J\n../../etc.lora_A.weight"] = ("F32", craft.values(8, 8))


_SCALES = "whole numbers and bytes are quantised weights, whose scales stand elsewhere"


@case("weights_of_whole_numbers", "stored as I8", Code.DTYPE, engine="serves", stricter=_SCALES)
def _(craft: Craft) -> None:
    craft.config["lora_alpha"] = 0.05
    craft.tensors = {name: ("I8", (values * 20).round()) for name, (_, values) in craft.tensors.items()}


@case("weights_of_a_byte", "stored as F8_E4M3", Code.DTYPE, engine="serves", stricter=_SCALES)
def _(craft: Craft) -> None:
    craft.tensors = {name: ("F8_E4M3", abs(values * 400).clip(0, 50)) for name, (_, values) in craft.tensors.items()}


def spoilt(name: str, what: str, value: float, side: str, dtype: str, index: int) -> None:
    def apply(craft: Craft) -> None:
        craft.poke(factor(FIRST, side), value, index)
        craft.all_as(dtype)

    case(name, what, Code.NOT_FINITE, engine="misserves")(apply)


for _dtype in ("BF16", "F16", "F32", "F64"):
    spoilt(f"nan_{_dtype}", f"one NaN among {_dtype}", float("nan"), "B", _dtype, -1)
spoilt("infinite", "one infinity", float("inf"), "A", "F32", 0)
spoilt("negative_infinite", "one negative infinity", float("-inf"), "A", "BF16", 7)
_NARROW = "an engine that serves in float16 makes it infinite, and answers with nothing"


@case("infinite_in_float16", "one 1e6 in lora_B", Code.OVERFLOW, engine="serves", stricter=_NARROW)
def _(craft: Craft) -> None:
    craft.poke(factor(FIRST, "B"), 1e6, 3)


@case(
    "infinite_once_scaled",
    "one 200 in lora_B, and alpha / rank is 512",
    Code.OVERFLOW,
    engine="serves",
    stricter=_NARROW,
)
def _(craft: Craft) -> None:
    craft.config["lora_alpha"] = 4096
    craft.tensors = {n: (d, v / 4096 if "lora_B" in n else v) for n, (d, v) in craft.tensors.items()}
    craft.poke(factor(FIRST, "B"), 200.0, 3)
