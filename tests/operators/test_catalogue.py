"""What `byzflow list --json` tells of every installed operator is complete, and true."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from click.testing import CliRunner

import byzflow
from byzflow.cli import group
from byzflow.operators import Mixing, PreAggregator, RowsOperator
from byzflow.registry import canonical
from tests.operators.test_contract import instance

LISTED: list[dict[str, Any]] = json.loads(CliRunner().invoke(group, ["list", "--json"]).stdout)
listed = pytest.mark.parametrize("one", LISTED, ids=lambda one: one["name"])

# The tiers of the catalogue: what ByzFL, ByzPy, Flower and Garfield have, and what the literature adds.
NAMES = """
    mean median trimmed_mean meamed phocas krum multi_krum bulyan geometric_median centered_clipping mda mva smea caf
    cge monna winsorized_mean dnc fltrust faba medoid huber auto_gm aksel clipped_clustering sign_guard foundation_fl
    gas rlr sign_majority flame foolsgold layerwise
    nnm bucketing clipping arc momentum normalize
    sign_flip reverse zero_sum ipm opt_ipm alie opt_alie mimic mimic_adaptive min_max min_sum gaussian inf nan zero huge
    fang_krum fang_trimmed_mean dyn_opt rop anti_cge model_replacement
""".split()  # noqa: SIM905
ALIASES = {
    "average": "mean", "cwmed": "median", "cwtm": "trimmed_mean", "mean_of_medians": "meamed", "mkrum": "multi_krum",
    "rfa": "geometric_median", "gm": "geometric_median", "cc": "centered_clipping", "brute": "mda", "mea": "smea",
    "norm_filter": "cge", "cenna": "nnm", "static_clipping": "clipping", "adaptive-robust-clipping": "arc",
    "little": "alie", "empire": "ipm", "foe": "ipm", "noise": "gaussian", "Divide-And-Conquer": "dnc",
    "autogm": "auto_gm", "signguard": "sign_guard", "majority_vote": "sign_majority", "stat_opt": "fang_krum",
    "agr_tailored": "dyn_opt", "scaled_sign_flip": "zero_sum", "fl_trust": "fltrust",
}  # fmt: skip


def test_everything_promised_is_listed_once() -> None:
    names = [one["name"] for one in LISTED]
    assert len(names) == len(set(names))
    assert set(NAMES) <= set(names)
    everything = [canonical(each) for one in LISTED for each in (one["name"], *one["aliases"])]
    assert len(everything) == len(set(everything)), "a name means one operator"


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_of_other_libraries_find_it(alias: str) -> None:
    assert byzflow.installed().find(alias).operator.name == ALIASES[alias]


@listed
def test_every_field_says_something(one: dict[str, Any]) -> None:
    assert set(one) >= {"name", "aliases", "kind", "class", "summary", "needs", "parameters", "plugin", "paper", "text"}
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", one["name"])
    assert one["kind"] in ("aggregator", "pre-aggregator", "attack")
    assert one["class"] in ("span", "coordinate", "span, then coordinate", "rows")
    assert one["plugin"] in {"aggregator": ("byzflow_aggregators", "byzflow_gossip"),
                             "pre-aggregator": ("byzflow_preaggregators",),
                             "attack": ("byzflow_attacks",)}[one["kind"]]  # fmt: skip
    assert one["package"] == "byzflow"


@listed
def test_the_summary_is_one_sentence_or_two_for_a_reader(one: dict[str, Any]) -> None:
    summary = one["summary"]
    assert summary[0].isupper() or summary[0] == "`"
    assert summary.endswith(".")
    assert 20 <= len(summary) <= 240
    assert one["text"].replace("\n", " ").startswith(summary)


@listed
def test_a_published_source_has_a_link(one: dict[str, Any]) -> None:
    """What names a year in its text was published; the link is the paper's own or its archive's."""
    published = re.search(r"\b(19[5-9]|20[0-3])\d\b", one["text"])
    assert bool(one["paper"]) or not published, f"{one['name']} names a source of {published and published[0]}, no link"
    if one["paper"]:
        assert re.fullmatch(r"https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.\d{4,}/\S+)", one["paper"])


@listed
def test_every_parameter_is_explained(one: dict[str, Any]) -> None:
    for parameter in one["parameters"]:
        assert parameter["help"], parameter["name"]
        assert parameter["accepts"], parameter["name"]
        assert parameter["required"] == (parameter["default"] is None), parameter["name"]
    names = [parameter["name"] for parameter in one["parameters"]]
    assert len(names) == len(set(names))


@listed
def test_the_validity_is_the_bound_that_is_checked(one: dict[str, Any]) -> None:
    entry = byzflow.installed().find(one["name"])
    bounds = [instance(entry, f).min_senders for f in range(1, 8)]
    if not one["needs"]:
        assert set(bounds) == {1}, "it needs some number of rows and does not say so"
        return
    rows = "h" if one["kind"] == "attack" else "n"
    assert one["needs"].startswith(f"{rows} >= ")
    formula = re.match(r"[nh] >= (\d*)f \+ (\d+)\b", one["needs"])
    if formula:  # a bound in words is not read here
        needed = [int(formula[1] or 1) * f + int(formula[2]) for f in range(1, 8)]
        assert all(bound >= need for bound, need in zip(bounds, needed, strict=True))
        assert bounds[-1] == needed[-1]


@listed
def test_the_class_is_the_kind_of_operator(one: dict[str, Any]) -> None:
    cls = byzflow.installed().find(one["name"]).operator
    assert one["kind"] != "pre-aggregator" or issubclass(cls, PreAggregator)
    assert (one["class"].startswith("span")) == issubclass(cls, Mixing)
    assert (one["class"] == "rows") == issubclass(cls, RowsOperator)
    assert hasattr(cls, "columns") == ("coordinate" in one["class"])


@listed
def test_show_tells_the_same(one: dict[str, Any]) -> None:
    for name in (one["name"], *one["aliases"], one["name"].upper().replace("_", "-")):
        assert json.loads(CliRunner().invoke(group, ["show", name, "--json"]).stdout) == one
