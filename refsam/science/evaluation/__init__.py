"""Measuring a model on the test images: one pass over them, all modes on the same image embedding.

Prompts, decoding, automatic segmentation and the assembling of segmentations are micro-sam's own functions,
so that a segmentation is the one that micro-sam's evaluation writes. What is ours: the single pass, the
shared embeddings, and the record that lets a killed evaluation go on. docs/evaluation.md says what is
measured and how.
"""

from refsam.science.evaluation.record import unmeasured
from refsam.science.evaluation.single_pass import evaluate

__all__ = ["evaluate", "unmeasured"]
