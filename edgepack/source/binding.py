"""Bind the inputs of a model, by their names, to the parameters of its forward.

Every pass calls a module with its inputs by position, so their order must be that of forward's
parameters: `forward(self, query, key)` fed in the order of an `.npz` file that holds `key` first
computes another function, and nothing downstream can detect it. `bind_inputs` fixes the order
once, and adapts the module if plain positional arguments are not enough (keyword-only
parameters, a dict of tensors, an optional parameter that is skipped).
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from edgepack.errors import SourceError
from edgepack.listing import join_names
from edgepack.spec.suggestions import nearest

if TYPE_CHECKING:
    from torch import nn
    from torch._C import Argument

_FORWARD = "_edgepack_forward"
_MAPPINGS = (dict, collections.OrderedDict, collections.abc.Mapping, collections.abc.MutableMapping)


@dataclass(frozen=True)
class Binding:
    """Assignment of a model's inputs to the parameters of its forward.

    Attributes:
        order: names of the inputs, in the order of the parameters that take them.
        parameters: per input, the parameter that takes it.
        mapping: the parameter that takes inputs in a dict under their own names; None for none.
        positional: parameters that can only be passed by position, in order.
        defaults: parameters that no input is bound to, with the default of each.
        plain: True if the inputs in `order` are the first positional arguments of forward.

    For `forward(self, image, scale=1.0, *, mask)` and the inputs "mask" and "image", `order` is
    ("image", "mask"), `defaults` is {"scale": 1.0}, and `plain` is False, since mask is
    keyword-only.
    """

    order: tuple[str, ...]
    parameters: Mapping[str, str]
    mapping: str | None
    positional: tuple[str, ...]
    defaults: Mapping[str, object]
    plain: bool

    def arguments(self, values: Mapping[str, object]) -> tuple[list[object], dict[str, object]]:
        """Return the positional and the keyword arguments of a call of forward.

        Args:
            values: one value per input, by name.
        """
        if self.plain:
            return [values[name] for name in self.order], {}
        keywords: dict[str, object] = {}
        collected: dict[str, object] = {}
        for name in self.order:
            parameter = self.parameters[name]
            if parameter == self.mapping:
                collected[name] = values[name]
                keywords[parameter] = collected
            else:
                keywords[parameter] = values[name]
        # A positional-only parameter can be passed only with all those before it, which get
        # their defaults: of (a, b=None, c=None, /) fed with a and c, b is passed as None.
        count = 0
        for position, name in enumerate(self.positional, start=1):
            if name in keywords:
                count = position
        leading = self.positional[:count]
        return [keywords.pop(name, self.defaults.get(name)) for name in leading], keywords


@dataclass(frozen=True)
class _Signature:
    """Parameters of a forward, in order.

    Attributes:
        parameters: all of them, without `self`.
    """

    parameters: tuple[Parameter, ...]

    @property
    def named(self) -> dict[str, Parameter]:
        """Parameters that one input is bound to, by name: all but `*args` and `**kwargs`."""
        by_name = {}
        for parameter in self.parameters:
            if parameter.kind not in _VARIADIC:
                by_name[parameter.name] = parameter
        return by_name

    def of_kind(self, *kinds: object) -> list[str]:
        """Return the names of the parameters of some kinds."""
        return [p.name for p in self.parameters if p.kind in kinds]

    def unbound(self, bound: Iterable[str]) -> dict[str, Parameter]:
        """Return the named parameters that are not among `bound`."""
        parameters = self.named
        for name in bound:
            parameters.pop(name, None)
        return parameters

    def sort(self, names: Sequence[str], bound: Mapping[str, str]) -> tuple[str, ...]:
        """Return the inputs in the order of their parameters; those for `**kwargs` come last."""
        ranks = {p.name: rank for rank, p in enumerate(self.parameters)}

        def rank_of(name: str) -> int:
            return ranks.get(bound[name], len(ranks))

        return tuple(sorted(names, key=rank_of))

    def __str__(self) -> str:
        """Write the parameters as Python does, without annotations: (x, mask=None)."""
        plain = [p.replace(annotation=Parameter.empty) for p in self.parameters]
        try:
            return str(inspect.Signature(plain))
        except ValueError:
            return f"({', '.join(map(str, plain))})"


def list_parameters(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the positional parameters of a module's forward, in order."""
    return tuple(_signature(module).of_kind(*_POSITIONAL))


