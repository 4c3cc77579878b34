"""Lowering: networks, losses and optimizers written as ops of a program, one module per kind of layer."""

from nbbp.lowering import dense, embedding, normalization, regularization, structure

__all__ = ["dense", "embedding", "normalization", "regularization", "structure"]
