"""The pipeline as a Dagster component: another project adds it with a YAML file.

.. code-block:: yaml

    type: batch_pipeline.BatchPipelineComponent
    attributes:
      settings:
        analyzer: ollama
        vision_model: qwen3-vl:8b-instruct
"""

from collections.abc import Set
from difflib import get_close_matches
from typing import Any

import dagster as dg
from pydantic import Field

from batch_pipeline.errors import ConfigurationError
from batch_pipeline.masking import masked
from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.resources import RUN_SETTINGS
from batch_pipeline.settings import ENVIRONMENT_PREFIX, Settings, load_settings


class BatchPipelineComponent(dg.Component, dg.Model, dg.Resolvable):
    """Turns batches of uploaded photos and videos into searchable knowledge.

    Adds the job ``process_batch``, the sensor and the schedule that launch it, and the assets that
    show its progress. Settings that are not in the YAML file come from the environment
    (``BATCH_PIPELINE_*``). Secrets, such as a database password, belong there.
    """

    settings: dict[str, Any] = Field(
        default={},
        description="Settings of the pipeline by name, in lower case, as in docs/settings.md "
        "without the prefix.",
    )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Build the definitions.

        Raises:
            ConfigurationError: there is no setting of this name, the setting is a secret or
                contains a password, or its value is not valid.
        """
        del context
        for name in sorted(self.settings.keys() - Settings.model_fields.keys()):
            near = get_close_matches(name, Settings.model_fields, n=1)
            meant = f"did you mean {near[0]}?" if near else "docs/settings.md lists all"
            raise ConfigurationError(f"BatchPipelineComponent has no setting {name}: {meant}")
        _require_no_secrets(self.settings.keys() - RUN_SETTINGS.keys())
        settings = load_settings(**self.settings)  # passwords in URLs are masked from here on
        given = {name: str(value) for name, value in self.settings.items()}
        _require_no_secrets({name for name, value in given.items() if masked(value) != value})
        return build_definitions(settings, overrides=self.settings)


def _require_no_secrets(names: Set[str]) -> None:
    if names:
        raise ConfigurationError(
            f"BatchPipelineComponent does not take the secret in {', '.join(sorted(names))}: pages "
            "of Dagster would show it; set it in the environment, "
            + ", ".join(f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in sorted(names))
        )
