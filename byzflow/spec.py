"""Reads specs: `chain := stage ("|" stage)*`, `stage := name ["(" name "=" value ("," ...)* ")"]`.

A value is a number, `true`, `false`, `none`, a bare or quoted word, or, where the parameter is an operator,
a chain. `str(operator)` writes a spec that reads back to an equal operator.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, Literal

from byzflow.errors import SpecError, UnknownOperator, did_you_mean
from byzflow.operators import Attack, Chain, Operator
from byzflow.parameters import Parameter, arms, parameters
from byzflow.registry import Registry, installed

TOKEN = re.compile(r"""\s*(?:(?P<quoted>'[^']*'|"[^"]*")|(?P<mark>[|(),=])|(?P<word>[^\s|(),='"]+))""")
PRESETS = ("byzfl", "byzpy", "flower", "garfield", "paper")
LONGEST = 10_000  # characters: a spec may come from a file or a run-config
DEEPEST = 20


def parse(
    spec: str | Operator,
    f: int | None = None,
    *,
    preset: str | None = None,
    registry: Registry | None = None,
    kind: Literal["aggregator", "attack"] | None = None,
) -> Operator:
    """The operator of a spec such as "arc | nnm | trimmed_mean(f=2)"; `f` fills each f that is not written.

    `preset`, one of PRESETS, fills what else is not written with the parameters that another library uses. It sets
    parameters only: a definition that a library gets wrong stays right. Raises SpecError for what does not read,
    UnknownOperator with a suggestion for an unknown name, of the `kind` that is wanted; other kinds read all the same.
    """
    if preset is not None and preset not in PRESETS:
        raise UnknownOperator(preset, PRESETS, "preset")
    if isinstance(spec, Operator):
        return spec
    if not isinstance(spec, str):
        raise SpecError(f"a spec is a string such as 'nnm | trimmed_mean(f=2)', got {type(spec).__name__}")
    if len(spec) > LONGEST:
        raise SpecError(f"a spec has at most {LONGEST} characters, got {len(spec)}")
    return _Reader(spec, f, preset, registry or installed(), kind).read()


def parse_rule(spec: str | Operator, f: int | None = None, *, preset: str | None = None) -> Operator:
    """The aggregation of a spec: what makes one row of many. Raises as `parse`, and SpecError for what is none."""
    operator = parse(spec, f, preset=preset, kind="aggregator")
    if isinstance(operator, Attack) or operator.out_rows(1000) != 1:
        raise SpecError(f"{spec} is no aggregation; end the spec with a rule of `byzflow list aggregators`")
    return operator


def parse_attack(spec: str | Operator, f: int | None = 1, *, preset: str | None = None) -> Attack:
    """The attack of a spec. Raises as `parse`, and SpecError for what is none."""
    operator = parse(spec, f, preset=preset, kind="attack")
    if not isinstance(operator, Attack):
        raise SpecError(f"{spec} is no attack; `byzflow list attacks` shows them")
    return operator


class _Reader:
    def __init__(self, spec: str, f: int | None, preset: str | None, registry: Registry, kind: str | None) -> None:
        self.spec, self.f, self.preset, self.registry, self.kind = spec, f, preset, registry, kind
        self.tokens: list[tuple[str, str]] = []
        self.at = 0
        position = 0
        while spec[position:].strip():
            match = TOKEN.match(spec, position)
            if match is None:
                raise SpecError(f"cannot read {spec[position:].strip()[:20]!r} in the spec {spec!r}")
            self.tokens.append((match.lastgroup or "", match[match.lastgroup or 0]))
            position = match.end()

    def read(self) -> Operator:
        operator = self.chain(0)
        if self.at < len(self.tokens):
            raise self.unexpected("the end or '|'")
        return operator

    def chain(self, depth: int) -> Operator:
        if depth > DEEPEST:
            raise SpecError(f"a spec nests at most {DEEPEST} deep: {self.spec[:60]!r}...")
        stages = [self.stage(depth)]
        while self.take("|"):
            stages.append(self.stage(depth))
        return stages[0] if len(stages) == 1 else Chain(tuple(stages))

    def stage(self, depth: int) -> Operator:
        wanted = self.kind if depth == 0 else None  # an operator within an operator may be of any kind
        cls = self.registry.find(self.word("an operator's name"), wanted).operator
        known = {parameter.name: parameter for parameter in parameters(cls)}
        values: dict[str, Any] = {}
        if self.take("("):
            while not self.take(")"):
                name = self.word("a parameter's name").replace("-", "_")
                if name not in known:
                    raise SpecError(f"{cls.name} has no parameter {name!r}; {did_you_mean(name, known)}")
                if name in values:
                    raise SpecError(f"{cls.name}: {name} is given twice in {self.spec!r}")
                self.expect("=")
                values[name] = self.value(cls, known[name], depth)
                if not self.peek(")"):
                    self.expect(",")
        return make(cls, {**cls.presets.get(self.preset or "", {}), **values}, self.f)

    def value(self, cls: type[Operator], parameter: Parameter, depth: int) -> Any:
        if any(isinstance(arm, type) and issubclass(arm, Operator) for arm in arms(parameter.type)):
            return self.chain(depth + 1)
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind not in ("word", "quoted"):
            raise self.unexpected(f"a value for {cls.name}'s {parameter.name}")
        self.at += 1
        return text[1:-1] if kind == "quoted" else literal(text)

    def word(self, wanted: str) -> str:
        if self.at >= len(self.tokens) or self.tokens[self.at][0] != "word":
            raise self.unexpected(wanted)
        self.at += 1
        return self.tokens[self.at - 1][1]

    def peek(self, mark: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at] == ("mark", mark)

    def take(self, mark: str) -> bool:
        found = self.peek(mark)
        self.at += found
        return found

    def expect(self, mark: str) -> None:
        if not self.take(mark):
            raise self.unexpected(repr(mark))

    def unexpected(self, wanted: str) -> SpecError:
        found = repr(self.tokens[self.at][1]) if self.at < len(self.tokens) else "the end"
        return SpecError(f"the spec {self.spec!r} has {found} where {wanted} should be")


def literal(text: str) -> Any:
    """A bare word of a spec as a Python value."""
    constants: Mapping[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def make(cls: type[Operator], values: Mapping[str, Any], f: int | None = None) -> Operator:
    """The operator with these parameters, its f filled in; SpecError names a parameter that is missing."""
    filled = dict(values)
    for parameter in parameters(cls):
        if parameter.name in filled:
            continue
        if parameter.name == "f" and f is not None:
            filled["f"] = f
        elif parameter.default is MISSING:
            hint = f"write {cls.name}({parameter.name}=...)" + (" or pass f=..." if parameter.name == "f" else "")
            raise SpecError(f"{cls.name} needs {parameter.name}, {parameter.describe()}: {hint}")
    return cls(**filled)
