"""Check and clean a serialised `torch.export` program before torch parses it.

torch turns several strings of a program's JSON into code. On torch 2.13 each of these ran a
shell command when the program was loaded or called:

- `expr_str`, the size of a dynamic axis, is evaluated by `sympy.sympify`;
- `guards_code` is compiled and executed;
- names of values become names in generated source code;
- an operator or `as_operator` is looked up attribute by attribute from `torch`, as far as
  `torch.os.system`; a tree specification imports the module that it names.

Every such string must be on an allow-list. Guards and unneeded metadata are dropped.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Iterator

from edgepack.errors import SourceError

MAX_DEPTH = 200
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_DOTTED = re.compile(r"\w+(\.\w+)*", re.ASCII)
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed)\.(\w+)\.(\w+)", re.ASCII)
# Operators of aten that are named as Python's are: `mask & 1` is aten.__and__.Scalar. Any other
# name with two underscores may be an attribute of a Python object.
_DUNDER_OPERATORS = frozenset(
    ["__and__", "__or__", "__xor__", "__lshift__", "__rshift__",
     "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"]
)  # fmt: skip
# aten::from_file maps files, and creates them.
_FORBIDDEN_OPERATORS = frozenset({"from_file", "save", "_print", "warn"})
# Targets besides torch's operators, by module: "math.ceil" is "ceil" of "math".
_CALLABLES = {
    # Control flow. Its branches are graphs of the same program, and checked like the rest.
    "torch.ops.higher_order": frozenset(
        ["cond", "while_loop", "scan", "map_impl", "wrap_with_set_grad_enabled",
         "wrap_with_autocast", "associative_scan"]
    ),
    # Arithmetic on symbolic sizes: the floordiv of x[:, : x.shape[1] // 2].
    "_operator": frozenset(
        ["eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv", "mod",
         "pow", "truediv", "and_", "or_", "lshift", "rshift", "getitem", "not_"]
    ),
    "torch": frozenset(
        ["sym_not", "sym_int", "sym_float", "sym_ite", "sym_max", "sym_min", "sym_sqrt",
         "_sym_sqrt"]
    ),
    "math": frozenset(["trunc", "ceil", "floor"]),
}  # fmt: skip

_METADATA = frozenset({"nn_module_stack", "torch_fn"})
_DOTTED_KEYS = frozenset(
    ["parameter_name", "buffer_name", "tensor_constant_name", "user_input_name", "class_fqn", "fqn"]
)
_TREES = frozenset(
    ["builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict",
     "torch.fx.immutable_collections.immutable_list",
     "torch.fx.immutable_collections.immutable_dict"]
)  # fmt: skip
_FUNCTIONS = frozenset(
    ["Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Eq", "Ne",
     "Lt", "Le", "Gt", "Ge", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan",
     "Equality", "Unequality", "And", "Or", "Not", "Abs", "floor", "ceiling", "FloorDiv",
     "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv",
     "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat",
     "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity"]
)  # fmt: skip
# Arguments that may be text, by function.
_TEXTS = {"Symbol": _NAME, "Float": re.compile(r"[-+0-9.eE]{1,40}")}
_KEY = re.compile(r"[\w .:/-]*", re.ASCII)


def clean_program(data: bytes, file: str) -> bytes:
    """Check a program's JSON, and drop guards and unneeded metadata.

    Args:
        data: `models/model.json`.
        file: the archive's name, for errors.

    Raises:
        SourceError: source-corrupt if it is not a program, source-exported-unsafe if a string
            in it could become code, source-exported-operator for an operator that is not
            torch's own, source-exported-objects for custom objects.
    """
    try:
        program = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise corrupt(file, f"models/model.json: {error}") from error
    if not isinstance(program, dict) or not isinstance(program.get("graph_module"), dict):
        raise corrupt(file, "models/model.json has no graph_module")
    program["guards_code"] = []
    for key, value in _walk(program, file):
        _check(key, value, file)
    return json.dumps(program).encode()


def corrupt(file: str, why: str) -> SourceError:
    """Return the error for a program that cannot be parsed."""
    return SourceError(
        "source-corrupt",
        f"{file} is not a complete torch.export program",
        why=why,
        hint="save it again with torch.export.save",
    )


def unsafe(file: str, why: str) -> SourceError:
    """Return the error for a program that could run code."""
    return SourceError(
        "source-exported-unsafe",
        f"{file} was not loaded: it could run code on this host",
        why=why,
        hint="save your own program again with torch.export.save; do not use one of unknown origin",
    )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # torch's parser may take the other one of two equal keys.
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object repeats a key")
    return result


def _walk(root: object, file: str) -> Iterator[tuple[str, object]]:
    """Yield every (key, value) of nested objects; elements of a list have the list's key.

    {"a": [{"b": 1}]} gives ("a", [...]), then ("a", {"b": 1}), then ("b", 1).
    """
    pending: list[tuple[str, object, int]] = [("", root, 0)]
    while pending:
        key, value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise corrupt(file, f"it is nested deeper than {MAX_DEPTH}")
        yield key, value
        if isinstance(value, dict):
            for name, inner in value.items():
                pending.append((name, inner, depth + 1))
        elif isinstance(value, list):
            for inner in value:
                pending.append((key, inner, depth + 1))


def _check(key: str, value: object, file: str) -> None:
    """Check one entry of the JSON by its key; a node's metadata is reduced in place."""
    if isinstance(value, dict):
        if "target" in value and "inputs" in value:
            _check_operator(value["target"], file)
            metadata = value.get("metadata") or {}
            value["metadata"] = {k: v for k, v in metadata.items() if k in _METADATA}
        if key in ("as_custom_obj", "custom_obj") or (key == "custom_obj_values" and value):
            raise SourceError(
                "source-exported-objects",
                f"{file} holds custom objects (torchbind)",
                why="their own code unpickles them",
                hint="export the network without custom classes",
            )
        if key.endswith("_values") or key == "range_constraints":
            for name in value:
                _check_name(name, file)
    elif isinstance(value, str):
        if key == "as_operator":
            _check_operator(value, file)
        elif key == "expr_str":
            check_expression(value, file)
        elif key in ("in_spec", "out_spec"):
            _check_tree(value, file)
        elif key == "forward_arg_names" or (key == "name" and value):
            _check_name(value, file)
        elif key in _DOTTED_KEYS and value and not _DOTTED.fullmatch(value):
            raise unsafe(file, f"the {key} {value[:60]!r} is not a name")


