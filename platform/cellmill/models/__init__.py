"""The model folder: everything a trained model is, verified by checksum, without pickle."""

from cellmill.models.folder import ModelFolder, load_model
from cellmill.models.registry import ModelEntry, find_model, find_models
from cellmill.models.save import save_model

__all__ = ["ModelEntry", "ModelFolder", "find_model", "find_models", "load_model", "save_model"]
