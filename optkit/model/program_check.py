"""Tells whether a string in the program of a ``torch.export`` archive (``models/*.json``) could become code.

torch turns four kinds of strings into code: operator names are looked up from ``torch`` downwards, size expressions go
through ``sympy.sympify`` (which evaluates Python), guards are executed, and tree specs import modules; argument names
are pasted into generated functions. Each kind is held to the shape that ``torch.export.save`` writes.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_IDENTIFIER = re.compile(r"([A-Za-z_]\w*)?", re.ASCII)
_PLAIN = re.compile(r"[\w.,:;<>+*@/\- ]*", re.ASCII)
_FILE_OPS = "save|from_file|load"
_OPERATOR = re.compile(
    rf"torch\.ops\.(aten|prims|quantized|quantized_decomposed|torchvision|onnx)\.(?!({_FILE_OPS})\b)\w+\.\w+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|associative_scan|map_impl|map|wrap|strict_mode|hints_wrap"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast|flex_attention)"
    r"|torch\.ops\.(profiler)\._record_function_(enter|exit)\w*\.\w+"
    r"|torch\.(sym_(int|float|max|min|not|ite|sum|sqrt)|_sym_\w+|_check|_check_is_size)"
    r"|torch\._C\._set_grad_enabled|torch\.amp\.autocast_mode\._(enter|exit)_autocast"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|invert"
    r"|lshift|rshift|getitem|index)"
    r"|math\.(ceil|floor|trunc|sqrt|pow|log|log2|exp|fabs)",
    re.ASCII,
)
_SYMPY = _words(
    "Symbol Dummy Integer Rational Float Half One Zero NegativeOne Add Mul Pow Max Min Abs floor ceiling sqrt log exp "
    "Mod PythonMod FloorDiv CleanDiv CeilDiv ModularIndexing Where CeilToInt FloorToInt TruncToInt TruncToFloat "
    "RoundToInt RoundDecimal LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv ToFloat Identity "
    "IsNonOverlappingAndDenseIndicator Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan "
    "StrictGreaterThan GreaterThan And Or Not Piecewise ExprCondPair Tuple BooleanTrue BooleanFalse ITE"
)
_GUARD_CALLS = _words("Max Min Abs Mod PythonMod FloorDiv CeilToInt FloorToInt IntTrueDiv ToFloat not_ min max")
_GUARD_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "numel", "isnan", "ceil", "floor", "trunc"})
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    ast.Load, ast.keyword,
)  # fmt: skip
_NAMES = frozenset({"name", "forward_arg_names"})
_FREE = frozenset({"as_string", "as_strings"})
_OBJECTS = frozenset({"as_custom_obj", "custom_obj", "class_fqn"})


def program_problem(program: Any) -> str:
    """Why loading or running this exported program could run code; empty when it could not.

    Args:
        program: the parsed JSON of ``models/*.json``.
    """
    if not isinstance(program, dict) or "graph_module" not in program:
        return "its program is not readable"
    try:
        return next(filter(None, (_leaf_problem(key, text) for key, text in _strings(program, ""))), "")
    except RecursionError:
        return "its program is nested too deeply"


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every string below ``value`` with the key it stands under; notes for debugging are left out."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield "", name
            if name in _OBJECTS:
                yield name, "object"
            if name != "metadata" or not _is_notes(item):
                yield from _strings(item, name)


def _is_notes(value: Any) -> bool:
    """Whether it is a node's metadata (texts by name, never evaluated), and not a tensor that is so called."""
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _leaf_problem(key: str, text: str) -> str:
    if key in _FREE:
        return ""
    if key in {"target", "as_operator"}:
        return "" if _OPERATOR.fullmatch(text) else f"its graph calls {text}, which is not one of torch's own operators"
    if key in _CODE:
        return "" if _CODE[key](text) else f"a size or guard is written as the code {text[:80]!r}"
    if key in {"in_spec", "out_spec"}:
        return _treespec_problem(text)
    return _name_problem(key, text)


def _name_problem(key: str, text: str) -> str:
    if key in _OBJECTS:
        return "its graph uses a custom object"
    safe = (_IDENTIFIER if key in _NAMES else _PLAIN).fullmatch(text)
    return "" if safe else f"{text[:80]!r} is no name that torch.export writes"


def is_plain_expression(text: str) -> bool:
    """Whether a size expression is arithmetic in sympy's notation: ``Add(Symbol('s0', positive=True), Integer(1))``."""
    tree = _parsed(text)
    return tree is not None and all(
        isinstance(node, _ARITHMETIC)
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _SYMPY)
        or (isinstance(node, ast.Name) and _IDENTIFIER.fullmatch(node.id) is not None and "__" not in node.id)
        or _plain_constant(node)
        for node in ast.walk(tree)
    )


def is_plain_guard(text: str) -> bool:
    """Whether a guard only compares sizes and values of inputs: ``L['x'].size()[0] == L['mask'].size()[0]``."""
    tree = _parsed(text)
    return tree is not None and all(
        isinstance(node, (*_ARITHMETIC, ast.Subscript))
        or (isinstance(node, ast.Call) and _guard_call(node))
        or (isinstance(node, ast.Name) and node.id in {"L", "math", "inf", "nan", *_GUARD_CALLS})
        or (isinstance(node, ast.Attribute) and node.attr in {"inf", "nan", *_GUARD_METHODS})
        or _plain_constant(node)
        for node in ast.walk(tree)
    )


def _guard_call(node: ast.Call) -> bool:
    named = isinstance(node.func, ast.Name) and node.func.id in _GUARD_CALLS
    return named or (isinstance(node.func, ast.Attribute) and node.func.attr in _GUARD_METHODS)


_CODE = {"expr_str": is_plain_expression, "guards_code": is_plain_guard}


def _parsed(text: str) -> ast.Expression | None:
    """The syntax tree of one expression on one line without comments, or None."""
    if not text.isascii() or not text.isprintable() or any(sign in text for sign in "#\\"):
        return None
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _plain_constant(node: ast.AST) -> bool:
    """A number, a bool, None, or a string that is a plain name or number, as in ``Symbol('s0')``, ``Float('1.5')``."""
    if not isinstance(node, ast.Constant):
        return False
    if isinstance(node.value, str):
        return re.fullmatch(r"[\w.+\-]*", node.value, re.ASCII) is not None and "__" not in node.value
    return node.value is None or isinstance(node.value, bool | int | float)


def _treespec_problem(text: str) -> str:
    """Why a tree spec (JSON) would import a module: enums and default factories do."""
    try:
        document = json.loads(text)
    except ValueError:
        return "a tree spec is not readable"
    return next(filter(None, (_spec_problem(part) for part in _spec_parts(document))), "")


def _spec_parts(value: Any) -> Iterator[str]:
    """Every string and key in a tree spec; contexts that are JSON themselves are opened."""
    if isinstance(value, str):
        inner = _json_or_none(value)
        yield from _spec_parts(inner) if isinstance(inner, list | dict | str) else (value,)
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _spec_parts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _spec_parts(item)


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _spec_problem(part: str) -> str:
    if part in {"__enum__", "default_factory_module"}:
        return "its inputs or outputs hold an object that is imported by name"
    return "" if _PLAIN.fullmatch(part) else f"{part[:80]!r} is no key that torch.export writes"
