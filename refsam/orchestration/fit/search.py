"""Which steps to measure: few, because each takes seconds to minutes. Knows nothing of how they are measured.

micro-sam's step: the largest number of objects, by bisection that starts from a model of the memory, which
grows by the same amount for every object. Ours: first how to compute it fast within the memory, with the
number of objects asked for; then the largest number, which mostly is the largest that was asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from refsam.records.fits import FitStep, Largest, StepMeasurement, StepOutcome

Measure = Callable[[FitStep], StepMeasurement]

# GiB that micro-sam's step takes for each object and sub-iteration on a patch of 512 x 512 pixels, and for
# the rest (all layers trained): where the search starts. It was measured in float32 on a CPU.
GIB_PER_OBJECT = 0.0975
GIB_WITHOUT_OBJECTS = {"vit_t": 6.0, "vit_b": 11.0, "vit_l": 25.0, "vit_h": 40.0}
# Two sub-iterations have all that our step ever holds together: masks of one, prompts from them for the next.
FEW_SUB_ITERATIONS = 2
# GiB of our step in float32: what stands before it with the optimizer's state, what the encoder keeps, and
# what the segmentation decoder takes, kept or computed again; of vit_l and vit_h by their size, not measured.
# On a CPU, where a step takes minutes, what would need a quarter more than there is, is not tried.
GIB_STANDING = {"vit_t": 0.9, "vit_b": 2.3, "vit_l": 6.0, "vit_h": 11.0}
GIB_ENCODER = {"vit_t": 2.6, "vit_b": 3.7, "vit_l": 10.0, "vit_h": 21.0}
GIB_DECODER, GIB_DECODER_AGAIN = 4.8, 3.2
HOPELESS = 1.25
# Where the search for the fastest chunk begins: on a CPU one object is mostly the fastest, a GPU wants more.
FIRST_CHUNK, FIRST_CHUNK_ON_GPU = 1, 8
FASTER = 0.97  # a larger or smaller chunk has to save 3 % of the seconds, which is above the noise


class OutOfTime(Exception):
    """The time that the search may take is over."""


@dataclass(frozen=True)
class Goal:
    """What is looked for.

    Attributes:
        n_objects: number that a run is planned with.
        most_objects: no more than these are tried.
        area: pixels of a batch's patches, by those of one patch of 512 x 512.
        architecture: of the model, for the first guess.
        trains_encoder: whether there is something in the encoder to be computed again.
        has_decoder: the same for the segmentation decoder.
        on_cpu: whether a step takes minutes, in float32 for all that is known.
        object_chunk: the chunk that was asked for; None: the fastest is looked for.
        has_seconds: whether steps are timed; else the first chunk that fits is taken.
    """

    n_objects: int
    most_objects: int
    n_sub_iterations: int
    usable_gib: float
    area: float
    architecture: str
    trains_encoder: bool
    has_decoder: bool
    on_cpu: bool = True
    object_chunk: int | None = None
    has_seconds: bool = True


def search_micro_sam(goal: Goal, measure: Measure) -> Largest:
    """The largest number of objects with micro-sam's step, and what a step of the number asked for takes."""
    step = FitStep("micro_sam", goal.n_objects, goal.n_sub_iterations)
    slope = GIB_PER_OBJECT * goal.n_sub_iterations * goal.area
    rest = GIB_WITHOUT_OBJECTS.get(goal.architecture, 1.5)
    found = _largest(step, goal, measure, slope, guess=int((goal.usable_gib - rest) / slope))
    if not found.complete or found.n_objects < goal.n_objects:
        return found
    try:
        return _with_step(found, measure(step))
    except OutOfTime:
        return replace(found, complete=False)


def search_refsam(goal: Goal, measure: Measure) -> Largest:
    """The fastest savings that fit, the largest number of objects with them, and what a step takes."""
    few = min(FEW_SUB_ITERATIONS, goal.n_sub_iterations)
    best: list[StepMeasurement] = []  # the last one counts: what was found is kept when time is over
    try:
        _fastest(goal, few, measure, best)
        if not best:
            frugal = FitStep("refsam", goal.n_objects, few, goal.object_chunk or 1, **_levels(goal)[-1])
            return _largest(frugal, goal, measure, slope=0.05, guess=1)
        step = best[-1].step
        found = _largest(step, goal, measure, slope=0.01, guess=goal.most_objects, known=best[-1])
    except OutOfTime:
        if not best:
            return Largest(0, complete=False)
        return _as_largest(best[-1], complete=False)
    try:
        return _with_step(found, measure(replace(step, n_sub_iterations=goal.n_sub_iterations)))
    except OutOfTime:
        return replace(found, complete=False)