def match_inputs(module: nn.Module, names: Sequence[str]) -> Binding:
    """Bind inputs to the parameters of a module's forward.

    An input is bound to the parameter of the same name. Inputs that name no parameter are passed
    together in a dict to the one remaining parameter without a default, or as `**kwargs`. A
    single input, and a single unmatched one beside a single unmatched parameter, need no
    matching name.

    Raises:
        SourceError: source-inputs-unmatched if an input has no parameter of its name,
            source-inputs-missing if a parameter without a default has no input.
    """
    signature = _signature(module)
    by_name = signature.named
    bound, rest = {}, []
    for name in names:
        if name in by_name:
            bound[name] = name
        else:
            rest.append(name)
    mapping = None
    if rest:
        extra, mapping = _bind_rest(rest, bound, signature, len(names) == 1)
        if extra is None:
            raise _unmatched(rest, names, signature)
        bound.update(extra)
    defaults = {}
    for name, parameter in signature.unbound(bound.values()).items():
        if parameter.default is parameter.empty:
            raise SourceError(
                "source-inputs-missing",
                f"forward takes {name}, and no input has this name",
                why=f"inputs: {', '.join(names)}; forward{signature}",
                hint=f"add --input {name}:dtype:dims, and an array {name} to the samples",
            )
        defaults[name] = parameter.default
    order = signature.sort(names, bound)
    return Binding(
        order=order,
        parameters=bound,
        mapping=mapping,
        positional=tuple(signature.of_kind(Parameter.POSITIONAL_ONLY)),
        defaults=defaults,
        plain=mapping is None and _is_plain(order, bound, signature),
    )


def bind_inputs(module: nn.Module, names: Sequence[str]) -> tuple[nn.Module, Binding]:
    """Let a module take its inputs by position, in the order of the returned binding.

    Parameters and buffers keep their names: the class of a Python module is replaced by a
    subclass of it, and survives a deep copy. A TorchScript module is wrapped.

    Raises:
        SourceError: as `match_inputs`.
    """
    binding = match_inputs(module, names)
    if binding.plain:
        return module, binding
    return _adapt(module, binding, binding.order), binding


