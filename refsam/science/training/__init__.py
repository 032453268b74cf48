"""Training of one run.

- `build` puts a run's model, optimizer, memory optimizations and data together, and writes the summary;
- `loop` trains;
- `step` and `summed` are the gradients of a step, `prompts` and `losses` what it is made of;
- `optimizers`: the optimizers, and their step in the middle of the backward;
- `checkpoints`, `history` and `resume`: what is written, and what an interrupted run continues from.
"""
