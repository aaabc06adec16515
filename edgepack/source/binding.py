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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from edgepack.errors import SourceError
from edgepack.spec.document import nearest

if TYPE_CHECKING:
    from torch import nn

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
        keywords: dict[str, Any] = {}
        for name in self.order:
            parameter = self.parameters[name]
            if parameter == self.mapping:
                keywords.setdefault(parameter, {})[name] = values[name]
            else:
                keywords[parameter] = values[name]
        # A positional-only parameter can be passed only with all those before it, which get
        # their defaults: of (a, b=None, c=None, /) fed with a and c, b is passed as None.
        last = max((i + 1 for i, name in enumerate(self.positional) if name in keywords), default=0)
        leading = self.positional[:last]
        return [keywords.pop(name, self.defaults.get(name)) for name in leading], keywords


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
    parameters = _parameters(module)
    if parameters is None:
        parameters = [Parameter("args", Parameter.VAR_POSITIONAL)]
    by_name = {p.name: p for p in parameters if p.kind not in _VARIADIC}
    bound = {name: name for name in names if name in by_name}
    rest = [name for name in names if name not in by_name]
    mapping = None
    if rest:
        extra, mapping = _bind_rest(rest, bound, parameters, len(names) == 1)
        if extra is None:
            raise _unmatched(rest, names, parameters)
        bound.update(extra)
    used = set(bound.values())
    missing = [p.name for p in by_name.values() if p.default is p.empty and p.name not in used]
    if missing:
        raise SourceError(
            "source-inputs-missing",
            f"forward takes {missing[0]}, and no input has this name",
            why=f"inputs: {', '.join(names)}; forward{_describe(parameters)}",
            hint=f"add --input {missing[0]}:dtype:dims, and an array {missing[0]} to the samples",
        )
    ranks = {p.name: index for index, p in enumerate(parameters)}
    # Inputs for **kwargs come last.
    order = tuple(sorted(names, key=lambda name: ranks.get(bound[name], len(ranks))))
    first = [p for p in parameters if p.kind in _POSITIONAL][: len(order)]
    return Binding(
        order=order,
        parameters=bound,
        mapping=mapping,
        positional=tuple(p.name for p in parameters if p.kind is Parameter.POSITIONAL_ONLY),
        defaults={p.name: p.default for p in by_name.values() if p.name not in used},
        plain=mapping is None and _is_plain(order, bound, first, parameters),
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
    renamed = [
        f"{name} feeds forward's {parameter}"
        for name, parameter in binding.parameters.items()
        if name != parameter and parameter != binding.mapping
    ]
    if len(binding.order) == 1 or not renamed:
        return ""
    return f"an input is bound to the only parameter left, by another name: {', '.join(renamed)}"


def describe_defaults(binding: Binding) -> str:
    """List the possible inputs that keep their defaults; "" for none.

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


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) or hasattr(value, "dtype")


def _parameters(module: nn.Module) -> list[Parameter] | None:
    """Return the parameters of a module's forward; None if it has no signature."""
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is not None and hasattr(schema, "arguments"):
        return [_from_schema(argument) for argument in schema.arguments[1:]]
    # Textual annotations are evaluated, and that may raise anything.
    with suppress(Exception):
        return list(inspect.signature(module.forward, eval_str=True).parameters.values())
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return None


def _from_schema(argument: Any) -> Parameter:
    """Convert an argument of a TorchScript schema."""
    default: Any = Parameter.empty
    annotation: Any = Parameter.empty
    kind: Any = Parameter.POSITIONAL_OR_KEYWORD
    if argument.has_default_value():
        default = argument.default_value
    if str(argument.type).startswith("Dict["):
        annotation = dict
    if argument.kwarg_only:
        kind = Parameter.KEYWORD_ONLY
    return Parameter(argument.name, kind, default=default, annotation=annotation)


def _bind_rest(
    rest: list[str], bound: Mapping[str, str], parameters: Sequence[Parameter], single: bool
) -> tuple[dict[str, str] | None, str | None]:
    """Bind inputs that name no parameter; None if that would be a guess.

    Returns:
        The parameter of each input, and the parameter that takes them in a dict; None for none.
    """
    free = [p for p in parameters if p.kind not in _VARIADIC and p.name not in bound.values()]
    # forward(self, batch: dict[str, Tensor]): all of them go into `batch`.
    mappings = [p for p in free if _is_mapping(p.annotation)]
    if len(mappings) == 1:
        return dict.fromkeys(rest, mappings[0].name), mappings[0].name
    required = [p for p in free if p.default is p.empty]
    # forward(self, x) with the one input "image": nothing else can be meant.
    if len(required) == len(rest) == 1:
        return {rest[0]: required[0].name}, None
    # forward(self, batch) with several inputs: without an annotation it is taken for a dict.
    optional = [p for p in free if p.default is None]
    if len(required) == 1 and not optional and required[0].annotation in (Parameter.empty, Any):
        return dict.fromkeys(rest, required[0].name), required[0].name
    if required:
        return None, None
    by_position = [p for p in parameters if p.kind in (*_POSITIONAL, Parameter.VAR_POSITIONAL)]
    if single and by_position:
        return {rest[0]: by_position[0].name}, None
    # `**kwargs` would swallow a misspelt name, and the parameter would keep its default.
    keywords = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    misspelt = any(nearest(name, [p.name for p in free]) for name in rest)
    if keywords and not misspelt:
        return {name: name for name in rest}, None
    return None, None


def _is_mapping(annotation: object) -> bool:
    # `dict[str, Tensor] | None` takes a dict, as `dict` does.
    options: tuple[Any, ...] = (annotation,)
    if _is_union(annotation):
        options = typing.get_args(annotation)
    origins = [typing.get_origin(option) or option for option in options]
    return any(
        isinstance(kind, type) and (kind in _MAPPINGS or typing.is_typeddict(kind))
        for kind in origins
    )


def _is_union(annotation: object) -> bool:
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


def _adapt(module: nn.Module, binding: Binding, order: tuple[str, ...]) -> nn.Module:
    """Let a module take the inputs by position in `order`."""
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        return _wrap_script(torch, module, binding, order)
    kind = type(module)
    if "forward" in vars(module):
        # A forward set on the instance would hide the subclass's.
        module.__dict__[_FORWARD] = module.__dict__.pop("forward")
        original = _call_instance_forward
    else:
        original = kind.forward

    def forward(self: Any, *values: Any) -> Any:
        args, keywords = binding.arguments(dict(zip(order, values, strict=True)))
        return original(self, *args, **keywords)

    names = ["self", *(f"input_{i}" for i in range(len(order)))]
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    # torch.export needs one shape per parameter, and `*values` would count as one.
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    content = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__}
    module.__class__ = type(kind.__name__, (kind,), content)
    return module


def _call_instance_forward(module: nn.Module, *args: Any, **keywords: Any) -> Any:
    return vars(module)[_FORWARD](*args, **keywords)


def _wrap_script(
    torch: Any, module: nn.Module, binding: Binding, order: tuple[str, ...]
) -> nn.Module:
    """Wrap a TorchScript module, since its class cannot be changed."""

    class BoundScript(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, inner: Any) -> None:
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
