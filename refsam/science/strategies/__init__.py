"""Finetuning strategies put into a model, taken out as an adapter, and merged into its weights.

They work on any torch model with an `image_encoder` or `vision_encoder`; micro-sam's surgeries on
segment_anything's classes only.
"""
