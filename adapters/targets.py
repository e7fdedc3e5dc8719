"""Which modules an adapter's configuration names, by peft's rules.

peft leaves tensors of other modules out when it loads an adapter; vLLM serves whatever the file holds, and never looks
at these fields. Where the two differ, the configuration and the weights are not of one training.
"""

from collections.abc import Iterator, Mapping

from adapters.files import WEIGHTS
from adapters.findings import Code, Finding
from adapters.inspect import Inspection, several
from adapters.manifest import Manifest
from adapters.patterns import Pattern, UnsupportedPatternError, parse

# peft's word for every linear layer but the output layer; what it saves has the modules' names instead.
_ALL_LINEAR = "all-linear"
_ENDS = frozenset({"embed_tokens", "lm_head"})


class _UnknownError(Exception):
    """The fields hold a regular expression that is not followed here."""


def compare(inspection: Inspection) -> Iterator[Finding]:
    """Holds the modules that have tensors against the configuration.

    Nothing is found where that would take a regular expression beyond those of `patterns`: it could hang whoever
    follows it.
    """
    manifest = inspection.manifest
    try:
        named = _Named(manifest)
    except _UnknownError:
        return
    ways = {module: named.by_module(module) + named.by_parameter(module) for module in inspection.modules}
    for modules, how in (
        (_where(ways, 0), "which the configuration leaves out: peft leaves it out, too, and vLLM serves it"),
        (_where(ways, 2), "which target_modules and target_parameters both name: peft takes only one of them"),
    ):
        if modules:
            remedy = "restore the adapter_config.json that was written with these weights"
            yield Finding(Code.TARGET, f"{WEIGHTS} holds {several(modules)}, {how}", remedy)
    misnamed = [module for module in ways if named.by_parameter(module) and _depends_on_the_name(manifest, module)]
    if misnamed:
        yield Finding(
            Code.VARIANT,
            f"rank_pattern or alpha_pattern fits {several(misnamed)} by the module's name otherwise than by the "
            "parameter's: vLLM goes by the one, peft by the other",
            "train with one rank and one alpha, or merge it into the base model",
        )


def _where(ways: Mapping[str, int], count: int) -> list[str]:
    return [module for module, found in ways.items() if found == count]


def _depends_on_the_name(manifest: Manifest, module: str) -> bool:
    names = {module} | {f"{module}.{name.rpartition('.')[2]}" for name in manifest.target_parameters}
    return len({(manifest.rank(name), manifest.scale(name)) for name in names}) > 1


class _Named:
    """What the configuration names. Raises _UnknownError."""

    def __init__(self, manifest: Manifest) -> None:
        self._targets = _names_or_pattern(manifest.target_modules)
        self._excluded = _names_or_pattern(manifest.exclude_modules)
        self._parameters = tuple(name.rpartition(".")[0] for name in manifest.target_parameters)
        self._layers = manifest.layers
        self._layers_patterns = tuple(map(_pattern, manifest.layers_pattern))
        self._tied = manifest.ensure_weight_tying

    def by_parameter(self, module: str) -> bool:
        return _ends_in(module, self._parameters)

    def by_module(self, module: str) -> bool:
        if self._tied and module.rpartition(".")[2] in _ENDS:  # peft names one of the ends and adapts both
            return any(self._names(end) for end in (module, "lm_head", "model.embed_tokens"))
        return self._names(module)

    def _names(self, module: str) -> bool:
        if isinstance(self._excluded, Pattern) and self._excluded.matches(module):
            return False
        if not isinstance(self._excluded, Pattern) and _ends_in(module, self._excluded):
            return False
        if isinstance(self._targets, Pattern):
            return self._targets.matches(module)
        if self._targets == (_ALL_LINEAR,):
            return module.rpartition(".")[2] not in _ENDS
        if module in self._targets:
            return True
        return _ends_in(module, self._targets) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        return self._layers is None or _layer(module, self._layers_patterns) in self._layers


def _layer(module: str, patterns: tuple[Pattern, ...]) -> int | None:
    """The number of the layer that a module is in: the first after a name that a pattern matches, or after any two."""
    parts = module.split(".")
    for pattern in patterns or (None,):
        for place, part in enumerate(parts[:-1]):
            if part.isdigit() and (pattern.matches(".".join(parts[:place])) if pattern else place >= 2):
                return int(part)
    return None


def _ends_in(module: str, names: tuple[str, ...]) -> bool:
    """Whether one of the names is the module's, or its last parts."""
    return any(module == name or (name != "" and module.endswith(f".{name}")) for name in names)


def _names_or_pattern(value: tuple[str, ...] | str) -> tuple[str, ...] | Pattern:
    if isinstance(value, tuple) or value.lower() == _ALL_LINEAR:
        return (value.lower(),) if isinstance(value, str) else value
    return _pattern(f"^{value.removeprefix('^')}") if value else ()


def _pattern(key: str) -> Pattern:
    try:
        return parse(key)
    except UnsupportedPatternError as error:
        raise _UnknownError from error
