"""What the site's Slurm has and allows: partitions, nodes, sizes of arrays, numbers of jobs. It is asked."""

import getpass
import re
from collections.abc import Sequence
from dataclasses import dataclass

from refsam.configuration.schema import ClusterConfig, RequestConfig
from refsam.errors import SlurmUnavailable, nearest
from refsam.orchestration.slurm.environment import chosen
from refsam.orchestration.slurm.patience import Say, patiently
from refsam.orchestration.slurm.questions import run_command
from refsam.orchestration.slurm.requests import minutes

MIB_PER_GIB = 1024
# The words for the state of a node that can be given jobs, now or when its present ones have ended.
IN_SERVICE = frozenset(
    ("IDLE", "MIXED", "ALLOCATED", "COMPLETING", "PLANNED", "RESERVED", "MAINTENANCE", "CLOUD")
) | {"DYNAMIC_NORM", "POWERED_DOWN", "POWERING_UP"}


@dataclass(frozen=True)
class Partition:
    """`minutes` is the longest time that a job may ask for; None: any."""

    name: str
    default: bool
    minutes: int | None
    time: str


@dataclass(frozen=True)
class Node:
    """What one node has, whatever its state.

    Attributes:
        gpus: number by type in lower case; the empty type is one without a name.
        state: in Slurm's words: IDLE, MIXED+DRAIN, DOWN*.
    """

    name: str
    partitions: frozenset[str]
    cores: int
    memory_mib: int
    gpus: dict[str, int]
    state: str

    @property
    def in_service(self) -> bool:
        """Whether Slurm counts on it; not while it is drained, down, unknown or silent (the star)."""
        return set(self.state.split("+")) <= IN_SERVICE

    @property
    def size(self) -> tuple[int, int]:
        """Cores, and GiB of memory."""
        return self.cores, self.memory_mib // MIB_PER_GIB


@dataclass(frozen=True)
class QueueLimits:
    """Of submissions: runs in one array, and jobs of this user in the queue (None: no limit is known)."""

    array: int
    jobs: int | None


def partitions() -> list[Partition]:
    """Raises SlurmUnavailable."""
    return parse_partitions(run_command(["scontrol", "show", "partition", "--oneliner"]))


def nodes() -> list[Node]:
    """Raises SlurmUnavailable."""
    return parse_nodes(run_command(["scontrol", "show", "node", "--oneliner"]))


def parse_partitions(text: str) -> list[Partition]:
    """From the lines of scontrol show partition --oneliner."""
    found = []
    for line in text.splitlines():
        time = _value(line, "MaxTime")
        limited = re.fullmatch(r"[\d:-]+", time) is not None  # not UNLIMITED
        found.append(
            Partition(
                name=_value(line, "PartitionName"),
                default=_value(line, "Default") == "YES",
                minutes=minutes(time) if limited else None,
                time=time,
            )
        )
    return found


def parse_nodes(text: str) -> list[Node]:
    """From the lines of scontrol show node --oneliner."""
    return [
        Node(
            name=_value(line, "NodeName"),
            partitions=frozenset(_value(line, "Partitions").split(",")),
            cores=int(_value(line, "CPUTot") or 0),
            memory_mib=int(_value(line, "RealMemory") or 0),
            gpus=_gpus(_value(line, "Gres")),
            state=_value(line, "State"),
        )
        for line in text.splitlines()
        if _value(line, "NodeName")
    ]


def request_problem(
    request: RequestConfig, partitions: Sequence[Partition], nodes: Sequence[Node]
) -> str | None:
    """Why no node of the site can ever take a job with this request, in one sentence; None: one can."""
    named = {partition.name: partition for partition in partitions}
    name = _partition_name(request, partitions)
    if name is None:
        return "resource.request.partition=null, but the site has no default partition"
    if name not in named:
        return (
            f"resource.request.partition must be one of {', '.join(sorted(named))}, got {name}"
            f"{nearest(name, named)}"
        )
    partition = named[name]
    if partition.minutes is not None and minutes(request.time) > partition.minutes:
        return _time_problem(request, name, partition.time)
    members = [node for node in nodes if name in node.partitions]
    if not members:
        return None  # of nodes that scontrol does not show nobody knows
    return _hardware_problem(request, name, members)


def out_of_service(
    request: RequestConfig, partitions: Sequence[Partition], nodes: Sequence[Node]
) -> list[Node]:
    """The nodes that could take a job with this request, but for their state."""
    name = _partition_name(request, partitions)
    return [
        node
        for node in nodes
        if not node.in_service
        and name in node.partitions
        and request_problem(request, partitions, [node]) is None
    ]


def _partition_name(request: RequestConfig, partitions: Sequence[Partition]) -> str | None:
    default = next((partition.name for partition in partitions if partition.default), None)
    return request.partition or chosen("partition") or default


def unasked_problem(request: RequestConfig, cluster: ClusterConfig) -> str | None:
    """The same by what the configuration says of the site, where scontrol does not answer."""
    limit = cluster.max_times.get(request.partition or "")
    if limit is None or minutes(request.time) <= minutes(limit):
        return None
    return _time_problem(request, str(request.partition), limit)


