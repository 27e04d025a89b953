"""Connections to other tools: Hugging Face, TensorBoard and Weights & Biases."""
