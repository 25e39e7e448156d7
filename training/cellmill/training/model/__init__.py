"""The model, in plain torch: configuration, batches, attention, transformer and decoders."""

from cellmill.training.model.attention import Backend, describe_backend
from cellmill.training.model.batch import TorchBatch
from cellmill.training.model.cell_model import CellModel, Embedded, Encoded
from cellmill.training.model.config import ModelConfig

__all__ = ["Backend", "CellModel", "Embedded", "Encoded", "ModelConfig", "TorchBatch", "describe_backend"]
