"""Change keys of a config from the command line: `--cfg-options KEY=VALUE`."""

from argparse import Namespace
from collections.abc import Collection, Mapping
from math import isnan
from typing import Any

from mmengine.config import Config, DictAction

from backbones.errors import InputError

from .known_keys import EITHER
from .validation import known_keys, suggest

MOST_BRACKETS = 1000  # the time of mmengine's parser grows with their square


class Overrides(DictAction):
    """Parse mmengine's KEY=VALUE arguments, with mistakes reported in one line."""

    def __call__(self, parser, namespace: Namespace, values: Any, option_string=None) -> None:
        for given in values:
            key, equals, _ = given.partition("=")
            if not equals or not key.isprintable():
                raise _refused(f"{given!r:.60}", "is not KEY=VALUE", key or given)
            try:
                if given.count("(") + given.count("[") > MOST_BRACKETS:
                    raise AssertionError
                super().__call__(parser, namespace, [given], option_string)
            except AssertionError:
                reason = "has unmatched brackets, or too many of them"
                raise _refused(f"{given:.60}:", reason, key) from None


def apply_overrides(config: Config, overrides: Mapping[str, Any]) -> None:
    """Set keys of a config.

    Args:
        config: changed in place.
        overrides: dotted key to value; a key must be in the config, or be one that its parent is
            known to read.

    Raises:
        InputError: there is no such key, or the value is of a kind that its reader cannot take.
    """
    for dotted, value in overrides.items():
        _check(config, dotted, value)
        try:
            config.merge_from_dict({dotted: value})
        except (TypeError, KeyError, ValueError) as error:
            raise _refused(f"{dotted}:", str(error), dotted) from None


def _check(config: Config, dotted: str, value: Any) -> None:
    node: Any = config._cfg_dict
    parts = dotted.split(".")
    for depth, part in enumerate(parts):
        known: Collection[str] = ()
        if isinstance(node, list | tuple):
            known = [str(i) for i in range(len(node))]
        elif isinstance(node, dict):
            known = {*node, *known_keys(config, ".".join(parts[:depth]), node)}
        if part not in known:
            where = ".".join(parts[: depth + 1])
            raise InputError(
                f"--cfg-options {dotted}: the config has no {where}{suggest(part, known)}",
                code="unknown-key",
                where=where,
            )
        if isinstance(node, dict) and part not in node:
            break
        node = node[int(part)] if isinstance(node, list | tuple) else node[part]
    else:
        _check_kind(dotted, node, value)
    if isinstance(value, float) and isnan(value):
        raise _refused(f"{dotted}:", "nan is not a number", dotted)


def _check_kind(dotted: str, former: Any, value: Any) -> None:
    """Reject a value whose type is incompatible with the one that it replaces."""
    last = dotted.rpartition(".")[2]
    if isinstance(former, dict) and not isinstance(value, dict | None) and last not in EITHER:
        example = next(iter(former), "KEY")
        raise _refused(
            f"{dotted}:",
            f"{value!r:.40} cannot replace a dict; set its keys, such as {dotted}.{example}=...",
            dotted,
        )
    dicts = isinstance(former, list | tuple) and any(isinstance(each, dict) for each in former)
    if dicts and value is not None:
        if not isinstance(value, list | tuple) or not all(isinstance(v, dict) for v in value):
            raise _refused(
                f"{dotted}:",
                f"{value!r:.40} cannot replace a list of dicts; set their keys, such as "
                f"{dotted}.0.type=..., or write a config",
                dotted,
            )
    number = isinstance(former, int | float)
    if number and isinstance(value, str) and last not in EITHER:
        raise _refused(f"{dotted}:", f"{value!r:.40} cannot replace {former}", dotted)


def _refused(given: str, reason: str, key: str) -> InputError:
    return InputError(f"--cfg-options {given} {reason}", code="bad-value", where=key)
