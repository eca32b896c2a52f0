"""The plugin: which methods this distribution offers. It is imported at every start: keep it light."""

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterMethod


@hookimpl
def register_kd_losses(register: RegisterMethod) -> None:
    register(
        "js",
        "panda_fusion_example.js:JensenShannon",
        help="Jensen-Shannon divergence at a temperature",
    )


@hookimpl
def register_peft_methods(register: RegisterMethod) -> None:
    register(
        "layer-affine",
        "panda_fusion_example.layer_affine:LayerAffine",
        help="a trained scale and shift of every layer's output",
    )
