"""Find the arguments of a class or function, through its base classes and decorators."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from textwrap import dedent
from typing import Any, Literal

Rest = Literal["none", "dropped", "used"]


@dataclass(frozen=True)
class Signature:
    """Hold the arguments that a class or function can be called with.

    Attributes:
        arguments: names and defaults, `inspect.Parameter.empty` where there is none.
        rest: whether there may be others: `none`, `dropped`, or `used` for something.
    """

    arguments: dict[str, Any]
    rest: Rest


@cache
def signature_of(built: Any) -> Signature | None:
    """Return the signature of a class or function; None if it accepts any argument.

    A class that hands its **kwargs to its base takes what that takes. One that does something else
    with them, or nothing at all, takes any argument besides those that it names.
    """
    arguments: dict[str, Any] = {}
    fates: set[Rest] = {"none"}
    # Of several bases, any may be the one that is given the **kwargs.
    has_one_base = not inspect.isclass(built) or all(len(c.__bases__) < 2 for c in built.__mro__)
    for function in _functions(built):
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return None
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        arguments = {p.name: p.default for p in named} | arguments
        arguments |= dict.fromkeys(_former_names(function), inspect.Parameter.empty)
        rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        if rest is None and has_one_base:
            break
        if rest is not None:
            fates.add(_fate(function, rest))
    else:
        # Every class in the chain hands its **kwargs on; nn.Module and object end it.
        if not inspect.isclass(built):
            return None
    arguments.pop("self", None)
    fate: Rest = "used" if "used" in fates else "dropped" if "dropped" in fates else "none"
    return Signature(arguments, fate)


def _functions(built: Any) -> Iterator[Any]:
    """Yield the callables that receive the arguments: a function, or each `__init__` of a class."""
    if not inspect.isclass(built):
        yield built
        return
    for link in built.__mro__:
        function = link.__dict__.get("__init__")
        if function is not None and link is not object:
            yield function


def _former_names(function: Any) -> tuple[str, ...]:
    """Return arguments that mmengine's `deprecated_api_warning` renames, as mmcv uses it."""
    code = getattr(function, "__code__", None)
    cells = getattr(function, "__closure__", None) or ()
    held = dict(zip(code.co_freevars, cells, strict=True)) if code and cells else {}
    return tuple(held["name_dict"].cell_contents) if "name_dict" in held else ()


def _fate(function: Any, name: str) -> Rest:
    """Return the use that an `__init__` makes of **kwargs; `none` if only its base takes them."""
    try:
        tree = ast.parse(dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):  # compiled, or generated as those of dataclasses
        return "none"
    to_base = 0
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        target = call.func
        if isinstance(target, ast.Attribute) and target.attr == "__init__":
            to_base += any(k.arg is None and _is_name(k.value, name) for k in call.keywords)
    uses = sum(_is_name(node, name) for node in ast.walk(tree))
    return "dropped" if uses == 0 else "none" if uses == to_base else "used"


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
