"""What peft adds to a model for LoRA, and what bitsandbytes quantises of it.

Source: peft 0.21.2, tuners/tuners_utils.py (matching), tuners/lora/layer.py (shapes),
utils/transformers_weight_conversion.py (mixtures of experts).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from launcher.models.architectures import ARCHITECTURES
from launcher.models.shape import ModelShape, Parameter, Role
from launcher.spec import LoraBias

ALL_LINEAR = "all-linear"
ROUTER, GATE_UP, DOWN = "gate", "gate_up_proj", "down_proj"


def quantised_parameters(shape: ModelShape) -> tuple[Parameter, ...]:
    """The parameters that load_in_4bit quantises: the weights of every nn.Linear but the output head.

    The 3-D experts and the routers are no nn.Linear and stay as they are
    (transformers 5.23.0, integrations/bitsandbytes.py, replace_with_bnb_linear).
    """
    return shape.linears


def lora_target_names(shape: ModelShape) -> tuple[str, ...]:
    """The names that LoRA can target in this model."""
    linears = (_module(p).rsplit(".", 1)[-1] for p in shape.linears)
    return (*dict.fromkeys((*linears, *_stacked_names(shape))), "embed_tokens", "lm_head")


def lora_parameters(
    shape: ModelShape, targets: Sequence[str], rank: int, bias: LoraBias = LoraBias.NONE
) -> tuple[Parameter, ...]:
    """The parameters that LoRA trains, named and ordered as in peft's model, with role ADAPTER.

    targets: names of modules, matched as peft matches them, by the end of their path; or 'all-linear' alone. The
    biases of the base that another bias setting than none unfreezes come last, under their base names and role BIAS.

    In a mixture of experts peft takes the names of the experts' projections for the experts wherever they stand, so
    that no block's dense MLP is adapted, and 'all-linear' means attention, router and experts. The experts' gate and
    up projections are one parameter, adapted with twice the rank.

    Raises ValueError, listing the valid names, for a target that matches nothing LoRA can adapt, and for the experts'
    gate or up projection targeted alone.
    """
    stacked_names = _stacked_names(shape)
    names = _resolve(shape, targets)
    stacked = {old: stacked_names[old] for name in names if (old := _stacked_name(name, stacked_names))}
    modules = tuple(name for name in names if _stacked_name(name, stacked_names) is None)
    _refuse_half_a_fused_pair(stacked, stacked_names)
    chosen = [p for p in _adaptable(shape) if _is_chosen(p, modules, set(stacked.values()))]
    chosen_names = {p.name for p in chosen}
    adapters = (adapter for parameter in chosen for adapter in _adapters(parameter, rank, chosen_names))
    return (*adapters, *_unfrozen_biases(shape, chosen_names, bias))


def lora_allows_dropout(shape: ModelShape, targets: Sequence[str]) -> bool:
    """Whether peft takes a LoRA dropout for these targets: not where they include experts or routers.

    Those are adapted as parameters, and there is no input of a layer to drop from (peft 0.21.2, lora.ParamWrapper).
    """
    stacked_names = _stacked_names(shape)
    return not any(_stacked_name(name, stacked_names) for name in _resolve(shape, targets))


def _resolve(shape: ModelShape, targets: Sequence[str]) -> tuple[str, ...]:
    """The targets with 'all-linear' spelt out, each known to match something."""
    if ALL_LINEAR in targets:
        if len(targets) > 1:
            raise ValueError(f"'{ALL_LINEAR}' stands alone: leave out {_listed(t for t in targets if t != ALL_LINEAR)}")
        return tuple(name for name in lora_target_names(shape) if name not in ("embed_tokens", "lm_head"))
    unknown = [target for target in targets if not _matches_something(shape, target)]
    if unknown or not targets:
        what = f"{_listed(unknown)} matches nothing" if unknown else "no target is named"
        raise ValueError(f"{what}; LoRA can target {_listed(lora_target_names(shape))} or '{ALL_LINEAR}'")
    return tuple(targets)


def _matches_something(shape: ModelShape, target: str) -> bool:
    stacked_names = _stacked_names(shape)
    old = _stacked_name(target, stacked_names)
    modules, stacked = ((target,), set[str]()) if old is None else ((), {stacked_names[old]})
    return any(_is_chosen(parameter, modules, stacked) for parameter in _adaptable(shape))


def _stacked_names(shape: ModelShape) -> Mapping[str, str]:
    """The names peft knows a mixture's router and experts by -> the router's or the 3-D parameter's own name."""
    names = ARCHITECTURES[shape.model_type].expert_names
    return dict(zip((*names, ROUTER), (GATE_UP, GATE_UP, DOWN, ROUTER), strict=True)) if names else {}


