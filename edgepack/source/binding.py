"""Bind the inputs of a model, by their names, to the parameters of its forward.

Every pass calls a module with its inputs by position. That is safe only in the order in which
forward names them: `forward(self, query, key)` fed in the order of an `.npz` file that holds
`key` first computes another function, and nothing downstream can see it. `bind_inputs` settles
the order once, and adapts the module where no order of plain positional arguments will do
(keyword-only parameters, a dict of tensors, an optional parameter that is skipped).
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from edgepack.errors import SourceError
from edgepack.spec.document import nearest

_FORWARD = "_edgepack_forward"
_MAPPINGS = (dict, collections.OrderedDict, collections.abc.Mapping, collections.abc.MutableMapping)


@dataclass(frozen=True)
class Binding:
    """The parameters of a forward that the inputs of a model are passed as.

    Attributes:
        order: names of the inputs, in the order of the parameters that take them.
        parameters: per input, the parameter that takes it.
        mapping: the parameter that takes inputs in a dict under their own names; None for none.
        positional: parameters that can only be passed by position, in order.
        defaults: parameters that no input is bound to, with the default of each.
        plain: whether the inputs in `order` are the first positional arguments of forward.
    """

    order: tuple[str, ...]
    parameters: Mapping[str, str]
    mapping: str | None
    positional: tuple[str, ...]
    defaults: Mapping[str, Any]
    plain: bool

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and the keyword arguments of a call of forward.

        Args:
            values: one value per input, by name.
        """
        if self.plain:
            return [values[name] for name in self.order], {}
        keywords: dict[str, Any] = {}
        for name in self.order:
            parameter = self.parameters[name]
            if parameter == self.mapping:
                keywords.setdefault(parameter, {})[name] = values[name]
            else:
                keywords[parameter] = values[name]
        fed = [name for name in self.positional if name in keywords]
        last = self.positional.index(fed[-1]) + 1 if fed else 0
        leading = self.positional[:last]
        return [keywords.pop(name, self.defaults.get(name)) for name in leading], keywords


def match_inputs(module: Any, names: Sequence[str]) -> Binding:
    """Bind inputs to the parameters of a module's forward.

    An input goes to the parameter of its own name. Inputs that name no parameter go, together,
    into a dict for the one remaining parameter without a default, or to `**kwargs`. A single
    input, and a single unmatched one beside a single unmatched parameter, need no matching name.

    Raises:
        SourceError: source-inputs-unmatched where an input has no parameter of its name,
            source-inputs-missing where a parameter without a default has no input.
    """
    parameters = _parameters(module)
    if parameters is None:
        parameters = [Parameter("args", Parameter.VAR_POSITIONAL)]
    named = {p.name: p for p in parameters if p.kind not in _VARIADIC}
    bound = {name: name for name in names if name in named}
    rest = [name for name in names if name not in named]
    mapping = None
    if rest:
        extra, mapping = _bind_rest(rest, bound, parameters, len(names) == 1)
        if extra is None:
            raise _unmatched(rest, names, parameters)
        bound.update(extra)
    taken = set(bound.values())
    missing = [p.name for p in named.values() if p.default is p.empty and p.name not in taken]
    if missing:
        raise SourceError(
            "source-inputs-missing",
            f"forward takes {missing[0]}, and no input has this name",
            why=f"inputs: {', '.join(names)}; forward{_describe(parameters)}",
            hint=f"add --input {missing[0]}:dtype:dims, and an array {missing[0]} to the samples",
        )
    ranks = {p.name: index for index, p in enumerate(parameters)}
    # What goes to **kwargs under its own name comes last.
    order = tuple(sorted(names, key=lambda name: ranks.get(bound[name], len(ranks))))
    first = [p for p in parameters if p.kind in _POSITIONAL][: len(order)]
    return Binding(
        order=order,
        parameters=bound,
        mapping=mapping,
        positional=tuple(p.name for p in parameters if p.kind is Parameter.POSITIONAL_ONLY),
        defaults={p.name: p.default for p in named.values() if p.name not in taken},
        plain=mapping is None and _is_plain(order, bound, first, parameters),
    )


def bind_inputs(module: Any, names: Sequence[str]) -> tuple[Any, Binding]:
    """Let a module take its inputs by position, in the order of the binding that is returned.

    The parameters and buffers keep their names: a Python module gets a subclass of its class as
    its class, which a deep copy keeps. A TorchScript module is wrapped.

    Raises:
        SourceError: as `match_inputs`.
    """
    binding = match_inputs(module, names)
    return (module if binding.plain else _adapted(module, binding, binding.order)), binding


def bind_in_order(module: Any, names: Sequence[str]) -> Any:
    """Let a module take its inputs by position in the order of `names`, as another one does.

    Raises:
        SourceError: as `match_inputs`.
    """
    binding = match_inputs(module, names)
    if binding.plain and binding.order == tuple(names):
        return module
    return _adapted(module, binding, tuple(names))


def select_inputs(module: Any, names: tuple[str, ...]) -> Any:
    """Let a Hugging Face network take some of its inputs, the others at their defaults.

    Args:
        module: a `NamedModule`.
        names: of the inputs to feed, in the module's order.
    """
    if getattr(module, "input_names", names) != names:
        module.input_names = names
    return module


