"""The options of `Robust` from an app's run-config, whose values are bool, int, float and str."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from byzflow.errors import SpecError, did_you_mean

Scalar = bool | float | int | str

# Key: what it must be, and the argument of `Robust`. "" and 0 stand for "not set" where a value may be left out.
KEYS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "aggregator": ((str,), "spec"),
    "f": ((int, str), "f"),
    "byzantine-fraction": ((int, float), "fraction"),
    "per-layer": ((bool,), "per_layer"),
    "examples-cap": ((int, float), "examples_cap"),
    "buffers": ((str,), "buffers"),
    "exclude-after": ((int,), "exclude_after"),
    "audit-file": ((str,), "audit_file"),
    "tensorboard-dir": ((str,), "tensorboard_dir"),
}
UNSET_IF_EMPTY = ("examples-cap", "exclude-after", "audit-file", "tensorboard-dir")
WORDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


def options_in(run_config: Mapping[str, Scalar]) -> dict[str, Any]:
    """Arguments of `Robust` but for the strategy; keys that are not in KEYS belong to the app and are left alone.

    A fraction without `f` means f = "auto". Raises SpecError, naming the key, for a value of another kind and for a
    missing aggregator.
    """
    if "aggregator" not in run_config:
        hint = did_you_mean("aggregator", run_config)
        raise SpecError(f"the run-config has no 'aggregator', such as \"nnm | trimmed_mean\"; {hint}")
    options: dict[str, Any] = {}
    for key, (kinds, name) in KEYS.items():
        if key not in run_config:
            continue
        value = run_config[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            words = " or ".join(WORDS[kind] for kind in kinds)
            raise SpecError(f"run-config: {key} must be {words}, got {value!r}")
        if not (key in UNSET_IF_EMPTY and not value):
            options[name] = value
    if "fraction" in options:
        options.setdefault("f", "auto")
        if options["f"] != "auto":
            del options["fraction"]  # an app ships a default fraction, and a run overrides it by f
    return options
