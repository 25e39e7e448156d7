"""Frozen typed configuration: YAML in, dotted overrides, the resolved YAML out."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cellmill.errors import ConfigError

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of every configuration: frozen, and a key that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def save(self, path: Path) -> None:
        """Write the resolved configuration to `path`."""
        path.write_text(self.to_yaml())

    def fingerprint(self) -> str:
        """Return the sha256 of the resolved configuration, independent of key order."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def load_config(cls: type[C], path: str | Path | None = None, overrides: Iterable[str] = ()) -> C:
    """Read a configuration from a YAML file and apply dotted overrides.

    Parameters
    ----------
    cls
        The configuration class to build.
    path
        A YAML file; None starts from the defaults.
    overrides
        Items of the form ``a.b=value``; the value is read as YAML.

    Raises
    ------
    ConfigError
        The file is missing or is not a YAML mapping, a key is misspelt, or a value is not valid.
    """
    data: dict[str, Any] = {}
    where = "overrides"
    if path is not None:
        where = str(path)
        try:
            loaded = yaml.safe_load(Path(path).read_text())
        except FileNotFoundError:
            raise ConfigError("The configuration file does not exist.", where=where, fix="Check the path.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The configuration file cannot be read: {error}.", where=where) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"The file is not valid YAML: {error}", where=where) from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError("The file does not hold a YAML mapping.", where=where, fix="Write `key: value` lines.")
        data = loaded or {}
    for item in overrides:
        _apply(data, item)
    return parse_config(cls, data, where=where)


def parse_config(cls: type[C], data: Mapping[str, Any], *, where: str) -> C:
    """Validate a mapping against a configuration class.

    Raises
    ------
    ConfigError
        Names the first wrong key, where it stands and, for a misspelt one, the nearest right one.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise _explain(cls, error, where) from error


def _apply(data: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"The override {item!r} is not of the form key=value.", where="--set")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value in {item!r} is not valid YAML.", where="--set") from error
    *parents, leaf = key.split(".")
    node = data
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{parent!r} in {item!r} is not a section.", where="--set")
        node = child
    node[leaf] = value


def _explain(cls: type[BaseModel], error: ValidationError, where: str) -> ConfigError:
    # A misspelt key that is required shows as a missing one too; the one to mend is the one that is written.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    dotted = ".".join(path) or "the file as a whole"
    more = error.error_count() - 1
    tail = f" ({more} more after this one)" if more else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(cls, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.6)
        fix = f"Did you mean {near[0]!r}?" if near else f"Known keys here: {', '.join(sorted(known))}."
        return ConfigError(f"{dotted!r} is not a known key.{tail}", where=where, fix=fix)
    return ConfigError(f"{dotted}: {first['msg']} (got {first['input']!r:.80}).{tail}", where=where)


def _fields_at(cls: type[BaseModel], path: list[str]) -> list[str]:
    current: type[BaseModel] = cls
    for part in path:
        field = current.model_fields.get(part)
        if field is None:
            continue
        found = _nested_model(field.annotation)
        if found is not None:
            current = found
    return list(current.model_fields)


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _nested_model(argument)
        if found is not None:
            return found
    return None
