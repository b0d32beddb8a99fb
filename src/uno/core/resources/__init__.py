"""What exists: the resources of this process. Knows nothing of monitoring."""

from uno.core.resources.errors import DuplicateResourceError, ResourceError, UnknownResourceError
from uno.core.resources.manager import ResourceManager
from uno.core.resources.resource import Driver, GoneError, Identity, Resource

__all__ = [
    "Driver",
    "DuplicateResourceError",
    "GoneError",
    "Identity",
    "Resource",
    "ResourceError",
    "ResourceManager",
    "UnknownResourceError",
]
