"""Prompt attention: every token sees the perceptual tokens of its cell, a generative one also itself."""

from cellmill.training.model.attention.backend import Backend, describe_backend
from cellmill.training.model.attention.prompt import prompt_attention

__all__ = ["Backend", "describe_backend", "prompt_attention"]
