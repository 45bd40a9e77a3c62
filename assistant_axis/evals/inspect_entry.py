"""What Inspect finds through its entry point: the provider `assistant_axis`, loaded when a model of it is asked for."""

from inspect_ai.model import ModelAPI, modelapi


@modelapi(name="assistant_axis")
def assistant_axis() -> type[ModelAPI]:
    """`inspect eval TASK --model assistant_axis/smollm2-135m-instruct -M cap=cap.safetensors`."""
    from assistant_axis.evals.inspect_provider import AssistantAxisAPI

    return AssistantAxisAPI
