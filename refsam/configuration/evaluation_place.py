"""Where a run is evaluated: in its own job, or on a resource that `evaluate.where` names."""

from collections.abc import Callable

from hydra.errors import MissingConfigException

from refsam.configuration.schema import OWN_JOB, RefsamConfig, ResourceConfig
from refsam.errors import ConfigError, nearest


def evaluation_resource(where: str, compose: Callable[[str], RefsamConfig]) -> ResourceConfig | None:
    """The resource that `evaluate.where` names; None for `run`.

    Args:
        compose: a configuration with an override that chooses the resource.

    Raises:
        ConfigError: when there is no such resource.
    """
    if where == OWN_JOB:
        return None
    try:
        return compose(f"resource={where}").resource
    except MissingConfigException as error:
        names = list(error.options or ())
        allowed = f"{OWN_JOB}, or one of the resources {', '.join(names)}"
        raise ConfigError(
            f"evaluate.where must be {allowed}, got {where!r}{nearest(where, names)}"
        ) from error


def used_resources(config: RefsamConfig) -> list[ResourceConfig]:
    """The resources that a run works on."""
    return [each for each in (config.resource, config.evaluate.resource) if each is not None]
