"""Schemas by name: ours, Red's aliases, those of a program and of a plugin."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint
from typing import Any

import pytest

import byzflow
from byzflow.errors import PluginError, UnknownOperator
from byzflow.federation import schemas
from byzflow.federation.config import Config, DataSection, FederationSection, NodesSection
from byzflow.federation.federation import Federation
from byzflow.federation.schemas import Schema, Schemas
from byzflow.registry import load


def small(schema: str, topology: str = "", count: int = 6) -> Config:
    return Config(
        federation=FederationSection(schema=schema, topology=topology, rounds=1),
        nodes=NodesSection(count=count),
        data=DataSection(name="synthetic", train=120, test=40),
    )


@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("star", {1, 6}),
        ("StarFederatedLearning", {1, 6}),
        ("TraditionalFederatedLearning", {1, 6}),
        ("ring", {2}),
        ("DecentralizedFederatedLearning", {2}),
        ("mesh", {5}),
        ("k-regular", {4}),
        ("cluster", {2, 3}),
        ("ClusterFederatedLearning", {2, 3}),
        ("custom", {2}),
    ],
)
def test_every_name_of_ours_and_of_red_s_trains(name: str, degrees: set[int]) -> None:
    config = small(name)
    made = schemas.of(config)(config)
    assert isinstance(made, Federation)
    graph = made.topology
    assert {graph.degree(node) for node in graph.nodes} == degrees  # type: ignore[union-attr]
    assert made.train(1)[0].metrics["accuracy"] >= 0


def test_a_typo_is_told_with_the_nearest_name() -> None:
    with pytest.raises(UnknownOperator, match="unknown schema 'StarFederatedLerning'; did you mean StarFederatedLearn"):
        schemas.schema.find("StarFederatedLerning")


def test_schemas_register_by_decorator_and_by_call() -> None:
    mine = Schemas()
    assert mine.names() == []

    @mine.register("two_rings", aliases=("TwoRings",))
    def two_rings(config: Config) -> str:
        return f"two rings of {config.nodes.count}"

    assert mine.find("Two-Rings")(small("two_rings")) == "two rings of 6"
    seen: list[Any] = []

    def my_custom_executor(config: Any, log: Any) -> int:
        seen.append(log)
        return 7

    mine.register("MyCustomSchema", my_custom_executor)
    assert mine.find("mycustomschema")(small("x")) == 7
    assert isinstance(seen[0], logging.Logger)
    assert mine.names() == ["MyCustomSchema", "two_rings"]
    mine.register("MyCustomSchema", my_custom_executor)  # again, as a module that is imported twice does
    with pytest.raises(PluginError, match="'tworings' is taken by 'two_rings'"):
        mine.register("TwoRings", my_custom_executor)
    with pytest.raises(PluginError, match="must be a function"):
        mine.register("other", 3)  # type: ignore[call-overload]


def test_red_s_factory_is_the_same_registry() -> None:
    assert schemas.schema_factory is schemas.schema


@byzflow.hookimpl
def byzflow_schemas() -> list[Schema]:
    return [Schema("from_a_plugin", lambda config: "made by a plugin", ("Plugged",))]


def test_a_plugin_offers_schemas_by_its_hook() -> None:
    registry = load((EntryPoint("mine", f"{__name__}", "byzflow"),))
    assert [each.name for each in registry.schemas] == ["from_a_plugin"]
    mine = Schemas(lambda: registry.schemas)
    assert mine.find("plugged")(small("x")) == "made by a plugin"
