"""Puts the resources of a step together once for all steps that ask for the same ones.

Dagster makes a new class (a named tuple) for that, four times per step: a seventh of the processor
time of a step that does nothing.
"""

from collections.abc import Set as AbstractSet

from dagster import IAttachDifferentObjectToOpContext

from batch_pipeline.dagster_internals import Resources, ScopedResourcesBuilder


class SharedResourcesBuilder(ScopedResourcesBuilder):
    """Builds what Dagster's builder does; safe under threads."""

    def __init__(self, *_: object) -> None:
        self._built: dict[frozenset[str], Resources] = {}

    @classmethod
    def of(cls, builder: ScopedResourcesBuilder) -> "SharedResourcesBuilder":
        """Take over the resources of a run."""
        return cls(builder.resource_instance_dict, builder.contains_generator)

    def build(self, required_resource_keys: AbstractSet[str] | None) -> Resources:
        """Hand out the resources that a step asks for."""
        keys = frozenset(required_resource_keys or ())
        if keys not in self._built:
            resources = super().build(required_resource_keys)
            # Some resources hand out an object of its own to every step.
            if any(
                isinstance(resource, IAttachDifferentObjectToOpContext)
                for key, resource in self.resource_instance_dict.items()
                if key in keys
            ):
                return resources
            self._built[keys] = resources
        return self._built[keys]