def describe_defaults(binding: Binding) -> str:
    """Say which parameters that could be inputs are left to their defaults; "" for none.

    Flags and words (`return_dict=True`, `mode="mean"`) are options of the code, not inputs.
    """
    optional = {
        name: value
        for name, value in binding.defaults.items()
        if not isinstance(value, (bool, str)) and (value is None or _is_number(value))
    }
    if not optional:
        return ""
    listed = [f"{name}={value}" for name, value in list(optional.items())[:6]]
    more = f" and {len(optional) - 6} more" if len(optional) > 6 else ""
    return (
        f"optional parameters of forward without an input keep their defaults: "
        f"{', '.join(listed)}{more}"
    )


_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or hasattr(value, "dtype")


def _parameters(module: Any) -> list[Parameter] | None:
    """Return the parameters of a module's forward, None where it does not tell them."""
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is not None and hasattr(schema, "arguments"):
        return [_from_schema(argument) for argument in schema.arguments[1:]]
    # Annotations that are text are evaluated, which may raise anything.
    with suppress(Exception):
        return list(inspect.signature(module.forward, eval_str=True).parameters.values())
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return None


def _from_schema(argument: Any) -> Parameter:
    """Convert an argument of TorchScript's."""
    default = argument.default_value if argument.has_default_value() else Parameter.empty
    kind = Parameter.KEYWORD_ONLY if argument.kwarg_only else Parameter.POSITIONAL_OR_KEYWORD
    annotation = dict if str(argument.type).startswith("Dict[") else Parameter.empty
    return Parameter(argument.name, kind, default=default, annotation=annotation)


def _bind_rest(
    rest: list[str], bound: Mapping[str, str], parameters: Sequence[Parameter], single: bool
) -> tuple[dict[str, str] | None, str | None]:
    """Bind inputs that name no parameter; None where that would be a guess.

    Returns:
        The parameter of each input, and the one that takes them in a dict.
    """
    free = [p for p in parameters if p.kind not in _VARIADIC and p.name not in bound.values()]
    mappings = [p for p in free if _is_mapping(p.annotation)]
    if len(mappings) == 1:
        return dict.fromkeys(rest, mappings[0].name), mappings[0].name
    required = [p for p in free if p.default is p.empty]
    if len(required) == len(rest) == 1:
        return {rest[0]: required[0].name}, None
    optional = [p for p in free if p.default is None]
    if len(required) == 1 and not optional and required[0].annotation in (Parameter.empty, Any):
        return dict.fromkeys(rest, required[0].name), required[0].name
    if required:
        return None, None
    by_position = [p for p in parameters if p.kind in (*_POSITIONAL, Parameter.VAR_POSITIONAL)]
    if single and by_position:
        return {rest[0]: by_position[0].name}, None
    keywords = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    misspelt = any(nearest(name, [p.name for p in free]) for name in rest)
    return ({name: name for name in rest} if keywords and not misspelt else None), None


def _is_mapping(annotation: Any) -> bool:
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    origins = [typing.get_origin(option) or option for option in options]
    return any(
        isinstance(kind, type) and (kind in _MAPPINGS or typing.is_typeddict(kind))
        for kind in origins
    )


def _is_union(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    return origin is typing.Union or getattr(origin, "__name__", "") == "UnionType"


def _is_plain(
    order: Sequence[str],
    bound: Mapping[str, str],
    first: Sequence[Parameter],
    parameters: Sequence[Parameter],
) -> bool:
    if [bound[name] for name in order] == [p.name for p in first]:
        return True
    variadic = [p.name for p in parameters if p.kind is Parameter.VAR_POSITIONAL]
    return len(order) == 1 and bound[order[0]] in variadic


def _unmatched(
    rest: Sequence[str], names: Sequence[str], parameters: Sequence[Parameter]
) -> SourceError:
    free = [p.name for p in parameters if p.kind not in _VARIADIC and p.name not in names]
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
        why=f"inputs: {', '.join(names)}; forward{_describe(parameters)}",
        hint=hint,
    )


def _describe(parameters: Sequence[Parameter]) -> str:
    plain = [p.replace(annotation=Parameter.empty) for p in parameters]
    try:
        return str(inspect.Signature(plain))
    except ValueError:
        return f"({', '.join(map(str, plain))})"


def _adapted(module: Any, binding: Binding, order: tuple[str, ...]) -> Any:
    """Let a module take the inputs by position in `order`."""
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        return _wrapped_script(torch, module, binding, order)
    kind = type(module)
    if "forward" in vars(module):
        # A forward that was set on the instance hides the class's.
        module.__dict__[_FORWARD] = module.__dict__.pop("forward")
        original = _call_own
    else:
        original = kind.forward

    def forward(self: Any, *values: Any) -> Any:
        args, keywords = binding.arguments(dict(zip(order, values, strict=True)))
        return original(self, *args, **keywords)

    places = [Parameter(f"input_{i}", Parameter.POSITIONAL_OR_KEYWORD) for i in range(len(order))]
    own = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    # torch.export asks for a shape per parameter, and `*values` would count as one.
    forward.__signature__ = inspect.Signature([own, *places])  # type: ignore[attr-defined]
    content = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__}
    module.__class__ = type(kind.__name__, (kind,), content)
    return module


def _call_own(module: Any, *args: Any, **keywords: Any) -> Any:
    return vars(module)[_FORWARD](*args, **keywords)


def _wrapped_script(torch: Any, module: Any, binding: Binding, order: tuple[str, ...]) -> Any:
    """Wrap a TorchScript module, whose class cannot be changed, in another one."""

    class BoundScript(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

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
