"""The further options of sbatch that a configuration gives (cluster.extra)."""

import re

from refsam.errors import ConfigError

# What refsam sets from the configuration, or what would make a job another thing than an array of runs.
_OWN = {
    "account": "cluster.account",
    "array": "cluster.array_parallelism",
    "constraint": "cluster.constraint",
    "cores-per-socket": "resource.request.cores",
    "cpus-per-task": "resource.request.cores",
    "cpus-per-gpu": "resource.request.cores",
    "exclude": "cluster.exclude",
    "gpus": "resource.request.gpus",
    "gpus-per-node": "resource.request.gpus",
    "gpus-per-socket": "resource.request.gpus",
    "gpus-per-task": "resource.request.gpus",
    "mem": "resource.request.memory_gb",
    "mem-per-cpu": "resource.request.memory_gb",
    "mem-per-gpu": "resource.request.memory_gb",
    "partition": "resource.request.partition",
    "qos": "cluster.qos",
    "signal": "cluster.signal_seconds",
    "time": "resource.request.time",
    **dict.fromkeys(
        (
            *("chdir", "cluster", "clusters", "comment", "dependency", "error", "export", "export-file"),
            *("help", "hold", "input", "job-name", "kill-on-invalid-dep", "no-requeue", "nodes", "ntasks"),
            *("ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket", "open-mode"),
            *("output", "parsable", "quiet", "requeue", "test-only", "uid", "usage", "verbose", "version"),
            *("wait", "wrap"),
        )
    ),
}


def parse_option(option: str) -> tuple[str, str | bool]:
    """Name and value (True where it has none). Raises ConfigError for what cannot be one."""
    field = f"cluster.extra: {option!r} was given"
    if re.fullmatch(r"--[a-z][a-z-]*[a-z](=.+)?", option) is None or not option.isprintable():
        raise ConfigError(f"{field}; expected an option of sbatch in one line, as --name=value or --name")
    name, equals, value = option.removeprefix("--").partition("=")
    # sbatch also takes the beginning of a name.
    own = name if name in _OWN else next((each for each in _OWN if each.startswith(name)), None)
    if own is not None:
        instead = f"; give {_OWN[own]}" if _OWN[own] else ""
        raise ConfigError(f"{field}, but refsam sets --{own} itself{instead}")
    if name == "gres" and re.search(r"(^|,)(gres[/:])?gpu\b", value):
        raise ConfigError(f"{field}, but refsam asks for GPUs itself; give resource.request.gpu and .gpus")
    return name, value if equals else True
