"""Distillation: the cut model learns from the original."""
