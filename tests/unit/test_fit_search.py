"""Which steps a fit measures: against a memory that is known, so that what it finds can be checked."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from refsam.configuration.schema import AUTO
from refsam.orchestration.fit.search import Goal, Measure, OutOfTime, search_micro_sam, search_refsam
from refsam.records.fits import FitStep, Setup, StepMeasurement, StepOutcome

SETUP = Setup(
    architecture="vit_b",
    shape=None,
    strategy="full",
    decoder=True,
    patch_shape=(512, 512),
    batch_size=1,
    optimizer="adam",
    optimizer_in_backward=False,
    joint="separate",
    precision=AUTO,
    attention=AUTO,
    device="cpu",
)
GOAL = Goal(
    n_objects=10,
    most_objects=45,
    n_sub_iterations=8,
    usable_gib=14.4,
    area=1.0,
    architecture="vit_b",
    trains_encoder=True,
    has_decoder=True,
    on_cpu=False,
)


class Machine:
    """Measures steps by formulas of their memory and time, and keeps count."""

    def __init__(
        self,
        memory: Callable[[FitStep], float],
        seconds: Callable[[FitStep], float],
        usable: float,
        most: int = 99,
    ) -> None:
        self.memory, self.seconds, self.usable, self.most = memory, seconds, usable, most
        self.steps: list[FitStep] = []

    def measure(self) -> Measure:
        known: dict[FitStep, StepMeasurement] = {}

        def look(step: FitStep) -> StepMeasurement:
            if step not in known:
                if len(self.steps) == self.most:
                    raise OutOfTime
                self.steps.append(step)
                fits = self.memory(step) <= self.usable
                known[step] = StepMeasurement(
                    setup=SETUP,
                    step=step,
                    hardware="any",
                    threads=1,
                    limit_gib=self.usable,
                    limited_by="cgroup",
                    outcome=StepOutcome.fits if fits else StepOutcome.out_of_memory,
                    seconds=self.seconds(step) if fits else None,
                    peak_gib=self.memory(step) if fits else None,
                )
            return known[step]

        return look


def micro_sam_memory(per_object: float, rest: float) -> Callable[[FitStep], float]:
    return lambda step: rest + per_object * step.n_objects


@pytest.mark.parametrize(("per_object", "rest"), [(0.78, 11.0), (0.2, 3.0), (2.5, 1.0), (0.05, 14.3)])
def test_the_largest_number_of_objects_is_found_in_a_few_steps(per_object: float, rest: float) -> None:
    machine = Machine(micro_sam_memory(per_object, rest), lambda step: 1.0, GOAL.usable_gib)
    found = search_micro_sam(GOAL, machine.measure())
    assert found.n_objects == min(45, int((GOAL.usable_gib - rest) / per_object + 1e-9))
    assert found.complete
    assert len(machine.steps) <= 7
    assert (found.seconds is None) == (found.n_objects < GOAL.n_objects)


def test_a_memory_that_grows_in_jumps_does_not_mislead_the_search() -> None:
    machine = Machine(lambda step: 5.0 if step.n_objects <= 33 else 99.0, lambda step: 1.0, 14.4)
    assert search_micro_sam(GOAL, machine.measure()).n_objects == 33
    assert len(machine.steps) <= 10


def test_nothing_fits_into_too_little_memory() -> None:
    machine = Machine(lambda step: 20.0, lambda step: 1.0, 14.4)
    found = search_micro_sam(GOAL, machine.measure())
    assert (found.n_objects, found.complete, found.peak_gib) == (0, True, None)
    ours = search_refsam(GOAL, machine.measure())
    assert (ours.n_objects, ours.object_chunk) == (0, None)


def our_memory(step: FitStep) -> float:
    """Nothing to save at 14.4 GiB, everything at 7.2."""
    assert step.object_chunk is not None
    encoder = 0.5 if step.checkpoint_encoder else 4.0
    decoder = 3.0 if step.checkpoint_decoder else 5.0
    return 2.0 + encoder + max(decoder, 0.3 * step.object_chunk) + 0.01 * step.n_objects


def our_seconds(step: FitStep) -> float:
    """Eight objects at a time are the fastest."""
    assert step.object_chunk is not None
    again = 5.0 * (bool(step.checkpoint_encoder) + bool(step.checkpoint_decoder))
    return 30 + again + abs(step.object_chunk - 8) * step.n_sub_iterations


def test_our_step_saves_what_has_to_be_saved_and_no_more() -> None:
    for usable, again in ((14.4, (False, False)), (9.5, (False, True)), (7.2, (True, True))):
        machine = Machine(our_memory, our_seconds, usable)
        found = search_refsam(replace(GOAL, usable_gib=usable), machine.measure())
        assert (found.checkpoint_encoder, found.checkpoint_decoder) == again
        assert (found.n_objects, found.object_chunk, found.complete) == (45, 8, True)
        assert found.seconds == our_seconds(
            FitStep("refsam", 10, 8, 8, found.checkpoint_encoder, found.checkpoint_decoder)
        )


def test_a_smaller_chunk_is_taken_where_it_is_faster() -> None:
    machine = Machine(lambda step: 5.0, lambda step: 10.0 * (step.object_chunk or 0), 14.4)
    assert search_refsam(GOAL, machine.measure()).object_chunk == 1


def test_what_is_hopeless_or_decided_is_not_tried() -> None:
    machine = Machine(our_memory, our_seconds, 7.2)
    found = search_refsam(replace(GOAL, usable_gib=7.2, object_chunk=2, on_cpu=True), machine.measure())
    assert {(step.object_chunk, step.checkpoint_encoder) for step in machine.steps} == {(2, True)}
    assert len(machine.steps) == 3  # with few sub-iterations, with the most objects, and a whole one
    assert (found.object_chunk, found.n_objects) == (2, 45)


def test_what_cannot_be_computed_again_is_not_tried() -> None:
    machine = Machine(our_memory, our_seconds, 14.4)
    search_refsam(replace(GOAL, trains_encoder=False, has_decoder=False, on_cpu=True), machine.measure())
    assert {(step.checkpoint_encoder, step.checkpoint_decoder) for step in machine.steps} == {(None, None)}


def test_when_time_is_over_what_was_found_is_kept() -> None:
    machine = Machine(our_memory, our_seconds, 14.4, most=2)
    found = search_refsam(GOAL, machine.measure())
    assert (found.n_objects, found.complete, found.object_chunk) == (10, False, 8)
    assert not search_micro_sam(GOAL, machine.measure()).complete
