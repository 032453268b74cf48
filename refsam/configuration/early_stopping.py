"""When early stopping ends a training. Pure arithmetic, shared by estimates and results."""


def epochs_until_stop(best_epoch: float, patience: int) -> float:
    """How many epochs a training has whose best one, counted from 0, is followed by no better one.

    torch-em's trainer stops after the first epoch that is more than `patience` later than the best one.
    """
    return best_epoch + 1 + patience + 1
