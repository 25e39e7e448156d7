"""The configuration of an endpoint."""

from __future__ import annotations

import pytest

from cellmill.config import parse_config
from cellmill.errors import ConfigError
from cellmill.serving.config import ServeConfig


def test_defaults_keep_to_the_loopback() -> None:
    config = parse_config(ServeConfig, {"models": [{"name": "a", "path": "m"}]}, where="test")
    assert config.url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"models": []}, "models"),
        ({"models": [{"name": "a", "path": "m"}, {"name": "a", "path": "n"}]}, "two models are called 'a'"),
        ({"models": [{"name": "a/b", "path": "m"}]}, "name"),
        ({"models": [{"name": "a", "path": "m", "replica": 2}]}, "replica"),
        ({"models": [{"name": "a", "path": "m"}], "port": 0}, "port"),
    ],
)
def test_wrong_configurations(data: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_config(ServeConfig, data, where="test")
