"""Builds the resources object of a step once for all steps that need the same resources.

Dagster makes a new class (a named tuple) for it four times per step. That takes a seventh of the
processor time of a step that does nothing.
"""

from collections.abc import Set as AbstractSet

from dagster import IAttachDifferentObjectToOpContext

from batch_pipeline.executor.dagster_internals import Resources, ScopedResourcesBuilder


class SharedResourcesBuilder(ScopedResourcesBuilder):
    """Builds the same as Dagster's builder; thread-safe."""

    def __init__(self, *_: object) -> None:
        self._built: dict[frozenset[str], Resources] = {}

    @classmethod
    def of(cls, builder: ScopedResourcesBuilder) -> "SharedResourcesBuilder":
        """Create a builder with the resources of a run."""
        return cls(builder.resource_instance_dict, builder.contains_generator)

    def build(self, required_resource_keys: AbstractSet[str] | None) -> Resources:
        """Return the resources that a step needs."""
        keys = frozenset(required_resource_keys or ())
        if keys not in self._built:
            resources = super().build(required_resource_keys)
            # Some resources give every step its own object, so those are not shared.
            if any(
                isinstance(resource, IAttachDifferentObjectToOpContext)
                for key, resource in self.resource_instance_dict.items()
                if key in keys
            ):
                return resources
            self._built[keys] = resources
        return self._built[keys]
