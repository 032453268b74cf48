"""The records of fits: what is read back, which fit a run takes, and the table."""

from dataclasses import replace
from pathlib import Path

import pytest

from refsam.configuration.compose import compose
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.orchestration.planning.estimate import by_fit
from refsam.records.fits import (
    Fit,
    FitsFolder,
    FitStep,
    Largest,
    Setup,
    StepMeasurement,
    StepOutcome,
    fit_for,
    known_fits,
    seconds_per_step,
)
from refsam.results.tables.fit_table import markdown, rows, write_table


@pytest.fixture(scope="module")
def config() -> RefsamConfig:
    return compose(["resource=medium_16g", "model=vit_t", "peft=full", "n_objects=5"])


@pytest.fixture
def fit(config: RefsamConfig) -> Fit:
    return Fit(
        resource="medium_16g",
        model="vit_t",
        peft="full",
        setup=Setup.of(config, "cpu"),
        memory_gib=16.0,
        simulated=False,
        limited_by="cgroup",
        hardware="a processor",
        threads=8,
        precision="float32",
        n_objects=5,
        n_sub_iterations=8,
        most_objects=45,
        micro_sam=Largest(9, complete=True, peak_gib=14.1, seconds=40.0, step_peak_gib=9.6),
        refsam=Largest(
            45,
            complete=True,
            peak_gib=5.2,
            seconds=23.4,
            step_peak_gib=5.1,
            object_chunk=8,
            checkpoint_encoder=False,
            checkpoint_decoder=True,
        ),
        versions={"torch": "2.15.0"},
    )


def test_a_fit_and_a_measurement_come_back_as_they_were(fit: Fit, tmp_path: Path) -> None:
    folder = FitsFolder(tmp_path)
    measurement = StepMeasurement(
        setup=fit.setup,
        step=FitStep("refsam", 5, 8, 4, checkpoint_encoder=True),
        hardware="a processor",
        threads=2,
        limit_gib=7.2,
        limited_by="cgroup",
        outcome=StepOutcome.out_of_memory,
        message="killed by the kernel",
    )
    folder.add_fit(fit)
    folder.add_measurement(measurement)
    assert folder.read_fits() == [fit]
    assert folder.read_measurements() == [measurement]


def test_a_later_fit_of_one_step_keeps_what_is_known_of_the_other(fit: Fit, tmp_path: Path) -> None:
    folder = FitsFolder(tmp_path)
    folder.add_fit(replace(fit, refsam=None))
    folder.add_fit(replace(fit, micro_sam=None))
    assert folder.read_fits() == [fit]
    # Nothing of micro-sam's has fitted, so nothing was computed in any precision.
    nothing = Largest(0, complete=True)
    folder.add_fit(replace(fit, refsam=None, micro_sam=nothing, precision=None, versions={}))
    assert folder.read_fits() == [replace(fit, micro_sam=nothing)]


def test_a_damaged_file_is_as_if_it_were_not_there(fit: Fit, tmp_path: Path) -> None:
    folder = FitsFolder(tmp_path)
    folder.add_fit(fit)
    (tmp_path / "half.json").write_text('{"resource": ')
    (tmp_path / "other.json").write_text("[1, 2]")
    assert folder.read_fits() == [fit]


def test_a_run_takes_the_fit_of_its_setup_and_of_about_its_memory(fit: Fit) -> None:
    def found(memory_gib: float, n_objects: int = 5, **changes: object) -> bool:
        return fit_for([fit], replace(fit.setup, **changes), "float32", memory_gib, n_objects) == fit

    assert found(16)
    assert found(24)
    assert found(16, n_objects=45)
    assert not found(15), "it was measured with more memory"
    assert not found(32), "with so much more memory there is less to save"
    assert not found(16, n_objects=46)
    assert not found(16, strategy="lora")
    assert not found(16, patch_shape=(256, 256))
    assert found(16, precision="float32")
    assert fit_for([fit], fit.setup, "bfloat16", 16, 5) is None
    larger = replace(fit, memory_gib=20.0)
    assert fit_for([fit, larger], fit.setup, "float32", 24, 5) == larger
    assert fit_for([replace(fit, refsam=Largest(0, complete=True))], fit.setup, "float32", 16, 1) is None


def test_seconds_of_a_simulated_resource_are_not_taken_for_its_own(config: RefsamConfig, fit: Fit) -> None:
    assert seconds_per_step([fit], config) == 23.4
    theirs = replace(config, train=replace(config.train, engine="micro_sam"))
    assert seconds_per_step([fit], theirs) == 40.0
    assert seconds_per_step([replace(fit, simulated=True)], config) is None
    assert seconds_per_step([fit], replace(config, n_objects=6)) is None


def test_a_plan_expects_the_time_that_a_fit_measured(config: RefsamConfig, fit: Fit) -> None:
    expected = by_fit(config, [fit])
    assert expected is not None
    assert expected.seconds == expected.at_most == 23.4 * 50 * 100  # 100 epochs of at least 50 samples
    assert by_fit(replace(config, kind=Kind.baseline), [fit]) is None
    assert by_fit(config, [replace(fit, simulated=True)]) is None


def test_the_fits_that_refsam_ships_can_be_read(tmp_path: Path) -> None:
    shipped = known_fits(tmp_path)
    source = Path(__file__).parents[2] / "fits"
    assert len(shipped) == len(list(source.glob("*.json")))
    for fit in shipped:
        assert fit.refsam is not None
        assert fit.refsam.object_chunk is not None


def test_the_table_has_the_study_s_settings_and_what_was_measured(
    fit: Fit, config: RefsamConfig, tmp_path: Path
) -> None:
    other = compose(["resource=v100"])
    table = rows([replace(fit, simulated=True)], [other, config])
    assert [(row["resource"], row["model"]) for row in table] == [
        ("v100", "vit_b"),
        ("v100", "vit_t"),
        ("medium_16g", "vit_t"),
    ]
    text = markdown(table)
    assert "| v100 (32 GB) | vit_b | full | 35 (resource study) | not measured | not measured | – |" in text
    assert (
        "| medium_16g (16 GB) | vit_t | full | 5 (resource study) | 9 objects, 14.1 GiB; 5: 9.6 GiB, 40 s | "
        "at least 45 objects, 5.2 GiB; 5: 5.1 GiB, 23 s; chunk 8, decoder checkpointed | "
        "simulated (cgroup) on a processor, 8 threads, float32 |"
    ) in text
    written = write_table(table, tmp_path / "fits")
    assert [path.name for path in written] == ["fits.csv", "fits.md"]
    assert written[0].read_text().splitlines()[3].startswith("medium_16g,16.0,vit_t,full,5,resource study,9,")
