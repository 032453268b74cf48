"""When a training ends. Pure arithmetic, shared by the plan, science and results."""

from refsam.configuration.schema import TrainConfig


def most_steps(train: TrainConfig, steps_per_epoch: float) -> float:
    """Steps of a training at most, whose settings limit the epochs, the steps, or both."""
    limits = [
        *([] if train.epochs is None else [train.epochs * steps_per_epoch]),
        *([] if train.max_steps is None else [train.max_steps]),
    ]
    return min(limits)


def epochs_until_stop(best_epoch: float, patience: int) -> float:
    """How many epochs a training has whose best one, counted from 0, is followed by no better one.

    torch-em's trainer stops after the first epoch that is more than `patience` later than the best one.
    """
    return best_epoch + 1 + patience + 1
