"""Training of one run, with no inheritance between the loop and a step.

- `build` puts a run's model, optimizer, memory optimizations and data together, and writes the summary;
- `loop` trains: `loop.train` is the whole method, `learner` is what it changes, `arithmetic` its precision;
- `step` has the gradients of a step, `summed` those of `train.joint=summed`, and `micro_sam_step` those of
  micro-sam's own trainer (`train.engine=micro_sam`); they use `encoder`, `prompts` and `losses`;
- `optimizers`: the optimizers, and their step in the middle of the backward;
- `recorder` counts, writes and reports, with `checkpoints`, `history` and `resume`, to which an interrupted
  training goes back.
"""
