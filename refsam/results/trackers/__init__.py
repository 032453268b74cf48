"""Finished runs in the experiment trackers that people have: TensorBoard, MLflow, Weights & Biases.

Each tracker is one file that speaks with its own client and imports it where it is used. None is needed by
anything else, and nothing is sent anywhere but to the destination that was asked for.
"""
