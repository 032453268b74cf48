"""The resources that refsam ships, their memory and their settings, read without Hydra."""

from refsam.configuration.frozen import from_values
from refsam.configuration.resources import folder
from refsam.configuration.schema import ResourceConfig
from refsam.system.files import read_yaml


def shipped_resources() -> dict[str, ResourceConfig]:
    """The resources of conf/resource by name; other names of the same (`medium`) are left out."""
    files = [read_yaml(path) for path in sorted((folder("conf") / "resource").glob("*.yaml"))]
    found = [from_values(ResourceConfig, values) for values in files if "defaults" not in values]
    return {resource.name: resource for resource in found}
