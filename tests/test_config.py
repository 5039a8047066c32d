"""Settings: what is refused, what is settled for a node."""

from __future__ import annotations

import dataclasses
import json

import pytest

from deltaconvert import Config, NodeConfig
from deltaconvert.errors import ConfigError

REFUSED = [
    ({"threshold": -0.1}, "threshold=-0.1: give a finite number"),
    ({"threshold": float("nan")}, "threshold=nan"),
    ({"threshold": float("inf")}, "threshold=inf"),
    ({"threshold": "0.1"}, "threshold='0.1'"),
    ({"input_threshold": -1}, "input_threshold=-1"),
    ({"input_cap": -1}, "input_cap=-1"),
    ({"backend": "tpu"}, "choose auto, cpu, cuda, paper, reference"),
    ({"norm": "l2"}, "norm='l2': choose one of max, rms"),
    ({"threshold_unit": "sigma"}, "choose one of absolute, std"),
    ({"input_test": "tile"}, "choose one of pixel, block"),
    ({"threads": 0}, "threads=0"),
    ({"nodes": {"conv": -1.0}}, r"nodes\['conv'\].threshold=-1.0"),
    ({"nodes": {"conv": "big"}}, "give a threshold or a NodeConfig"),
    ({"nodes": {"conv": NodeConfig(norm="l1")}}, r"nodes\['conv'\].norm='l1'"),
]


@pytest.mark.parametrize("settings, message", REFUSED)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config(**settings)
    with pytest.raises(ConfigError, match=message):
        Config().replace(**settings)


def test_unknown_settings_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError,
                       match="no such setting: treshold; there are backend, dtype, threshold"):
        Config().replace(treshold=0.1)


@pytest.mark.parametrize("nodes", [{"conv": {"treshold": 0.1}}, {"conv": {"norm": "max", "x": 1}}])
def test_a_misspelled_setting_of_a_node_is_refused(nodes):
    with pytest.raises(ConfigError, match=r"nodes\['conv'\]"):
        Config(nodes=nodes)


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().threshold = 1.0


def test_the_last_match_wins_and_none_keeps_what_was_there():
    config = Config(threshold=0.1, norm="rms", nodes={
        "layer1.*": 0.2, "layer1.0.*": NodeConfig(norm="max"), "layer1_0_conv": NodeConfig(0.4),
        "*.bn": {"threshold": 0.5}})
    assert config.for_node("stem", "stem") == NodeConfig(0.1, "rms")
    assert config.for_node("layer1_1", "layer1.1") == NodeConfig(0.2, "rms")
    assert config.for_node("layer1_0_x", "layer1.0.x") == NodeConfig(0.2, "max")
    assert config.for_node("layer1_0_conv", "layer1.0.conv") == NodeConfig(0.4, "max")
    assert config.for_node("layer1_0_bn", "layer1.0.bn") == NodeConfig(0.5, "max")


def test_zero_is_a_threshold_and_not_nothing():
    assert Config(threshold=0.1, nodes={"a": 0.0}).for_node("a", "a").threshold == 0.0
    assert Config(threshold=0.1, nodes={"a": 0}).for_node("a", "a").threshold == 0


def test_names_are_matched_by_case():
    assert Config(nodes={"Conv": 1.0}).for_node("conv", "conv").threshold == 0.0


def test_the_cap_is_eight_thresholds_unless_said():
    assert Config(input_threshold=0.5).cap == 4.0
    assert Config(input_threshold=0.5, input_cap=1.0).cap == 1.0
    assert Config(input_threshold=0.5, input_cap=0.0).cap == 0.0


def test_a_configuration_survives_a_file():
    config = Config(backend="cpu", threshold=0.1, norm="rms", threads=2, input_test="block",
                    nodes={"a.*": NodeConfig(0.2), "b": NodeConfig(norm="max")})
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="no such setting: colour"):
        Config.from_dict({"colour": "red"})


def test_what_was_handed_in_may_change_afterwards():
    nodes = {"a": 0.1}
    config = Config(nodes=nodes)
    nodes["a"] = 0.5
    assert config.for_node("a", "a").threshold == 0.1