def bind_in_order(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """Let a module take its inputs by position in the order of `names`, as another module does.

    Raises:
        SourceError: as `match_inputs`.
    """
    binding = match_inputs(module, names)
    if binding.plain and binding.order == tuple(names):
        return module
    return _adapt(module, binding, tuple(names))


def select_inputs(module: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """Let a Hugging Face network take some of its inputs; the others keep their defaults.

    Args:
        module: a `NamedModule`.
        names: of the inputs to feed, in the module's order.
    """
    if getattr(module, "input_names", names) != names:
        module.input_names = names
    return module


def describe_renamed(binding: Binding) -> str:
    """Return the note on an input that feeds a parameter of another name; "" if there is none.

    A single input may have any name. Beside others, a name that matches nothing may be misspelt.
    """
    renamed = []
    for name, parameter in binding.parameters.items():
        if parameter not in (name, binding.mapping):
            renamed.append(f"{name} feeds forward's {parameter}")
    if len(binding.order) == 1 or not renamed:
        return ""
    return f"an input is bound to the only parameter left, by another name: {', '.join(renamed)}"


def describe_defaults(binding: Binding) -> str:
    """List the possible inputs that keep their defaults; "" for none.

    Flags and words (`return_dict=True`, `mode="mean"`) are options of the code, not inputs.
    """
    optional = []
    for name, value in binding.defaults.items():
        if value is None or _is_number(value):
            optional.append(f"{name}={value}")
    if not optional:
        return ""
    listed = join_names(optional, _LISTED)
    return f"optional parameters of forward without an input keep their defaults: {listed}"


_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_LISTED = 6


def _is_number(value: object) -> bool:
    # A flag is not a number here, although bool is a subclass of int.
    if isinstance(value, (bool, str)):
        return False
    return isinstance(value, (int, float)) or hasattr(value, "dtype")


def _signature(module: nn.Module) -> _Signature:
    """Return the signature of a module's forward; `(*args)` if none can be read."""
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is not None and hasattr(schema, "arguments"):
        return _Signature(tuple(map(_from_schema, schema.arguments[1:])))
    # Textual annotations are evaluated, and that may raise anything.
    with suppress(Exception):
        signature = inspect.signature(module.forward, eval_str=True)
        return _Signature(tuple(signature.parameters.values()))
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return _Signature((Parameter("args", Parameter.VAR_POSITIONAL),))
    return _Signature(tuple(signature.parameters.values()))


def _from_schema(argument: Argument) -> Parameter:
    """Convert an argument of a TorchScript schema."""
    parameter = Parameter(argument.name, Parameter.POSITIONAL_OR_KEYWORD)
    if argument.kwarg_only:
        parameter = parameter.replace(kind=Parameter.KEYWORD_ONLY)
    if argument.has_default_value():
        parameter = parameter.replace(default=argument.default_value)
    if str(argument.type).startswith("Dict["):
        parameter = parameter.replace(annotation=dict)
    return parameter


def _bind_rest(
    rest: list[str], bound: Mapping[str, str], signature: _Signature, single: bool
) -> tuple[dict[str, str] | None, str | None]:
    """Bind inputs that name no parameter; None if that would be a guess.

    Returns:
        The parameter of each input, and the parameter that takes them in a dict; None for none.
    """
    free = signature.unbound(bound.values())
    mappings, required, has_optional = [], [], False
    for name, parameter in free.items():
        if _is_mapping(parameter.annotation):
            mappings.append(name)
        if parameter.default is parameter.empty:
            required.append(name)
        has_optional |= parameter.default is None
    # forward(self, batch: dict[str, Tensor]): all of them go into `batch`.
    if len(mappings) == 1:
        return dict.fromkeys(rest, mappings[0]), mappings[0]
    # forward(self, x) with the one input "image": nothing else can be meant.
    if len(required) == len(rest) == 1:
        return {rest[0]: required[0]}, None
    # forward(self, batch) with several inputs: without an annotation it is taken for a dict.
    if len(required) == 1 and not has_optional:
        (name,) = required
        if free[name].annotation in (Parameter.empty, Any):
            return dict.fromkeys(rest, name), name
    if required:
        return None, None
    by_position = signature.of_kind(*_POSITIONAL, Parameter.VAR_POSITIONAL)
    if single and by_position:
        return {rest[0]: by_position[0]}, None
    # `**kwargs` would swallow a misspelt name, and the parameter would keep its default.
    misspelt = any(nearest(name, free) for name in rest)
    if signature.of_kind(Parameter.VAR_KEYWORD) and not misspelt:
        return dict(zip(rest, rest, strict=True)), None
    return None, None


def _is_mapping(annotation: object) -> bool:
    """Return True if a parameter takes a dict: `dict`, `dict[str, Tensor] | None`, a TypedDict."""
    if _is_union(annotation):
        return any(map(_is_mapping, typing.get_args(annotation)))
    kind = typing.get_origin(annotation) or annotation
    return isinstance(kind, type) and (kind in _MAPPINGS or typing.is_typeddict(kind))


def _is_union(annotation: object) -> bool:
    origin = typing.get_origin(annotation)
    return origin is typing.Union or getattr(origin, "__name__", "") == "UnionType"


def _is_plain(order: Sequence[str], bound: Mapping[str, str], signature: _Signature) -> bool:
    """Return True if forward takes the inputs as its first positional arguments."""
    parameters = [bound[name] for name in order]
    if parameters == signature.of_kind(*_POSITIONAL)[: len(order)]:
        return True
    return len(order) == 1 and parameters[0] in signature.of_kind(Parameter.VAR_POSITIONAL)


def _unmatched(rest: Sequence[str], names: Sequence[str], signature: _Signature) -> SourceError:
    free = signature.unbound(names)
    near = nearest(rest[0], free)
    hint = "name each input, and each array of the samples, as forward names its parameter"
    if near:
        hint = f"did you mean {near}? {hint[0].upper()}{hint[1:]}"
    elif not free:
        hint = (
            "inputs are bound by name: let the factory return a module whose forward names them, "
            f"forward(self, {', '.join(names)})"
        )
    return SourceError(
        "source-inputs-unmatched",
        f"the input {rest[0]} names no parameter of forward",
        why=f"inputs: {', '.join(names)}; forward{signature}",
        hint=hint,
    )


def _adapt(module: nn.Module, binding: Binding, order: tuple[str, ...]) -> nn.Module:
    """Let a module take the inputs by position in `order`."""
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        return _wrap_script(module, binding, order)
    kind = type(module)
    original: Callable[..., object] = kind.forward
    if "forward" in vars(module):
        # A forward set on the instance would hide the subclass's.
        module.__dict__[_FORWARD] = module.__dict__.pop("forward")
        original = _call_instance_forward

    def forward(self: object, *values: object) -> object:
        args, keywords = binding.arguments(dict(zip(order, values, strict=True)))
        return original(self, *args, **keywords)

    # torch.export needs one shape per parameter, and `*values` would count as one.
    parameters = [Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)]
    for index in range(len(order)):
        parameters.append(Parameter(f"input_{index}", Parameter.POSITIONAL_OR_KEYWORD))
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    content = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__}
    module.__class__ = type(kind.__name__, (kind,), content)
    return module


def _call_instance_forward(module: object, *args: object, **keywords: object) -> object:
    return vars(module)[_FORWARD](*args, **keywords)


def _wrap_script(module: nn.Module, binding: Binding, order: tuple[str, ...]) -> nn.Module:
    """Wrap a TorchScript module, since its class cannot be changed."""
    import torch

    class BoundScript(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

    # The wrapper is compiled from source text, for example
    #     def forward(self, input_0, input_1):
    #         return self.inner(image=input_0, batch={'mask': input_1})
    values = {name: f"input_{index}" for index, name in enumerate(order)}
    _, keywords = binding.arguments(values)
    parts = []
    for parameter, value in keywords.items():
        if isinstance(value, dict):
            entries = ", ".join(f"{key!r}: {argument}" for key, argument in value.items())
            value = f"{{{entries}}}"
        parts.append(f"{parameter}={value}")
    if binding.plain:
        parts = [values[name] for name in binding.order]
    wrapper = torch.jit.script(BoundScript(module))
    arguments = ", ".join(values.values())
    wrapper.define(f"def forward(self, {arguments}):\n    return self.inner({', '.join(parts)})\n")
    wrapper.eval()
    return wrapper