def _time_problem(request: RequestConfig, partition: str, limit: str) -> str:
    return f"resource.request.time must be at most {limit} in partition {partition}, got {request.time}"


def _hardware_problem(request: RequestConfig, partition: str, nodes: Sequence[Node]) -> str | None:
    """What is asked for and on no node of the partition, narrowed down GPU first, then cores, then memory."""
    if request.gpus:
        word = f"{request.gpus} × {request.gpu or 'GPU'}"
        kinds = sorted(
            {f"{number} × {kind.upper() or 'GPU'}" for node in nodes for kind, number in node.gpus.items()}
        )
        nodes = [node for node in nodes if _gpus_of(node, request.gpu) >= request.gpus]
        if not nodes:
            there = f"its nodes have {', '.join(kinds)}" if kinds else "its nodes have no GPU"
            return f"resource.request.gpu={word}, but in partition {partition} {there}"
    fields = (("cores", request.cores, "cores"), ("memory_gb", request.memory_gb, "GiB"))
    for index, (field, wanted, unit) in enumerate(fields):
        largest = max(node.size[index] for node in nodes)
        if wanted is not None and wanted > largest:
            return (
                f"resource.request.{field} must be at most {largest} {unit} in partition {partition}"
                f"{f' with {request.gpu}' if request.gpu else ''}, got {wanted}"
            )
        nodes = [node for node in nodes if wanted is None or node.size[index] >= wanted]
    return None


def _gpus_of(node: Node, kind: str | None) -> int:
    return sum(node.gpus.values()) if kind is None else node.gpus.get(kind.lower(), 0)


def limits(cluster: ClusterConfig, say: Say) -> QueueLimits:
    """What may be submitted, the smaller of what Slurm and the configuration tell.

    Raises SlurmUnavailable where neither tells how large an array may be.
    """
    known = [
        number for number in (cluster.max_submit_jobs, _max_submit_jobs(cluster, say)) if number is not None
    ]
    try:
        array = max_array_size(say)
    except SlurmUnavailable:
        if cluster.max_array_size is None:
            raise
        array = cluster.max_array_size
    return QueueLimits(min(array, cluster.max_array_size or array), min(known, default=None))


def jobs_in_queue(say: Say) -> int:
    """How many jobs and array tasks this user has in the queue. Raises SlurmUnavailable."""
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i"]
    return len(patiently(lambda: run_command(command), say).split())


def max_array_size(say: Say) -> int:
    """How many tasks an array may have. Raises SlurmUnavailable."""
    for line in patiently(lambda: run_command(["scontrol", "show", "config"]), say).splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))
    raise SlurmUnavailable("scontrol show config names no MaxArraySize; give cluster.max_array_size")


def _max_submit_jobs(cluster: ClusterConfig, say: Say) -> int | None:
    """How many jobs this user may have in the queue, of his account or QOS; None where there is no limit."""
    fields = "format=DefaultAccount,Account,MaxSubmitJobs,DefaultQOS"
    user = ["sacctmgr", "--noheader", "--parsable2", "show", "user", getpass.getuser(), "withassoc", fields]
    qos = ["sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=Name,MaxSubmitJobsPerUser"]
    try:
        account, quality = cluster.account or chosen("account"), cluster.qos or chosen("qos")
        return parse_max_submit_jobs(run_command(user), run_command(qos), account, quality)
    except SlurmUnavailable as error:
        say(f"sacctmgr does not answer ({error}): only cluster.max_submit_jobs limits the jobs")
        return None


def parse_max_submit_jobs(user: str, qos: str, account: str | None, quality: str | None) -> int | None:
    """The smaller one of the association's and the QOS's limit.

    Args:
        user: lines of default account|account|limit|default QOS.
        qos: lines of name|limit.
        account: that is asked for; None: the user's default.
        quality: QOS that is asked for; None: the association's default.
    """
    found = []
    for line in user.splitlines():
        default_account, of_account, limit, default_qos = line.split("|")
        if of_account == (account or default_account):
            found.append(limit)
            quality = quality or default_qos or "normal"
    found += [limit for name, limit in (line.split("|") for line in qos.splitlines()) if name == quality]
    return min((int(limit) for limit in found if limit.isdigit()), default=None)


def _value(line: str, key: str) -> str:
    """The value of `key=value` in a line of scontrol; empty where it is not in it."""
    match = re.search(rf"(?:^|\s){key}=(\S*)", line)
    return match[1] if match else ""


def _gpus(gres: str) -> dict[str, int]:
    """Numbers by type of `gpu:V100:2(S:0-1),gpu:4`."""
    counts: dict[str, int] = {}
    for kind, number in re.findall(r"gpu(?::([^:,()]*[^:,()\d][^:,()]*))?:(\d+)", gres):
        counts[kind.lower()] = counts.get(kind.lower(), 0) + int(number)
    return counts