def _check_name(name: object, file: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise unsafe(file, f"{str(name)[:60]!r} is not a name")


def _check_operator(target: object, file: str) -> None:
    target = str(target)
    if not _is_known_operator(target):
        raise SourceError(
            "source-exported-operator",
            f"{file} uses an operator that is not one of torch's own",
            why=f"{target[:80]!r}",
            hint="export the network without custom operators: torch.onnx cannot translate them "
            "either",
        )


def _is_known_operator(target: str) -> bool:
    """Return True for an operator of torch that only computes.

    "torch.ops.aten.relu.default" and "math.ceil" are; "torch.os.system" and
    "torch.ops.aten.from_file.default" are not.
    """
    module, _, name = target.rpartition(".")
    if name in _CALLABLES.get(module, ()):
        return True
    match = _OPERATOR.fullmatch(target)
    if not match:
        return False
    _, name, overload = match.groups()
    # torch looks up both names as attributes, so `__class__` must not pass for an overload.
    if overload.startswith("__") or (name.startswith("__") and name not in _DUNDER_OPERATORS):
        return False
    return name not in _FORBIDDEN_OPERATORS


def check_expression(text: str, file: str) -> None:
    """Refuse a symbolic size that is more than arithmetic on names and numbers.

    Raises:
        SourceError: source-exported-unsafe.
    """
    try:
        if len(text) > 2000:
            raise ValueError("too long")
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise unsafe(file, f"the size {text[:60]!r} is not an expression") from error
    for node in ast.walk(tree):
        if not _is_arithmetic(node):
            raise unsafe(file, f"the size {text[:60]!r} is more than arithmetic")


def _is_arithmetic(node: ast.AST) -> bool:
    """Return True for a node of arithmetic: all nodes of 2*Symbol('s0') + 1, not those of x.y."""
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS:
            return False
        return _plain_text(node.func.id, node)
    if isinstance(node, ast.Name):
        return not node.id.startswith("_")
    if isinstance(node, ast.Constant):
        # Strings are checked with the call that they are an argument of: Symbol('s0').
        return isinstance(node.value, (bool, float, str)) or (
            isinstance(node.value, int) and abs(node.value) < 2**63
        )
    # 9**9**9 would keep sympy busy for ever, so only small constant powers pass.
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return isinstance(node.right, ast.Constant) and node.right.value in range(9)
    return isinstance(
        node,
        (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.keyword, ast.operator,
         ast.unaryop, ast.cmpop, ast.expr_context),
    )  # fmt: skip


def _plain_text(function: str, call: ast.Call) -> bool:
    """Return True if a call's strings are harmless; sympy parses them again.

    Symbol('s0') and Float('0.5') are; Symbol('x()') and Add('__import__') are not.
    """
    form = _TEXTS.get(function)
    for value in (*call.args, *(keyword_.value for keyword_ in call.keywords)):
        if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
            continue
        if form is None or not form.fullmatch(value.value):
            return False
    return True


def _check_tree(text: str, file: str) -> None:
    """Check a tree specification, the nesting of arguments or outputs.

    A dict {"a": tensor} is [1, {"type": "builtins.dict", "context": "[\\"a\\"]",
    "children_spec": [{"type": null, "context": null, "children_spec": []}]}].
    """
    try:
        pending = [json.loads(text)[1]]
        while pending:
            node = pending.pop()
            pending.extend(node["children_spec"])
            if node["type"] is None:
                continue
            if node["type"] not in _TREES:
                raise SourceError(
                    "source-output-unsupported",
                    f"{file} takes or returns a {node['type']}",
                    why="its code is not in the file",
                    hint="export the network with tensors, tuples and dicts only",
                )
            context = node["context"]
            keys = json.loads(context) if isinstance(context, str) else context
            if not _plain_keys(keys):
                raise unsafe(file, f"the keys of a {node['type']} are {str(context)[:60]!r}")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise corrupt(file, f"a tree specification is broken: {error}") from error


def _plain_keys(keys: object) -> bool:
    """Return True for the keys of a dict that are numbers or plain words, and for no keys."""
    if keys is None:
        return True
    return isinstance(keys, list) and all(map(_is_plain_key, keys))


def _is_plain_key(key: object) -> bool:
    if isinstance(key, str):
        return _KEY.fullmatch(key) is not None
    return isinstance(key, int)


def check_payload(data: bytes, file: str, entry: str, available: frozenset[str]) -> None:
    """Check the table of weights or constants: plain tensors only, each with an entry.

    Raises:
        SourceError: source-corrupt, source-exported-unsafe, source-exported-objects.
    """
    try:
        config = json.loads(data, object_pairs_hook=_unique)["config"]
        # {"fc.weight": {"path_name": "weight_0", "use_pickle": false, "tensor_meta": {...}}};
        # torch would unpickle the entry of a row with use_pickle.
        for name, row in list(config.items()):
            if row["use_pickle"] is not False:
                raise unsafe(file, f"{entry}: {name!r} is pickled")
            if not _DOTTED.fullmatch(name):
                raise unsafe(file, f"{entry}: {name[:60]!r} is not a name")
            if row["tensor_meta"] is None or row["path_name"] not in available:
                raise corrupt(file, f"{entry}: {name!r} has no tensor {row['path_name']!r}")
            for key, value in _walk(row, file):
                _check(key, value, file)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise corrupt(file, f"{entry}: {type(error).__name__}: {error}") from error