def _fastest(goal: Goal, sub_iterations: int, measure: Measure, best: list[StepMeasurement]) -> None:
    """Append measurements of ever faster savings to `best`; none where not even the smallest chunk fits."""
    usual = FIRST_CHUNK if goal.on_cpu else FIRST_CHUNK_ON_GPU
    first = min(goal.object_chunk or usual, goal.n_objects)
    for level in _levels(goal):
        if level != _levels(goal)[-1] and _is_hopeless(goal, level):
            continue
        measured = measure(FitStep("refsam", goal.n_objects, sub_iterations, first, **level))
        if measured.outcome is StepOutcome.fits:
            best.append(measured)
            break
    else:
        if first == 1 or goal.object_chunk is not None:
            return
        measured = measure(FitStep("refsam", goal.n_objects, sub_iterations, 1, **level))
        if measured.outcome is StepOutcome.fits:
            best.append(measured)
        return
    if goal.object_chunk is not None or not goal.has_seconds:
        return
    for chunks in (_doubled(first, goal.n_objects), _halved(first)):
        for chunk in chunks:
            measured = measure(replace(best[-1].step, object_chunk=chunk))
            if measured.outcome is not StepOutcome.fits or not _is_faster(measured, best[-1]):
                break
            best.append(measured)
        if len(best) > 1:
            return


def _levels(goal: Goal) -> list[dict[str, bool | None]]:
    """What is computed again in the backward, from nothing to all that can be; the cheaper one first."""
    nothing: dict[str, bool | None] = {
        "checkpoint_encoder": False if goal.trains_encoder else None,
        "checkpoint_decoder": False if goal.has_decoder else None,
    }
    levels = [nothing]
    if goal.has_decoder:
        levels.append({**levels[-1], "checkpoint_decoder": True})
    if goal.trains_encoder:
        levels.append({**levels[-1], "checkpoint_encoder": True})
    return levels


def _is_hopeless(goal: Goal, level: dict[str, bool | None]) -> bool:
    """Whether a level of savings is expected to need far more memory than there is; unknown models never."""
    if not goal.on_cpu or goal.architecture not in GIB_STANDING:
        return False
    encoder = GIB_ENCODER.get(goal.architecture, 0.0) if level["checkpoint_encoder"] is False else 0.0
    decoder = {None: 0.0, False: GIB_DECODER, True: GIB_DECODER_AGAIN}[level["checkpoint_decoder"]]
    return GIB_STANDING[goal.architecture] + encoder + decoder > HOPELESS * goal.usable_gib


def _largest(
    step: FitStep,
    goal: Goal,
    measure: Measure,
    slope: float,
    guess: int,
    known: StepMeasurement | None = None,
) -> Largest:
    """The largest number of objects of `step` that fits, by bisection between what fits and what does not.

    Args:
        slope: GiB for one more object, as long as fewer than two measurements fit.
        known: a measurement of the same step that fits.
    """
    fitting = {} if known is None else {known.step.n_objects: known}
    low, high = max(fitting, default=0), goal.most_objects + 1
    expected = guess  # to be the largest that fits
    while high - low > 1:
        number = min(max(guess, low + 1), high - 1)
        try:
            measured = measure(replace(step, n_objects=number))
        except OutOfTime:
            return _as_largest(fitting[low], complete=False) if low else Largest(0, complete=False)
        fits = measured.outcome is StepOutcome.fits
        if fits:
            low = number
            fitting[number] = measured
        else:
            high = number
        as_expected = fits == (number <= expected)
        if fitting:
            expected = _expected(fitting, slope, goal.usable_gib)
        guess = expected if fitting and as_expected else (low + high) // 2
    return _as_largest(fitting[low], complete=True) if low else Largest(0, complete=True)


def _expected(fitting: dict[int, StepMeasurement], slope: float, usable_gib: float) -> int:
    """The largest number that a straight line through what was measured says will fit."""
    small, large = min(fitting), max(fitting)
    peaks = [fitting[number].peak_gib or 0.0 for number in (small, large)]
    if large > small and peaks[1] > peaks[0]:
        slope = (peaks[1] - peaks[0]) / (large - small)
    return large + int((usable_gib - peaks[1]) / slope)


def _as_largest(measured: StepMeasurement, complete: bool) -> Largest:
    step = measured.step
    return Largest(
        n_objects=step.n_objects,
        complete=complete,
        peak_gib=measured.peak_gib,
        object_chunk=step.object_chunk,
        checkpoint_encoder=step.checkpoint_encoder,
        checkpoint_decoder=step.checkpoint_decoder,
    )


def _with_step(found: Largest, measured: StepMeasurement) -> Largest:
    return replace(found, seconds=measured.seconds, step_peak_gib=measured.peak_gib)


def _is_faster(measured: StepMeasurement, than: StepMeasurement) -> bool:
    return (measured.seconds or 0.0) < FASTER * (than.seconds or 0.0)


def _doubled(chunk: int, most: int) -> list[int]:
    """Twice as many, and twice again, up to all objects at once."""
    chunks = []
    while chunk < most:
        chunk = min(2 * chunk, most)
        chunks.append(chunk)
    return chunks


def _halved(chunk: int) -> list[int]:
    return [chunk >> shift for shift in range(1, chunk.bit_length()) if chunk >> shift]