def _stacked_name(target: str, stacked_names: Mapping[str, str]) -> str | None:
    return next((name for name in stacked_names if f".{target}".endswith(f".{name}")), None)


def _refuse_half_a_fused_pair(stacked: Mapping[str, str], stacked_names: Mapping[str, str]) -> None:
    pair = [old for old, new in stacked_names.items() if new == GATE_UP]
    given = [old for old in pair if old in stacked]
    if len(given) == 1:
        raise ValueError(f"{given[0]} needs its partner: {' and '.join(pair)} are one parameter in the experts")


def _adaptable(shape: ModelShape) -> Iterator[Parameter]:
    """Every weight that LoRA can adapt, in order; the head also where it is tied to the embedding."""
    yield from shape.with_role(Role.EMBEDDING, Role.LINEAR, Role.ROUTER, Role.EXPERT)
    yield shape.head


def _is_chosen(parameter: Parameter, modules: Sequence[str], stacked: set[str]) -> bool:
    """Whether a weight is adapted; stacked holds GATE_UP, DOWN and ROUTER as targeted."""
    if parameter.role in (Role.ROUTER, Role.EXPERT):
        return _module(parameter).rsplit(".", 1)[-1] in stacked
    return any(f".{_module(parameter)}".endswith(f".{target}") for target in modules)


def _adapters(parameter: Parameter, rank: int, chosen_names: set[str]) -> Iterator[Parameter]:
    prefix = f"base_model.model.{_module(parameter)}"
    if parameter.role is Role.EMBEDDING:
        num_rows, width = parameter.shape
        yield _adapter(parameter, f"{prefix}.lora_embedding_A.default", (rank, num_rows))
        yield _adapter(parameter, f"{prefix}.lora_embedding_B.default", (width, rank))
        return
    *stack, num_outputs, num_inputs = parameter.shape
    if stack:
        # One wrapper around the experts for each of their parameters: the first one chosen is the inner wrapper.
        experts, _, own_name = prefix.rpartition(".")
        is_inner = own_name == GATE_UP and parameter.name.replace(GATE_UP, DOWN) in chosen_names
        prefix = f"{experts}.base_layer" if is_inner else experts
        rank *= stack[0] * (2 if own_name == GATE_UP else 1)
    yield _adapter(parameter, f"{prefix}.lora_A.default.weight", (rank, num_inputs))
    yield _adapter(parameter, f"{prefix}.lora_B.default.weight", (num_outputs, rank))


def _adapter(base: Parameter, name: str, shape: tuple[int, int]) -> Parameter:
    return Parameter(name=name, shape=shape, layer=base.layer, role=Role.ADAPTER)


def _unfrozen_biases(shape: ModelShape, chosen_names: set[str], bias: LoraBias) -> tuple[Parameter, ...]:
    if bias is LoraBias.NONE:
        return ()
    biases = shape.with_role(Role.BIAS)
    if bias is LoraBias.ALL:
        return biases
    return tuple(p for p in biases if f"{p.name.removesuffix('.bias')}.weight" in chosen_names)


def _module(parameter: Parameter) -> str:
    """The path of the module that holds a weight; for an expert parameter its own path."""
    return parameter.name.removesuffix(".weight")


def _listed(names: Iterator[str] | Sequence[str]) -> str:
    return ", ".join(names)
