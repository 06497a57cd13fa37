"""Options of the diffusers schedulers that support flow matching (arXiv 2209.03003, arXiv 2403.03206)."""

from collections.abc import Mapping
from typing import Any

from .pipelines.pipeline_fmnist import FLOW_MATCH_SCHEDULERS, FLOW_SOLVERS


def uses_flow_matching(config: Mapping[str, Any]) -> bool:
    """Returns whether the config of a scheduler belongs to a flow-matching model."""
    # The flow-matching schedulers of diffusers have a `shift`, but no `prediction_type`.
    return "shift" in config or config.get("prediction_type") == "flow_prediction"


def get_flow_options(scheduler_class: type[Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """
    Returns the options of a scheduler that keep the prediction type and the shift of a flow-matching model.

    Args:
        scheduler_class (`type`): Class of the scheduler.
        config (`Mapping`): Config of a different scheduler of the same model.

    Returns:
        `dict`: The options; empty if neither the scheduler nor the model uses flow matching.

    Raises:
        `ValueError`: If the scheduler does not support the model.
    """
    flow_matching, only_flow_matching = uses_flow_matching(config), issubclass(scheduler_class, FLOW_MATCH_SCHEDULERS)
    if flow_matching and not issubclass(scheduler_class, FLOW_MATCH_SCHEDULERS + FLOW_SOLVERS):
        raise ValueError(
            f"{scheduler_class.__name__} does not support this flow-matching model. Use a different scheduler, such as"
            " FlowMatchEulerDiscreteScheduler or DPMSolverMultistepScheduler."
        )
    if only_flow_matching and not flow_matching:
        raise ValueError(
            f"{scheduler_class.__name__} does not support this model, which was not trained with flow matching. Use a"
            " different scheduler, such as DPMSolverMultistepScheduler."
        )
    if not flow_matching:
        return {}
    shift = config.get("shift", config.get("flow_shift", 1.0))
    if only_flow_matching:
        return {"shift": shift}
    return {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
