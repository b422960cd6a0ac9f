"""What is installed, as plain data: the one source of `byzflow list`, `byzflow show` and the docs' tables."""

from __future__ import annotations

import inspect
from dataclasses import MISSING
from typing import Any

from byzflow.operators import Operator, extras_of
from byzflow.parameters import parameters, show
from byzflow.registry import Entry, installed


def describe(entry: Entry) -> dict[str, Any]:
    """An operator as JSON-ready data: name, kind, class, parameters, extras, validity, plugin, paper, text."""
    cls = entry.operator
    text = inspect.getdoc(cls) or ""
    return {
        "name": cls.name,
        "aliases": list(cls.aliases),
        "kind": entry.kind,
        "class": cls.kind,
        "summary": summary(text),
        "needs": validity(cls, "h" if entry.kind == "attack" else "n"),
        "parameters": [
            {
                "name": parameter.name,
                "accepts": parameter.describe(),
                "required": parameter.default is MISSING,
                "default": None if parameter.default is MISSING else show(parameter.default),
                "help": parameter.help,
            }
            for parameter in parameters(cls)
        ],
        "extras": sorted(extras_of(cls)),  # type: ignore[arg-type]  # classes do hash
        "plugin": entry.plugin,
        "package": entry.package,
        "paper": cls.paper,
        "text": text,
    }


def aggregations() -> list[str]:
    """The installed aggregators that need no parameter but f."""
    entries = installed().of_kind("aggregator")
    return [
        e.operator.name for e in entries if {p.name for p in parameters(e.operator) if p.default is MISSING} <= {"f"}
    ]


def summary(text: str) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(text.partition("\n\n")[0].split())


def validity(cls: type[Operator], rows: str) -> str:
    """'n >= 2f + 3', from the docstring of `min_senders`, where the class has its own; else ''."""
    text = inspect.getdoc(cls.min_senders) or ""
    own = cls.min_senders is not Operator.min_senders
    return f"{rows} >= {text.rstrip('.')}" if own else ""
