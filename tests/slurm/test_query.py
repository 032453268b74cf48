"""What squeue and sacct say, read; these tests need no Slurm."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from refsam.configuration.schema import ClusterConfig, RefsamConfig, RequestConfig
from refsam.errors import ConfigError, SlurmUnavailable
from refsam.orchestration.slurm.identity import CLOCK_SECONDS, KnownJob, known_job
from refsam.orchestration.slurm.questions import (
    SlurmQuery,
    parse_sacct,
    statuses,
    task_ids,
    with_slurm,
)
from refsam.orchestration.slurm.requests import minutes
from refsam.orchestration.submission.slurm_script import COMMENT_LENGTH, parameters, prologue
from refsam.records.paths import RunsFolder
from refsam.records.status import Reason, State, Status, write_status

RUNNING = Status(State.running, attempt=1, job_id="7_0", host="node")


class Slurm:
    """squeue and sacct with given answers; None: they do not answer. Counts the calls."""

    def __init__(self, squeue, sacct):
        self.answers = {"squeue": squeue, "sacct": sacct}
        self.calls = []

    def __call__(self, command):
        self.calls.append(command[0])
        answer = self.answers[command[0]]
        if answer is None:
            raise SlurmUnavailable("Connection refused")
        return answer


def jobs(*numbers):
    return [KnownJob(number, None, None) for number in numbers]


def told(status, squeue, sacct):
    return with_slurm(status, SlurmQuery(Slurm(squeue, sacct)).ask([known_job(status)]))


@pytest.mark.parametrize(
    ("sacct", "reason"),
    [
        ("7_0|OUT_OF_MEMORY|0:125|n||refsam-\n", Reason.out_of_memory),
        (
            "7_0|FAILED|1:0|n||refsam-\n7_0.batch|FAILED|1:0|n||refsam-\n7_0.0|OUT_OF_MEMORY|0:125|n||refsam-\n",
            Reason.out_of_memory,
        ),
        ("7_0|COMPLETED|0:125|n||refsam-\n", Reason.out_of_memory),
        ("7_0|FAILED|1:0|n||refsam-\n7_0.0|FAILED|1:0|n||refsam-\n", Reason.error),
        ("7_0|TIMEOUT|0:0|n||refsam-\n", Reason.timeout),
        ("7_0|DEADLINE|0:0|n||refsam-\n", Reason.timeout),
        ("7_0|NODE_FAIL|1:0|n||refsam-\n", Reason.node_failure),
        ("7_0|BOOT_FAIL|1:0|n||refsam-\n", Reason.node_failure),
        ("7_0|PREEMPTED|0:15|n||refsam-\n", Reason.preempted),
        ("7_0|CANCELLED by 1000|0:15|n||refsam-\n", Reason.cancelled),
        ("7_[0-3%2]|CANCELLED by 1000|0:0|None assigned||refsam-\n", Reason.cancelled),
        ("7_0|COMPLETED|0:0|n||refsam-\n", Reason.lost),
        ("", Reason.lost),
    ],
)
def test_a_job_that_left_no_word_failed_for_the_reason_that_slurm_knows(sacct, reason):
    status = told(RUNNING, "", sacct)
    assert (status.state, status.reason) == (State.failed, reason)
    assert "7_0" in status.message


@pytest.mark.parametrize(("age", "state"), [(60, State.running), (7200, State.failed)])
@pytest.mark.parametrize("word", ["RUNNING", "PENDING"])
def test_a_job_that_only_the_accounting_has_is_lost_after_an_hour(age, state, word):
    written = (datetime.now(UTC) - timedelta(seconds=age)).isoformat(timespec="seconds")
    record = replace(RUNNING, state=State(word.lower()), updated_at=written)
    sacct = f"7_0|{word}|0:0|n||refsam-\n"
    status = told(record, "", sacct)
    assert status.state is (State(word.lower()) if state is State.running else state)
    assert status.reason is (None if state is State.running else Reason.lost)
    # Nobody asked the queue, or it knows the job.
    assert told(record, None, sacct).state is State(word.lower())
    assert told(record, f"7_0|{word}|n|None|||refsam-\n", sacct).state is State(word.lower())


@pytest.mark.parametrize(
    ("squeue", "sacct", "state"),
    [
        ("7_0|RUNNING|n|None|||refsam-\n", "", State.running),
        ("7_0|COMPLETING|n|None|||refsam-\n", "7_0|RUNNING|0:0|n||refsam-\n", State.running),
        (
            "7_0|PENDING||Priority|||refsam-\n",
            "7_0|NODE_FAIL|0:0|n||refsam-\n",
            State.pending,
        ),  # requeued
        ("", "7_0|RUNNING|0:0|n||refsam-\n", State.running),
        (
            "7_0|FAILED|n|NonZeroExitCode|||refsam-\n",
            "7_0|RUNNING|0:0|n||refsam-\n",
            State.running,
        ),  # the accounting is late
        ("7_0|FAILED|n|NonZeroExitCode|||refsam-\n", None, State.failed),
        ("7_0|TIMEOUT|n|TimeLimit|||refsam-\n", "7_0|RUNNING|0:0|n||refsam-\n", State.failed),
        (None, None, State.running),
    ],
)
def test_the_queue_is_believed_before_the_accounting(squeue, sacct, state):
    assert told(RUNNING, squeue, sacct).state is state


@pytest.mark.parametrize(
    "status",
    [
        Status(State.completed, job_id="7_0"),
        Status(State.failed, reason=Reason.error, message="its own words", job_id="7_0"),
        Status(State.planned),
        Status(State.running),  # on this machine, without Slurm
    ],
)
def test_what_the_record_says_wins(status):
    assert (
        with_slurm(
            status,
            SlurmQuery(Slurm("", "7_0|TIMEOUT|0:0|n||refsam-\n")).ask([KnownJob("7_0", None, None)]),
        )
        == status
    )


def test_a_pending_run_says_why_it_waits():
    status = told(
        Status(State.pending, job_id="7_0"),
        "7_0|PENDING||Resources|||refsam-\n",
        "7_[0]|PENDING|0:0|||refsam-\n",
    )
    assert (status.state, status.message) == (State.pending, "Slurm job 7_0: PENDING, Resources")


def test_a_pending_run_that_slurm_has_forgotten_was_cancelled():
    status = told(Status(State.pending, job_id="7_0"), "", "")
    assert (status.state, status.reason) == (State.failed, Reason.cancelled)


NAMED = Status(
    State.running,
    attempt=1,
    job_id="7_0",
    job_name="refsam-study-ab12",
    submitted_at="2026-01-01T12:00:00+00:00",
)
SUBMITTED = 1767268800  # the same time, in seconds since 1970


@pytest.mark.parametrize("name", ["somebody's", "refsam-study-cd34", "refsam-study-ab12|"])
def test_another_job_with_the_number_of_a_run_s_is_not_the_run_s(name):
    queue, rows = f"7_0|RUNNING|n|None|{SUBMITTED}||{name}\n", f"7_0|RUNNING|0:0|n|{SUBMITTED}|{name}\n"
    status = told(NAMED, queue, rows)
    assert (status.state, status.reason) == (State.failed, Reason.lost)
    assert "Slurm knows no job 7_0" in status.message


def test_a_job_is_known_by_its_name_also_when_it_was_requeued_or_evaluates():
    for name in ("refsam-study-ab12", "refsam-study-ab12-evaluation"):
        status = told(NAMED, f"7_0|PENDING||BeginTime|{SUBMITTED + 90000}||{name}\n", "")
        assert status.state is State.pending


def test_a_job_of_an_older_cluster_is_not_the_run_s_whatever_its_name():
    early = SUBMITTED - int(CLOCK_SECONDS) - 1
    for status in (NAMED, replace(NAMED, job_name=None)):
        rows = f"7_0|COMPLETED|0:0|n|{early}|refsam-study-ab12\n"
        assert told(status, "", rows).message == "Slurm knows no job 7_0, and the run wrote no result"
        late = f"7_0|TIMEOUT|0:0|n|{early + 2}|refsam-study-ab12\n"
        assert told(status, "", late).reason is Reason.timeout


def test_how_a_job_ended_is_known_though_its_number_was_given_again():
    rows = (
        f"7_0|OUT_OF_MEMORY|0:125|n|{SUBMITTED}|refsam-study-ab12\n"
        f"7_0.batch|OUT_OF_MEMORY|0:125|n|{SUBMITTED}|batch\n"
        f"7_0|RUNNING|0:0|n|{SUBMITTED + 60}|somebody's\n"
    )
    queue = f"7_0|RUNNING|n|None|{SUBMITTED + 60}||somebody's\n"
    assert told(NAMED, queue, rows).reason is Reason.out_of_memory


@pytest.mark.parametrize(
    ("row", "state"),
    [
        (f"PENDING||BeginTime|{SUBMITTED + 900}|{SUBMITTED + 990}|", State.pending),
        (f"PENDING||JobHeldUser|{SUBMITTED + 900}||", State.pending),
        (f"RUNNING|n|None|{SUBMITTED + 900}|{SUBMITTED + 990}|", State.running),
        (f"RUNNING|n|None|{SUBMITTED}|{SUBMITTED + 1}|", State.failed),  # about to end
        (f"COMPLETING|n|None|{SUBMITTED}|{SUBMITTED + 1}|", State.failed),
        (f"FAILED|n|NonZeroExitCode|{SUBMITTED}|{SUBMITTED + 1}|", State.failed),
    ],
)
def test_a_failed_run_whose_job_was_put_back_into_the_queue_is_there(tmp_path, row, state):
    folder = RunsFolder(tmp_path)
    folder.run("a").root.mkdir()
    failed = NAMED.changed(state=State.failed, reason=Reason.error, ended_at="2026-01-01T12:10:00+00:00")
    write_status(folder.run("a"), failed)
    slurm = Slurm(f"7_0|{row}refsam-study-ab12\n", "")
    known, answer = statuses(folder, ["a"], SlurmQuery(slurm))
    assert (known["a"].state, known["a"].reason) == (state, Reason.error if state is State.failed else None)
    assert slurm.calls == ["squeue"]
    assert answer.accounting


def test_where_only_failed_runs_are_looked_at_a_silent_queue_is_no_problem(tmp_path):
    folder = RunsFolder(tmp_path)
    folder.run("a").root.mkdir()
    write_status(folder.run("a"), NAMED.changed(state=State.failed, reason=Reason.error))
    known, answer = statuses(folder, ["a"], SlurmQuery(Slurm(None, None)))
    assert known["a"].state is State.failed
    assert (answer.problems, answer.queue) == ((), False)


def test_of_a_job_that_was_requeued_the_last_start_counts():
    rows = (
        f"7_0|NODE_FAIL|0:0|n|{SUBMITTED}|refsam-study-ab12\n"
        f"7_0.0|OUT_OF_MEMORY|0:125|n|{SUBMITTED}|python\n"
        f"7_0|FAILED|1:0|n|{SUBMITTED + 60}|refsam-study-ab12\n"
        f"7_0.0|FAILED|1:0|n|{SUBMITTED + 60}|python\n"
    )
    assert told(NAMED, "", rows).reason is Reason.error


def test_without_sacct_it_works_and_says_so():
    query = SlurmQuery(Slurm("8_1|RUNNING|n|None|||refsam-\n", None))
    answer = query.ask(jobs("7_0", "8_1"))
    assert answer.problems == (
        "sacct does not answer (Connection refused): reasons are only from the queue and the records",
    )
    gone = with_slurm(RUNNING, answer)
    assert (gone.state, gone.reason) == (State.failed, Reason.lost)
    assert "without sacct the reason is not known" in gone.message


def test_a_whole_sweep_is_one_call_each_and_the_answers_are_kept():
    slurm = Slurm("7_0|RUNNING|n|None|||refsam-\n", "")
    query = SlurmQuery(slurm)
    for _ in range(3):
        query.ask(jobs(*(f"{array}_{task}" for array in (7, 8, 9) for task in range(300))))
    assert slurm.calls == ["squeue", "sacct"]
    query.ask(jobs("10_0"))
    assert len(slurm.calls) == 4
    assert SlurmQuery(slurm).ask([]).jobs == {}
    assert len(slurm.calls) == 4


def test_ranges_of_tasks_are_told_apart():
    assert task_ids("7_[0-2,5%4]") == ["7_0", "7_1", "7_2", "7_5"]
    assert task_ids("7_3") == ["7_3"]
    assert task_ids("7") == ["7"]
    assert set(parse_sacct("7_[1-2%1]|PENDING|0:0|||refsam-\n7_0|RUNNING|0:0|n||refsam-\n")) == {
        "7_0",
        "7_1",
        "7_2",
    }


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("30", 30),
        ("1:30", 2),
        ("2:00:00", 120),
        ("2-00:00:00", 2880),
        ("1-12", 2160),
        ("1-00:30", 1470),
        ("0:10:00", 10),
    ],
)
def test_times_are_read_as_slurm_reads_them(time, expected):
    assert minutes(time) == expected


@pytest.mark.parametrize("time", ["", "two days", "0", "1:2:3:4", "-1", "1\n"])
def test_other_times_are_refused(time):
    with pytest.raises(ConfigError, match=r"resource\.request\.time"):
        minutes(time)


class Run:
    config = RefsamConfig()

    def __init__(self, run_id):
        self.run_id = run_id


def some_parameters(request=None, **cluster):
    request = request or RequestConfig(partition="gpu", gpu="V100", gpus=1, cores=8, memory_gb=32, time="60")
    runs = [Run(f"vit_b-lora-n{number}") for number in range(200)]
    return parameters(request, ClusterConfig(**cluster), runs, "study", "refsam-study-1")


def test_a_comment_is_no_longer_than_slurm_takes():
    comment = some_parameters()["comment"]
    assert comment.startswith("refsam sweep study: vit_b-lora-n0 vit_b-lora-n1 ")
    assert len(comment) == COMMENT_LENGTH


@pytest.mark.parametrize("field", ["account", "qos", "constraint", "exclude"])
def test_a_line_break_never_reaches_a_job_script(field):
    with pytest.raises(ConfigError, match=field):
        some_parameters(**{field: "a\ntouch executed"})


def test_a_template_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(
        ConfigError, match=r"cluster\.template must be default, .*got sccc \(did you mean scc\?\)"
    ):
        prologue("sccc")


def test_a_run_that_ends_between_the_two_looks_is_completed(tmp_path):
    folder = RunsFolder(tmp_path)
    paths = folder.run("a")
    paths.root.mkdir()
    write_status(paths, RUNNING)

    def slurm(command):
        write_status(paths, RUNNING.changed(state=State.completed))
        return "" if command[0] == "squeue" else "7_0|COMPLETED|0:0|n||refsam-\n"

    known, _ = statuses(folder, ["a"], SlurmQuery(slurm))
    assert known["a"].state is State.completed


def test_a_damaged_record_is_a_run_to_be_started_with_the_reason(tmp_path):
    folder = RunsFolder(tmp_path)
    folder.run("a").root.mkdir()
    folder.run("a").status.write_text("{")
    known, _ = statuses(folder, ["a"], SlurmQuery(Slurm("", "")))
    assert known["a"].state is State.planned
    assert "status.json is damaged" in known["a"].message
