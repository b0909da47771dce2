"""What the sides of benchmarks/train.py train: the model's sizes and the coder's, the same for all of them."""

VOCABULARY, LAYERS, D, HEADS, POSITIONS = 2048, 6, 256, 4, 512
LAYER, LATENTS, K = 3, 8192, 32
WINDOW, SEQUENCES = 512, 8
BATCH = WINDOW * SEQUENCES
"""Tokens in a training step."""
